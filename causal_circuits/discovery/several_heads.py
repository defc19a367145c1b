"""Several heads, several parents: which head carries which parent of which position, and what no head carries.

Each head of layer 0 proposes, for every row, the position it attends to; its last row proposes a parent of the target,
t. Attention cannot tell a proposal from a habit, so each is held against data: given what the *other* heads match,
does it tell more about the child that the head's own key holds the token of t? (`conditional_information`.) A proposal
is an edge if that lift

* is above zero beyond doubt (Holm-corrected over all proposals),
* is at least MIN_SHARE of the median lift among proposals: a root's or another kernel's child has a little too,
* is at least DOMINANT of the best in its row, over all keys and all t that no other head has: what is inherited from
  a true parent is less than the parent itself.

The same lift, given what *all* heads match, shows parents that no head carries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.conditional_information import ConditionalInformation, Matches, conditional_information
from causal_circuits.discovery.candidates import CandidateEdge
from causal_circuits.discovery.testing import holm, upper_tail

# Measured on n-grams (d_vocab 3-5), the paper's graph and six graphs of mixed in-degree, 20,000 sequences: true edges
# carry at least .47 of the median, rows that have no parent to offer at most .43.
MIN_SHARE = 0.45
DOMINANT = 0.9
# A further parent is reported where, over all rows, some t has this share of what the heads on duty have.
FURTHER_SHARE = 0.5
# Lifts are large: with so many sequences the least of the edges above was 17 standard errors from zero.
N_SEQUENCES = 8192


@dataclass(frozen=True)
class HeadReport:
    """What one head of layer 0 carries.

    Attributes:
        head: of layer 0.
        last_key: the position whose token it copies to the last position.
        last_weight: with what attention.
        edges: (parent, child) of every edge it carries; child n_ctx is the target.
        role: in words; "carries nothing" if it has no edge.
    """

    head: int
    last_key: int
    last_weight: float
    edges: tuple[tuple[int, int], ...]
    role: str


@dataclass(frozen=True)
class FurtherParent:
    """Evidence of a parent of the target that no head carries, with the parents it goes with in other rows.

    Attributes:
        last_key: the position t, a parent of the target by the data.
        edges: (parent, child) in the rows where t explains something that the heads do not.
        share: total lift of t, given the heads, over the mean total lift of a head on duty.
    """

    last_key: int
    edges: tuple[tuple[int, int], ...]
    share: float


def judge_heads(
    attention: Float[Tensor, "head_index query_pos key_pos"],
    tokens: Int[Tensor, "batch n_ctx"],
    target_probs: Float[Tensor, "batch d_vocab"],
    heads: Sequence[int],
    min_weight: float,
    level: float,
) -> tuple[list[CandidateEdge], list[HeadReport], list[FurtherParent]]:
    """Every proposal with its verdict, every head with its edges, and the parents that the heads leave out.

    Args:
        attention: mean patterns of layer 0's live heads; `heads` names them.
        tokens, target_probs: sequences, none of whose graph is known.
        min_weight, level: least attention of an edge, family-wise error of the test.
    """
    n_ctx, tokens, target_probs = attention.shape[-1], tokens[:N_SEQUENCES], target_probs[:N_SEQUENCES]
    copies = [_matches(pattern, min_weight) for pattern in attention]
    candidates: list[CandidateEdge] = []
    lifts: list[ConditionalInformation] = []
    for index in range(len(copies)):
        others = [m for m in copies if m.last_key != copies[index].last_key]
        lifts.append(conditional_information(tokens, target_probs, others))
        candidates += _proposals(attention[index], heads[index], copies[index], others, lifts[index], min_weight)
    candidates = _judge(candidates, level)
    candidates += [
        _last_row(attention[i], heads[i], copies[i], lifts[i], candidates, copies, min_weight) for i in range(len(heads))
    ]
    reports = [_report(candidates, attention[i], head, copies[i], n_ctx) for i, head in enumerate(heads)]
    return candidates, reports, _further_parents(candidates, reports, copies, lifts, heads, tokens, target_probs)


def _matches(pattern: Tensor, min_weight: float) -> Matches:
    """What a head copies: rows that attend clearly to an earlier position, and the favourite of the last row."""
    weights, keys = pattern.max(dim=1)
    rows = range(len(pattern) - 1)
    chosen = [int(keys[i]) if weights[i] >= min_weight and keys[i] < i else -1 for i in rows]
    return Matches(int(keys[-1]), (*chosen, -1))


def _proposals(
    pattern: Tensor,
    head: int,
    own: Matches,
    others: Sequence[Matches],
    lift: ConditionalInformation,
    min_weight: float,
) -> list[CandidateEdge]:
    """Every row's largest entry with its lift at the head's t; the verdict is still open where attention is clear."""
    proposals = []
    free = torch.ones(lift.value.shape[2], dtype=torch.bool)
    free[[other.last_key for other in others]] = False
    for child in range(1, len(pattern) - 1):
        parent = int(pattern[child, : child + 1].argmax())
        top = pattern[child, : child + 1].sort(descending=True).values
        weight, margin = float(top[0]), float(top[0] - top[1])
        value = float(lift.value[child, parent, own.last_key])
        error = float(lift.standard_error[child, parent, own.last_key])
        best = float(lift.value[child][:, free].max())
        if parent == child:
            reason = "attends to itself, which is no parent"
        elif own.keys[child] < 0:
            reason = f"attention {weight:.2f} is below {min_weight:g}"
        elif value < DOMINANT * best:
            reason = f"another position tells more: {best:.2f} against {value:.2f}"
        else:
            reason = ""
        p_value = 1.0 if not 0 < error < float("inf") else upper_tail(value / error)
        proposals.append(
            CandidateEdge(parent, child, head, weight, margin, value, float("nan"), p_value, not reason, reason)
        )
    return proposals


def _judge(candidates: list[CandidateEdge], level: float) -> list[CandidateEdge]:
    """Holm over all proposals that are still open, and the share of their median lift."""
    open_ones = [c for c in candidates if c.accepted]
    typical = median(c.information for c in open_ones) if open_ones else float("nan")
    corrected = dict(zip(map(id, open_ones), holm([c.p_value for c in open_ones]), strict=True))
    judged = []
    for c in candidates:
        p, share = corrected.get(id(c), c.p_value), c.information / typical if typical > 0 else float("nan")
        accepted, reason = False, c.reason
        if c.accepted and p >= level:
            reason = f"no information (p = {p:.2g}): a root, or a child of another kernel"
        elif c.accepted and not share >= MIN_SHARE:
            reason = f"{share:.0%} of the usual information: a root, or a child of another kernel"
        elif c.accepted:
            accepted, reason = True, f"attention {c.weight:.2f}, {share:.0%} of the usual information"
        facts = (c.weight, c.margin, c.information, share, p)
        judged.append(CandidateEdge(c.parent, c.child, c.head, *facts, accepted, reason))
    return judged


def _last_row(
    pattern: Tensor,
    head: int,
    own: Matches,
    lift: ConditionalInformation,
    candidates: Sequence[CandidateEdge],
    copies: Sequence[Matches],
    min_weight: float,
) -> CandidateEdge:
    """Whether the head's t is a parent of the target: the t that explains most of what its rows tell."""
    n_ctx = len(pattern)
    edges = [(c.child, c.parent) for c in candidates if c.head == head and c.accepted]
    top = pattern[-1].sort(descending=True).values
    weight, margin = float(top[0]), float(top[0] - top[1])
    rows, keys = [child for child, _ in edges], [parent for _, parent in edges]
    total = lift.value[rows, keys].sum(dim=0)
    variance = lift.standard_error[rows, keys].square().sum(dim=0)
    value = float(total[own.last_key])
    mean = value / max(len(edges), 1)
    p = upper_tail(value / float(variance[own.last_key]) ** 0.5) if edges else 1.0
    free = [t for t in range(n_ctx) if t == own.last_key or t not in {other.last_key for other in copies}]
    if weight < min_weight:
        accepted, reason = False, f"attention {weight:.2f} is below {min_weight:g}"
    elif not edges:
        accepted, reason = False, "no row agrees with it"
    elif value < DOMINANT * float(total[free].max()):
        best = free[int(total[free].argmax())]
        accepted, reason = False, f"position {best} explains more of what its rows tell"
    else:
        accepted, reason = True, f"attention {weight:.2f}; {len(edges)} rows agree with it"
    return CandidateEdge(own.last_key, n_ctx, head, weight, margin, mean, 1.0 if edges else 0.0, p, accepted, reason)


