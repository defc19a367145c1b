"""The graph while it forms, as one picture with one slider: arcs, attention, gradient and curves over training.

Arcs are as dark as the attention on them, true edges above the line, others below. A root has no parent to attend to:
what it attends to instead is drawn dotted, for it claims no edge. Without scripts the last step shows.
"""

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO

import networkx as nx
import numpy as np
from markupsafe import Markup
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.image import imsave

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.matrices import DIVERGING, SEQUENTIAL, gradient_on_its_scale
from causal_circuits.figures.style import BLACK, GREY, MODEL, TRUE_EDGE, to_numpy
from causal_circuits.figures.svg_arcs import Frame
from causal_circuits.graphs import attention_cells, has_query, n_ctx_of
from causal_circuits.graphs.edges import roots_of
from causal_circuits.pages.rendering import figure_html, figure_of, laid_out
from causal_circuits.pages.templates import PagePart, render
from causal_circuits.recording import TrainingRecord

FAINTEST = 0.05  # attention that never reaches this is not drawn, but on true edges
Edge = tuple[int, int]
_ON_EDGE, _ELSEWHERE, _OF_ROOT = "attention on a true edge", "attention elsewhere", "attention of a root (no edge)"
_LOOKS = {_ON_EDGE: (MODEL, ""), _ELSEWHERE: (BLACK, ""), _OF_ROOT: (GREY, "1 4")}  # kind -> colour, dashes


@check_arguments
def graph_film_html(
    record: TrainingRecord, graph: nx.DiGraph, layer: int = 0, head: int | None = None, beside: Sequence[Axes] = ()
) -> PagePart:
    """All recorded steps as a part of a page: it plays once when scrolled to; without JavaScript the last one shows.

    The pattern, and minus the gradient by its scores where that was recorded (of a single head), stand below the arcs.

    Args:
        record: of a run that recorded attention.
        graph: the true graph.
        layer, head: whose attention; None takes the largest over the layer's heads.
        beside: axes over training steps (`plot_loss`, `plot_phases`), in each of which a line moves with the slider.

    >>> model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(4, batch_size=64)
    >>> record = cc.train(model, task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> loss = cc.figures.plot_loss(record, {"uniform": 1.0986})
    >>> str(cc.figures.graph_film_html(record, task.graph, beside=[loss])).count('type="range"')
    1
    """
    attention = _attention(record, graph, layer, head)
    weights, true = _weights_in_time(attention, graph)
    frame = Frame(graph, true, set(weights) - true)
    roots = roots_of(graph)
    kinds = {e: _ON_EDGE if e in true else _OF_ROOT if e[1] in roots else _ELSEWHERE for e in weights}
    drawn = [
        {
            "is_true": edge in true,
            "path": frame.path(*edge, below=edge not in true),
            "colour": _LOOKS[kinds[edge]][0],
            "dashes": _LOOKS[kinds[edge]][1],
            "weights": [f"{weight:.3f}" for weight in weights[edge]],
        }
        for edge in sorted(weights, key=lambda edge: (edge not in true, edge))
    ]
    learned = [sum(bool(weights[edge][state] > 0.5) for edge in true) for state in range(len(record.steps))]
    told = [
        f"step {step:,}: {n} of {len(true)} edges above one half; loss {loss:.3f}"
        for step, n, loss in zip(record.steps, learned, record.recorded_losses.tolist(), strict=True)
    ]
    matrices = [
        (
            "Attention: white 0, dark blue 1; true edges outlined",
            [_png(values, SEQUENTIAL, 0.0) for values in attention],
        )
    ]
    gradients = _gradients(record, layer, head)
    if gradients is not None:
        shown = [gradient_on_its_scale(values, graph) for values in gradients]
        told = [f"{words}; gradient {said}" for words, (_, said) in zip(told, shown, strict=True)]
        title = "Minus its gradient: red raises attention, blue lowers it, in shares of the largest entry"
        matrices.append((title, [_png(values, DIVERGING, -1.0) for values, _ in shown]))
    return PagePart(
        render(
            "film.html.jinja",
            frame=frame,
            told=told,
            arcs=drawn,
            looks=[{"kind": kind, "colour": colour, "dashes": dashes} for kind, (colour, dashes) in _LOOKS.items()],
            truth=TRUE_EDGE,
            matrices=matrices,
            n_ctx=attention.shape[-1],
            cells=attention_cells(graph),
            curves=[_with_line(ax, record.steps) for ax in beside],
        )
    )


