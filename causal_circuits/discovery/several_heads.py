"""Several heads, several parents: which head carries which parent of which position, and what no head carries.

Each head of layer 0 proposes, for every row, the position it attends to; its last row proposes a parent of the target,
t, and stands for it unless the other rows plainly go with another one (`conditional_information`). Attention cannot
tell a proposal from a habit, so each row is held against data (`kernel_rows`): it is a child of the target's kernel if,
where its keys hold the tokens of their t, its own token was drawn from the target's row. That has a known answer,
1, which no share of some typical row has to be chosen for. Where a parent of the target is carried by no head, no row
reaches it: so whether there are further parents is known too.

The t of a head is a parent of the target if it explains most of what the head's rows tell, and if the model
compares with it: through the last row, or because layer 1 reads the query's own token, which then shows in layer 1's
attention. A last row that is free of that work may carry the parents of the last position itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.discovery.candidates import CandidateEdge, DecidedBy
from causal_circuits.discovery.head_matches import (
    DOMINANT,
    FurtherParent,
    by_what_rows_say,
    further_parents,
    lifts_given_the_rest,
    matches_of,
    matches_of_further,
    needed,
    rows_of,
    slot_of,
)
from causal_circuits.discovery.kernel_rows import Keys, RowTest, RowVerdict, judge_row
from causal_circuits.discovery.testing import holm, upper_tail
from causal_circuits.information.conditional import ConditionalInformation, Matches

# Sequences that lifts are estimated from; shares, which are cheap, take all that are given.
N_SEQUENCES = 8192


@check_arguments
@dataclass(frozen=True)
class HeadReport:
    """What one head of layer 0 carries.

    Attributes:
        head: of layer 0.
        last_key: the position t that its rows go with: what they copy is of use where it equals the token of t.
        last_weight: the last row's attention to t; small where layer 1 reads the last position's token directly.
        edges: (parent, child) of every edge it carries; child n_ctx is the target.
        role: in words; "carries nothing" if it has no edge.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=2)
    >>> model = cc.plant_circuit(task.graph, d_vocab=2)
    >>> reports = cc.extract_graph(model, task, n_sequences=2000).heads
    >>> [(report.head, report.last_key) for report in reports]
    [(0, 6), (1, 7)]
    """

    head: int
    last_key: int
    last_weight: float
    edges: tuple[tuple[int, int], ...]
    role: str


@check_arguments
def judge_heads(
    attention: Float[Tensor, "head_index query_pos key_pos"],
    tokens: Int[Tensor, "batch n_ctx"],
    target_probs: Float[Tensor, "batch d_vocab"],
    heads: Sequence[int],
    min_weight: float,
    level: float,
    last_layer: Float[Tensor, "some_of_batch key_pos"] | None = None,
) -> tuple[list[CandidateEdge], list[HeadReport], list[FurtherParent]]:
    """Every proposal with its verdict, every head with its edges, and the parents that the heads leave out.

    Args:
        attention: mean patterns of layer 0's live heads; `heads` names them.
        tokens, target_probs: sequences, none of whose graph is known.
        min_weight, level: least attention of an edge, family-wise error of the test.
        last_layer: the last query's attention in the last layer, of the first so many sequences; without it a head's t
            must be what its last row attends to.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=2)
    >>> model, batch = cc.plant_circuit(task.graph, d_vocab=2), task.sample(2000, seed=0)
    >>> attention = cc.mean_attention(model, batch.tokens)[0]
    >>> _, reports, _ = judge_heads(attention, batch.tokens, batch.target_probs, [0, 1], min_weight=0.5, level=0.01)
    >>> [report.last_key for report in reports]  # the parents of the target
    [6, 7]
    """
    test, few = RowTest(tokens, target_probs), (tokens[:N_SEQUENCES], target_probs[:N_SEQUENCES])
    copies = by_what_rows_say([matches_of(pattern, min_weight) for pattern in attention], test, *few)
    slots = needed({t: slot_of(t, copies) for t in sorted({own.last_key for own in copies})}, test)
    further = further_parents(slots, test, *few)
    lifts = lifts_given_the_rest(slots, [matches_of_further(f, tokens.shape[1]) for f in further], *few)
    verdicts = _judge_rows(attention, copies, slots, further, test, min_weight)
    candidates = _candidates(attention, heads, copies, verdicts, lifts, further, min_weight, level)
    compared = _compared_tokens(last_layer, tokens, copies, verdicts)
    candidates += [
        _last_row(attention[i], head, copies[i], lifts, further, verdicts, compared[i], min_weight)
        for i, head in enumerate(heads)
    ]
    reports = [_report(candidates, attention[i], head, copies[i]) for i, head in enumerate(heads)]
    return candidates, reports, further


def _judge_rows(
    attention: Tensor,
    copies: Sequence[Matches],
    slots: dict[int, Matches],
    further: Sequence[FurtherParent],
    test: RowTest,
    min_weight: float,
) -> list[RowVerdict]:
    """The verdict of every row, the last position's own included: its last row may carry its parents."""
    n_ctx = attention.shape[-1]
    last_keys = {*slots, *(f.last_key for f in further)}
    known = rows_of([matches_of_further(f, n_ctx) for f in further]) or [{}] * n_ctx
    attended = rows_of(list(slots.values())) or [{}] * n_ctx
    verdicts = [judge_row(test, child, attended[child], last_keys, known[child]) for child in range(n_ctx - 1)]
    return [*verdicts, _judge_last_position(attention, copies, slots, last_keys, test, min_weight)]


