"""The statistic behind a graph of several parents: whose token is drawn from the target's law where tokens match.

Let a = (a_1 < ... < a_k) be the target's parents and y its law. Where k keys j = (j_1 < ... < j_k < i) hold the tokens
of the target's parents, x_{j_r} = x_{a_r} for all r (the *match* M of j and a), a position i with the parents j is
drawn from y itself. So with S = d_vocab and the gain g = S y(x_i) - 1, if rows of a matrix are drawn independently,

    i has the parents j:             given M, x_i is a draw from y:           E[g 1_M] = E[(S sum_s y(s)^2 - 1) 1_M]
    i has other parents, or none:    without a match, x_i is independent of y and uniform over sequences:  E[g] = 0

Both sides are known beforehand, with the whole distribution of the gain, so that tails are bounded by Chernoff's and
Bernstein's inequalities and nothing has to be estimated. The *share* of j is left over right.

Of labels (a draw from y in place of y) only the chance q of a full match to hit the label has to be estimated
(`Gains.with_labels_hit`): a full match is then drawn from the law that gives q to the label and is uniform elsewhere.

A match says something of x_i through the descendants of i among the target's parents. That makes shares of true parents
larger than 1 (by 1 to 3% next to the target), hardly ever smaller, and fades with the distance. Without a match, two
tokens drawn before i or the target tell of its row and of the target's: E[g] is 0 only to the order 1 / d_vocab^k.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from math import comb

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.statistics import bernstein_p_value
from causal_circuits.tasks.batch import chunks

BLOCK = 4096  # sequences at a time: memory is BLOCK * n_ctx^(k - 1) / (k - 1)! numbers
Numbers = np.ndarray | float


@dataclass(frozen=True)
class Gains:
    """What every token gains as a draw from the target's law.

    Attributes:
        tokens: [sequence, position].
        values: S y(s) - 1 for each token s.
        law: of a token under a full match; y itself, or for labels what `with_labels_hit` says.
        observed: S y(x_i) - 1 of the tokens themselves.
        full_mean, full_variance: of the gain of a draw from `law`.
        chance_variance: of the gain of a uniform token, whose mean is 0.
        independent: the share of sequences that count as independent; copies are no evidence.
    """

    tokens: Int[Tensor, "sequence position"]
    values: Float[Tensor, "sequence token"]
    law: Float[Tensor, "sequence token"]
    observed: Float[Tensor, "sequence position"]
    full_mean: Float[Tensor, " sequence"]
    full_variance: Float[Tensor, " sequence"]
    chance_variance: Float[Tensor, " sequence"]
    independent: float = 1.0

    @classmethod
    def of(
        cls, tokens: Int[Tensor, "sequence position"], y: Float[Tensor, "sequence token"], independent: float = 1.0
    ) -> "Gains":
        """For target laws y, or labels as one-hots."""
        values = y.shape[1] * y - 1
        observed, chance = torch.gather(values, 1, tokens), values.square().mean(dim=1)
        return cls(tokens, values, y, observed, *_moments(y, values), chance, independent)

    def with_labels_hit(self, q: float) -> "Gains":
        """The same where labels stand for laws: a full match gives the label with probability q."""
        other = (1 - q) / (self.d_vocab - 1)
        law = other + (q - other) * (self.values + 1) / self.d_vocab
        mean, variance = _moments(law, self.values)
        return replace(self, law=law, full_mean=mean, full_variance=variance)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_ctx(self) -> int:
        """Number of positions, the last token included."""
        return self.tokens.shape[1]

    @property
    def d_vocab(self) -> int:
        """Number of tokens."""
        return self.values.shape[1]

    @property
    def of_labels(self) -> bool:
        """Whether every law is one token."""
        return bool((self.values.amax(dim=1) >= self.d_vocab - 1).all())

    @property
    def uniform(self) -> Tensor:
        """The law of a token that nothing is known of, [sequence, token]."""
        return torch.full_like(self.values, 1 / self.d_vocab)

    def match(self, keys: Sequence[int], target: Sequence[int]) -> Tensor:
        """Of each sequence whether the keys hold the tokens of the target's parents."""
        return (self.tokens[:, list(keys)] == self.tokens[:, list(target)]).all(dim=1)

    def p_value(self, total: Numbers, variance: Numbers, bound: float | None = None) -> np.ndarray:
        """Of "a sum over sequences has no positive mean", each term at most `bound` above it (of gains: d_vocab)."""
        p_value = bernstein_p_value(total, variance, self.d_vocab if bound is None else bound)
        return np.asarray(p_value**self.independent)


