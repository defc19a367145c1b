"""Bars: what ablating heads costs."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.style import BLACK, GREY, SERIES, SMALL, new_axes


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
    _grouped_bars(ax, groups, {m: [shares.get((label, m), float("nan")) for label in groups] for m in methods})
    place = ((1, 1), (4, 0), ("axes fraction", "data"), "offset points")
    ax.annotate("all of\nthe gain", *place, va="center", fontsize=SMALL)
    ax.set_ylabel("share of the gain lost")
    ax.set_xlabel("ablated")
    return ax


def _grouped_bars(ax: Axes, groups: Sequence[str], series: dict[str, list[float]]) -> None:
    """Bars of each series beside each other at every group, values written on them, lines at 0 and 1."""
    width, centres = 0.8 / len(series), np.arange(len(groups))
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
    ax.axhline(1, color=GREY, linestyle="--", linewidth=0.9, zorder=0)
    ax.set_xticks(centres, groups)
    columns = min(len(series), 4)
    ax.legend(loc="upper center", ncols=columns, frameon=False, columnspacing=1.0, handlelength=1.2, fontsize=SMALL)
