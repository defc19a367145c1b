"""A benchmark of methods: every graph and seed as dots, and the rows as a table to read."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from causal_circuits.arguments import check_arguments
from causal_circuits.display import format_value
from causal_circuits.figures.style import BLACK, GREY, SERIES, SMALL, look_of, new_axes

Rows = Sequence[Mapping[str, object]]
_QUANTITIES = {
    "auroc": "AUROC of edges",
    "exact_parent_rate": "rows whose parents rank first",
    "regret": "regret (nats)",
}


@check_arguments
def plot_benchmark(rows: Rows, quantities: Sequence[str] = ("auroc", "exact_parent_rate", "regret")) -> Figure:
    """One panel a quantity: a dot for each graph and seed, a bar at the mean, for every method and kind of model.

    Args:
        rows: with the keys `method`, `model` and the quantities; None where a quantity was not measured.
        quantities: what to draw, from top to bottom.

    >>> rows = [{"method": name, "model": "planted", "auroc": auroc} for name, auroc in (("exact", 1.0), ("eap", 0.5))]
    >>> len(plot_benchmark(rows, quantities=("auroc",)).axes)
    1
    """
    if not rows:
        raise ValueError("a benchmark figure needs at least one row: got none")
    methods = list(dict.fromkeys(str(row["method"]) for row in rows))
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    figure = Figure(figsize=(1.25 * len(methods) + 1.6, 2.3 * len(quantities) + 0.6), layout="constrained")
    panels = figure.subplots(len(quantities), 1, sharex=True, squeeze=False)[:, 0]
    for ax, quantity in zip(panels, quantities, strict=True):
        for m, model in enumerate(models):
            for x, method in enumerate(methods):
                where = x + (m - (len(models) - 1) / 2) * min(0.26, 0.84 / len(models))
                _dots(ax, where, _values(rows, method, model, quantity), m)
        ax.set_ylabel(_QUANTITIES.get(quantity, quantity.replace("_", " ")))
        ax.grid(axis="y", linewidth=0.4)
        if quantity.startswith("au") or quantity.endswith("rate"):
            ax.set_ylim(-0.05, 1.05)
        if quantity == "auroc":
            ax.axhline(0.5, color=GREY, linewidth=1.2, linestyle=":")
    panels[-1].set_xticks(range(len(methods)), [method.replace("_", " ") for method in methods])
    handles = [Line2D([], [], label=model, **look_of(m, line=False)) for m, model in enumerate(models)]
    handles.append(Line2D([], [], color=BLACK, linewidth=1.8, label="mean"))
    if "auroc" in quantities:
        handles.append(Line2D([], [], color=GREY, linewidth=1.2, linestyle=":", label="chance"))
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    return figure


def _dots(ax: Axes, where: float, values: np.ndarray, series: int) -> None:
    """The values side by side around a place, and a bar at their mean."""
    jitter = np.linspace(-0.07, 0.07, len(values)) if len(values) > 1 else np.zeros(len(values))
    ax.plot(where + jitter, values, alpha=0.55, markersize=4, **look_of(series, line=False))
    if len(values):
        ax.plot([where - 0.09, where + 0.09], [values.mean()] * 2, color=BLACK, linewidth=1.8)


def _values(rows: Rows, method: str, model: str, quantity: str) -> np.ndarray:
    found = np.array([_number(row.get(quantity)) for row in rows if (row["method"], row["model"]) == (method, model)])
    return found[~np.isnan(found)]


@check_arguments
def plot_table(rows: Rows, better: Mapping[str, str] | None = None, ax: Axes | None = None, title: str = "") -> Axes:
    """A benchmark's rows as a table in a figure: the best number of each judged column in bold, with a bar behind it.

    Args:
        rows: one a method; a column for each key, in order of first appearance.
        better: column -> "high" or "low"; columns that are not named are not judged.
        title: of the axes.

    >>> ax = plot_table([{"method": "exact", "AUROC": 1.0}, {"method": "EAP", "AUROC": 0.5}], better={"AUROC": "high"})
    >>> "exact" in [text.get_text() for text in ax.texts]
    True
    """
    if not rows:
        raise ValueError("a table needs at least one row: got none")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    judged = dict(better or {})
    for column, direction in judged.items():
        if column not in columns or direction not in ("high", "low"):
            raise ValueError(f"better must name columns of the rows as high or low: got {column!r}: {direction!r}")
    texts = [[format_value(row.get(column)) for column in columns] for row in rows]
    widths = np.array([max(map(len, column)) for column in zip(columns, *texts, strict=True)], dtype=float) + 3.0
    ends = np.concatenate([[0.0], np.cumsum(widths)])
    ax = new_axes(ax, float(0.085 * ends[-1] + 0.4), 0.3 * len(rows) + 0.9)
    for place, column in enumerate(columns):
        ax.text(ends[place] + 0.8, -0.75, column, va="center", fontsize=SMALL, fontweight="bold")
        values = np.array([_number(row.get(column)) for row in rows])
        best = _best(values, judged.get(column))
        if column in judged:
            _draw_bars(ax, values, ends[place] + 0.5, widths[place] - 1.2)
        for row, text in enumerate(texts):
            weight = "bold" if best[row] else "normal"
            ax.text(ends[place] + 0.8, row, text[place], va="center", fontsize=SMALL + 0.5, fontweight=weight)
    ax.axhline(-0.4, color=BLACK, linewidth=0.8)
    ax.set_xlim(0, ends[-1])
    ax.set_ylim(len(rows) - 0.4, -1.3)
    ax.set_axis_off()
    if title:
        ax.set_title(title, fontsize=10)
    return ax


def _draw_bars(ax: Axes, values: np.ndarray, left: float, width: float) -> None:
    """A bar behind each number, the largest as wide as the column."""
    largest = np.abs(values[np.isfinite(values)]).max(initial=0.0)
    for row, value in enumerate(values):
        if np.isfinite(value) and largest > 0:
            bar = width * abs(value) / largest
            ax.barh(row, bar, 0.62, left=left, color=SERIES[0], alpha=0.16, linewidth=0)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _best(values: np.ndarray, direction: str | None) -> np.ndarray:
    """Whether a row holds the column's best number."""
    if direction is None or not np.isfinite(values).any():
        return np.zeros(len(values), dtype=bool)
    return values == (np.nanmax(values) if direction == "high" else np.nanmin(values))
