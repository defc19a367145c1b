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

from causal_circuits.discovery.candidates import CandidateEdge
from causal_circuits.discovery.kernel_rows import Keys, RowTest, RowVerdict, judge_row, total_share
from causal_circuits.discovery.testing import holm, upper_tail
from causal_circuits.information.conditional import ConditionalInformation, Matches, conditional_information

# A key is doubted if another one tells more: what is inherited from a true parent is less than the parent itself.
DOMINANT = 0.9
# Further parents are looked for one after the other, up to this many.
MOST_FURTHER = 4
# So many complete rows show that the target's parents are all known; one or two may be complete by inheritance.
ENOUGH = 3
# Sequences that lifts are estimated from; shares, which are cheap, take all that are given.
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
        share: how many times more the rows tell with t than without, d_vocab times if tokens were independent.
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
    last_layer: Float[Tensor, "some_of_batch key_pos"] | None = None,
) -> tuple[list[CandidateEdge], list[HeadReport], list[FurtherParent]]:
    """Every proposal with its verdict, every head with its edges, and the parents that the heads leave out.

    Args:
        attention: mean patterns of layer 0's live heads; `heads` names them.
        tokens, target_probs: sequences, none of whose graph is known.
        min_weight, level: least attention of an edge, family-wise error of the test.
        last_layer: the last query's attention in the last layer, of the first so many sequences; without it a head's t
            must be what its last row attends to.
    """
    test, few = RowTest(tokens, target_probs), (tokens[:N_SEQUENCES], target_probs[:N_SEQUENCES])
    copies = _by_what_rows_say([_matches(pattern, min_weight) for pattern in attention], test, *few)
    slots = _needed({t: _slot(t, copies) for t in sorted({own.last_key for own in copies})}, test)
    further = _further_parents(slots, test, *few)
    lifts = _lifts_given_the_rest(slots, [_of_further(f, tokens.shape[1]) for f in further], *few)
    verdicts = _judge_rows(attention, copies, slots, further, test, min_weight)
    candidates = _candidates(attention, heads, copies, verdicts, lifts, further, min_weight, level)
    compared = _compared_tokens(last_layer, tokens, copies, verdicts)
    candidates += [
        _last_row(attention[i], head, copies[i], lifts, further, verdicts, compared[i], min_weight)
        for i, head in enumerate(heads)
    ]
    reports = [_report(candidates, attention[i], head, copies[i]) for i, head in enumerate(heads)]
    return candidates, reports, further


def _matches(pattern: Tensor, min_weight: float) -> Matches:
    """What a head copies: rows that attend clearly to an earlier position, and the favourite of the last row."""
    weights, keys = pattern.max(dim=1)
    rows = range(len(pattern) - 1)
    chosen = [int(keys[i]) if weights[i] >= min_weight and keys[i] < i else -1 for i in rows]
    return Matches(int(keys[-1]), (*chosen, -1))


def _by_what_rows_say(copies: Sequence[Matches], test: RowTest, tokens: Tensor, target_probs: Tensor) -> list[Matches]:
    """The heads, each with the t that its rows go with, given the other heads; not always its last row's favourite.

    Layer 1 can read the query's own token directly, so the last row of the head that has t = n_ctx - 1 is under no
    pressure to copy it. The t is changed for one that tells clearly more, unless that completes fewer rows.
    """
    settled, rows = list(copies), list(range(tokens.shape[1]))
    for _ in range(2):  # the second time round, given better matches
        for index, own in enumerate(settled):
            others = [other for other in settled if other.last_key != own.last_key]
            lift = _clear(conditional_information(tokens, target_probs, others))
            total = (lift[rows, own.keys] * (torch.tensor(own.keys) >= 0)[:, None]).sum(dim=0)
            total[[other.last_key for other in others]] = 0.0
            best = Matches(int(total.argmax()), own.keys)
            if float(total[own.last_key]) < DOMINANT * float(total[best.last_key]):
                whole = [_complete(_rows_of([*others, match]), test) for match in (own, best)]
                settled[index] = best if whole[1] >= whole[0] else own
    return settled


def _complete(rows: Sequence[Keys], test: RowTest) -> int:
    """How many rows have all their parents matched."""
    return sum(test.share(child, keys).full for child, keys in enumerate(rows) if keys)


def _slot(t: int, copies: Sequence[Matches]) -> Matches:
    """What all heads together match with t: in each row the key of the first head that stands for it."""
    own = [copy.keys for copy in copies if copy.last_key == t]
    return Matches(t, tuple(next((key for key in row if key >= 0), -1) for row in zip(*own, strict=True)))


def _rows_of(matches: Sequence[Matches]) -> list[dict[int, int]]:
    """For each row its keys, by the t they are compared with."""
    return [
        {match.last_key: match.keys[row] for match in matches if match.keys[row] >= 0}
        for row in range(len(matches[0].keys) if matches else 0)
    ]


