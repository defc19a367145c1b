"""Several heads, several parents: which head carries which parent of which position, and what no head carries.

Each head of layer 0 proposes, for every row, the position it attends to; its last row proposes a parent of the target,
t, and stands for it unless the other rows plainly go with another one. Attention cannot tell a proposal from a habit,
so each is held against data: given what the *other* heads match, does it tell more about the child that the head's own
key holds the token of t? (`conditional_information`.) A proposal is an edge if that lift

* is above zero beyond doubt (Holm-corrected over all proposals),
* is at least MIN_SHARE of the median lift among proposals: the row of a root, or of another kernel's child, has a
  little too, where its position is an ancestor of the target or inherits from a position that is,
* is at least DOMINANT of the best in its row, over all keys and all t that no other head has: what is inherited from
  a true parent is less than the parent itself.

The row of a parent of the target needs TARGET_ROW_SHARE: there the target's kernel row is chosen by the very token
that it is held against, so a root's row has more.

A row may be swapped: its heads attend to its parents, but the one that has t for the target takes the parent that goes
with t'. Which t each key of a row stands for is therefore decided row by row, by what the tokens say.

The same lift, given what *all* heads match, shows parents that no head carries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from statistics import median

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.discovery.candidates import CandidateEdge
from causal_circuits.discovery.testing import holm, upper_tail
from causal_circuits.information.conditional import ConditionalInformation, Matches, conditional_information

# Set from 110 random graphs of in-degrees 0-3 (n_ctx 8-32, alpha .1, 8,192 sequences): with 3-5 tokens a row without a
# parent to offer, on its most telling key, has at most .37 of the true edges' median lift (.56 if a parent of the
# target), and edges of n-grams at least .57. Not a guarantee: where *all* heads look at their most telling keys in all
# such rows, which pulls the median down too, benchmarks/head_rules.py still counts about one false edge a graph; with
# 2 tokens, where nearly deterministic kernels hand information on undiminished, no share tells the two apart.
MIN_SHARE = 0.4
TARGET_ROW_SHARE = 0.6
DOMINANT = 0.9
# A further parent is reported where, over all rows, some t has this share of what the heads on duty have.
FURTHER_SHARE = 0.6
# A row counts as swapped if another order of its keys is better by so many standard errors.
SWAPPED = 4.0
# Lifts are large: with so many sequences the least of the edges above was 17 standard errors from zero.
N_SEQUENCES = 8192


@dataclass(frozen=True)
class HeadReport:
    """What one head of layer 0 carries.

    Attributes:
        head: of layer 0.
        last_key: the position t that its rows go with: what they copy is of use where it equals the token of t.
        last_weight: the last row's attention to t; small where layer 1 reads the last position's token directly.
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
        share: total lift of t, given the heads, over the largest total lift of a head.
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
    copies = _by_what_rows_say([_matches(pattern, min_weight) for pattern in attention], tokens, target_probs)
    stands = _stands_for(copies, tokens, target_probs)
    slots = {t: _slot(t, copies, stands) for t in sorted({own.last_key for own in copies})}
    lifts = _lifts_given_the_rest(slots, (), tokens, target_probs)
    further = _further_parents(slots, lifts, tokens, target_probs)
    if further:  # what no head carries is known all the same
        lifts = _lifts_given_the_rest(slots, [_of_further(f, n_ctx) for f in further], tokens, target_probs)
    taken = {*slots, *(f.last_key for f in further)}
    candidates: list[CandidateEdge] = []
    for index, head in enumerate(heads):
        candidates += _proposals(attention[index], head, copies[index], stands[index], lifts, taken, min_weight)
    candidates = _judge(candidates, level, set(slots))
    candidates += [
        _last_row(attention[i], heads[i], copies[i], stands[i], lifts, taken, candidates, min_weight)
        for i in range(len(heads))
    ]
    reports = [_report(candidates, attention[i], head, copies[i], n_ctx) for i, head in enumerate(heads)]
    return candidates, reports, further


def _matches(pattern: Tensor, min_weight: float) -> Matches:
    """What a head copies: rows that attend clearly to an earlier position, and the favourite of the last row."""
    weights, keys = pattern.max(dim=1)
    rows = range(len(pattern) - 1)
    chosen = [int(keys[i]) if weights[i] >= min_weight and keys[i] < i else -1 for i in rows]
    return Matches(int(keys[-1]), (*chosen, -1))


