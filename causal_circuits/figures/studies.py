"""Figures of studies that vary something: power laws, curves with a line each, and dots by group.

Nothing is computed here: fits, means and intervals come with the data.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, NullLocator, StrMethodFormatter

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.style import BLACK, GREY, SERIES, SMALL, new_axes

Number = float | int
Points = Sequence[tuple[Number, Number]]
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_LINE_STYLES = ("-", "--", "-.", ":")


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
    ax = new_axes(ax, 6.4, 5.0)
    ends = np.array([min(lengths), max(lengths)])
    for k, (name, series) in enumerate(points.items()):
        colour, marker = SERIES[k % len(SERIES)], _MARKERS[k % len(_MARKERS)]
        fit = fits.get(name)
        label = name if fit is None else f"{name}: exponent {fit[1]:+.2f}"
        x, y = np.array([point for point in series if point[1] > 0] or [(np.nan, np.nan)]).T
        ax.plot(x, y, marker, color=colour, markersize=5, markerfacecolor="none", label=label)
        if fit is not None:
            ax.plot(ends, fit[0] * ends ** fit[1], color=colour, linewidth=1.2, linestyle=_LINE_STYLES[k % 4])
    if bound is not None:
        ax.plot(ends, bound[1] * ends ** bound[2], color=BLACK, linewidth=1.0, linestyle=":", label=bound[0])
    ax.set_xscale("log")
    _log_y(ax)
    _ticks_at(ax, lengths)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    _legend_outside(ax, below=True)
    return ax


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

    >>> ax = plot_curves({"loss": [(1, 1.0), (10, 0.5), (100, 0.4)]}, xlabel="step", ylabel="nats")
    >>> ax.get_xscale(), ax.get_ylabel()
    ('log', 'nats')
    """
    if not any(curves.values()):
        raise ValueError("a plot of curves needs at least one point: got none; pass name -> (x, y) pairs")
    ax = new_axes(ax, 6.8, 4.2)
    for k, (name, curve) in enumerate(curves.items()):
        shown = [point for point in curve if point[1] > 0 or not log_y]
        x, y = np.array(shown or [(np.nan, np.nan)], dtype=np.float64).T
        style = {"color": SERIES[k % len(SERIES)], "linestyle": _LINE_STYLES[k % 4], "marker": _MARKERS[k % 8]}
        ax.plot(x, y, linewidth=1.4, markersize=4.5, label=name, **style)  # type: ignore[arg-type]
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    places = sorted({x for curve in curves.values() for x, _ in curve})
    if len(places) <= 6:
        _ticks_at(ax, places)
    if log_y:
        _log_y(ax)
    for name, level in (levels or {}).items():
        ax.axhline(level, color=GREY, linewidth=0.9, linestyle=":", zorder=0)
        ax.annotate(name, (0.01, level), xycoords=("axes fraction", "data"), va="bottom", fontsize=SMALL, color=GREY)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if title is not None:
        ax.set_title(title, fontsize=10)
    if legend:
        _legend_outside(ax)
    return ax


@check_arguments
def plot_groups(
    values: Mapping[str, Mapping[str, Number]],
    *,
    xlabel: str,
    levels: Mapping[str, Number] | None = None,
    log_x: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Dots on one row a group, one marker a series: values of several methods for each graph, family, ...

    Args:
        values: series -> group -> value; the groups of the first series come first, from the top. NaN is left out.
        xlabel: with units.
        levels: name -> x of vertical lines.
        log_x: a logarithmic x axis.

    >>> shares = {"ours": {"chain": 1.0, "pairs": 0.9}, "theirs": {"chain": 0.8, "pairs": 0.7}}
    >>> ax = plot_groups(shares, xlabel="attention")
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['chain', 'pairs']
    """
    groups = list(dict.fromkeys(group for of_group in values.values() for group in of_group))
    if not groups:
        raise ValueError("a dot plot needs at least one group: got none; pass series -> group -> value")
    ax = new_axes(ax, 7.2, 0.26 * len(groups) + 1.6)
    for k, (name, of_group) in enumerate(values.items()):
        rows = [groups.index(group) + 0.12 * (k - (len(values) - 1) / 2) for group in of_group]
        style = {"color": SERIES[k % len(SERIES)], "marker": _MARKERS[k % 8], "linestyle": "none"}
        ax.plot(list(of_group.values()), rows, markersize=5, label=name, alpha=0.85, **style)  # type: ignore[arg-type]
    if log_x:
        ax.set_xscale("log")
    for name, level in (levels or {}).items():
        ax.axvline(level, color=GREY, linewidth=0.9, linestyle=":", zorder=0)
        ax.annotate(name, (level, 1.0), (2, 2), ("data", "axes fraction"), "offset points", fontsize=SMALL, color=GREY)
    ax.set_yticks(range(len(groups)), groups, fontsize=SMALL)
    ax.set_ylim(len(groups) - 0.4, -0.6)
    ax.grid(axis="y", linewidth=0.4, color=GREY, alpha=0.4)
    ax.set_xlabel(xlabel)
    _legend_outside(ax)
    return ax


def _ticks_at(ax: Axes, lengths: Sequence[Number]) -> None:
    """Ticks at the lengths that were measured, and nowhere else."""
    ax.xaxis.set_major_locator(FixedLocator(list(lengths)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_minor_formatter(NullFormatter())


def _legend_outside(ax: Axes, *, below: bool = False) -> None:
    """A legend where it hides nothing: to the right of the axes, or below them where names are long."""
    if below:
        ax.legend(loc="upper left", bbox_to_anchor=(0.0, -0.16), frameon=False, fontsize=SMALL)
    else:
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=SMALL)


def _log_y(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers at 1, 2 and 5 of each decade."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
