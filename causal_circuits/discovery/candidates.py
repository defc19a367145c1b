"""What attention proposes as an edge, and what became of it."""

from dataclasses import dataclass


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
