"""What attention proposes as an edge, and what became of it."""

from dataclasses import dataclass
from typing import Literal

from causal_circuits.arguments import check_arguments

DecidedBy = Literal["attention", "information", "unused head"]


@check_arguments
@dataclass(frozen=True)
class CandidateEdge:
    """One proposal of the attention, and what became of it.

    Attributes:
        parent, child: positions (child n_ctx is the target).
        head: of layer 0.
        weight: attention from child to parent, averaged over sequences.
        margin: weight minus the row's next largest entry.
        information: the estimated g at this entry; NaN where it was not estimated.
        information_share: information divided by the largest among all candidates.
        p_value: one-sided, against "no information"; Holm-corrected over candidates.
        accepted: whether it is an edge of the extracted graph.
        reason: why, in words.
        decided_by: the evidence that decided. "attention": the model's own, because the entry is below `min_weight` or
            not its row's largest, or because there were no sequences to test for information. "information": that of
            the sequences and their targets, computed without the model; an accepted edge passed this test after
            attention proposed it. "unused head": no prediction depends on what its head attends to.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> edge = cc.extract_graph(model, task, n_sequences=2000).candidates[0]
    >>> edge.parent, edge.child, edge.accepted, round(edge.weight, 3), edge.decided_by
    (0, 1, True, 1.0, 'information')
    """

    parent: int
    child: int
    head: int
    weight: float
    margin: float
    information: float
    information_share: float
    p_value: float
    accepted: bool
    reason: str
    decided_by: DecidedBy
