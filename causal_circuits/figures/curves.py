"""Figures of studies that vary something: power laws, curves with a line each, and dots by group or position.

Nothing is computed here: fits, means and intervals come with the data.
"""

from collections.abc import Mapping, Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes

from causal_circuits.arguments import Count, check_arguments
from causal_circuits.figures.losses import dodge
from causal_circuits.figures.style import (
    BLACK,
    GREY,
    LINE_STYLES,
    SMALL,
    legend_below,
    legend_height,
    log_steps,
    log_ticks,
    look_of,
    new_axes,
)

Number = float | int
Points = Sequence[tuple[Number, Number]]


@check_arguments
def plot_curves(
    curves: Mapping[str, Points],
    *,
    xlabel: str,
    ylabel: str,
    log_y: bool = False,
    levels: Mapping[str, Number] | None = None,
    title: str | None = None,
    legend: bool = True,
    group_size: Count = 1,
    ax: Axes | None = None,
) -> Axes:
    """One line with markers for each named curve, over a logarithmic x axis.

    Args:
        curves: name -> (x, y), in order of x; x must be positive.
        xlabel, ylabel: with units.
        log_y: a logarithmic y axis too; points at or below zero are left out.
        levels: name -> y of horizontal lines to read the curves against.
        title: of the axes.
        legend: False where neighbouring axes have the same curves.
        group_size: so many curves in a row share a colour and a marker and differ in line style.

    >>> ax = plot_curves({"loss": [(1, 1.0), (10, 0.5), (100, 0.4)]}, xlabel="step", ylabel="nats")
    >>> ax.get_xscale(), ax.get_ylabel()
    ('log', 'nats')
    """
    if not any(curves.values()):
        raise ValueError("a plot of curves needs at least one point: got none; pass name -> (x, y) pairs")
    ax = new_axes(ax, 5.6, 3.9 + (legend_height(curves) if legend else 0.0))
    for k, (name, curve) in enumerate(curves.items()):
        x, y = _columns(curve, positive=log_y)
        group, member = divmod(k, group_size)
        look = look_of(group) | {"linestyle": LINE_STYLES[(member if group_size > 1 else k) % len(LINE_STYLES)]}
        fill_colour = "white" if member else look["color"]
        size = 4.5 if group_size > 1 else max(7.0 - 0.6 * k, 3.0)  # the first shows around those that hide it
        ax.plot(x, y, linewidth=1.4, markersize=size, markerfacecolor=fill_colour, label=name, **look)
    places = sorted({x for curve in curves.values() for x, _ in curve})
    log_steps(ax, xlabel, places if len(places) <= 6 else None)
    ax.set_ylabel(ylabel)
    if log_y:
        ax.set_yscale("log")
        log_ticks(ax.yaxis, 100_000)
    for level in (levels or {}).values():
        ax.axhline(level, color=GREY, linewidth=0.9, linestyle=":", zorder=0)
    forward = ax.yaxis.get_transform().transform
    low, high = forward(ax.get_ylim())
    heights = [(float(forward(level)) - low) / (high - low) for level in (levels or {}).values()]
    for name, height in zip(levels or {}, dodge(heights, 0.04), strict=True):
        on_white = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
        look = {"va": "bottom", "fontsize": SMALL, "color": GREY, "bbox": on_white, "zorder": 0.5}  # below the curves
        ax.annotate(name, (0.01, height), xycoords="axes fraction", **look)
    if title is not None:
        ax.set_title(fill(title, 60), fontsize=10)
    if legend:
        legend_below(ax)
    return ax