def _report(
    candidates: Sequence[CandidateEdge], pattern: Tensor, head: int, own: Matches, n_ctx: int
) -> HeadReport:
    edges = tuple((c.parent, c.child) for c in candidates if c.head == head and c.accepted)
    within = sum(child < n_ctx for _, child in edges)
    if not edges:
        role = "carries nothing"
    elif (own.last_key, n_ctx) in edges:
        role = f"carries a parent of {within} positions, and {own.last_key} of the target"
    else:
        role = f"carries a parent of {within} positions, and none of the target"
    return HeadReport(head, own.last_key, float(pattern[-1, own.last_key]), edges, role)


def _further_parents(
    candidates: Sequence[CandidateEdge],
    reports: Sequence[HeadReport],
    copies: Sequence[Matches],
    lifts: Sequence[ConditionalInformation],
    heads: Sequence[int],
    tokens: Tensor,
    target_probs: Tensor,
) -> list[FurtherParent]:
    """Positions t, in order of evidence, that explain rows beyond what the heads on duty match."""
    duty = [i for i, report in enumerate(reports) if report.edges]
    carried = [
        sum(c.information for c in candidates if c.head == heads[i] and c.accepted and c.child < len(tokens[0]))
        for i in duty
    ]
    level = sum(carried) / len(carried) if carried else 0.0
    given, found = [_accepted_matches(copies[i], heads[i], candidates) for i in duty], []
    used = {match.last_key for match in given}
    while level > 0 and len(found) < 4:
        rest = conditional_information(tokens, target_probs, given)
        clear = rest.value * (rest.value > 5.0 * rest.standard_error)
        clear[-1] = 0.0
        clear[:, :, list(used)] = 0.0
        best, keys = clear.max(dim=1)
        total = best.sum(dim=0)
        t = int(total.argmax())
        if float(total[t]) < FURTHER_SHARE * level:
            break
        usual = float(best[:, t][best[:, t] > 0].median())
        rows = [i for i in range(len(best)) if best[i, t] >= MIN_SHARE * usual > 0]
        keys_at = tuple(int(keys[i, t]) if i in rows else -1 for i in range(len(best)))
        found.append(FurtherParent(t, tuple((keys_at[i], i) for i in rows), float(total[t]) / level))
        given, used = [*given, Matches(t, keys_at)], {*used, t}
    return found


def _accepted_matches(own: Matches, head: int, candidates: Sequence[CandidateEdge]) -> Matches:
    """A head's matches, rows without an accepted edge left out."""
    kept = {c.child for c in candidates if c.head == head and c.accepted}
    return Matches(own.last_key, tuple(key if row in kept else -1 for row, key in enumerate(own.keys)))
