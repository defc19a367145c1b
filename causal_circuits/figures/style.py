"""What every figure shares: colours, markers, fresh axes, legends.

Colours are from the Okabe-Ito palette, so they stay apart for every kind of colour vision; no meaning rests on colour
alone (line styles, positions and words repeat it). Axes come from `matplotlib.figure.Figure`: no pyplot state, no
global style.
"""

from collections.abc import Collection, Sequence
from typing import Any

import networkx as nx
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import ScaledTranslation
from torch import Tensor

from causal_circuits.graphs import n_ctx_of

BLACK, GREY = "#000000", "#6E6E6E"
ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE, WINE = "#D55E00", "#CC79A7", "#882255"

MODEL = BLUE  # what the model does
TRUE_EDGE = VERMILLION  # what is true of the graph
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION, BLACK, WINE)  # as many as there are markers
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINE_STYLES = ("-", "--", "-.", ":")
SMALL = 8  # points; labels inside a figure
LINE = 0.17  # inches; a line of a legend

Matrix = Float[Tensor, "n_ctx n_ctx"] | Float[np.ndarray, "n_ctx n_ctx"]


def new_axes(ax: Axes | None, width: float = 6.4, height: float = 4.2) -> Axes:
    """The axes given, or the only axes of a new figure of width x height inches."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot() if ax is None else ax


def new_grid(n: int, n_columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with n axes of width x height inches, some to a row."""
    n_rows = -(-n // n_columns)
    figure = Figure(figsize=(width * n_columns, height * n_rows), layout="constrained")
    axes = list(figure.subplots(n_rows, n_columns, squeeze=False).flat)
    for ax in axes[n:]:
        ax.remove()
    return figure, axes[:n]


def look_of(k: int, *, line: bool = True) -> dict[str, Any]:
    """Colour, marker and line style of the k-th series."""
    style = LINE_STYLES[k % len(LINE_STYLES)] if line else "none"
    return {"color": SERIES[k % len(SERIES)], "marker": MARKERS[k % len(MARKERS)], "linestyle": style}


def legend_above(ax: Axes, **more: Any) -> None:
    """A legend above the axes, where it hides nothing."""
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=SMALL, **more)


def legend_columns(names: Collection[str]) -> int:
    """How many columns a legend below axes of some five inches has: fewer for longer names."""
    longest = max(map(len, names))
    return min(len(names), 3 if longest <= 16 else 2 if longest <= 34 else 1)


def legend_height(names: Collection[str]) -> float:
    """The height in inches that `legend_below` needs, to be added to that of the figure."""
    return LINE * -(-len(names) // legend_columns(names)) + 0.1


def legend_below(ax: Axes) -> None:
    """A legend below the labels of the horizontal axis: long names take nothing from the width of the axes."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    place = ax.transAxes + ScaledTranslation(0, -0.45, figure.dpi_scale_trans)
    names = ax.get_legend_handles_labels()[1]
    look = {"frameon": False, "fontsize": SMALL, "borderaxespad": 0.0, "ncols": legend_columns(names)}
    ax.legend(loc="upper left", bbox_to_anchor=(0, 0), bbox_transform=place, **look)  # type: ignore[arg-type]


def log_steps(ax: Axes, label: str, ticks: Sequence[float | int] | None = None) -> None:
    """A logarithmic x axis: ticks at these values and nowhere else, if their labels have room."""
    ax.set_xscale("log")
    ax.set_xlabel(label)
    log_ticks(ax.xaxis, 30)
    if ticks is not None and _have_room(ax, ticks):
        ax.xaxis.set_major_locator(FixedLocator(list(ticks)))
        ax.xaxis.set_minor_locator(NullLocator())


def log_ticks(axis: Axis, most: int) -> None:
    """Plain numbers at 1, 2 and 5 of each decade; if the axis spans more than `most`, at powers of ten."""
    low, high = axis.get_view_interval()
    decades = LogLocator(subs=(1.0, 2.0, 5.0) if high <= most * low else (1.0,))
    axis.set_major_locator(MaxNLocator(5) if high <= 10 * low else decades)
    axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}" if x == round(x) and x < 1e6 else f"{x:.3g}"))
    axis.set_minor_formatter(NullFormatter())


def _have_room(ax: Axes, ticks: Sequence[float | int]) -> bool:
    """Whether labels of ten points, a character some 0.09 inches, stand apart."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    places = np.log(sorted(ticks))
    width = ax.get_window_extent().width / figure.dpi
    gap = width * np.diff(places).min(initial=np.inf) / max(places[-1] - places[0], 1e-9)
    longest = max(len(f"{x:,.0f}" if x == round(x) else f"{x:.3g}") for x in ticks)
    return bool(gap > 0.09 * longest)


def to_numpy(values: Tensor | np.ndarray) -> Float[np.ndarray, "..."]:
    """The same numbers as a float64 array."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def check_positions(matrix: np.ndarray, graph: nx.DiGraph | None) -> None:
    """Pass if a matrix over positions has the graph's n_ctx."""
    if graph is not None and len(matrix) != n_ctx_of(graph):
        raise ValueError(
            f"matrix and graph must cover the same positions: {len(matrix)} against {n_ctx_of(graph)}; "
            "pass the graph of the task that the matrix is of"
        )
