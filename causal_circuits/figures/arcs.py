"""Two causal graphs as one arc diagram: positions on a line, an arc for each edge."""

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from causal_circuits.arguments import check_arguments
from causal_circuits.discovery import RecoveredGraph
from causal_circuits.figures.style import BLACK, GREY, MODEL, SMALL, TRUE_EDGE, new_axes
from causal_circuits.graphs import compare_graphs, has_query, latent_edges, n_ctx_of

Edges = set[tuple[int, int]]


@check_arguments
def plot_graph_comparison(true: nx.DiGraph, found: nx.DiGraph, ax: Axes | None = None) -> Axes:
    """An arc for each edge: solid if found and true, dashed if missing, dash-dotted below the line if false.

    Arcs run from left (parent) to right (child). The legend gives the counts, which are those of `compare_graphs`.
    The edge query -> target is given, not learned, and drawn thin where the true graph has a query.

    Args:
        true, found: graphs over the same positions.

    Raises:
        ValueError: they cover different positions.

    >>> from causal_circuits import chain_graph, pairs_graph
    >>> ax = plot_graph_comparison(chain_graph(6), pairs_graph(6))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['found and true (2)', 'missing (2)', 'false (0)', 'given (1)']
    """
    recovery = compare_graphs(true, found)
    n_ctx = n_ctx_of(true)
    ax = new_axes(ax, float(np.clip(0.3 * n_ctx + 2, 6.0, 11.0)), 3.6)
    missing, false = set(recovery.missing), set(recovery.false)
    _draw_arcs(ax, latent_edges(true) - missing, "found and true", colour=MODEL, style="-", width=1.8)
    _draw_arcs(ax, missing, "missing", colour=TRUE_EDGE, style="--", width=1.6)
    _draw_arcs(ax, false, "false", colour=BLACK, style="-.", width=1.4, side=-1)
    if has_query(true):
        _draw_arcs(ax, {(n_ctx - 1, n_ctx)}, "given", colour=GREY, style="-", width=0.8)
    draw_nodes(ax, true)
    frame_arcs(ax, true, latent_edges(true), false)
    _legend(ax)
    return ax


def arc_points(parent: int, child: int, side: int) -> np.ndarray:
    """[49, 2] points of half an ellipse from parent to child; longer edges are higher, but less than in proportion."""
    angle = np.linspace(np.pi, 0.0, 49)
    radius = (child - parent) / 2
    return np.column_stack(
        [(parent + child) / 2 + radius * np.cos(angle), side * arc_height(parent, child) * np.sin(angle)]
    )


def arc_height(parent: int, child: int) -> float:
    """How high an arc rises, in positions."""
    return float((child - parent) ** 0.7)


def _draw_arcs(ax: Axes, edges: Edges, name: str, *, colour: str, style: str, width: float, side: int = 1) -> None:
    lines = LineCollection(
        [arc_points(*edge, side) for edge in sorted(edges)], colors=colour, linewidths=width, linestyles=style
    )
    lines.set_label(f"{name} ({len(edges)})")
    lines.set_gid(name)
    ax.add_collection(lines, autolim=False)


def draw_nodes(ax: Axes, graph: nx.DiGraph) -> None:
    """A dot a position, hollow squares for query and target, which are named."""
    n_ctx = n_ctx_of(graph)
    special = {n_ctx: "target"} | ({n_ctx - 1: "query"} if has_query(graph) else {})
    plain = [node for node in range(n_ctx) if node not in special]
    ax.plot(plain, [0] * len(plain), "o", color=BLACK, markersize=4 if n_ctx <= 30 else 2.5, zorder=3)
    ax.plot(
        list(special), [0] * len(special), "s", mfc="white", mec=BLACK, markersize=5.5 if n_ctx <= 30 else 4, zorder=3
    )
    for node, name in special.items():
        ax.annotate(
            name,
            (node, 0),
            (0, -7),
            textcoords="offset points",
            ha="center",
            va="top",
            rotation=90,
            fontsize=SMALL,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        )


def frame_arcs(ax: Axes, graph: nx.DiGraph, above: Edges, below: Edges) -> None:
    """Limits around the arcs, a tick a position (or every fifth), no vertical axis: heights mean nothing.

    A tick shows the node's "label" where the graph has one, else its number.
    """
    n_ctx = n_ctx_of(graph)
    top = max([2.0, *(arc_height(*edge) for edge in above)])
    bottom = max([arc_height(*edge) for edge in below], default=0.0)
    ax.set_xlim(-0.8, n_ctx + 0.8)
    ax.set_ylim(-max(bottom, 0.35 * top) * 1.1, top * 1.1)
    ticks = range(0, n_ctx + 1, 1 if n_ctx <= 30 else 5)
    labels = [str(graph.nodes[node].get("label", node)) for node in ticks]
    ax.set_xticks(ticks, labels)
    ax.tick_params(axis="x", labelsize=SMALL, labelrotation=90 if max(map(len, labels)) > 3 else 0)
    ax.set_yticks([])
    for side in ("left", "right", "top"):
        ax.spines[side].set_visible(False)
    ax.set_xlabel("position (edges run from left, the parent, to right, the child)")


def _legend(ax: Axes) -> None:
    """Above the arcs, the kinds of edges and their counts."""
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=SMALL)


@check_arguments
def plot_recovered_graph(recovered: RecoveredGraph, ax: Axes | None = None) -> Axes:
    """An arc for each edge found in a user's sequences; positions that the data cannot decide carry a question mark.

    Args:
        recovered: what `recover_graph` returns.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> batch = task.sample(3000, seed=0)
    >>> found = cc.recover_graph(batch.tokens, batch.target_probs)
    >>> from causal_circuits import figures
    >>> [text.get_text() for text in figures.plot_recovered_graph(found).get_legend().get_texts()]
    ['edge found (4)', 'given (1)']
    """
    graph, undecided = recovered.graph, recovered.undecided
    n_ctx = n_ctx_of(graph)
    ax = new_axes(ax, float(np.clip(0.3 * n_ctx + 2, 6.0, 11.0)), 3.6)
    edges = latent_edges(graph)
    _draw_arcs(ax, edges, "edge found", colour=MODEL, style="-", width=1.8)
    _draw_arcs(ax, {(n_ctx - 1, n_ctx)}, "given", colour=GREY, style="-", width=0.8)
    draw_nodes(ax, graph)
    if undecided:
        label = f"undecided ({len(undecided)})"
        ax.plot(undecided, [0] * len(undecided), "o", mfc="white", mec=TRUE_EDGE, markersize=9, zorder=4, label=label)
        for position in undecided:
            ax.annotate("?", (position, 0), ha="center", va="center", fontsize=SMALL - 1, color=TRUE_EDGE, zorder=5)
    frame_arcs(ax, graph, edges, set())
    _legend(ax)
    return ax
