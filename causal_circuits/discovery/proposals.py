"""What attention proposes as edges, and what the sequences say of each proposal.

Each head of layer 0 proposes, for every row, the position that it attends to most; without a query its last row, which
copies the target's parents, proposes one of these. Attention cannot tell a parent from a habit or a decoy, so a
proposal is an edge only if the sequences and their targets, without the model, say so: by their information, or with
several parents by `recover_graph`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from causal_circuits.discovery.extracted import CandidateEdge, DecidedBy, HeadReport
from causal_circuits.discovery.recover import RecoveredGraph
from causal_circuits.information import Information
from causal_circuits.statistics import holm, upper_tail

# An edge must carry this share of the information of the best-supported edge. Over 67 forests (d_vocab 2-20, n_ctx
# 6-60, alpha .1-1, 20,000 sequences) true edges carried at least .44, the largest entry of a root's row at most .15
# (benchmarks/edge_information.py). A p-value alone does not do: at finite context a root's row has a small bias, which
# many sequences make significant. On 52 forests that .3 was not chosen on (--drawn 60) edges carried at least .51, but
# for one of 520, and roots at most .24. That one is in a context of five positions, too short for the estimate.
MIN_INFORMATION_SHARE = 0.3
_UNUSED = "no prediction depends on what this head attends to: uniform attention in its place changes none"
_NAN = float("nan")
Attention = Float[Tensor, "head_index query_pos key_pos"]


@dataclass(frozen=True)
class Proposal:
    """A head's largest entry in a row, as an edge; `margin` is what it has above the rest of the row, itself too."""

    parent: int
    child: int
    head: int
    weight: float
    margin: float

    def why_unclear(self, min_weight: float) -> str:
        """Why attention alone does not make it an edge; empty if it does."""
        if self.weight >= min_weight and self.margin > 0:
            return ""
        below = f"below {min_weight:g}" if self.weight < min_weight else "not its row's largest"
        return f"attention {self.weight:.2f} is {below}"


class Evidence(NamedTuple):
    """What the sequences say of a proposal."""

    is_edge: bool
    why: str
    information: float = _NAN
    share: float = _NAN
    p_value: float = _NAN
    decided_by: DecidedBy = "information"


Judged = tuple[Proposal, Evidence]
NOT_TESTED = Evidence(True, "roots were not tested", decided_by="attention")


def propose(attention: Attention, heads: Sequence[int], has_query: bool) -> list[Proposal]:
    """Every head's largest entry in every row that can be an edge; the last row may attend to itself."""
    n_ctx = attention.shape[-1]
    rows = [(child, child, child) for child in range(1, n_ctx - 1)]  # row, child node, number of keys
    if not has_query:
        rows.append((n_ctx - 1, n_ctx, n_ctx))
    proposals = []
    for head in heads:
        for row, child, n_keys in rows:
            weights = attention[head, row, : row + 1].tolist()
            parent = int(attention[head, row, :n_keys].argmax())
            rest = max(weights[:parent] + weights[parent + 1 :], default=0.0)
            proposals.append(Proposal(parent, child, head, weights[parent], weights[parent] - rest))
    return proposals


def by_information(proposals: Sequence[Proposal], gradient: Information, level: float) -> list[Judged]:
    """Whether each proposal has the information of an edge: significantly, beside the best one's and in its row."""
    information = [float(gradient.value[p.child, p.parent]) for p in proposals]
    errors = [float(gradient.standard_error[p.child, p.parent]) for p in proposals]
    p_values = holm([upper_tail(g / e) if e > 0 else 1.0 for g, e in zip(information, errors, strict=True)])
    largest, found = float(gradient.value[:-1].tril(-1).max()), []  # of all pairs: perhaps no proposal is an edge
    for proposal, g, p in zip(proposals, information, p_values, strict=True):
        share = g / largest if largest > 0 else _NAN
        is_edge, why = True, f"{share:.0%} of the best edge's information"
        better = _better_parent(proposal, gradient, level)
        if p >= level:
            is_edge, why = False, f"a root: no information (p = {p:.2g})"
        elif better is not None:
            is_edge, why = False, f"no edge: position {better} has more information, and a parent has the most"
        elif share < MIN_INFORMATION_SHARE:
            is_edge, why = False, f"a root: {why}"
        found.append(Evidence(is_edge, why, g, share, p))
    return list(zip(proposals, found, strict=True))


def _better_parent(proposal: Proposal, gradient: Information, level: float) -> int | None:
    """The earlier position with the most information, if that is significantly more than the proposal's."""
    row, error = (of[proposal.child, : proposal.child] for of in (gradient.value, gradient.standard_error))
    best, parent = int(row.argmax()), proposal.parent
    spread = float(error[best].hypot(error[parent]))
    is_better = best != parent and spread > 0 and upper_tail(float(row[best] - row[parent]) / spread) < level
    return best if is_better else None


def by_recovery(proposals: Sequence[Proposal], data: RecoveredGraph) -> list[Judged]:
    """Whether `recover_graph` finds each proposal's parent; those of the target also as parents of the last position.

    The last row has the target's parents to copy: the last position's own are attended to if they are the same.
    """
    n_ctx, found = len(data.weights), list[Judged]()
    of_last = [replace(p, child=n_ctx - 1) for p in proposals if p.child == n_ctx and len(data.positions) == n_ctx]
    for p in (*proposals, *(p for p in of_last if p.parent in data.positions[-1].parents)):
        if p.child == n_ctx:
            parents, share, p_value = data.target_parents or (), 1.0, _NAN
            why = f"the target's parents are {parents}" if parents else "the sequences do not tell the target's parents"
        else:
            verdict = data.positions[p.child]
            parents, share, p_value = verdict.parents, verdict.weight, verdict.p_value
            why = f"{verdict.verdict}: {verdict.reason}"
        found.append((p, Evidence(p.parent in parents, why, share=share, p_value=p_value)))
    return found


def judge(p: Proposal, found: Evidence, min_weight: float, is_used: bool) -> CandidateEdge:
    """The verdict on a proposal: its head is used, its attention clear, and the sequences say that it is an edge."""
    unclear, by = p.why_unclear(min_weight), found.decided_by
    reason = unclear or f"attention {p.weight:.2f}; {found.why}"
    if not is_used:
        reason, by = _UNUSED, "unused head"
    elif unclear:
        by = "attention"
    accepted = is_used and not unclear and found.is_edge
    return CandidateEdge(
        **asdict(p),
        information=found.information,
        information_share=found.share,
        p_value=found.p_value,
        accepted=accepted,
        reason=reason,
        decided_by=by,
    )


def report_heads(
    candidates: Sequence[CandidateEdge], attention: Attention, heads: Sequence[int]
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
