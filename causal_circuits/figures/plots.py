"""Results as matplotlib axes: the loss with its reference lines, gradients against information, heads, ablations.

Every function takes results and `ax=None` and returns the axes; `ax.figure` is the figure. Nothing is computed here
but a running mean and where labels go.
"""

from collections.abc import Sequence
from textwrap import fill

import networkx as nx
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.style import (
    BLACK,
    GREEN,
    GREY,
    MODEL,
    PURPLE,
    SERIES,
    SMALL,
    TRUE_EDGE,
    VERMILLION,
    Matrix,
    check_square,
    new_axes,
    to_numpy,
)
from causal_circuits.graphs import attention_cells
from causal_circuits.heads import HeadScores
from causal_circuits.recording import TrainingRecord

_LINE_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_LINE_COLOURS = (BLACK, GREEN, VERMILLION, PURPLE, GREY)
_HEAD_SCORES = {
    "previous token": "previous_token_score",
    "parent": "parent_score",
    "induction": "induction_score",
    "copying": "copying_score",
}


@check_arguments
def plot_loss(
    record: TrainingRecord, references: dict[str, float], test_loss: float | None = None, ax: Axes | None = None
) -> Axes:
    """The training loss of every step, and each reference as a horizontal line with its name and value beside it.

    Labels of lines that lie close together are moved apart, each joined to its line. The x axis is logarithmic: step s
    (counted from 1) is where most of the story of the first hundred steps can be seen.

    Args:
        record: `losses` [steps], nats.
        references: name -> loss in nats (entropy floor, exact Bayes, edge posterior, best unigram, uniform); values
            that are not finite are left out.
        test_loss: of the trained model, nats; a diamond at the last step.

    >>> import causal_circuits as cc
    >>> from causal_circuits import figures
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(4, batch_size=64)
    >>> record = cc.train(model, task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> ax = figures.plot_loss(record, {"uniform": 1.0986, "edge posterior": 0.65})
    >>> ax.get_xscale()
    'log'
    """
    ax = new_axes(ax, 7.6, 4.4)
    losses = to_numpy(record.losses)
    steps = np.arange(1, len(losses) + 1)
    smooth = _running_mean(losses)
    ax.plot(steps, losses, color=MODEL, alpha=0.4, linewidth=0.7, label="each step")
    ax.plot(steps, smooth, color=MODEL, linewidth=1.8, label="running mean (last tenth)")
    levels = {name: float(value) for name, value in references.items() if np.isfinite(value)}
    for k, value in enumerate(levels.values()):
        ax.axhline(value, color=_LINE_COLOURS[k % 5], linestyle=_LINE_STYLES[k % 5], linewidth=1.1, zorder=1.5)
    if test_loss is not None:
        if not np.isfinite(test_loss):
            raise ValueError(f"test_loss must be finite to be drawn: got {test_loss}; leave it out")
        levels["test loss"] = float(test_loss)
        ax.plot(steps[-1:], [test_loss], "D", color=MODEL, markersize=6, clip_on=False, zorder=4, label="test loss")
    ax.set_xscale("log")
    ax.set_xlim(1, max(len(losses), 2))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _set_loss_limits(ax, np.concatenate([smooth, list(levels.values())]))
    _label_levels(ax, levels)
    ax.set_xlabel("training step (log scale)")
    ax.set_ylabel("cross-entropy (nats)")
    ax.legend(loc="best", facecolor="white", edgecolor="none", framealpha=0.9, fontsize=SMALL)
    return ax


