"""Which predictor a model behaves like while it trains, and a benchmark as a table to read."""

from collections.abc import Mapping, Sequence
from itertools import groupby

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import StrMethodFormatter

from causal_circuits.arguments import check_arguments
from causal_circuits.display import format_value
from causal_circuits.figures.style import BLACK, GREY, SERIES, SMALL, new_axes, to_numpy
from causal_circuits.films import PredictorDistances

_MARKERS, _LINE_STYLES = ("o", "s", "^", "D", "v", "P"), ("-", "--", "-.", ":")


@check_arguments
def plot_phases(distances: PredictorDistances, ax: Axes | None = None) -> Axes:
    """KL from each named predictor to the model at every recorded step; bands name the nearest one, phase by phase.

    Args:
        distances: what a `PredictorFilm` gives.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> from causal_circuits import figures
    >>> batch = task.sample(64, seed=0)
    >>> film = cc.PredictorFilm(batch, cc.named_predictors(task, batch))
    >>> config = cc.TrainConfig.joint(4, batch_size=64)
    >>> record = cc.train(cc.disentangled_transformer(3, 6), task, config, on_record=film)
    >>> len(figures.plot_phases(film.result()).lines) >= 3  # one a predictor
    True
    """
    ax = new_axes(ax, 7.2, 4.2)
    steps, divergence = np.array(distances.steps) + 1, to_numpy(distances.divergence)
    for k, name in enumerate(distances.names):
        style = {"color": SERIES[k % len(SERIES)], "marker": _MARKERS[k % 6], "linestyle": _LINE_STYLES[k % 4]}
        ax.plot(steps, divergence[:, k], markersize=4.5, linewidth=1.5, label=name, **style)  # type: ignore[arg-type]
    edges = [steps[0], *np.sqrt(steps[:-1] * steps[1:]), steps[-1]]  # bands meet half way on the logarithmic axis
    for name, places in groupby(range(len(steps)), key=lambda at: distances.nearest[at]):
        held = list(places)
        colour = SERIES[distances.names.index(name) % len(SERIES)]
        ax.axvspan(edges[held[0]], edges[held[-1] + 1], color=colour, alpha=0.12, linewidth=0)
        if held[0] > 0:
            ax.axvline(edges[held[0]], color=GREY, linewidth=0.8)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    ax.set_xlim(steps[0], max(steps[-1], steps[0] + 1))
    ax.set_ylim(bottom=0)
    ax.set_xlabel("training step + 1 (log scale)")
    ax.set_ylabel("KL(predictor, model) (nats)")
    title = "distance from the predictor named; the shade says which is nearest"
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, frameon=False, fontsize=SMALL, title=title)
    return ax


@check_arguments
def plot_table(
    rows: Sequence[Mapping[str, object]],
    better: Mapping[str, str] | None = None,
    ax: Axes | None = None,
    title: str = "",
) -> Axes:
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
        values = np.array([_number(row.get(column)) for row in rows])
        best = _best(values, judged.get(column))
        largest = np.nanmax(np.abs(values)) if np.isfinite(values).any() else 0.0
        ax.text(ends[place] + 0.8, -0.75, column, va="center", fontsize=SMALL, fontweight="bold")
        for row, text in enumerate(texts):
            if column in judged and np.isfinite(values[row]) and largest > 0:
                bar = (widths[place] - 1.2) * abs(values[row]) / largest
                ax.barh(row, bar, 0.62, left=ends[place] + 0.5, color=SERIES[0], alpha=0.16, linewidth=0)
            weight = "bold" if row in best else "normal"
            ax.text(ends[place] + 0.8, row, text[place], va="center", fontsize=SMALL + 0.5, fontweight=weight)
    ax.axhline(-0.4, color=BLACK, linewidth=0.8)
    ax.set_xlim(0, ends[-1])
    ax.set_ylim(len(rows) - 0.4, -1.3)
    ax.set_axis_off()
    if title:
        ax.set_title(title, fontsize=10)
    return ax


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")


def _best(values: np.ndarray, direction: str | None) -> list[int]:
    """The rows that hold a column's best number."""
    if direction is None or not np.isfinite(values).any():
        return []
    best = np.nanmax(values) if direction == "high" else np.nanmin(values)
    return [int(row) for row in np.flatnonzero(values == best)]