def _by_what_rows_say(copies: Sequence[Matches], tokens: Tensor, target_probs: Tensor) -> list[Matches]:
    """The heads, each with the t that its rows go with, given the other heads; not always its last row's favourite.

    Layer 1 can read the query's own token directly, so the last row of the head that has t = n_ctx - 1 is under no
    pressure to copy it.
    """
    settled, rows = list(copies), list(range(tokens.shape[1]))
    for _ in range(2):  # the second time round, given better matches
        for index, own in enumerate(settled):
            others = [other for other in settled if other.last_key != own.last_key]
            lift = _clear(conditional_information(tokens, target_probs, others))
            total = (lift[rows, own.keys] * (torch.tensor(own.keys) >= 0)[:, None]).sum(dim=0)
            total[[other.last_key for other in others]] = 0.0
            best = int(total.argmax())
            if float(total[own.last_key]) < DOMINANT * float(total[best]):
                settled[index] = Matches(best, own.keys)
    return settled


def _stands_for(copies: Sequence[Matches], tokens: Tensor, target_probs: Tensor) -> list[list[int]]:
    """For each head and row, the t that its key goes with: the head's own, unless the row is plainly swapped."""
    stands = [[own.last_key] * len(own.keys) for own in copies]
    for row in range(len(copies[0].keys)):
        active = [i for i, own in enumerate(copies) if own.keys[row] >= 0]
        own_t = [copies[i].last_key for i in active]
        if len(active) < 2 or len(set(own_t)) < len(active):
            continue
        keys = [copies[i].keys[row] for i in active]
        ratio = target_probs.shape[-1] * torch.gather(target_probs, 1, tokens[:, [row]])[:, 0]
        evidence = {order: _evidence(ratio, tokens, keys, order) for order in permutations(own_t)}
        best = max(evidence, key=lambda order: evidence[order])
        if evidence[best] > evidence[tuple(own_t)] + SWAPPED:
            for index, t in zip(active, best, strict=True):
                stands[index][row] = t
    return stands


def _evidence(ratio: Tensor, tokens: Tensor, keys: Sequence[int], last_keys: Sequence[int]) -> float:
    """How many standard errors E[w | every key holds the token of its t] lies above E[w]."""
    held = ratio[(tokens[:, list(keys)] == tokens[:, list(last_keys)]).all(dim=1)]
    if len(held) < 8:
        return 0.0
    return float((held.mean() - ratio.mean()) / (held.std() / len(held) ** 0.5).clamp(min=1e-9))


def _slot(t: int, copies: Sequence[Matches], stands: Sequence[Sequence[int]]) -> Matches:
    """What all heads together match with t: in each row the key that stands for it, if any."""
    keys = [-1] * len(copies[0].keys)
    for own, stand in zip(copies, stands, strict=True):
        for row, key in enumerate(own.keys):
            if stand[row] == t and keys[row] < 0:
                keys[row] = key
    return Matches(t, tuple(keys))


def _proposals(
    pattern: Tensor,
    head: int,
    own: Matches,
    stands: Sequence[int],
    lifts: dict[int, ConditionalInformation],
    taken: set[int],
    min_weight: float,
) -> list[CandidateEdge]:
    """Every row's largest entry with its lift at its t; the verdict is still open where attention is clear."""
    proposals = []
    for child in range(1, len(pattern) - 1):
        parent = int(pattern[child, : child + 1].argmax())
        top = pattern[child, : child + 1].sort(descending=True).values
        weight, margin = float(top[0]), float(top[0] - top[1])
        t, lift = stands[child], lifts[stands[child]]
        free = torch.ones(len(pattern), dtype=torch.bool)
        free[[other for other in taken if other != t]] = False
        value, error = float(lift.value[child, parent, t]), float(lift.standard_error[child, parent, t])
        best = float(lift.value[child][:, free].max())
        if parent == child:
            reason = "attends to itself, which is no parent"
        elif own.keys[child] < 0:
            reason = f"attention {weight:.2f} is below {min_weight:g}"
        elif child < len(lifts):
            reason = f"has fewer earlier positions than the target has parents: no child of its kernel ({len(lifts)})"
        elif value < DOMINANT * best:
            reason = f"another position tells more: {best:.2f} against {value:.2f}"
        else:
            reason = ""
        p_value = 1.0 if not 0 < error < float("inf") else upper_tail(value / error)
        proposals.append(
            CandidateEdge(parent, child, head, weight, margin, value, float("nan"), p_value, not reason, reason)
        )
    return proposals


