"""What `recover_graph` found in a user's sequences: the graph as arcs, and the evidence for each position."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from causal_circuits.arguments import check_arguments
from causal_circuits.discovery import RecoveredGraph
from causal_circuits.figures.arcs import arcs_axes, draw_arcs, draw_nodes, frame_arcs
from causal_circuits.figures.style import BLACK, GREY, MODEL, SMALL, TRUE_EDGE, legend_above, new_axes
from causal_circuits.graphs import latent_edges, n_ctx_of

_VERDICTS = (
    ("child", "o", MODEL, "child: the parent is named"),
    ("root", "s", GREY, "root: no parent"),
    ("undecided", "X", TRUE_EDGE, "undecided"),
)


@check_arguments
def plot_recovered_graph(recovered: RecoveredGraph, ax: Axes | None = None) -> Axes:
    """An arc for each edge found in a user's sequences; positions that the data cannot decide carry a question mark.

    Args:
        recovered: what `recover_graph` returns.

    >>> batch = task.sample(3000, seed=0)
    >>> found = cc.recover_graph(batch.tokens, batch.target_probs)
    >>> [text.get_text() for text in cc.figures.plot_recovered_graph(found).get_legend().get_texts()]
    ['edge found (4)', 'given (1)', 'root (1)']
    """
    graph, undecided = recovered.graph, recovered.undecided
    n_ctx, edges, ax = n_ctx_of(graph), latent_edges(graph), arcs_axes(ax, graph)
    drawn = draw_nodes(ax, graph, undecided)
    if len(recovered.positions) < n_ctx:  # the last one was taken as a query
        drawn.insert(0, draw_arcs(ax, {(n_ctx - 1, n_ctx)}, "given", colour=GREY, style="-", width=0.8))
    drawn.insert(0, draw_arcs(ax, edges, "edge found", colour=MODEL, style="-", width=1.8))
    if undecided:
        look = {"mfc": "white", "mec": TRUE_EDGE, "markersize": 9, "label": f"undecided ({len(undecided)})"}
        drawn += ax.plot(undecided, [0] * len(undecided), "o", zorder=4, **look)  # type: ignore[arg-type]
        for position in undecided:
            ax.annotate("?", (position, 0), ha="center", va="center", fontsize=SMALL - 1, color=TRUE_EDGE, zorder=5)
    frame_arcs(ax, graph, edges, set())
    legend_above(ax, ncols=5, handles=drawn)
    return ax


@check_arguments
def plot_recovery(recovered: RecoveredGraph, ax: Axes | None = None) -> Axes:
    """The weight of every position's candidate parent: at 1 it is an edge, at 0 it is nothing; verdicts by marker.

    Args:
        recovered: what `recover_graph` returns. Positions without a known weight are drawn at 0.

    >>> batch = task.sample(3000, seed=0)
    >>> found = cc.recover_graph(batch.tokens, batch.target_probs)
    >>> cc.figures.plot_recovery(found).get_xlabel() != ""
    True
    """
    positions = [p for p in recovered.positions if p.candidate is not None]
    ax = new_axes(ax, float(np.clip(0.3 * len(recovered.positions) + 2, 5.6, 11.0)), 3.8)
    ax.axhline(1.0, color=BLACK, linewidth=0.8, linestyle="--")
    ax.axhline(0.0, color=BLACK, linewidth=0.8, linestyle=":")
    for verdict, marker, colour, name in _VERDICTS:
        chosen = [p for p in positions if p.verdict == verdict]
        x, y = [p.position for p in chosen], [np.nan_to_num(p.weight) for p in chosen]
        label = f"{name} ({len(chosen)})"
        ax.plot(x, y, marker, color=colour, markersize=6, label=label, linestyle="none")
    if len(positions) <= 40:
        for p in positions:
            place = (p.position, float(np.nan_to_num(p.weight)))
            number = ax.annotate(f"{p.candidate}", place, (0, 6), textcoords="offset points", ha="center")
            number.set(fontsize=SMALL - 1, path_effects=[withStroke(linewidth=2.5, foreground="white")])  # over lines
    ax.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    ax.set_xlabel("position (the number above a point is its candidate parent)")
    ax.set_ylabel("score: 0 independent, 1 an edge")
    ax.margins(y=0.18)
    legend_above(ax, ncols=3)
    return ax