def _moments(law: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    mean = (law * values).sum(dim=1, keepdim=True)
    return mean[:, 0], (law * (values - mean).square()).sum(dim=1)


@cache
def key_sets(n: int, k: int) -> Int[np.ndarray, "keys k"]:
    """All k of n positions, ordered by the last, then the one before it (the first comb(m, k) are those below m).

    >>> key_sets(4, 2).tolist()
    [[0, 1], [0, 2], [1, 2], [0, 3], [1, 3], [2, 3]]
    """
    sets = np.array(list(combinations(range(n), k)), dtype=np.int64).reshape(-1, k)
    return sets[np.lexsort(sets.T)]


def sums_by_last_key(
    tokens: Int[Tensor, "sequence position"],
    gains: Float[Tensor, "sequence position"],
    columns: Float[Tensor, "sequence column"],
    target: Sequence[int],
) -> list[Tensor]:
    """Sums over the sequences of every match, for each last key m: of the gains of later positions, then of `columns`.

    Keys are those of `key_sets` with the last key m: all choices of the others below m.
    """
    n_ctx, k = tokens.shape[1], len(target)
    sums = [
        torch.zeros(comb(m, k - 1), n_ctx - 1 - m + columns.shape[1], dtype=torch.float64) for m in range(n_ctx - 1)
    ]
    for rows in chunks(len(tokens), BLOCK):
        matches = [(tokens[rows] == tokens[rows, [t]]).to(gains.dtype) for t in target]
        others = torch.ones(len(matches[0]), 1, dtype=gains.dtype)
        for r, match in enumerate(matches[:-1]):
            others = torch.cat([others[:, : comb(m, r)] * match[:, [m]] for m in range(n_ctx - 1)], dim=1)
        for m in range(k - 1, n_ctx - 1):
            right = torch.cat([gains[rows, m + 1 :], columns[rows]], dim=1) * matches[-1][:, [m]]
            sums[m] += others[:, : comb(m, k - 1)].T @ right
    return sums


@dataclass(frozen=True)
class MatchSums:
    """Sums over the sequences in which keys match the target's parents: of the gain, of 1, of fields of `Gains`.

    keys are every k positions below the last one, as in `key_sets`; gain is NaN unless the position comes after them.
    """

    keys: Int[np.ndarray, "keys k"]
    gain: Float[np.ndarray, "keys position"]
    n: Float[np.ndarray, " keys"]
    full_mean: Float[np.ndarray, " keys"]
    full_variance: Float[np.ndarray, " keys"]
    chance_variance: Float[np.ndarray, " keys"]


def match_sums(data: Gains, target: Sequence[int]) -> MatchSums:
    """The sums for every choice of keys and every position."""
    n_ctx, k = data.n_ctx, len(target)
    columns = torch.stack(
        [torch.ones_like(data.full_mean), data.full_mean, data.full_variance, data.chance_variance], dim=1
    )
    by_last_key = sums_by_last_key(data.tokens, data.observed, columns, target)
    keys = key_sets(n_ctx - 1, k)
    gain = np.full((len(keys), n_ctx), np.nan)
    for m in range(k - 1, n_ctx - 1):
        gain[comb(m, k) : comb(m + 1, k), m + 1 :] = by_last_key[m][:, : n_ctx - 1 - m].numpy()
    own = np.concatenate([sums[:, -4:].numpy() for sums in by_last_key])
    return MatchSums(keys, gain, *own.T)


def chernoff_p_value(total: float, parts: Sequence[tuple[Tensor, Tensor]]) -> float:
    """A bound on P(sum >= total) by Chernoff's inequality; `parts` are laws and values of the terms, [term, token].

    The exponent is minimised by Newton's method; every value of it gives a bound, so that no step has to be exact.

    >>> fair, coin = torch.full((100, 2), 0.5), torch.tensor([[-1.0, 1.0]]).expand(100, 2)
    >>> 0.0 < chernoff_p_value(40.0, [(fair, coin)]) < 4e-4, chernoff_p_value(-1.0, [(fair, coin)])
    (True, 1.0)
    """
    theta, best = 0.0, 0.0
    largest = max((float(values.abs().max()) for _, values in parts if len(values)), default=1.0)
    for _ in range(20):
        log_mgf, mean, variance = 0.0, 0.0, 0.0
        for law, values in parts:
            weights = law * torch.exp(theta * values)
            mgf = weights.sum(dim=1)
            means = (weights * values).sum(dim=1) / mgf
            log_mgf += float(mgf.log().sum())
            mean += float(means.sum())
            variance += float(((weights * values.square()).sum(dim=1) / mgf - means**2).sum())
        best = min(best, log_mgf - theta * total)
        if theta == 0.0 and mean >= total:
            return 1.0
        step = (total - mean) / max(variance, 1e-9)
        theta = min(max(theta + min(max(step, -1.0 / largest), 1.0 / largest), 0.0), 30.0 / largest)
        if abs(step) < 1e-3:
            break
    return float(np.exp(best))


def p_independent(
    tokens: Int[Tensor, "sequence position"], d_vocab: int
) -> tuple[Float[np.ndarray, " position"], Int[np.ndarray, " position"]]:
    """Of "the token is uniform whatever the earlier ones are", by position, and the earlier one it agrees with most.

    Two children of one row have equal tokens more often than by chance. So for every earlier position i' and every two
    j, j' the mean of (S 1[x_i = x_i'] - 1) 1[x_j = x_j'], 0 under the null, by Bernstein's inequality, Bonferroni over
    all of them and all positions. The target plays no part: this is how a child of another number of parents, whose
    transition matrix the target does not show, differs from a root (if two positions are drawn from that matrix).
    """
    n_ctx = tokens.shape[1]
    sums = [torch.zeros(comb(i, 2), i + 1, dtype=torch.float64) for i in range(n_ctx)]
    first, second = torch.from_numpy(key_sets(n_ctx, 2).copy()).T
    for rows in (tokens[block] for block in chunks(len(tokens), BLOCK)):
        equal = (rows[:, first] == rows[:, second]).float()
        for i in range(2, n_ctx):
            gain = d_vocab * (rows[:, :i] == rows[:, [i]]).float() - 1
            sums[i] += equal[:, : comb(i, 2)].T @ torch.cat([gain, torch.ones(len(rows), 1)], dim=1)
    n_tests = sum(comb(i, 2) * i for i in range(n_ctx))
    smallest, partner = np.ones(n_ctx), np.full(n_ctx, -1)
    for i, own in enumerate(sums[2:], start=2):
        gained, held = own[:, :-1].numpy(), own[:, -1:].numpy()
        smallest[i] = bernstein_p_value(gained, (d_vocab - 1) * held, d_vocab).min()
        score = (gained / np.sqrt(held + 1)).max(axis=0)  # p-values may all be 0
        partner[i] = i - 1 - score[::-1].argmax()  # where x_j = x_j' both agree alike: a parent comes before its child
    return np.minimum(1.0, max(n_tests, 1) * smallest), partner
