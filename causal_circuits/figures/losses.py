"""The loss of a training beside its reference lines."""

from collections.abc import Sequence

import numpy as np
import scipy  # type: ignore[import-untyped]  # its parts are imported with their first use
from matplotlib.axes import Axes

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.style import (
    BLACK,
    GREEN,
    GREY,
    MODEL,
    PURPLE,
    SMALL,
    VERMILLION,
    legend_above,
    log_steps,
    new_axes,
    to_numpy,
)
from causal_circuits.recording import TrainingRecord

_LEVEL_STYLES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
_LEVEL_COLOURS = (BLACK, GREEN, VERMILLION, PURPLE, GREY)


@check_arguments
def plot_loss(
    record: TrainingRecord, references: dict[str, float], test_loss: float | None = None, ax: Axes | None = None
) -> Axes:
    """The training loss of every step, and each reference as a horizontal line with its name and value beside it.

    Labels of lines that lie close together are moved apart, each joined to its line; a line far below all losses (the
    entropy floor) is named at the bottom. The x axis is logarithmic: step s
    (counted from 1) is where most of the story of the first hundred steps can be seen.

    Args:
        record: `losses` [steps], nats.
        references: name -> loss in nats (entropy floor, exact Bayes, edge posterior, best unigram, uniform); values
            that are not finite are left out.
        test_loss: of the trained model, nats; a diamond at the last step.

    >>> model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(4, batch_size=64)
    >>> record = cc.train(model, task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> ax = cc.figures.plot_loss(record, {"uniform": 1.0986, "edge posterior": 0.65})
    >>> ax.get_xscale()
    'log'
    """
    ax = new_axes(ax, 5.6, 4.2)
    losses = to_numpy(record.losses)
    steps, smooth = np.arange(1, len(losses) + 1), _running_mean(losses)
    ax.plot(steps, losses, color=MODEL, alpha=0.4, linewidth=0.7, label="each step")
    ax.plot(steps, smooth, color=MODEL, linewidth=1.8, label="running mean (last tenth)")
    levels = {name: float(value) for name, value in references.items() if np.isfinite(value)}
    for k, value in enumerate(levels.values()):
        ax.axhline(value, color=_LEVEL_COLOURS[k % 5], linestyle=_LEVEL_STYLES[k % 5], linewidth=1.1, zorder=1.5)
    if test_loss is not None:
        if not np.isfinite(test_loss):
            raise ValueError(f"test_loss must be finite to be drawn: got {test_loss}; leave it out")
        levels["test loss"] = float(test_loss)
        ax.plot(steps[-1:], [test_loss], "D", color=MODEL, markersize=6, clip_on=False, zorder=4, label="test loss")
    log_steps(ax, "training step (log scale)")
    ax.set_xlim(1, max(len(losses), 2))
    _set_loss_limits(ax, smooth, list(levels.values()))
    _label_levels(ax, levels)
    ax.set_ylabel("cross-entropy (nats)")
    legend_above(ax, ncols=3)
    return ax


def dodge(values: Sequence[float], gap: float, low: float = -np.inf, high: float = np.inf) -> list[float]:
    """Places at least `gap` apart, in the same order, as near to `values` as can be (least squares), within the bounds.

    With z_k = value_k - k gap for the k-th smallest value this is isotonic regression of z.

    >>> dodge([1.0, 1.0, 4.0], gap=0.5)
    [0.75, 1.25, 4.0]
    """
    if not len(values):
        return []
    order, shifts = np.argsort(values, kind="stable"), gap * np.arange(len(values))
    fitted = scipy.optimize.isotonic_regression(np.asarray(values)[order] - shifts).x
    places = np.empty(len(values))
    places[order] = np.clip(fitted, low, high - shifts[-1]) + shifts
    return [float(place) for place in places]


def _running_mean(losses: np.ndarray) -> np.ndarray:
    """At step s the mean over the last tenth of the steps so far, so the smoothing looks even on a log axis."""
    total = np.concatenate([[0.0], np.cumsum(losses)])
    end = np.arange(1, len(losses) + 1)
    width = -(-end // 10)
    return (total[end] - total[end - width]) / width


def _set_loss_limits(ax: Axes, losses: np.ndarray, levels: list[float]) -> None:
    """Around the losses and the levels; a level far below all losses would squash what matters, and is only named."""
    values = np.concatenate([losses, levels])
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
    if losses.size:
        lowest = float(losses.min())
        low = float(values[values >= lowest - 0.5 * (high - lowest)].min())
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
            f"{name} {value:.3f}" + (" (below)" if value < low else ""),
            xy=(1.0, max(value, low)),
            xycoords=("axes fraction", "data"),
            xytext=(1.05, place),
            textcoords="axes fraction",
            va="center",
            fontsize=SMALL,
            fontweight="bold" if name == "test loss" else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "linewidth": 0.6,
                "color": GREY,
                "shrinkA": 1,
                "shrinkB": 0,
                "relpos": (0, 0.5),
            },
        )