def _png(values: np.ndarray, colours: str, low: float) -> str:
    """The lower triangle on a scale from low to 1, a pixel an entry, as a data URL; what is NaN is clear."""
    picture = colormaps[colours]((values - low) / (1 - low))
    picture[np.triu(np.ones(values.shape, dtype=bool), 1) | np.isnan(values)] = 0.0
    file = BytesIO()
    imsave(file, picture, format="png")
    return f"data:image/png;base64,{b64encode(file.getvalue()).decode()}"


def _with_line(ax: Axes, steps: Sequence[int]) -> Markup:
    """The axes with a vertical line that has a place for every step, counted from 1 as `plot_loss` and others do."""
    figure = figure_of(ax)
    with laid_out(figure):
        html = figure_html(figure, f"{ax.get_ylabel()} over {ax.get_xlabel()}")
        points, height = 72 / figure.dpi, 72 * figure.get_figheight()
        places = [points * ax.transData.transform((step + 1, 1.0))[0] for step in steps]
        bottom, top = (height - points * ax.transAxes.transform((0, y))[1] for y in (0, 1))
    x = " ".join(f"{place:.1f}" for place in places)
    line = f'<path class="now" d="M0 {top:.1f}V{bottom:.1f}" data-x="{x}" transform="translate({places[-1]:.1f})"'
    return Markup(html.replace("</svg>", f'{line} stroke="{TRUE_EDGE}" stroke-width="1.5"/></svg>'))


def _gradients(record: TrainingRecord, layer: int, head: int | None) -> np.ndarray | None:
    """[step, query_pos, key_pos] of one head; None where none was recorded, or of several heads none was chosen."""
    if record.score_gradients is None or layer not in record.layers:
        return None
    chosen = record.score_gradients[:, record.layers.index(layer)]
    if chosen.isnan().any() or (head is None and chosen.shape[1] > 1):
        return None
    return to_numpy(chosen[:, head or 0])


def _attention(record: TrainingRecord, graph: nx.DiGraph, layer: int, head: int | None) -> np.ndarray:
    """[step, query_pos, key_pos] of one head, or the largest over the layer's."""
    chosen = record.of_layer("attention", layer)
    n_heads, n_ctx = chosen.shape[1:3]
    if not (head is None or 0 <= head < n_heads):
        raise ValueError(f"the record has heads 0 .. {n_heads - 1}: got L{layer}H{head}")
    if n_ctx != n_ctx_of(graph):
        raise ValueError(f"record and graph must cover the same positions: {n_ctx} against {n_ctx_of(graph)}")
    return to_numpy(chosen.amax(dim=1) if head is None else chosen[:, head])


def _weights_in_time(values: np.ndarray, graph: nx.DiGraph) -> tuple[dict[Edge, np.ndarray], set[Edge]]:
    """Attention by edge at each step, and the true edges; diagonal entries and the query's row are no edges."""
    n_ctx, query, cells = values.shape[-1], has_query(graph), set(attention_cells(graph))
    weights: dict[Edge, np.ndarray] = {}
    for row in range(n_ctx - query):
        is_target = row == n_ctx - 1  # without a query, the last row stands for the target
        for key in range(row + is_target):
            if (row, key) in cells or values[:, row, key].max() >= FAINTEST:
                weights[key, n_ctx if is_target else row] = values[:, row, key]
    return weights, {(key, n_ctx if row == n_ctx - 1 else row) for row, key in cells}
