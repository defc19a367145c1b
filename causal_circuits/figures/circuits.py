"""Circuits as matplotlib axes: the graph, the frontier and each method's distance from it."""

from collections.abc import Mapping, Sequence

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits import Frontier, Ranking, circuit_edges, circuit_mask
from causal_circuits.circuits.graph import Circuit
from causal_circuits.figures.style import BLACK, BLUE, GREY, SMALL, legend_below, look_of, new_axes, to_numpy

_FAINT = "#C8C8C8"
_ROOM = (38.0, 15.0)  # pixels between the middles of two numbers that do not touch, across or down


@check_arguments
def plot_circuit(
    graph: nx.DiGraph,
    circuit: Circuit,
    ax: Axes | None = None,
    title: str = "",
    effects: Mapping[tuple[str, str], float] | None = None,
) -> Axes:
    """The model from the embeddings (left) to the logits (right); edges of the circuit thick, all others faint.

    Args:
        graph: from `circuit_graph`.
        circuit: a part of it.
        title: of the axes.
        effects: (sender, reader) -> what cutting the edge costs (`NeededEdge.effect`, `CircuitModel.effects`);
            written on the edges of the circuit, which are as thick as they are worth.

    >>> graph = cc.circuits.circuit_graph(cc.disentangled_transformer(3, 6))
    >>> plot_circuit(graph, [("position", "L0H0.q"), ("token", "L0H0.v")], title="two edges").get_title()
    'two edges'
    """
    places = _places(graph)
    width = 1 + max(x for x, _ in places.values())
    ax = new_axes(ax, 1.75 * width + 0.6, 4.0)
    edges = circuit_edges(graph)
    kept = circuit_mask(edges, circuit).tolist()
    ax.set_xlim(-0.55, width - 0.45)
    ax.set_ylim(-0.02, 1.02)
    ax.set_axis_off()
    inside = [(a, b) for a, b, kind in graph.edges(data="kind") if kind == "inside"]
    for edge in inside:
        _arrow(ax, places, edge, GREY, 1.0, ":")
    largest = max((abs(value) for value in (effects or {}).values()), default=0.0) or 1.0
    for edge, keep in sorted(zip(edges, kept, strict=True), key=lambda pair: pair[1]):
        effect = (effects or {}).get(edge)
        width = 2.0 if effect is None else 1.0 + 4.0 * abs(effect) / largest
        _arrow(ax, places, edge, BLUE if keep else _FAINT, width if keep else 0.6, "-")
        if keep and effect is not None:
            _write_on(ax, places, edge, f"{effect:.2g}")
    in_use = {node for edge, keep in zip(edges, kept, strict=True) if keep for node in edge}
    for node, (x, y) in places.items():
        shown = {"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": BLACK if node in in_use else _FAINT}
        ax.text(x, y, node, ha="center", va="center", bbox=shown, color=BLACK if node in in_use else GREY, zorder=4)
    handles = [
        Line2D([], [], color=BLUE, linewidth=2, label=f"in the circuit ({sum(kept)})"),
        Line2D([], [], color=_FAINT, linewidth=1, label=f"not in it ({len(kept) - sum(kept)})"),
        Line2D([], [], color=GREY, linestyle=":", label="inside a head"),
    ]
    ax.legend(handles=handles, loc="lower center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False, fontsize=SMALL)
    if title:
        ax.set_title(title)
    return ax


@check_arguments
def plot_frontier(frontier: Frontier, rankings: Sequence[Ranking] = (), ax: Axes | None = None) -> Axes:
    """The least cost for every number of edges, and the cost of each method's circuits: the gap is its regret.

    Args:
        frontier: from `oracle_frontier`; drawn as a thick line.
        rankings: from `rank`; drawn each with a marker of its own, and named with its mean regret.

    >>> task = cc.InContextTask(cc.chain_graph(5), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> whole = cc.circuits.circuit_model(model, task.sample(20, seed=0))
    >>> frontier = cc.circuits.oracle_frontier(whole)
    >>> ranking = cc.circuits.rank(whole, cc.circuits.discover(whole, "exact"), frontier)
    >>> len(cc.figures.plot_frontier(frontier, [ranking]).lines) >= 2
    True
    """
    ax = new_axes(ax, 5.6, 4.8)
    sizes = np.arange(len(frontier.cost))
    name = "the best of all circuits" if frontier.exact else "the best circuit found"
    ax.plot(sizes, to_numpy(frontier.cost), color=BLACK, linewidth=2.6, label=name, zorder=3)
    for k, ranking in enumerate(rankings):
        label = f"{ranking.method.replace('_', ' ')}: mean regret {ranking.mean_regret:.3f}"
        size = max(7.5 - 0.7 * k, 3.0)  # the first shows around those that hide it
        ax.plot(sizes, to_numpy(ranking.cost), markersize=size, linewidth=1.0, label=label, **look_of(k))
    ax.set_xlabel("edges in the circuit (at most)")
    ax.set_ylabel("cost (for the loss: nats)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    legend_below(ax)
    return ax


def _places(graph: nx.DiGraph) -> dict[str, tuple[float, float]]:
    """A column for each stage of the forward pass, its nodes spread from top to bottom."""
    columns: dict[tuple[int, bool, bool], list[str]] = {}
    for node, facts in graph.nodes(data=True):
        columns.setdefault((facts["layer"], "MLP" in node, facts["kind"] == "sender"), []).append(node)
    places = {}
    for column, (_, nodes) in enumerate(sorted(columns.items())):
        for row, node in enumerate(nodes):
            places[node] = (float(column), 1 - (row + 0.5) / len(nodes))
    return places


def _arrow(
    ax: Axes, places: Mapping[str, tuple[float, float]], edge: tuple[str, str], colour: str, width: float, style: str
) -> None:
    """An arrow; the further it reaches, the more it bends, so that it passes the columns between."""
    arrow = {
        "arrowstyle": "-|>",
        "color": colour,
        "linewidth": width,
        "linestyle": style,
        "connectionstyle": f"arc3,rad={_bend(places, edge)}",
        "shrinkA": 16,
        "shrinkB": 16,
    }
    ax.annotate("", places[edge[1]], places[edge[0]], arrowprops=arrow, zorder=2 if width < 1.5 else 3)


def _bend(places: Mapping[str, tuple[float, float]], edge: tuple[str, str]) -> float:
    """Matplotlib's rad of an edge's arc: none between neighbouring columns, else away from the middle."""
    (x0, y0), (x1, y1) = places[edge[0]], places[edge[1]]
    bends_up = y0 >= 0.5 if y1 == 0.5 else y1 > 0.5  # towards its end: past the heads in the middle, not through them
    bend = 0.0 if x1 - x0 <= 1 else 0.1 + 0.02 * (x1 - x0)
    return -bend if bends_up else bend


def _write_on(ax: Axes, places: Mapping[str, tuple[float, float]], edge: tuple[str, str], text: str) -> None:
    """A number on an edge, as near to its reader as other numbers and the nodes leave room; set limits before."""
    start, end = ax.transData.transform([places[edge[0]], places[edge[1]]])
    across = np.array([end[1] - start[1], start[0] - end[0]])
    control = (start + end) / 2 + _bend(places, edge) * across
    reach = places[edge[1]][0] - places[edge[0]][0]
    t = 1 - np.arange(0.36, reach - 0.3, 0.06)[:, None] / reach
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end  # arc3 is a quadratic Bezier curve
    taken = [shown.get_position() for shown in ax.texts if shown.get_gid() == "effect"]
    gaps = np.abs(points[:, None] - ax.transData.transform([*places.values(), *taken])) / _ROOM
    free = gaps.max(axis=2).min(axis=1)  # at least 1: no box touches another
    x, y = ax.transData.inverted().transform(points[np.argmax(np.minimum(free, 1.0))])
    plain = {"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.9}
    ax.text(x, y, text, ha="center", va="center", fontsize=SMALL, bbox=plain, zorder=5, gid="effect")
