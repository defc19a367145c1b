"""Measured gradients of attention scores against the values that mutual information predicts, a point a pair."""

from textwrap import fill

import networkx as nx
import numpy as np
from matplotlib.axes import Axes

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.style import (
    BLACK,
    GREY,
    SMALL,
    TRUE_EDGE,
    Matrix,
    check_positions,
    new_axes,
    to_numpy,
)
from causal_circuits.graphs import edge_entries, has_query


@check_arguments
def plot_gradient_vs_information(
    measured: Matrix,
    predicted: Matrix,
    graph: nx.DiGraph,
    standard_error: Matrix | None = None,
    ax: Axes | None = None,
    title: str | None = None,
    label: str = "predicted g (a pure number)",
) -> Axes:
    """One point for each pair j < i, measured over predicted in the same unit; on the dashed line they are equal.

    The query's row is left out.

    Args:
        measured: [n_ctx, n_ctx]; minus the gradient, times d_vocab n_ctx / beta0 (what `measured_gradient` gives; a
            `Snapshot` of the reduced model is multiplied by it); row i (child), column j.
        predicted: g, from `predicted_gradient` or `finite_context_gradient`, or either through the softmax.
        graph: whose edges to mark.
        standard_error: of `measured`; drawn as bars of two of them on both sides.
        title: say the correlation here; nothing is computed.
        label: of the horizontal axis.

    >>> g = torch.diag(torch.ones(3), -1)
    >>> plot_gradient_vs_information(0.9 * g, g, cc.chain_graph(4), standard_error=0.01 * g).get_xlabel()
    'predicted g (a pure number)'
    """
    ax = new_axes(ax, 5.4, 4.6)
    x, y = to_numpy(predicted), to_numpy(measured)
    error = None if standard_error is None else 2 * to_numpy(standard_error)
    for matrix in (y, x, y if error is None else error):
        check_positions(matrix, graph)
    below, is_edge = np.tril(np.ones(y.shape, dtype=bool), -1), edge_entries(graph)[0]
    if has_query(graph):
        below[-1] = False
    for chosen, name, colour, look in (
        (below & ~is_edge, "other pairs", GREY, {"marker": "o", "s": 14, "color": GREY, "alpha": 0.6}),
        (below & is_edge, "true edges", TRUE_EDGE, {"marker": "s", "s": 28, "fc": "none", "ec": TRUE_EDGE}),
    ):
        if error is not None:
            ax.errorbar(x[chosen], y[chosen], error[chosen], fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.5)
        ax.scatter(x[chosen], y[chosen], label=f"{name} ({int(chosen.sum())})", zorder=3, **look)  # type: ignore[arg-type]
    ends = [float(np.nanmin(x[below], initial=0.0)), float(np.nanmax(x[below], initial=0.0))]
    ax.plot(ends, ends, linestyle="--", color=BLACK, linewidth=0.9, label="measured = predicted", zorder=2)
    ax.set_xlabel(label)
    ax.set_ylabel("minus the gradient, in the unit of g")
    ax.legend(loc="best", frameon=False, fontsize=SMALL)
    if title is not None:
        ax.set_title(fill(title, 52))
    return ax
