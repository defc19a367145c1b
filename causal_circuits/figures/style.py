"""What every figure shares: colours, fresh axes, and which matrix cells are true edges.

Colours are from the Okabe-Ito palette, so they stay apart for every kind of colour vision; no meaning rests on colour
alone (line styles, positions and words repeat it). Axes come from `matplotlib.figure.Figure`: no pyplot state, no
global style.
"""

import networkx as nx
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from causal_circuits.graphs import n_ctx_of

BLACK, GREY = "#000000", "#6E6E6E"
ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE = "#D55E00", "#CC79A7"

MODEL = BLUE  # what the model does
TRUE_EDGE = VERMILLION  # what is true of the graph
SERIES = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILLION)
SMALL = 8  # points; labels inside a figure

Matrix = Float[Tensor, "n_ctx n_ctx"] | Float[np.ndarray, "n_ctx n_ctx"]


def new_axes(ax: Axes | None, width: float = 6.4, height: float = 4.2) -> Axes:
    """The axes given, or the only axes of a new figure of width x height inches."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot() if ax is None else ax


def figure_of(figure_or_axes: Figure | Axes) -> Figure:
    """The whole figure that axes belong to."""
    if isinstance(figure_or_axes, Figure):
        return figure_or_axes
    figure = figure_or_axes.get_figure(root=True)
    if figure is None:
        raise ValueError("axes must belong to a figure to be drawn: these were removed from theirs; plot again")
    return figure


def to_numpy(values: Tensor | np.ndarray) -> Float[np.ndarray, "..."]:
    """The same numbers as a float64 array."""
    return np.asarray(values.detach().cpu() if isinstance(values, Tensor) else values, dtype=np.float64)


def check_square(matrix: np.ndarray, graph: nx.DiGraph | None = None) -> None:
    """Pass if a matrix is [n_ctx, n_ctx], with the graph's n_ctx."""
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(
            f"a matrix over positions must be [n_ctx, n_ctx]: got shape {list(matrix.shape)}; "
            "choose one layer, head and record, or average over the batch"
        )
    if graph is not None and len(matrix) != n_ctx_of(graph):
        raise ValueError(
            f"matrix and graph must cover the same positions: {len(matrix)} against {n_ctx_of(graph)}; "
            "pass the graph of the task that the matrix is of"
        )
