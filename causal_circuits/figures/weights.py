"""Weight matrices as heat maps, by residual slot."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Result
from causal_circuits.figures.matrices import DIVERGING
from causal_circuits.figures.style import BLACK, SMALL, new_grid, to_numpy

SlotSizes = Sequence[tuple[str, int]]


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class WeightBlocks(Result):
    """A weight matrix whose rows and columns fall into named slots.

    Attributes:
        title: what it is.
        matrix: [rows, columns].
        rows, columns: (slot, size) in order; the sizes add up to the matrix's.
        row_label, column_label: what the two axes are: "query", "key", ...

    >>> slots = [("token", 2), ("position", 3)]
    >>> WeightBlocks("A1", np.zeros((5, 5)), rows=slots, columns=slots).title
    'A1'
    """

    title: str
    matrix: Float[Tensor, "rows columns"] | Float[np.ndarray, "rows columns"]
    rows: SlotSizes
    columns: SlotSizes
    row_label: str = "query"
    column_label: str = "key"


@check_arguments
def plot_weight_panels(panels: Sequence[WeightBlocks], n_columns: int = 2) -> Figure:
    """Weight matrices side by side, each on its own scale, white at zero, with lines between slots.

    >>> slots = [("token", 2), ("position", 3)]
    >>> panels = [WeightBlocks(name, np.eye(5), rows=slots, columns=slots) for name in ("A1", "A2")]
    >>> [ax.get_title() for ax in plot_weight_panels(panels).axes][:2]
    ['A1', 'A2']
    """
    if not panels:
        raise ValueError("panels of weights need at least one matrix: got none")
    if not 1 <= n_columns <= 100:
        raise ValueError(f"n_columns must lie in 1 .. 100: got {n_columns}")
    figure, axes = new_grid(len(panels), n_columns, 5.6, 4.8)
    for ax, panel in zip(axes, panels, strict=True):
        _plot_blocks(panel, ax)
    return figure


def _plot_blocks(blocks: WeightBlocks, ax: Axes) -> None:
    values = to_numpy(blocks.matrix)
    sizes = tuple(sum(size for _, size in slots) for slots in (blocks.rows, blocks.columns))
    if values.shape != sizes:
        raise ValueError(f"slots must cover the matrix: slots of {sizes}, a matrix of {values.shape}")
    largest = float(np.abs(values).max()) or 1.0
    image = ax.imshow(
        values, cmap=DIVERGING, vmin=-largest, vmax=largest, interpolation="nearest", aspect="auto", origin="upper"
    )
    for axis, slots, draw_line in (
        (ax.xaxis, blocks.columns, ax.axvline),
        (ax.yaxis, blocks.rows, ax.axhline),
    ):
        ends = np.cumsum([size for _, size in slots])
        for end in ends[:-1]:
            draw_line(end - 0.5, color=BLACK, linewidth=0.8)
        middles = [end - size / 2 - 0.5 for end, (_, size) in zip(ends, slots, strict=True)]
        axis.set_ticks(middles, [name for name, _ in slots], fontsize=SMALL)
        axis.set_tick_params(length=0)
    if len(blocks.columns) > 2:
        ax.tick_params(axis="x", labelrotation=30)
    ax.set_xlabel(blocks.column_label)
    ax.set_ylabel(blocks.row_label)
    ax.set_title(fill(blocks.title, 44), fontsize=10)
    figure = ax.get_figure()
    if figure is not None:
        figure.colorbar(image, ax=ax, label="weight", fraction=0.046, pad=0.03)
