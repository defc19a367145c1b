"""The graph while it forms: arcs as dark as the attention on them, true edges above the line, others below.

A root has no parent to attend to: what it attends to instead is drawn dotted, for it claims no edge.
"""

from dataclasses import dataclass

import networkx as nx
import numpy as np

from causal_circuits.arguments import check_arguments
from causal_circuits.figures.arcs import roots_of
from causal_circuits.figures.style import BLACK, GREY, MODEL, TRUE_EDGE, to_numpy
from causal_circuits.figures.svg_arcs import Frame
from causal_circuits.graphs import attention_cells, has_query, n_ctx_of
from causal_circuits.pages.templates import PagePart, render
from causal_circuits.recording import TrainingRecord

FAINTEST = 0.05  # attention below this is not drawn
Edge = tuple[int, int]
_LOOKS = {  # kind -> colour, dashes
    "attention on a true edge": (MODEL, ""),
    "attention elsewhere": (BLACK, ""),
    "attention of a root (no edge)": (GREY, "1 4"),
}


@dataclass(frozen=True, eq=False)
class ArcsInTime:
    """One layer's attention as edges, at every recorded step.

    Attributes:
        steps: recorded.
        weights: (parent, child) -> attention at each step; edges that are never as strong as `FAINTEST` are left out,
            true ones never.
        true: the true edges.
        roots: positions without a parent.
    """

    steps: tuple[int, ...]
    weights: dict[Edge, np.ndarray]
    true: set[Edge]
    roots: list[int]

    def told(self, state: int) -> str:
        """A state in words."""
        learned = sum(bool(self.weights[edge][state] > 0.5) for edge in self.true)
        return f"step {self.steps[state]:,}: {learned} of {len(self.true)} edges above one half"

    def by_kind(self) -> dict[str, list[Edge]]:
        """The edges of each kind of `_LOOKS`."""
        kinds: dict[str, list[Edge]] = {kind: [] for kind in _LOOKS}
        on_edge, elsewhere, of_root = kinds.values()
        for edge in sorted(self.weights):
            (on_edge if edge in self.true else of_root if edge[1] in self.roots else elsewhere).append(edge)
        return kinds


def arcs_in_time(record: TrainingRecord, graph: nx.DiGraph, layer: int = 0, head: int | None = None) -> ArcsInTime:
    """The attention of a record as edges over positions; diagonal entries and the query's row are no edges."""
    chosen = record.of_layer("attention", layer)
    n_heads, n_ctx = chosen.shape[1:3]
    if not (head is None or 0 <= head < n_heads):
        raise ValueError(f"the record has heads 0 .. {n_heads - 1}: got L{layer}H{head}")
    if n_ctx != n_ctx_of(graph):
        raise ValueError(f"record and graph must cover the same positions: {n_ctx} against {n_ctx_of(graph)}")
    values = to_numpy(chosen.amax(dim=1) if head is None else chosen[:, head])
    is_true = set(attention_cells(graph))
    query, weights = has_query(graph), {}
    for row in range(n_ctx - query):
        is_target = row == n_ctx - 1  # without a query, the last row stands for the target
        for key in range(row + is_target):
            if (row, key) in is_true or values[:, row, key].max() >= FAINTEST:
                weights[key, n_ctx if is_target else row] = values[:, row, key]
    true = {(key, n_ctx if row == n_ctx - 1 else row) for row, key in is_true}
    return ArcsInTime(record.steps, weights, true, roots_of(graph))


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
    arcs = arcs_in_time(record, graph, layer, head)
    frame = Frame(graph, arcs.true, set(arcs.weights) - arcs.true)
    drawn = [
        {
            "is_true": edge in arcs.true,
            "path": frame.path(*edge, below=edge not in arcs.true),
            "colour": _LOOKS[kind][0],
            "dashes": _LOOKS[kind][1],
            "weights": [f"{weight:.3f}" for weight in arcs.weights[edge]],
        }
        for kind, edges in arcs.by_kind().items()
        for edge in edges
    ]
    looks = [{"kind": kind, "colour": colour, "dashes": dashes} for kind, (colour, dashes) in _LOOKS.items()]
    told = [arcs.told(state) for state in range(len(arcs.steps))]
    return PagePart(render("film.html.jinja", frame=frame, told=told, arcs=drawn, looks=looks, truth=TRUE_EDGE))
