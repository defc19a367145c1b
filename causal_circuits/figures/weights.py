"""The trained matrices of a model as heat maps, by residual slot."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.matrices import DIVERGING
from causal_circuits.figures.style import BLACK, SMALL, new_grid, to_numpy
from causal_circuits.models import HookedTransformer, layout_of, live_heads, slots

SlotSizes = Sequence[tuple[str, int]]


@check_arguments
def plot_weights(model: HookedTransformer) -> Figure:
    """The attention weights of every head and the read-out, each on its own scale, white at zero, lines between slots.

    Args:
        model: a disentangled transformer (`ValueError` otherwise); W_Q is its attention matrix, query by key.

    >>> figure = plot_weights(cc.disentangled_transformer(3, 6, init_scale=0.1))
    >>> [ax.get_title() for ax in figure.axes][:3]
    ['Attention weights of L0H0', 'Attention weights of L1H0', 'Read-out W_U']
    """
    layout, heads = layout_of(model), live_heads(model)
    every = [(slot.name, slot.stop - slot.start) for slot in slots(model).values()]
    figure, axes = new_grid(len(heads) + 1, 2, 5.6, 4.8)
    for ax, (layer, head) in zip(axes, heads, strict=False):
        width = layout.width(layer)
        read = [(slot.name, slot.stop - slot.start) for slot in slots(model).values() if slot.stop <= width]
        weights = to_numpy(model.blocks[layer].attn.W_Q[head, :width, :width])
        _plot_blocks(ax, weights, read, read)
        ax.set(title=f"Attention weights of L{layer}H{head}", xlabel="key", ylabel="query")
    _plot_blocks(axes[-1], to_numpy(model.W_U), every, [("token", model.cfg.d_vocab)])
    axes[-1].set(title="Read-out W_U", xlabel="predicted", ylabel="residual slot")
    return figure


def _plot_blocks(ax: Axes, values: np.ndarray, rows: SlotSizes, columns: SlotSizes) -> None:
    largest = float(np.abs(values).max()) or 1.0
    image = ax.imshow(values, cmap=DIVERGING, vmin=-largest, vmax=largest, interpolation="nearest", aspect="auto")
    for axis, sizes, draw_line in ((ax.xaxis, columns, ax.axvline), (ax.yaxis, rows, ax.axhline)):
        ends = np.cumsum([size for _, size in sizes])
        for end in ends[:-1]:
            draw_line(end - 0.5, color=BLACK, linewidth=0.8)
        middles = [end - size / 2 - 0.5 for end, (_, size) in zip(ends, sizes, strict=True)]
        axis.set_ticks(middles, [name for name, _ in sizes], fontsize=SMALL)
        axis.set_tick_params(length=0)
    if len(columns) > 2:
        ax.tick_params(axis="x", labelrotation=30)
    ax.figure.colorbar(image, ax=ax, label="weight", fraction=0.046, pad=0.03)