def _judge_last_position(
    attention: Tensor,
    copies: Sequence[Matches],
    slots: dict[int, Matches],
    last_keys: set[int],
    test: RowTest,
    min_weight: float,
) -> RowVerdict:
    """The last position as a child. Its row has two uses, so every entry with half the usual attention is tried."""
    tried: dict[int, list[int]] = {}
    for pattern, own in zip(attention, copies, strict=True):
        if own.last_key in slots:
            tried.setdefault(own.last_key, (pattern[-1] >= min_weight / 2).nonzero()[:, 0].tolist())
    choices = [dict(zip(tried, keys, strict=True)) for keys in product(*tried.values())]
    child = attention.shape[-1] - 1
    verdicts = [judge_row(test, child, keys, last_keys) for keys in choices]
    nothing = RowVerdict(child, {}, float("nan"), 1.0, "its heads attend to nothing")
    return next((verdict for verdict in verdicts if verdict.keys), nothing)


def _candidates(
    attention: Tensor,
    heads: Sequence[int],
    copies: Sequence[Matches],
    verdicts: Sequence[RowVerdict],
    lifts: dict[int, ConditionalInformation],
    further: Sequence[FurtherParent],
    min_weight: float,
    level: float,
) -> list[CandidateEdge]:
    """Every row's largest entry of every head, and what is accepted of it; of the last row, what is accepted."""
    n_ctx, p_values = attention.shape[-1], holm([verdict.p_value for verdict in verdicts])
    taken = {*lifts, *(f.last_key for f in further)}
    attended = [{own.keys[child] for own in copies if own.last_key in lifts} - {-1} for child in range(n_ctx)]
    standing = rows_of([slot_of(t, copies) for t in lifts]) or [{}] * n_ctx
    found = []
    for index, head in enumerate(heads):
        pattern, own = attention[index], copies[index]
        for child in range(1, n_ctx):
            verdict, t = verdicts[child], own.last_key
            favourite = int(pattern[child, : child + 1].argmax())
            if attended[child] == set(verdict.keys.values()):  # a row may be swapped
                t = next((other for other, key in verdict.keys.items() if key == favourite), t)
            parent = verdict.keys.get(t, favourite)
            lift = lifts.get(t)
            value = float(lift.value[child, parent, t]) if lift is not None else float("nan")
            if favourite == child and child < n_ctx - 1:
                reason = "attends to itself, which is no parent"
            elif own.keys[child] < 0 and child < n_ctx - 1:
                reason = f"attention {float(pattern[child].max()):.2f} is below {min_weight:g}"
            elif lift is None:
                reason = f"its head goes with position {t}, which is no parent of the target"
            elif verdict.reason:
                reason = verdict.reason
            elif child < n_ctx - 1 and own.keys[child] != standing[child].get(own.last_key):
                reason = f"another head with position {own.last_key} attends to {standing[child].get(own.last_key)}"
            elif t not in verdict.keys:
                reason = "its row's parents are carried by other heads"
            elif p_values[child] >= level:
                reason = f"no information (p = {p_values[child]:.2g}): a root, or a child of another kernel"
            elif (better := _better(lift, child, verdict.keys, t, taken)) is not None:
                reason = f"position {better} tells more"
            else:
                reason = ""
            if child == n_ctx - 1 and reason:
                continue  # the last row has other work: it is judged as the target's
            if child == n_ctx - 1 and float(pattern[child, parent]) >= min_weight / 2:
                favourite = parent
            said = reason or _how(pattern, child, parent, favourite, t, verdict.share)
            if reason:
                parent = favourite
            margin = float(pattern[child, parent] - _without(pattern[child, : child + 1], parent))
            facts = (float(pattern[child, parent]), margin, value, verdict.share, p_values[child])
            attends = own.keys[child] >= 0 or child == n_ctx - 1
            by: DecidedBy = "information" if attends else "attention"
            found.append(CandidateEdge(parent, child, head, *facts, not reason, said, by))
    return found


def _without(row: Tensor, key: int) -> float:
    """The largest entry of a row but one."""
    rest = torch.cat([row[:key], row[key + 1 :]])
    return float(rest.max()) if len(rest) else 0.0


def _better(lift: ConditionalInformation, child: int, keys: Keys, t: int, taken: set[int]) -> int | None:
    """A key between the row's others that tells more about the child beyond doubt, with t or another that is free."""
    parent = keys[t]
    if parent == t:
        return None  # always matched: nothing can be told
    free = torch.ones(lift.value.shape[1:], dtype=torch.bool)
    free[:, [other for other in taken if other != t]] = False
    free[: max((key for key in keys.values() if key < parent), default=-1) + 1] = False
    free[min((key for key in keys.values() if key > parent), default=child) :] = False
    value, error = lift.value[child] * free, lift.standard_error[child]
    place = int(value.argmax())
    key, best = place // free.shape[1], float(value.flatten()[place])
    own = float(value[parent, t])
    doubt = 2 * float(error.flatten()[place])
    return key if own < DOMINANT * best and own < best - doubt else None


