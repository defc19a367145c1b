"""Which rows are children drawn from the target's transition matrix: a test whose answer is known beforehand.

Let y be the target's law, and M the event that every parent of child i holds the token of the target's parent of the
same number. Given M the child's token was drawn from y itself, so that for any graph and any transition matrices

    E[d_vocab y(x_i) - 1 | M]  =  E[d_vocab sum_s y(s)^2 - 1 | M],

whose right-hand side needs no token of the child. Left over right is the row's *share*. It is 1 where all parents are
matched (but for what M says about x_i through its descendants), about d_vocab^-m where m of them are not (their tokens
are then equal by chance only), and for a root, or a child of another in-degree, what it inherits. With few tokens and
one parent unmatched it is up to .87 (3-gram, 3 tokens, alpha .1), hence `FULL` and `NEARLY`. On 32 random graphs
(benchmarks/head_rules.py --first 5000) children had .94 to 1.06.

Parents are different positions and come in order, the n-th going with the target's n-th. Several choices of keys may
be the same event: x_7 = x_15 and x_7 = x_31 says the same as x_7 = x_15 and x_15 = x_31; and a parent that is the
target's own parent of that number matches always. Heads that carry such an event carry the parents that are in order.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import networkx as nx
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.statistics import upper_tail

# All parents of a row are matched if its share is at least FULL, and within two standard errors of NEARLY.
FULL, NEARLY = 0.8, 0.95
FEWEST = 12  # sequences in which a row's matches must hold
_CLEAR = 1e-6  # the p-value of information beyond doubt

Keys = Mapping[int, int]  # parent of the target -> the key that is compared with it, in one row


@dataclass(frozen=True)
class Share:
    """A row's share under an event.

    Attributes:
        value, error: the share and its standard error; NaN where fewer than `FEWEST` sequences decide.
        p_value: one-sided, of "no information".
    """

    value: float
    error: float
    p_value: float

    @property
    def full(self) -> bool:
        """Whether all parents are matched."""
        return self.value >= FULL and self.value + 2 * self.error >= NEARLY


NO_SHARE = Share(float("nan"), float("nan"), 1.0)


@dataclass(frozen=True)
class RowVerdict:
    """What became of one row.

    Attributes:
        child: the position.
        keys: t -> parent, of the parents that the heads carry; empty if the row is rejected.
        share: of the best event tried.
        reason: why it was rejected; empty otherwise.
    """

    child: int
    keys: Keys
    share: Share
    reason: str


class RowTest:
    """The shares of rows under events, on given sequences.

    >>> from causal_circuits import InContextTask, graph_from_parents
    >>> task = InContextTask(graph_from_parents([[], [], [], [], [0, 1], [2, 3]]), d_vocab=3)
    >>> batch = task.sample(40_000)
    >>> test = RowTest(batch.tokens, batch.target_probs)
    >>> [round(test.share(4, keys).value, 1) for keys in ({2: 0, 3: 1}, {2: 0}, {})]
    [1.0, 0.3, 0.1]
    """

    def __init__(self, tokens: Int[Tensor, "batch n_ctx"], target_probs: Float[Tensor, "batch d_vocab"]) -> None:
        self.tokens, probs = tokens.cpu(), target_probs.cpu().double()
        self.gain = probs.shape[1] * torch.gather(probs, 1, self.tokens) - 1  # [batch, n_ctx]
        self.most = probs.shape[1] * probs.square().sum(dim=1) - 1

    def share(self, child: int, keys: Keys) -> Share:
        """The child's share under the event that every key holds the token of its t."""
        held = (self.tokens[:, list(keys.values())] == self.tokens[:, list(keys)]).all(dim=1)
        gain, most = self.gain[held, child], self.most[held]
        if len(gain) < FEWEST:
            return NO_SHARE
        root, value = len(gain) ** 0.5, float(gain.mean() / most.mean())
        error = float((gain - value * most).std() / most.mean()) / root
        return Share(value, error, upper_tail(float(gain.mean()) / max(float(gain.std()) / root, 1e-12)))

    def total_share(self, rows: Sequence[Keys]) -> float:
        """The sum over rows of what lies clearly above nothing: how much a set of matches explains."""
        shares = [self.share(child, keys) for child, keys in enumerate(rows) if keys]
        return sum((share.value for share in shares if share.p_value < _CLEAR), 0.0)

    def n_complete(self, rows: Sequence[Keys]) -> int:
        """How many rows have all their parents matched."""
        return sum(self.share(child, keys).full for child, keys in enumerate(rows) if keys)


