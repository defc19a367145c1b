"""Matrices over positions as heat maps: rows are query positions (children), columns key positions (parents)."""

from collections.abc import Mapping
from textwrap import fill

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PatchCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.style import BLACK, TRUE_EDGE, Matrix, check_positions, new_axes, new_grid, to_numpy
from causal_circuits.graphs import attention_cells, has_query
from causal_circuits.interventions import KnockOut

SEQUENTIAL, DIVERGING = "Blues", "RdBu_r"
SMALL_FROM = 6  # patterns side by side


@check_arguments
def plot_attention_and_graph(
    attention: Matrix, graph: nx.DiGraph, ax: Axes | None = None, title: str = "Attention and the true graph"
) -> Axes:
    """One heat map cell for each attention weight, one open square for each true edge (`attention_cells`).

    Args:
        attention: [query_pos, key_pos], weights in 0 .. 1; nothing is drawn above the diagonal.
        graph: the true graph, over the same positions.
        ax: where to draw; None makes a figure (`ax.figure`).

    >>> plot_attention_and_graph(np.tril(np.ones((4, 4))) / 4, cc.chain_graph(4), title="uniform").get_title()
    'uniform'
    """
    return _heat_map(to_numpy(attention), graph, new_axes(ax, 5.6, 4.6), title, "attention weight", (0.0, 1.0))


@check_arguments
def plot_attentions(attentions: Mapping[str, Matrix], graph: nx.DiGraph | Mapping[str, nx.DiGraph]) -> Figure:
    """Attention patterns (heads, steps, models) side by side, true edges outlined; from six on as small panels.

    Args:
        attentions: title -> [query_pos, key_pos].
        graph: whose edges to outline; of several models title -> graph.

    >>> uniform = np.tril(np.ones((4, 4))) / np.arange(1, 5)[:, None]
    >>> len(plot_attentions({"head 0": uniform, "head 1": uniform}, cc.chain_graph(4)).axes) >= 2
    True
    """
    if not attentions:
        raise ValueError("at least one attention pattern is needed: got none")
    graphs = graph if isinstance(graph, Mapping) else dict.fromkeys(attentions, graph)
    if len(attentions) >= SMALL_FROM:
        return _small_panels(attentions, graphs)
    size = (5.4, 4.9) if len(attentions) < 3 else (4.2, 3.9)
    figure, axes = new_grid(len(attentions), min(len(attentions), 3), *size)
    for ax, (title, attention) in zip(axes, attentions.items(), strict=True):
        plot_attention_and_graph(attention, graphs[title], ax=ax, title=title)
    return figure


@check_arguments
def plot_matrix(
    matrix: Matrix,
    graph: nx.DiGraph | None = None,
    ax: Axes | None = None,
    title: str = "",
    label: str = "",
    diverging: bool = False,
    largest: float | None = None,
) -> Axes:
    """The lower triangle of any matrix over positions, with a colour bar, and open squares at the true edges.

    Args:
        matrix: [query_pos, key_pos]; NaN and everything above the diagonal stay blank.
        graph: whose edges to outline; None outlines nothing.
        label: of the colour bar, with the unit.
        diverging: a scale symmetric about 0, white at 0 (for signed quantities); otherwise smallest to largest.
        largest: end of a diverging scale, for matrices that are to be compared; None: the largest that is drawn.

    >>> plot_matrix(np.eye(4, k=-1), cc.chain_graph(4), title="edges", label="nats").get_title()
    'edges'
    """
    values = to_numpy(matrix)
    check_positions(values, graph)
    if not np.isfinite(values[np.tril_indices(len(values))]).any():
        raise ValueError("a matrix needs a finite entry on or below its diagonal to be drawn: got none")
    ax = new_axes(ax, 5.6, 4.6)
    limits = _limits(values, diverging) if largest is None else (-largest, largest)
    return _heat_map(values, graph, ax, title, label, limits, diverging)


@check_arguments
def plot_knock_out(knock_out: KnockOut, graph: nx.DiGraph, head: int | None = None, ax: Axes | None = None) -> Axes:
    """What cutting each attention entry costs, against the adjacency of the true graph (open squares).

    The last row is left blank: every prediction needs it, and its effects would drown the others' colours.

    Args:
        knock_out: from `knock_out_edges`.
        graph: the true graph.
        head: of the layer; None takes for each entry the head whose cut costs most.

    >>> ax = cc.figures.plot_knock_out(cc.knock_out_edges(model, batch), task.graph)
    >>> len(ax.images) + len(ax.collections) > 0
    True
    """
    effect = to_numpy(knock_out.effect)
    if head is not None and not 0 <= head < len(effect):
        raise ValueError(f"the knock-out is of heads 0 .. {len(effect) - 1}: got head {head}")
    shown = np.fmax.reduce(effect if head is None else effect[[head]], axis=0)
    shown[-1] = np.nan
    only = 0 if len(effect) == 1 else head
    which = "any head" if only is None else f"L{knock_out.layer}H{only}"
    unit = "nats above the whole model" if knock_out.metric == "loss" else f"change of {knock_out.metric}"
    return plot_matrix(shown, graph, ax, f"Cost of cutting one entry of {which}", unit, diverging=True)


