"""A benchmark of methods: every graph and seed as dots."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.style import BLACK, GREY, look_of

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
    figure = Figure(figsize=(max(1.25 * len(methods) + 1.6, 6.0), 2.3 * len(quantities) + 0.6), layout="constrained")
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
    found = [row.get(quantity) for row in rows if (row["method"], row["model"]) == (method, model)]
    return np.array([value for value in found if isinstance(value, int | float)], dtype=np.float64)
