"""Gradients beside the information that predicts them, and what recovering a graph from sequences found."""

from collections.abc import Mapping, Sequence
from textwrap import fill

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from causal_circuits.arguments import check_arguments
from causal_circuits.discovery import RecoveredGraph
from causal_circuits.figures.style import (
    BLACK,
    GREY,
    MODEL,
    SERIES,
    SMALL,
    TRUE_EDGE,
    Matrix,
    check_square,
    new_axes,
    to_numpy,
)
from causal_circuits.graphs import attention_cells, has_query
from causal_circuits.information import Formation

_MARKERS, _STYLES = ("o", "s", "^", "D", "v", "P"), ("-", "--", "-.", ":")
_VERDICTS = (
    ("child", "o", MODEL, "child: the parent is named"),
    ("root", "s", GREY, "root: no parent"),
    ("undecided", "X", TRUE_EDGE, "undecided"),
)


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

    Unlike `plot_gradient_and_information`, which takes a raw gradient of any scale, both are in the unit of g.

    Args:
        measured: minus the gradient, times d_vocab n_ctx / beta0 (what `measured_gradient` gives).
        predicted: g, from `predicted_gradient` or `finite_context_gradient`, or either through the softmax.
        graph: whose edges to mark.
        standard_error: of `measured`; drawn as bars of two of them on both sides.
        title: say the correlation here; nothing is computed.
        label: of the horizontal axis.

    >>> import torch
    >>> from causal_circuits import chain_graph
    >>> g = torch.diag(torch.ones(3), -1)
    >>> plot_gradient_vs_information(0.9 * g, g, chain_graph(4), standard_error=0.01 * g).get_xlabel()
    'predicted g (a pure number)'
    """
    ax = new_axes(ax, 5.4, 4.6)
    y, x = to_numpy(measured), to_numpy(predicted)
    error = np.zeros_like(y) if standard_error is None else 2 * to_numpy(standard_error)
    for matrix in (y, x, error):
        check_square(matrix, graph)
    below, is_edge = np.tril(np.ones(y.shape, dtype=bool), -1), np.zeros(y.shape, dtype=bool)
    below[-1] = below[-1] & (not has_query(graph))
    for cell in attention_cells(graph):
        is_edge[cell] = True
    for chosen, marker, colour, name in (
        (below & ~is_edge, "o", GREY, "other pairs"),
        (below & is_edge, "s", TRUE_EDGE, "true edges"),
    ):
        if standard_error is not None:
            ax.errorbar(x[chosen], y[chosen], error[chosen], fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.5)
        size, fill_colour = (12, colour) if marker == "o" else (26, "none")
        text = f"{name} ({int(chosen.sum())})"
        ax.scatter(
            x[chosen], y[chosen], s=size, marker=marker, facecolors=fill_colour, edgecolors=colour, label=text, zorder=3
        )
    ends = [float(np.nanmin(x[below], initial=0.0)), float(np.nanmax(x[below], initial=0.0))]
    ax.plot(ends, ends, linestyle="--", color=BLACK, linewidth=0.9, label="measured = predicted", zorder=2)
    ax.set_xlabel(label)
    ax.set_ylabel("minus the gradient, in the unit of g")
    ax.legend(loc="best", frameon=False, fontsize=SMALL)
    if title is not None:
        ax.set_title(fill(title, 52))
    return ax


@check_arguments
def plot_agreement(
    series: Mapping[str, tuple[Sequence[int | float], Sequence[int | float]]],
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
    title: str | None = None,
    group_size: int = 1,
) -> Axes:
    """A line for each series over a logarithmic axis, beside the horizontal line at 1 that all should reach.

    Args:
        series: name -> (x values, y values), such as context lengths and slopes.
        xlabel, ylabel: with units.
        group_size: so many series in a row share a colour and a marker and differ in line style.

    >>> ax = plot_agreement({"chain": ([20, 100], [0.9, 0.98])}, xlabel="context length", ylabel="slope")
    >>> ax.get_xscale()
    'log'
    """
    if not series:
        raise ValueError("an agreement figure needs at least one series: got none")
    if group_size < 1:
        raise ValueError(f"group_size must be at least 1 series: got {group_size}")
    ax = new_axes(ax, 6.4, 4.2)
    ax.axhline(1.0, color=BLACK, linewidth=0.8, linestyle=":", zorder=0)
    for k, (name, (x, y)) in enumerate(series.items()):
        group, member = divmod(k, group_size)
        colour, marker = SERIES[group % len(SERIES)], _MARKERS[group % len(_MARKERS)]
        filled = colour if member == 0 else "white"
        style = _STYLES[member % len(_STYLES)]
        ax.plot(x, y, style, marker=marker, color=colour, markerfacecolor=filled, markersize=5, label=name)
    ticks = sorted({float(value) for x, _ in series.values() for value in x})
    ax.set_xscale("log")
    ax.set_xticks(ticks)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL)
    if title is not None:
        ax.set_title(fill(title, 46))
    return ax


@check_arguments
def plot_edge_formation(formation: Formation, ax: Axes | None = None) -> Axes:
    """Attention to the parent over training, a line an edge, the darker the stronger its pull at the start.

    Args:
        formation: what `edge_formation` returns.

    >>> import causal_circuits as cc
    >>> from causal_circuits import figures
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(4, batch_size=64)
    >>> record = cc.train(model, task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> formation = cc.edge_formation(record, cc.predicted_gradient(task).value.float(), task.graph)
    >>> len(figures.plot_edge_formation(formation).lines) >= 4  # an edge each
    True
    """
    ax = new_axes(ax, 6.6, 4.2)
    pull = to_numpy(formation.information)
    order = np.argsort(pull)
    shade = np.linspace(0.25, 1.0, len(order))
    steps = np.maximum(np.array(formation.steps, dtype=float), 0.5)  # a logarithmic axis has no zero
    weights = to_numpy(formation.attention)
    for alpha, edge in zip(shade, order, strict=True):
        ax.plot(steps, weights[:, edge], color=MODEL, alpha=float(alpha), linewidth=1.2)
    ax.plot([], [], color=MODEL, alpha=1.0, label="an edge with a strong pull (an early position)")
    ax.plot([], [], color=MODEL, alpha=0.25, label="an edge with a weak pull (a late position)")
    agreement = [comparison.correlation for comparison in formation.comparisons]
    ax.plot(steps, agreement, color=TRUE_EDGE, linestyle="--", marker="s", markersize=4, label="correlation with g")
    ax.axhline(0.5, color=GREY, linewidth=0.7, linestyle=":")
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    ax.set_ylim(min(0.0, *(value for value in agreement if np.isfinite(value)), 0.0) - 0.02, 1.02)
    ax.set_xlabel("training step (log scale; the first point is step 0)")
    ax.set_ylabel("attention to the parent, or correlation")
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize=SMALL)
    return ax


@check_arguments
def plot_recovery(recovered: RecoveredGraph, ax: Axes | None = None) -> Axes:
    """The weight of every position's candidate parent: at 1 it is an edge, at 0 it is nothing; verdicts by marker.

    Args:
        recovered: what `recover_graph` returns. Positions without a known weight are drawn at 0.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> batch = task.sample(3000, seed=0)
    >>> found = cc.recover_graph(batch.tokens, batch.target_probs)
    >>> from causal_circuits import figures
    >>> figures.plot_recovery(found).get_xlabel() != ""
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
            ax.annotate(f"{p.candidate}", place, (0, 6), textcoords="offset points", ha="center", fontsize=SMALL - 1)
    ax.xaxis.set_major_locator(MaxNLocator(20, integer=True))
    ax.set_xlabel("position (the number above a point is its candidate parent)")
    ax.set_ylabel("score: 0 independent, 1 an edge")
    ax.margins(y=0.18)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=SMALL)
    return ax
