"""Weights by residual slot, attention of several heads beside the truth, and attention to the parent by position."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

import networkx as nx
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.matrices import DIVERGING, plot_attention_and_graph
from causal_circuits.figures.style import BLACK, GREY, SERIES, SMALL, Matrix, new_axes, to_numpy

SlotSizes = Sequence[tuple[str, int]]
_MARKERS = ("o", "s", "^", "D")


@check_arguments
@dataclass(frozen=True, eq=False)
class WeightBlocks:
    """A weight matrix whose rows and columns fall into named slots.

    Attributes:
        title: what it is.
        matrix: [rows, columns].
        rows, columns: (slot, size) in order; the sizes add up to the matrix's.
        row_label, column_label: what the two axes are: "query", "key", ...

    >>> import numpy as np
    >>> slots = [("token", 2), ("position", 3)]
    >>> WeightBlocks("A1", np.zeros((5, 5)), rows=slots, columns=slots).title
    'A1'
    """

    title: str
    matrix: Float[Tensor, "rows columns"] | Float[np.ndarray, "rows columns"]
    rows: SlotSizes
    columns: SlotSizes
    row_label: str = "query"
    column_label: str = "key"


@check_arguments
def plot_weight_blocks(blocks: WeightBlocks, ax: Axes | None = None) -> Axes:
    """A heat map, white at zero, with a line between neighbouring slots and each slot's name at its middle.

    >>> import numpy as np
    >>> slots = [("token", 2), ("position", 3)]
    >>> plot_weight_blocks(WeightBlocks("A1", np.eye(5), rows=slots, columns=slots)).get_title()
    'A1'
    """
    ax = new_axes(ax, 5.6, 4.8)
    values = to_numpy(blocks.matrix)
    sizes = tuple(sum(size for _, size in slots) for slots in (blocks.rows, blocks.columns))
    if values.shape != sizes:
        raise ValueError(f"slots must cover the matrix: slots of {sizes}, a matrix of {values.shape}")
    largest = float(np.abs(values).max()) or 1.0
    image = ax.imshow(
        values, cmap=DIVERGING, vmin=-largest, vmax=largest, interpolation="nearest", aspect="auto", origin="upper"
    )
    for axis, slots, draw_line in (
        (ax.xaxis, blocks.columns, ax.axvline),
        (ax.yaxis, blocks.rows, ax.axhline),
    ):
        ends = np.cumsum([size for _, size in slots])
        for end in ends[:-1]:
            draw_line(end - 0.5, color=BLACK, linewidth=0.8)
        middles = [end - size / 2 - 0.5 for end, (_, size) in zip(ends, slots, strict=True)]
        axis.set_ticks(middles, [name for name, _ in slots], fontsize=SMALL)
        axis.set_tick_params(length=0)
    if len(blocks.columns) > 2:
        ax.tick_params(axis="x", labelrotation=30)
    ax.set_xlabel(blocks.column_label)
    ax.set_ylabel(blocks.row_label)
    ax.set_title(fill(blocks.title, 44), fontsize=10)
    figure = ax.get_figure()
    if figure is not None:
        figure.colorbar(image, ax=ax, label="weight", fraction=0.046, pad=0.03)
    return ax


@check_arguments
def plot_weight_panels(panels: Sequence[WeightBlocks], n_columns: int = 2) -> Figure:
    """Several weight matrices side by side, each on its own scale.

    >>> import numpy as np
    >>> slots = [("token", 2), ("position", 3)]
    >>> panels = [WeightBlocks(name, np.eye(5), rows=slots, columns=slots) for name in ("A1", "A2")]
    >>> [ax.get_title() for ax in plot_weight_panels(panels).axes][:2]
    ['A1', 'A2']
    """
    if not panels:
        raise ValueError("panels of weights need at least one matrix: got none")
    if not 1 <= n_columns <= 100:
        raise ValueError(f"n_columns must lie in 1 .. 100: got {n_columns}")
    n_rows = -(-len(panels) // n_columns)
    figure = Figure(figsize=(5.6 * n_columns, 4.8 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, panel in zip(axes.flat, panels, strict=False):
        plot_weight_blocks(panel, ax=ax)
    return figure


@check_arguments
def plot_attentions(attentions: Mapping[str, Matrix], graph: nx.DiGraph) -> Figure:
    """Attention patterns (heads, or two ways to read one) side by side, the graph's edges outlined in each.

    Args:
        attentions: title -> [query_pos, key_pos].
        graph: whose edges to outline.

    >>> import numpy as np
    >>> from causal_circuits import chain_graph
    >>> uniform = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    >>> len(plot_attentions({"head 0": uniform, "head 1": uniform}, chain_graph(4)).axes) >= 2
    True
    """
    if not attentions:
        raise ValueError("at least one attention pattern is needed: got none")
    figure = Figure(figsize=(5.4 * len(attentions), 4.9), layout="constrained")
    axes = figure.subplots(1, len(attentions), squeeze=False)
    for ax, (title, attention) in zip(axes.flat, attentions.items(), strict=True):
        plot_attention_and_graph(attention, graph, ax=ax, title=title)
    return figure


@check_arguments
def plot_attention_by_position(
    points: Mapping[str, Sequence[tuple[int, float]]], *, level: float = 0.5, title: str = "", ax: Axes | None = None
) -> Axes:
    """Attention to the true parent against the child's position, one marker an edge, one kind of marker a series.

    Args:
        points: series -> (child position, weight in 0 .. 1).
        level: of a horizontal line below which an edge counts as not learned.
        title: of the axes.

    >>> ax = plot_attention_by_position({"ours": [(1, 0.98), (2, 0.97)], "theirs": [(1, 0.9), (2, 0.4)]})
    >>> ax.get_legend_handles_labels()[1]
    ['ours', 'theirs']
    """
    ax = new_axes(ax, 7.6, 4.0)
    for k, (name, series) in enumerate(points.items()):
        shift = 0.16 * (k - (len(points) - 1) / 2)
        ax.plot(
            [position + shift for position, _ in series],
            [weight for _, weight in series],
            _MARKERS[k % len(_MARKERS)],
            color=SERIES[k % len(SERIES)],
            markersize=4.5,
            markerfacecolor="none",
            label=name,
        )
    ax.axhline(level, color=GREY, linewidth=0.9, linestyle=":", zorder=0)
    ax.set_ylim(-0.02, 1.03)
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    ax.set_xlabel("position of the child")
    ax.set_ylabel("attention to the true parent")
    ax.set_title(fill(title, 70), fontsize=10)
    ax.legend(loc="upper left", bbox_to_anchor=(0.0, -0.16), frameon=False, fontsize=SMALL, ncols=len(points))
    return ax
