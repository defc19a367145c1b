"""The graph while it forms: arcs as dark as the attention on them, true edges above the line, others below.

A root has no parent to attend to: what it attends to instead is drawn dotted, for it claims no edge.
"""

import networkx as nx
import numpy as np

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.arcs import roots_of
from causal_circuits.figures.style import BLACK, GREY, MODEL, TRUE_EDGE, to_numpy
from causal_circuits.figures.svg_arcs import Frame
from causal_circuits.graphs import attention_cells, has_query, n_ctx_of
from causal_circuits.pages.templates import PagePart, render
from causal_circuits.recording import TrainingRecord

FAINTEST = 0.05  # attention that never reaches this is not drawn, but on true edges
Edge = tuple[int, int]
_ON_EDGE, _ELSEWHERE, _OF_ROOT = "attention on a true edge", "attention elsewhere", "attention of a root (no edge)"
_LOOKS = {_ON_EDGE: (MODEL, ""), _ELSEWHERE: (BLACK, ""), _OF_ROOT: (GREY, "1 4")}  # kind -> colour, dashes


@check_arguments
def graph_film_html(record: TrainingRecord, graph: nx.DiGraph, layer: int = 0, head: int | None = None) -> PagePart:
    """All recorded steps as a part of a page: it plays once when scrolled to; without JavaScript the last one shows.

    Args:
        record: of a run that recorded attention.
        graph: the true graph.
        layer, head: whose attention; None takes the largest over the layer's heads.

    >>> import causal_circuits as cc
    >>> from causal_circuits import figures
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(4, batch_size=64)
    >>> record = cc.train(model, task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> 'type="range"' in str(figures.graph_film_html(record, task.graph))
    True
    """
    weights, true = _weights_in_time(_attention(record, graph, layer, head), graph)
    frame = Frame(graph, true, set(weights) - true)
    kinds = {edge: _kind(edge, true, roots_of(graph)) for edge in weights}
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
        f"step {step:,}: {n} of {len(true)} edges above one half" for step, n in zip(record.steps, learned, strict=True)
    ]
    looks = [{"kind": kind, "colour": colour, "dashes": dashes} for kind, (colour, dashes) in _LOOKS.items()]
    return PagePart(render("film.html.jinja", frame=frame, told=told, arcs=drawn, looks=looks, truth=TRUE_EDGE))


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


def _kind(edge: Edge, true: set[Edge], roots: list[int]) -> str:
    return _ON_EDGE if edge in true else _OF_ROOT if edge[1] in roots else _ELSEWHERE