@check_arguments
def plot_gradient_and_information(
    gradient: Matrix, information: Matrix, graph: nx.DiGraph, ax: Axes | None = None, title: str | None = None
) -> Axes:
    """One point for each pair of positions i > j: minus the gradient against the predicted value, true edges marked.

    Args:
        gradient: [n_ctx, n_ctx]; minus the gradient by layer 1's attention scores, as a record or snapshot holds it,
            row i (child), column j.
        information: the same shape; what theory predicts for it.
        graph: whose edges to mark.
        title: say the correlation here; nothing is computed.

    >>> import torch
    >>> from causal_circuits import chain_graph
    >>> g = torch.diag(torch.ones(3), -1)
    >>> plot_gradient_and_information(0.01 * g, g, chain_graph(4), title="correlation 1").get_title()
    'correlation 1'
    """
    ax = new_axes(ax, 5.6, 4.4)
    drawn, predicted = to_numpy(gradient), to_numpy(information)
    for matrix in (drawn, predicted):
        check_square(matrix, graph)
    is_edge = np.zeros_like(drawn, dtype=bool)
    for query, key in attention_cells(graph):
        is_edge[query, key] = True
    below = np.tril(np.ones_like(is_edge), -1)
    for chosen, style, name in (
        (below & ~is_edge, {"marker": "o", "s": 14, "color": GREY, "alpha": 0.6, "linewidths": 0}, "other pairs"),
        (below & is_edge, {"marker": "s", "s": 30, "facecolor": "none", "edgecolor": TRUE_EDGE}, "true edges"),
    ):
        label = f"{name} ({int(chosen.sum())})"
        ax.scatter(predicted[chosen], drawn[chosen], label=label, **style)  # type: ignore[arg-type]  # keyword arguments
    ax.axhline(0, color=GREY, linewidth=0.6, zorder=0)
    ax.set_xlabel("predicted value (from mutual information, a pure number)")
    ax.set_ylabel("minus the gradient (nats per unit of attention score)")
    ax.ticklabel_format(axis="both", scilimits=(-2, 4), useMathText=True)
    ax.legend(loc="best", frameon=False)
    if title is not None:
        ax.set_title(fill(title, 46))
    return ax


@check_arguments
def plot_head_scores(scores: Sequence[HeadScores], ax: Axes | None = None) -> Axes:
    """Four bars for each head - previous-token, parent, induction, copying - with its role below its name.

    0 is what uniform attention scores (no copying), 1 is perfect; copying is judged by what reads the copies.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> from causal_circuits import figures
    >>> ax = figures.plot_head_scores(cc.detect_induction_heads(model, task, n_sequences=64))
    >>> len(ax.patches)  # two heads, four scores
    8
    """
    if not scores:
        raise ValueError("head scores need at least one head: got none; pass what detect_induction_heads returns")
    ax = new_axes(ax, max(4.8, 1.6 * len(scores) + 1.6), 3.8)
    groups = [f"L{score.layer}H{score.head}\n{score.role}" for score in scores]
    series = {name: [float(getattr(score, field)) for score in scores] for name, field in _HEAD_SCORES.items()}
    _grouped_bars(ax, groups, series)
    ax.axhline(1, color=GREY, linestyle="--", linewidth=0.9, zorder=0)
    ax.set_ylabel("score (0 uniform, 1 perfect)")
    ax.set_xlabel("head and role")
    return ax


