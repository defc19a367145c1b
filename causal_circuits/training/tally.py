"""What the progress bar says beside the loss: how many parents the attention has found so far."""

from collections.abc import Sequence

from causal_circuits.graphs import attention_cells
from causal_circuits.recording import RecordAt, Snapshot
from causal_circuits.tasks import Task


def parents_found(tasks: Sequence[Task], snapshots: Sequence[Snapshot], record: RecordAt) -> str:
    """E.g. "training, 7 of 18 parents": true edges that are the largest weight of their row in some head of layer 0.

    Counted at recorded steps, over all members of an ensemble; without recorded attention of layer 0, or with a task
    whose graph is not known, nothing is said.
    """
    if not record.attention or (record.layers is not None and 0 not in record.layers):
        return "training"
    graphs = [task.graph for task in tasks if task.graph is not None]
    if len(graphs) < len(tasks):
        return "training"
    cells = [attention_cells(graph) for graph in graphs]
    found = 0
    for snapshot, edges in zip(snapshots, cells, strict=True):
        assert snapshot.attention is not None
        largest = snapshot.attention[0].argmax(dim=-1)  # layer 0 stands first
        found += sum(bool((largest[:, child] == parent).any()) for child, parent in edges)
    return f"training, {found} of {sum(map(len, cells))} parents"