def _needed(slots: dict[int, Matches], test: RowTest) -> dict[int, Matches]:
    """The slots without which their rows tell clearly less."""
    kept = dict(slots)
    for t in slots:
        rows = [row if t in row else {} for row in _rows_of(list(kept.values()))]
        without = [{other: key for other, key in row.items() if other != t} for row in rows]
        if total_share(test, without) >= DOMINANT * total_share(test, rows):
            del kept[t]
    return kept


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
    known = _rows_of([_of_further(f, n_ctx) for f in further]) or [{}] * n_ctx
    attended = _rows_of(list(slots.values())) or [{}] * n_ctx
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
            elif verdict.reason or not verdict.keys:
                reason = verdict.reason or "its row's parents are carried by other heads"
            elif p_values[child] >= level:
                reason = f"no information (p = {p_values[child]:.2g}): a root, or a child of another kernel"
            elif (better := _better(lift, child, verdict.keys, t, taken)) is not None:
                reason = f"position {better} tells more"
            else:
                reason = ""
            if child == n_ctx - 1 and (reason or t not in verdict.keys):
                continue  # the last row has other work: it is judged as the target's
            if child == n_ctx - 1 and float(pattern[child, parent]) >= min_weight / 2:
                favourite = parent
            said = reason or _how(pattern, child, parent, favourite, t, verdict.share)
            if reason:
                parent = favourite
            margin = float(pattern[child, parent] - _without(pattern[child, : child + 1], parent))
            facts = (float(pattern[child, parent]), margin, value, verdict.share, p_values[child])
            found.append(CandidateEdge(parent, child, head, *facts, not reason, said))
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
    if t in lifts and edges:
        rows, keys = (list(side) for side in zip(*edges, strict=True))
        total = lifts[t].value[rows, keys].sum(dim=0)
        error = float(lifts[t].standard_error[rows, keys].square().sum(dim=0)[t]) ** 0.5
        mean, p = float(total[t]) / len(edges), upper_tail(float(total[t]) / error)
    weight = float(pattern[-1, t])
    looks = favourite == t and weight >= min_weight / 2  # with the query's own token at hand it may be undecided
    if t not in lifts or not edges:
        accepted, reason = False, "no row agrees with it"
    elif float(total[t]) < DOMINANT * float(total[free].max()):
        best = free[int(total[free].argmax())]
        accepted, reason = False, f"position {best} explains more of what its rows tell"
    elif compared is None and not looks:
        accepted, reason = False, f"the head's rows go with position {t}, which its last row does not copy"
    elif compared not in (None, t):
        accepted, reason = False, f"its rows go with position {t}, but layer 1 compares them with {compared}"
    else:
        accepted, reason = True, f"attention {weight:.2f}; {len(edges)} rows agree with it"
        reason += "" if looks else "; layer 1 compares with it all the same"
    return CandidateEdge(
        t, n_ctx, head, weight, weight - _without(pattern[-1], t), mean, 1.0 if edges else 0.0, p, accepted, reason
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
    slots: dict[int, Matches], test: RowTest, tokens: Tensor, target_probs: Tensor
) -> list[FurtherParent]:
    """Positions t, in order of evidence, that explain rows beyond what the heads match.

    None if enough rows are children all of whose parents are matched; and none that neither completes further rows nor,
    where no row is complete, tells clearly more.
    """
    n_ctx = tokens.shape[1]
    given, found = list(slots.values()), list[FurtherParent]()
    while given and len(found) < MOST_FURTHER and _complete(_rows_of(given), test) < ENOUGH:
        clear = _clear(conditional_information(tokens, target_probs, given))
        clear[:, :, [match.last_key for match in given]] = 0.0
        best, keys = clear.max(dim=1)
        t = int(best.sum(dim=0).argmax())
        bar = float(best[:, t].max()) / 4
        edges = tuple((int(keys[row, t]), row) for row in range(n_ctx) if best[row, t] > 0 and best[row, t] >= bar)
        if not edges:
            break
        trial = _of_further(FurtherParent(t, edges, 0.0), n_ctx)
        rows = [row if t in row else {} for row in _rows_of([*given, trial])]
        without = [{u: key for u, key in row.items() if u != t} for row in rows]
        before, after = total_share(test, without), total_share(test, rows)
        completed = _complete(rows, test) - _complete(without, test)
        if completed < 1 and (_complete(_rows_of(given), test) or before >= DOMINANT * after):
            break
        found.append(FurtherParent(t, edges, after / max(before, 1e-12)))
        given.append(trial)
    return found


def _clear(lift: ConditionalInformation) -> Tensor:
    """Lifts beyond doubt; zero elsewhere and in the last row, whose child no head can serve."""
    clear = lift.value * (lift.value > 5.0 * lift.standard_error)
    clear[-1] = 0.0
    return clear


def _of_further(further: FurtherParent, n_ctx: int) -> Matches:
    keys = {child: parent for parent, child in further.edges}
    return Matches(further.last_key, tuple(keys.get(row, -1) for row in range(n_ctx)))