@check_arguments
def plot_scaling(
    points: Mapping[str, Points],
    fits: Mapping[str, tuple[Number, Number]],
    *,
    ylabel: str,
    xlabel: str = "context length n_ctx",
    bound: tuple[str, Number, Number] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Measurements against length on two logarithmic axes, each series with its fitted power law and exponent.

    Args:
        points: name -> (length, value), one a measurement (several at a length are several seeds).
        fits: name -> (prefactor, exponent) of value = prefactor * length ** exponent; a series may lack one.
        ylabel, xlabel: with units.
        bound: (name, prefactor, exponent) of a line to compare with, drawn dotted.

    >>> points = {"gap": [(20, 0.1), (20, 0.11), (40, 0.05), (80, 0.025)]}
    >>> plot_scaling(points, {"gap": (2.0, -1.0)}, ylabel="nats").get_yscale()
    'log'
    """
    lengths = sorted({x for series in points.values() for x, _ in series})
    if not lengths:
        raise ValueError("a scaling plot needs at least one point: got none; pass name -> (length, value) pairs")
    ax = new_axes(ax, 5.6, 3.9 + legend_height([*points, *([bound[0]] if bound else [])]))
    ends = np.array([min(lengths), max(lengths)])
    for k, (name, series) in enumerate(points.items()):
        fit, look = fits.get(name), look_of(k)
        label = name if fit is None else f"{name}: exponent {fit[1]:+.2f}"
        x, y = _columns(series, positive=True)
        ax.plot(x, y, markersize=5, markerfacecolor="none", label=label, **look | {"linestyle": "none"})
        if fit is not None:
            ax.plot(ends, fit[0] * ends ** fit[1], linewidth=1.2, **look | {"marker": ""})
    if bound is not None:
        ax.plot(ends, bound[1] * ends ** bound[2], color=BLACK, linewidth=1.0, linestyle=":", label=bound[0])
    log_steps(ax, xlabel, lengths if len(lengths) <= 6 else None)
    ax.set_yscale("log")
    log_ticks(ax.yaxis, 100_000)
    ax.set_ylabel(ylabel)
    legend_below(ax)
    return ax


@check_arguments
def plot_groups(
    values: Mapping[str, Mapping[str, Number]],
    *,
    xlabel: str,
    levels: Mapping[str, Number] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Dots on one row a group, one marker a series: values of several methods for each graph, family, ...

    Args:
        values: series -> group -> value; the groups of the first series come first, from the top. NaN is left out.
        xlabel: with units.
        levels: name -> x of vertical lines.

    >>> shares = {"ours": {"chain": 1.0, "pairs": 0.9}, "theirs": {"chain": 0.8, "pairs": 0.7}}
    >>> ax = plot_groups(shares, xlabel="attention")
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['chain', 'pairs']
    """
    groups = list(dict.fromkeys(group for of_group in values.values() for group in of_group))
    if not groups:
        raise ValueError("a dot plot needs at least one group: got none; pass series -> group -> value")
    ax = new_axes(ax, 6.4, max(0.26, 0.11 * len(values)) * len(groups) + 1.2 + legend_height(values))
    for k, (name, of_group) in enumerate(values.items()):
        shift = 0.7 * ((k + 0.5) / len(values) - 0.5)
        rows = [groups.index(group) + shift for group in of_group]
        label = name if np.isfinite(list(of_group.values())).any() else None  # without a mark no word in the legend
        ax.plot(list(of_group.values()), rows, markersize=5, label=label, alpha=0.85, **look_of(k, line=False))
    for k, (name, level) in enumerate((levels or {}).items()):
        ax.axvline(level, color=GREY, linewidth=0.9, linestyle=":", zorder=0)
        place = (2, 2 + 1.2 * SMALL * k)  # one above the other
        ax.annotate(name, (level, 1.0), place, ("data", "axes fraction"), "offset points", fontsize=SMALL, color=GREY)
    ax.set_yticks(range(len(groups)), groups, fontsize=SMALL)
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.grid(axis="y", linewidth=0.4, color=GREY, alpha=0.4)
    ax.set_xlabel(xlabel)
    legend_below(ax)
    return ax


def _columns(points: Points, *, positive: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """X and y of the points, those with y > 0 if a logarithmic axis asks for it; NaN where there is none."""
    shown = [point for point in points if point[1] > 0 or not positive]
    x, y = np.array(shown or [(np.nan, np.nan)], dtype=np.float64).T
    return x, y
