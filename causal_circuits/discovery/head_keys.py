"""What heads match with which parent of the target, whether they need to, and which parents no head matches.

A head's t is what its last row attends to, unless its rows go with another one. A t without which its rows tell as
much is dropped; while no more than a few rows have all their parents matched, the t that explains most is added.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from causal_circuits.discovery.extracted import UncarriedParent
from causal_circuits.discovery.row_shares import Keys, RowTest
from causal_circuits.information.conditional import ConditionalInformation, HeadKeys, conditional_information

# What is inherited from a true parent is less than the parent: a key or a t is doubted if another one tells more.
DOMINANT = 0.9
# Further parents are looked for one after the other, up to this many.
MOST_FURTHER = 4
# So many complete rows show that the target's parents are all known; one or two may be complete by inheritance.
ENOUGH = 3


def attended_keys(pattern: Tensor, min_weight: float) -> HeadKeys:
    """What a head copies: rows that attend clearly to an earlier position, and the favourite of the last row."""
    weights, keys = pattern.max(dim=1)
    rows = range(len(pattern) - 1)
    chosen = [int(keys[i]) if weights[i] >= min_weight and keys[i] < i else -1 for i in rows]
    return HeadKeys(int(keys[-1]), (*chosen, -1))


def with_telling_last_keys(
    copies: Sequence[HeadKeys], test: RowTest, tokens: Tensor, target_probs: Tensor
) -> list[HeadKeys]:
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
            best = HeadKeys(int(total.argmax()), own.keys)
            if float(total[own.last_key]) < DOMINANT * float(total[best.last_key]):
                complete = [test.n_complete(rows_of([*others, match])) for match in (own, best)]
                settled[index] = best if complete[1] >= complete[0] else own
    return settled


def joint_keys(t: int, copies: Sequence[HeadKeys]) -> HeadKeys:
    """What all heads together match with t: in each row the key of the first head that stands for it."""
    own = [copy.keys for copy in copies if copy.last_key == t]
    return HeadKeys(t, tuple(next((key for key in row if key >= 0), -1) for row in zip(*own, strict=True)))


def rows_of(matches: Sequence[HeadKeys]) -> list[Keys]:
    """For each row its keys, by the t they are compared with."""
    return [
        {match.last_key: match.keys[row] for match in matches if match.keys[row] >= 0}
        for row in range(len(matches[0].keys) if matches else 0)
    ]


def _with_and_without(t: int, matches: Sequence[HeadKeys]) -> tuple[list[Keys], list[Keys]]:
    """The rows in which something is matched with t, and the same rows without that match."""
    rows: list[Keys] = [row if t in row else {} for row in rows_of(matches)]
    return rows, [{other: key for other, key in row.items() if other != t} for row in rows]


def needed(slots: dict[int, HeadKeys], test: RowTest) -> dict[int, HeadKeys]:
    """The matches, by their t, without which their rows tell clearly less."""
    kept = dict(slots)
    for t in slots:
        rows, without = _with_and_without(t, list(kept.values()))
        if test.total_share(without) >= DOMINANT * test.total_share(rows):
            del kept[t]
    return kept


def further_parents(
    slots: dict[int, HeadKeys], test: RowTest, tokens: Tensor, target_probs: Tensor
) -> list[UncarriedParent]:
    """Positions t, in order of evidence, that explain rows beyond what the heads match.

    None if enough rows are children all of whose parents are matched; and none that neither completes further rows nor,
    where no row is complete, tells clearly more.
    """
    given, found = list(slots.values()), list[UncarriedParent]()
    while given and len(found) < MOST_FURTHER and test.n_complete(rows_of(given)) < ENOUGH:
        clear = _clear(conditional_information(tokens, target_probs, given))
        clear[:, :, [match.last_key for match in given]] = 0.0
        best, keys = clear.max(dim=1)
        t = int(best.sum(dim=0).argmax())
        is_edge = (best[:, t] > 0) & (best[:, t] >= best[:, t].max() / 4)
        edges = tuple((int(keys[row, t]), row) for row in is_edge.nonzero()[:, 0].tolist())
        if not edges:
            break
        trial = keys_of_further(UncarriedParent(t, edges, 0.0), tokens.shape[1])
        rows, without = _with_and_without(t, [*given, trial])
        before, after = test.total_share(without), test.total_share(rows)
        completes = test.n_complete(rows) > test.n_complete(without)
        if not completes and (test.n_complete(rows_of(given)) or before >= DOMINANT * after):
            break
        found.append(UncarriedParent(t, edges, after / max(before, 1e-12)))
        given.append(trial)
    return found


def keys_of_further(further: UncarriedParent, n_ctx: int) -> HeadKeys:
    """What a head would match that carried it."""
    keys = {child: parent for parent, child in further.edges}
    return HeadKeys(further.last_key, tuple(keys.get(row, -1) for row in range(n_ctx)))


def _clear(lift: ConditionalInformation) -> Tensor:
    """Lifts beyond doubt; zero elsewhere and in the last row, whose child no head can serve."""
    clear = lift.value * (lift.value > 5.0 * lift.standard_error)
    clear[-1] = 0.0
    return clear