def _small_panels(attentions: Mapping[str, Matrix], graphs: Mapping[str, nx.DiGraph]) -> Figure:
    """Six to a row, with one colour bar."""
    lines = max(title.count("\n") for title in attentions)
    figure, axes = new_grid(len(attentions), 6, 1.94, 2.2 + 0.2 * lines)
    for ax, (title, matrix) in zip(axes, attentions.items(), strict=True):
        check_positions(values := to_numpy(matrix), graphs[title])
        image = _draw(ax, values, (0.0, 1.0), SEQUENTIAL)
        _outline_true_edges(ax, graphs[title], TRUE_EDGE, thin=0.6)
        ax.set_title(title, fontsize="medium")
        _position_ticks(ax, 4)
    figure.supxlabel("key position (parent)", fontsize="medium")
    figure.supylabel("query position (child)", fontsize="medium")
    figure.colorbar(image, ax=axes, label="attention weight", fraction=0.03, pad=0.01, shrink=0.85)
    return figure


def gradient_on_its_scale(values: np.ndarray, graph: nx.DiGraph) -> tuple[np.ndarray, str]:
    """A gradient over its largest entry, the query's row left out, and that entry in words."""
    values = _without_query(values, graph)
    largest = _limits(values, diverging=True)[1]
    return values / largest, f"largest {largest:.1e}" if np.nanmax(np.abs(values)) > 0 else "zero everywhere"


def _without_query(values: np.ndarray, graph: nx.DiGraph) -> np.ndarray:
    """The query's row blank: it has no parent, and its entries would drown the others' colours."""
    check_positions(values, graph)
    shown = values.copy()
    if has_query(graph):
        shown[-1] = np.nan
    return shown


def _limits(values: np.ndarray, diverging: bool) -> tuple[float, float]:
    """The colour scale's ends over the cells that are drawn."""
    drawn = values[np.tril_indices(len(values))]
    drawn = drawn[np.isfinite(drawn)]
    if diverging:
        largest = float(np.abs(drawn).max(initial=0.0)) or 1.0
        return -largest, largest
    low, high = float(drawn.min()), float(drawn.max())
    return low, high if high > low else low + 1.0


def _heat_map(
    values: np.ndarray,
    graph: nx.DiGraph | None,
    ax: Axes,
    title: str,
    label: str,
    limits: tuple[float, float],
    diverging: bool = False,
) -> Axes:
    check_positions(values, graph)
    image = _draw(ax, values, limits, DIVERGING if diverging else SEQUENTIAL)
    ax.set_title(fill(title, 46))
    ax.set_xlabel("key position (parent)")
    ax.set_ylabel("query position (child)")
    _position_ticks(ax, 10)
    if graph is not None:
        colour = BLACK if diverging else TRUE_EDGE
        if _outline_true_edges(ax, graph, colour):
            handle = Rectangle((0, 0), 1, 1, facecolor="none", edgecolor=colour, linewidth=1.4)
            ax.legend([handle], ["true edge"], loc="upper right", frameon=False)
    figure = ax.get_figure()
    if figure is not None:
        figure.colorbar(image, ax=ax, label=label, fraction=0.046, pad=0.03)
    return ax


def _draw(ax: Axes, values: np.ndarray, limits: tuple[float, float], colours: str) -> AxesImage:
    hidden = np.triu(np.ones_like(values, dtype=bool), 1) | ~np.isfinite(values)
    shown = np.ma.masked_array(values, mask=hidden)
    return ax.imshow(shown, cmap=colours, vmin=limits[0], vmax=limits[1], interpolation="nearest", aspect="equal")


def _position_ticks(ax: Axes, at_most: int) -> None:
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(at_most, integer=True))


def _outline_true_edges(ax: Axes, graph: nx.DiGraph, colour: str, thin: float = 1.0) -> bool:
    """One open square a true edge, with a white rim so that it shows on any cell; whether there is any."""
    cells = attention_cells(graph)
    squares = [Rectangle((key - 0.5, query - 0.5), 1.0, 1.0) for query, key in cells]
    width = thin * float(np.clip(30 / max(graph.number_of_nodes(), 1), 0.5, 1.6))
    outlines = PatchCollection(squares, facecolor="none", edgecolor=colour, linewidth=width, zorder=3)
    outlines.set_path_effects([withStroke(linewidth=1.3 * width + 0.6, foreground="white")])
    outlines.set_gid("true-edges")
    outlines.set_label("true edge")
    ax.add_collection(outlines, autolim=False)
    return bool(cells)
