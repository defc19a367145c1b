"""A benchmark of methods as heat maps: a row a method, a column a kind of model."""

from collections.abc import Mapping, Sequence
from statistics import fmean

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.style import BLACK, SMALL, new_grid

Rows = Sequence[Mapping[str, object]]


@check_arguments
def plot_benchmark(panels: Mapping[str, Rows]) -> Figure:
    """AUROC of edges of every method on every kind of model: white at chance, blue above it, red below.

    In a cell stands the mean over graphs and seeds, and below it the least of them. Methods and models that a panel
    lacks stay blank there.

    Args:
        panels: title (the question that was asked) -> rows with the keys `method`, `model` and `auroc`.

    >>> rows = [{"method": name, "model": "planted", "auroc": auroc} for name, auroc in (("exact", 1.0), ("eap", 0.5))]
    >>> [text.get_text().split() for text in plot_benchmark({"set to zero": rows}).axes[0].texts]
    [['1.00', '≥', '1.00'], ['0.50', '≥', '0.50']]
    """
    every = [row for rows in panels.values() for row in rows]
    if not every:
        raise ValueError("a benchmark figure needs at least one row: got none")
    methods, models = ([*dict.fromkeys(str(row[key]) for row in every)] for key in ("method", "model"))
    width, height = 0.62 * len(models) + 1.5, max(0.42 * len(methods) + 1.0, 2.6)
    figure, axes = new_grid(len(panels), min(len(panels), 4), width, height)
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        image = _draw(ax, rows, methods, models)
        ax.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, label="mean AUROC (0.5: chance)", fraction=0.03, pad=0.01)
    return figure


def _draw(ax: Axes, rows: Rows, methods: Sequence[str], models: Sequence[str]) -> AxesImage:
    means = np.full((len(methods), len(models)), np.nan)
    for at in np.ndindex(means.shape):
        of = (methods[at[0]], models[at[1]])
        found = [float(str(row["auroc"])) for row in rows if (row["method"], row["model"]) == of]
        if found:
            means[at] = fmean(found)
            colour = BLACK if abs(means[at] - 0.5) < 0.35 else "white"
            numbers = f"{means[at]:.2f}\n≥ {min(found):.2f}"
            ax.text(at[1], at[0], numbers, ha="center", va="center", fontsize=SMALL, color=colour)
    ax.set_xticks(range(len(models)), models, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(methods)), [method.replace("_", " ") for method in methods])
    ax.tick_params(length=0)
    return ax.imshow(means, cmap="RdBu", vmin=0.0, vmax=1.0, aspect="auto")