@check_arguments
def plot_ablation(results: Sequence[tuple[str, str, float]], ax: Axes | None = None) -> Axes:
    """One bar for each (what was ablated, method), as high as the share of the loss gain that it costs.

    The line at 1 is all of the gain: the ablated model is as bad as the reference. A share that is NaN (no gain to
    lose) or not given is written "n/a".

    Args:
        results: (label, method, share of gain lost) triples, e.g. ("L0H0", "mean", 0.98).

    >>> ax = plot_ablation([("L0H0", "mean", 0.98), ("L1H0", "mean", 1.02)])
    >>> len(ax.patches)
    2
    """
    if not results:
        raise ValueError("an ablation plot needs at least one result: got none; pass (label, method, share) triples")
    groups = list(dict.fromkeys(label for label, _, _ in results))
    methods = list(dict.fromkeys(method for _, method, _ in results))
    shares = {(label, method): float(share) for label, method, share in results}
    ax = new_axes(ax, max(4.8, (0.45 * len(methods) + 0.5) * len(groups) + 1.2), 3.8)
    series = {method: [shares.get((label, method), float("nan")) for label in groups] for method in methods}
    _grouped_bars(ax, groups, series)
    ax.axhline(1, color=GREY, linestyle="--", linewidth=0.9, zorder=0)
    ax.annotate(
        "all of\nthe gain", (1, 1), (4, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=SMALL
    )
    ax.set_ylabel("share of the gain lost")
    ax.set_xlabel("ablated")
    return ax


def dodge(values: Sequence[float], gap: float, low: float = -np.inf, high: float = np.inf) -> list[float]:
    """Places at least `gap` apart, in the same order, as near to `values` as can be (least squares), within the bounds.

    With z_k = value_k - k gap for the k-th smallest value this is isotonic regression of z (pool adjacent violators).

    >>> dodge([1.0, 1.0, 4.0], gap=0.5)
    [0.75, 1.25, 4.0]
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    pools: list[tuple[float, int]] = []
    for k, index in enumerate(order):
        mean, size = values[index] - k * gap, 1
        while pools and pools[-1][0] > mean:
            before, count = pools.pop()
            mean, size = (before * count + mean * size) / (count + size), count + size
        pools.append((mean, size))
    fitted = [mean for mean, size in pools for _ in range(size)]
    bounded = np.clip(fitted, low, high - (len(values) - 1) * gap)
    places = [0.0] * len(values)
    for k, index in enumerate(order):
        places[index] = float(bounded[k]) + k * gap
    return places


def _running_mean(losses: np.ndarray) -> np.ndarray:
    """At step s the mean over the last tenth of the steps so far, so the smoothing looks even on a log axis."""
    total = np.concatenate([[0.0], np.cumsum(losses)])
    end = np.arange(1, len(losses) + 1)
    width = -(-end // 10)
    return (total[end] - total[end - width]) / width


def _set_loss_limits(ax: Axes, values: np.ndarray) -> None:
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    margin = 0.04 * (high - low) or 0.1
    ax.set_ylim(low - margin, high + margin)


def _label_levels(ax: Axes, levels: dict[str, float]) -> None:
    """Name and value of each level to the right of the axes, dodged, with a thin line to the level itself."""
    low, high = ax.get_ylim()
    dpi = ax.get_figure(root=True).dpi  # type: ignore[union-attr]  # axes in use have a figure
    gap = 1.6 * SMALL / 72 * dpi / ax.get_window_extent().height
    places = dodge([(value - low) / (high - low) for value in levels.values()], gap, 0.0, 1.0)
    for (name, value), place in zip(levels.items(), places, strict=True):
        ax.annotate(
            f"{name} {value:.3f}",
            xy=(1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(1.05, place),
            textcoords="axes fraction",
            va="center",
            fontsize=SMALL,
            fontweight="bold" if name == "test loss" else "normal",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "linewidth": 0.6, "color": GREY, "shrinkA": 1, "shrinkB": 0},
        )


def _grouped_bars(ax: Axes, groups: Sequence[str], series: dict[str, list[float]]) -> None:
    """Bars of each series beside each other at every group, values written on them, room for the legend on top."""
    width = 0.8 / len(series)
    centres = np.arange(len(groups))
    plain = {"facecolor": "white", "edgecolor": "none", "pad": 0.3}  # so that a line behind a number does not cross it
    for k, (name, heights) in enumerate(series.items()):
        offsets = centres + (k - (len(series) - 1) / 2) * width
        bars = ax.bar(offsets, np.nan_to_num(heights), 0.92 * width, label=name, color=SERIES[k % len(SERIES)])
        written = [f"{height:.2f}" if np.isfinite(height) else "n/a" for height in heights]
        ax.bar_label(bars, written, padding=2, fontsize=SMALL - 1, bbox=plain)
    finite = [height for heights in series.values() for height in heights if np.isfinite(height)]
    low, high = min([0.0, *finite]), max([1.0, *finite])
    ax.set_ylim(low - (0.12 if low < 0 else 0.0) * (high - low), high + 0.3 * (high - low))
    ax.axhline(0, color=BLACK, linewidth=0.8)
    ax.set_xticks(centres, groups)
    ax.legend(
        loc="upper center",
        ncols=min(len(series), 4),
        frameon=False,
        columnspacing=1.0,
        handlelength=1.2,
        fontsize=SMALL,
    )