def judge_row(test: RowTest, child: int, attended: Keys, last_keys: Collection[int], known: Keys) -> RowVerdict:
    """Whether a row is a child drawn from the target's transition matrix, and which parents its heads carry.

    `attended` are the keys of the heads that attend clearly (a t may be missing, keys may be swapped), `known` those of
    parents that no head carries, `last_keys` all parents of the target as far as known.
    """
    if child < len(last_keys):
        few = f"has fewer earlier positions than the target has parents, {len(last_keys)}: not drawn from its matrix"
        return RowVerdict(child, {}, NO_SHARE, few)
    shares: list[Share] = []
    for keys in _orders(attended):
        shares.append(test.share(child, keys))
        legal = same_event(keys, child, last_keys)
        if shares[-1].full and (keys in legal or len(legal) == 1):
            return RowVerdict(child, keys if keys in legal else legal[0], shares[-1], "")
    for keys in filter(_in_order, _orders(attended)):
        whole = _filled(test, child, {**keys, **known}, last_keys)
        if len(whole) > len(keys):
            shares.append(test.share(child, whole))
            if shares[-1].full:
                return RowVerdict(child, keys, shares[-1], "")
    best = max(shares, key=lambda share: share.value if share.value == share.value else -1.0)
    return RowVerdict(child, {}, best, _why_not(best))


def _orders(attended: Keys) -> list[Keys]:
    """The keys as their heads' t say and, where they differ, in order: a row may be swapped."""
    in_order = dict(zip(sorted(attended), sorted(attended.values()), strict=True))
    return [attended] if in_order == attended else [attended, in_order]


def _why_not(share: Share) -> str:
    if share.value != share.value:
        return "its matches hold in too few sequences to tell"
    if share.full:
        return "its keys are no parents in order: no choice of different positions singles out the same sequences"
    return f"{share.value:.0%} of the information of a child of the target's transition matrix"


def same_event(keys: Keys, child: int, last_keys: Collection[int]) -> list[dict[int, int]]:
    """All choices of a parent for each t, in order and before the child, that hold in the very same sequences.

    >>> same_event({15: 7, 31: 7}, 16, (15, 31))
    [{15: 7, 31: 15}]
    >>> same_event({31: 30}, 31, (15, 31))              # 15 is the target's parent too: it matches always
    [{15: 15, 31: 30}]
    """
    wanted = _joined(keys)
    of = {position: part for part in wanted for position in part}
    choices = [[p for p in sorted(of.get(t, frozenset({t}))) if p < child] for t in sorted(last_keys)]
    found = [dict(zip(sorted(last_keys), choice, strict=True)) for choice in product(*choices)]
    return [choice for choice in found if _in_order(choice) and _joined(choice) == wanted]


def _joined(keys: Keys) -> set[frozenset[int]]:
    """The groups of positions that hold one token where every key holds the token of its t."""
    return {frozenset(part) for part in nx.connected_components(nx.Graph(list(keys.items()))) if len(part) > 1}


def _in_order(keys: Keys) -> bool:
    return all(keys[a] < keys[b] for a, b in pairwise(sorted(keys)))


def _filled(test: RowTest, child: int, keys: Keys, last_keys: Collection[int]) -> Keys:
    """The keys with the best one for every t that has none, between its neighbours'; empty if there is no room."""
    whole = dict(keys)
    for t in sorted(set(last_keys) - set(keys)):
        above = max((whole[other] for other in whole if other < t), default=-1)
        below = min((whole[other] for other in whole if other > t), default=child)
        shares = {key: test.share(child, {**whole, t: key}).value for key in range(above + 1, below)}
        shares = {key: share for key, share in shares.items() if share == share}
        if not shares:
            return {}
        whole[t] = max(shares, key=lambda key: (shares[key], key))
    return whole if _in_order(whole) else {}