def _how(pattern: Tensor, child: int, parent: int, favourite: int, t: int, share: float) -> str:
    """How an accepted edge was told."""
    if parent == favourite:
        return f"attention {float(pattern[child, parent]):.2f}, {share:.0%} of a child's information"
    return (
        f"attends to {favourite} (attention {float(pattern[child, favourite]):.2f}), which singles out the same "
        f"sequences: of different parents in order, only with {parent} for {t}; {share:.0%} of a child's information"
    )


def _compared_tokens(
    last_layer: Tensor | None, tokens: Tensor, copies: Sequence[Matches], verdicts: Sequence[RowVerdict]
) -> list[int | None]:
    """For each head the t whose token layer 1 compares its copies with: it attends to a child where they are equal.

    The sum over the head's edges of E[log attention | x_key = x_t] - E[log attention | x_key != x_t], largest over t.
    """
    if last_layer is None:
        return [None] * len(copies)
    scores, tokens = last_layer.double().clamp(min=1e-12).log(), tokens[: len(last_layer)]
    found: list[int | None] = []
    for own in copies:
        rows = [v.child for v in verdicts[:-1] if v.keys.get(own.last_key, -1) == own.keys[v.child] >= 0]
        total = torch.zeros(tokens.shape[1], dtype=torch.float64)
        for row in rows:
            same = (tokens[:, [own.keys[row]]] == tokens).double()
            share = same.mean(dim=0)
            covariance = (scores[:, row] - scores[:, row].mean()) @ same / len(same)
            total += covariance / (share * (1 - share)).clamp(min=1e-12)
        found.append(int(total.argmax()) if rows else None)
    return found


def _last_row(
    pattern: Tensor,
    head: int,
    own: Matches,
    lifts: dict[int, ConditionalInformation],
    further: Sequence[FurtherParent],
    verdicts: Sequence[RowVerdict],
    compared: int | None,
    min_weight: float,
) -> CandidateEdge:
    """Whether the head's t is a parent of the target: the t that explains most of what its rows tell."""
    n_ctx, t, favourite = len(pattern), own.last_key, int(pattern[-1].argmax())
    taken = {*lifts, *(f.last_key for f in further)}
    free = [other for other in range(n_ctx) if other == t or other not in taken]
    edges = [(v.child, v.keys[t]) for v in verdicts[:-1] if v.keys.get(t, -1) == own.keys[v.child] >= 0]
    total, mean, p = torch.zeros(n_ctx), 0.0, 1.0
    telling = [(child, key) for child, key in edges if key != t]  # a key that is t itself always matches
    if t in lifts and telling:
        rows, keys = (list(side) for side in zip(*telling, strict=True))
        total = lifts[t].value[rows, keys].sum(dim=0)
        error = float(lifts[t].standard_error[rows, keys].square().sum(dim=0)[t]) ** 0.5
        mean, p = float(total[t]) / len(telling), upper_tail(float(total[t]) / error)
    weight = float(pattern[-1, t])
    looks = favourite == t and weight >= min_weight / 2  # with the query's own token at hand it may be undecided
    by: DecidedBy = "information"
    if t not in lifts or not telling:
        accepted, reason = False, "no row agrees with it"
    elif float(total[t]) < DOMINANT * float(total[free].max()):
        best = free[int(total[free].argmax())]
        accepted, reason = False, f"position {best} explains more of what its rows tell"
    elif compared is None and not looks:
        accepted, by = False, "attention"
        reason = f"the head's rows go with position {t}, which its last row does not copy"
    elif compared not in (None, t):
        accepted, by = False, "attention"
        reason = f"its rows go with position {t}, but layer 1 compares them with {compared}"
    else:
        accepted, reason = True, f"attention {weight:.2f}; {len(edges)} rows agree with it"
        reason += "" if looks else "; layer 1 compares with it all the same"
    return CandidateEdge(
        t, n_ctx, head, weight, weight - _without(pattern[-1], t), mean, 1.0 if edges else 0.0, p, accepted, reason, by
    )


def _report(candidates: Sequence[CandidateEdge], pattern: Tensor, head: int, own: Matches) -> HeadReport:
    n_ctx = len(pattern)
    edges = tuple((c.parent, c.child) for c in candidates if c.head == head and c.accepted)
    within = sum(child < n_ctx for _, child in edges)
    if not edges:
        role = "carries nothing"
    elif (own.last_key, n_ctx) in edges:
        role = f"carries a parent of {within} positions, and {own.last_key} of the target"
    else:
        role = f"carries a parent of {within} positions, and none of the target"
    return HeadReport(head, own.last_key, float(pattern[-1, own.last_key]), edges, role)
