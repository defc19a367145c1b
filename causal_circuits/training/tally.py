"""What the progress bar says beside the loss: how many parents the attention has found so far."""

from collections.abc import Sequence

import networkx as nx
from jaxtyping import Float
from torch import Tensor

from causal_circuits.graphs import attention_cells
from causal_circuits.recording import RecordAt, Snapshot
from causal_circuits.tasks import Task


def parents_found(tasks: Sequence[Task], snapshots: Sequence[Snapshot], record: RecordAt) -> str:
    """E.g. "training, 7 of 18 parents": true edges whose weight exceeds all others of its row in some head of layer 0.

    Counted at recorded steps, over all members of an ensemble; without recorded attention of layer 0, or with a task
    whose graph is not known, nothing is said.
    """
    if not record.attention or (record.layers is not None and 0 not in record.layers):
        return "training"
    graphs = [task.graph for task in tasks if task.graph is not None]
    if len(graphs) < len(tasks):
        return "training"
    found = 0
    for snapshot, graph in zip(snapshots, graphs, strict=True):
        assert snapshot.attention is not None
        found += _largest_of_row(snapshot.attention[snapshot.layers.index(0)], graph)
    return f"training, {found} of {sum(len(attention_cells(graph)) for graph in graphs)} parents"


def _largest_of_row(attention: Float[Tensor, "head_index query_pos key_pos"], graph: nx.DiGraph) -> int:
    """Edges that are their row's only maximum in some head; of a uniform row there is none, nor of one with NaN."""
    (first, second), key = attention.topk(2).values.unbind(dim=-1), attention.argmax(dim=-1)
    is_clear = first - second > 1e-6
    return sum(bool(((key == parent) & is_clear)[:, child].any()) for child, parent in attention_cells(graph))