def _judge(candidates: list[CandidateEdge], level: float, last_keys: set[int]) -> list[CandidateEdge]:
    """Holm over all proposals that are still open, and the share of the median lift of those beyond doubt."""
    open_ones = [c for c in candidates if c.accepted]
    corrected = dict(zip(map(id, open_ones), holm([c.p_value for c in open_ones]), strict=True))
    clear = [c.information for c in open_ones if corrected[id(c)] < level]
    typical = median(clear) if clear else float("nan")
    judged = []
    for c in candidates:
        p, share = corrected.get(id(c), c.p_value), c.information / typical if typical > 0 else float("nan")
        needed = TARGET_ROW_SHARE if c.child in last_keys else MIN_SHARE
        accepted, reason = False, c.reason
        if c.accepted and p >= level:
            reason = f"no information (p = {p:.2g}): a root, or a child of another kernel"
        elif c.accepted and not share >= needed:
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
    stands: Sequence[int],
    lifts: dict[int, ConditionalInformation],
    taken: set[int],
    candidates: Sequence[CandidateEdge],
    min_weight: float,
) -> CandidateEdge:
    """Whether the head's t is a parent of the target: the t that explains most of what its rows tell."""
    n_ctx, lift = len(pattern), lifts[own.last_key]
    favourite = int(pattern[-1].argmax())
    edges = [
        (c.child, c.parent) for c in candidates if c.head == head and c.accepted and stands[c.child] == own.last_key
    ]
    top = pattern[-1].sort(descending=True).values
    weight, margin = float(top[0]), float(top[0] - top[1])
    rows, keys = [child for child, _ in edges], [parent for _, parent in edges]
    total = lift.value[rows, keys].sum(dim=0)
    variance = lift.standard_error[rows, keys].square().sum(dim=0)
    value = float(total[own.last_key])
    mean = value / max(len(edges), 1)
    p = upper_tail(value / float(variance[own.last_key]) ** 0.5) if edges else 1.0
    free = [t for t in range(n_ctx) if t == own.last_key or t not in taken]
    if favourite != own.last_key and edges:
        accepted, reason = False, f"the head's rows go with position {own.last_key}, which its last row does not copy"
    elif weight < min_weight / 2:  # the last row is read with the query's own token at hand, so it may be undecided
        accepted, reason = False, f"attention {weight:.2f} is below {min_weight / 2:g}"
    elif not edges:
        accepted, reason = False, "no row agrees with it"
    elif value < DOMINANT * float(total[free].max()):
        best = free[int(total[free].argmax())]
        accepted, reason = False, f"position {best} explains more of what its rows tell"
    else:
        accepted, reason = True, f"attention {weight:.2f}; {len(edges)} rows agree with it"
    return CandidateEdge(favourite, n_ctx, head, weight, margin, mean, 1.0 if edges else 0.0, p, accepted, reason)


def _report(candidates: Sequence[CandidateEdge], pattern: Tensor, head: int, own: Matches, n_ctx: int) -> HeadReport:
    edges = tuple((c.parent, c.child) for c in candidates if c.head == head and c.accepted)
    within = sum(child < n_ctx for _, child in edges)
    if not edges:
        role = "carries nothing"
    elif (own.last_key, n_ctx) in edges:
        role = f"carries a parent of {within} positions, and {own.last_key} of the target"
    else:
        role = f"carries a parent of {within} positions, and none of the target"
    return HeadReport(head, own.last_key, float(pattern[-1, own.last_key]), edges, role)


def _lifts_given_the_rest(
    slots: dict[int, Matches], further: Sequence[Matches], tokens: Tensor, target_probs: Tensor
) -> dict[int, ConditionalInformation]:
    """For each t the lift of every pair, given what the other heads match and what no head does."""
    return {
        t: conditional_information(
            tokens, target_probs, [*(slot for other, slot in slots.items() if other != t), *further]
        )
        for t in slots
    }


def _further_parents(
    slots: dict[int, Matches], lifts: dict[int, ConditionalInformation], tokens: Tensor, target_probs: Tensor
) -> list[FurtherParent]:
    """Positions t, in order of evidence, that explain rows beyond what the heads match."""
    n_ctx = tokens.shape[1]
    carried = [_clear(lifts[t])[range(n_ctx), slot.keys, t].sum() for t, slot in slots.items()]
    level = float(max(carried))
    given = list(slots.values())
    found: list[FurtherParent] = []
    while level > 0 and len(found) < 4:
        clear = _clear(conditional_information(tokens, target_probs, given))
        clear[:, :, [match.last_key for match in given]] = 0.0
        best, keys = clear.max(dim=1)
        total = best.sum(dim=0)
        t = int(total.argmax())
        if float(total[t]) < FURTHER_SHARE * level:
            break
        bar = MIN_SHARE * float(best[:, t][best[:, t] > 0].median())
        edges = tuple((int(keys[row, t]), row) for row in range(n_ctx) if best[row, t] >= bar)
        found.append(FurtherParent(t, edges, float(total[t]) / level))
        given.append(_of_further(found[-1], n_ctx))
    return found


def _clear(lift: ConditionalInformation) -> Tensor:
    """Lifts beyond doubt; zero elsewhere and in the last row, whose child no head can serve."""
    clear = lift.value * (lift.value > 5.0 * lift.standard_error)
    clear[-1] = 0.0
    return clear


def _of_further(further: FurtherParent, n_ctx: int) -> Matches:
    keys = {child: parent for parent, child in further.edges}
    return Matches(further.last_key, tuple(keys.get(row, -1) for row in range(n_ctx)))
