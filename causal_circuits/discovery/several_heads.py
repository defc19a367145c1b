"""Several heads, several parents: which head attends to which parent, and which parents no head attends to.

Each head of layer 0 proposes, for every row, the position it attends to most; its last row proposes a parent of the
target. Attention cannot tell a parent from a habit or a decoy, so a proposal is an edge only if `recover_graph` finds
that parent in the sequences, without the model. What it finds and no head attends to is *inferred*, and no part of the
model's graph. The last row has the target's parents to copy: the last position's own are attended to only if they are
the same positions.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float

from causal_circuits.discovery.extracted import CandidateEdge, DecidedBy, HeadReport, Proposal
from causal_circuits.discovery.recover import RecoveredGraph
from causal_circuits.discovery.verdicts import Position

Edge = tuple[int, int]


def judge_heads(proposals: Sequence[Proposal], data: RecoveredGraph, n_ctx: int) -> list[CandidateEdge]:
    """Every proposal with its verdict; of last rows, also as parents of the last position, where that is an edge."""
    positions = {p.position: p for p in data.positions}
    judged = [_judge(p, positions, data, n_ctx) for p in proposals]
    again = [p._replace(child=n_ctx - 1) for p in proposals if p.child == n_ctx]
    of_last = [_judge(p, positions, data, n_ctx) for p in again if n_ctx - 1 in positions]
    return judged + [candidate for candidate in of_last if candidate.accepted]


def _judge(p: Proposal, positions: Mapping[int, Position], data: RecoveredGraph, n_ctx: int) -> CandidateEdge:
    share, p_value = 1.0, float("nan")
    if p.child == n_ctx:
        parents = data.target_parents or ()
        why = f"the target's parents are {parents}" if parents else "the sequences do not tell the target's parents"
    else:
        verdict = positions[p.child]
        parents, share, p_value = verdict.parents, verdict.weight, verdict.p_value
        why = f"{verdict.verdict}: {verdict.reason}"
    by: DecidedBy = "attention" if p.why_unclear else "information"
    reason = p.why_unclear or f"attention {p.weight:.2f}; {why}"
    accepted = not p.why_unclear and p.parent in parents
    return CandidateEdge(*p[:5], float("nan"), share, p_value, accepted, reason, by)


def inferred_edges(candidates: Sequence[CandidateEdge], data: RecoveredGraph) -> tuple[Edge, ...]:
    """The edges that the sequences show and no head attends to."""
    attended = {(c.parent, c.child) for c in candidates if c.accepted}
    return tuple(sorted(set(data.graph.edges) - attended, key=lambda edge: (edge[1], edge[0])))


def head_reports(
    candidates: Sequence[CandidateEdge],
    attention: Float[torch.Tensor, "head_index query_pos key_pos"],
    heads: Sequence[int],
) -> tuple[HeadReport, ...]:
    """What each head carries."""
    reports, n_ctx = [], attention.shape[-1]
    for head in heads:
        edges = tuple(sorted((c.parent, c.child) for c in candidates if c.head == head and c.accepted))
        within = sum(child < n_ctx for _, child in edges)
        of_target = next((str(parent) for parent, child in edges if child == n_ctx), "none")
        role = f"carries a parent of {within} positions, and {of_target} of the target" if edges else "carries nothing"
        t = int(attention[head, -1].argmax())
        reports.append(HeadReport(head, t, float(attention[head, -1, t]), edges, role))
    return tuple(reports)
