"""Two causal graphs as one arc diagram: positions on a line, an arc for each edge."""

from collections.abc import Sequence

import networkx as nx
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.style import BLACK, GREY, MODEL, SMALL, TRUE_EDGE, legend_above, new_axes
from causal_circuits.graphs import compare_graphs, has_query, latent_edges, n_ctx_of
from causal_circuits.graphs.edges import roots_of

Edges = set[tuple[int, int]]


@check_arguments
def plot_graph_comparison(true: nx.DiGraph, found: nx.DiGraph | None = None, ax: Axes | None = None) -> Axes:
    """An arc for each edge: solid if found and true, dashed if missing, dash-dotted below the line if false.

    Arcs run from left (parent) to right (child). The legend gives the counts, which are those of `compare_graphs`.
    The edge query -> target is given, not learned, and drawn thin where the true graph has a query.

    Args:
        true, found: graphs over the same positions; without `found` the true one is drawn alone.

    Raises:
        ValueError: they cover different positions.

    >>> ax = plot_graph_comparison(cc.chain_graph(6), cc.pairs_graph(6))
    >>> [text.get_text() for text in ax.get_legend().get_texts()]
    ['found and true (2)', 'missing (2)', 'false (0)', 'given (1)', 'root (1)']
    """
    recovery, n_ctx = compare_graphs(true, true if found is None else found), n_ctx_of(true)
    ax = arcs_axes(ax, true)
    missing, false = set(recovery.missing), set(recovery.false)
    name = "edge" if found is None else "found and true"
    drawn = [draw_arcs(ax, latent_edges(true) - missing, name, colour=MODEL, style="-", width=1.8)]
    if found is not None:
        drawn.append(draw_arcs(ax, missing, "missing", colour=TRUE_EDGE, style="--", width=1.6))
        drawn.append(draw_arcs(ax, false, "false", colour=BLACK, style="-.", width=1.4, side=-1))
    if has_query(true):
        drawn.append(draw_arcs(ax, {(n_ctx - 1, n_ctx)}, "given", colour=GREY, style="-", width=0.8))
    frame_arcs(ax, true, latent_edges(true), false)
    legend_above(ax, ncols=5, handles=[*drawn, *draw_nodes(ax, true)])
    return ax


def arcs_axes(ax: Axes | None, graph: nx.DiGraph) -> Axes:
    """The axes given, or new ones as wide as the graph needs."""
    return new_axes(ax, float(np.clip(0.3 * n_ctx_of(graph) + 2, 6.0, 11.0)), 3.7)


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


def draw_arcs(
    ax: Axes, edges: Edges, name: str, *, colour: str, style: str, width: float, side: int = 1
) -> LineCollection:
    """Half ellipses above (side 1) or below (-1) the line; the label counts them."""
    lines = LineCollection(
        [arc_points(*edge, side) for edge in sorted(edges)], colors=colour, linewidths=width, linestyles=style
    )
    lines.set_label(f"{name} ({len(edges)})")
    lines.set_gid(name)
    ax.add_collection(lines, autolim=False)
    return lines


def draw_nodes(ax: Axes, graph: nx.DiGraph, undecided: Sequence[int] = ()) -> list[Artist]:
    """A dot a position, a ring a root, hollow squares for query and target, which are named; the legend's entry."""
    n_ctx, size = n_ctx_of(graph), 4.0 if n_ctx_of(graph) <= 30 else 2.5
    special = {n_ctx: "target"} | ({n_ctx - 1: "query"} if has_query(graph) else {})
    roots = [node for node in roots_of(graph) if node not in undecided]
    plain = [node for node in range(n_ctx) if node not in special and node not in roots]
    ax.plot(plain, [0] * len(plain), "o", color=BLACK, markersize=size, zorder=3)
    ax.plot(list(special), [0] * len(special), "s", mfc="white", mec=BLACK, markersize=size + 1.5, zorder=3)
    label = f"root ({len(roots)})"
    rings = ax.plot(roots, [0] * len(roots), "o", mfc="white", mec=BLACK, markersize=size + 1, zorder=3, label=label)
    plain_box = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
    for node, name in special.items():
        look = {"ha": "center", "va": "top", "rotation": 90, "fontsize": SMALL, "bbox": plain_box}
        ax.annotate(name, (node, 0), (0, -7), textcoords="offset points", **look)  # type: ignore[arg-type]
    return list(rings)


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
    ax.spines[["left", "right", "top"]].set_visible(False)
    ax.set_xlabel("position (edges run from left, the parent, to right, the child)")
