"""The target's parents: the positions that matches with the rest of the graph single out.

For keys j and candidates a let h = E[(g - full / 2) 1_M]: half of E[full 1_M] for the true parents of a position and
the true a; less for every other pair, whatever the number of keys, because a match that is not the true one loses
full / 2 wherever it holds alone and gains nothing where it does not hold. So the true a maximises the sum over
positions of max_j h (where it is positive), and the true parents of each position are its best match.

There are comb(n_ctx, k) candidates, and each costs a contraction over all sequences. A coarse pass therefore goes from
one position to k: for every m candidate positions the sum over i of the largest z-score of an m-key match is taken on
as many sequences as are needed; the best sets are extended by every further position, and the best of all sizes are
compared by h on all sequences.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch

from causal_circuits.discovery.matches import Gains, MatchSums, match_sums, sums_by_last_key
from causal_circuits.statistics import upper_tail

KEPT = (64, 16)  # candidates of one and of more positions that are extended
FINALISTS = 12  # of each size, compared on all sequences
_LEAST_MATCHES = 100  # that a coarse pass sees of each pair of keys and candidates
_WORK = 1e10  # multiplications of a coarse pass, below which it may use all sequences


@dataclass(frozen=True)
class Candidate:
    """A choice of target's parents, on all sequences.

    Attributes:
        target: the positions.
        sums: of every match.
        score: sum over positions of the largest h, for all sequences.
        best: the keys of the largest match of each position, an index into `sums.keys`; -1 where none is above 0.
    """

    target: tuple[int, ...]
    sums: MatchSums
    score: float
    best: np.ndarray


def candidates(data: Gains, allowed: Sequence[int], max_parents: int) -> tuple[Gains, list[Candidate]]:
    """The best choices, the most likely first, with `data` as given; of labels with the rate of hits that they show."""
    finalists = [target for size in _coarse(data, allowed, max_parents) for target in size]
    sums = {target: match_sums(data, target) for target in finalists}
    if bool((data.spread == 0).all()):  # labels
        data = data.with_labels_hit(_hit_rate(data, max(sums.values(), key=_guidance)))
        sums = {target: _with_moments(data, target, own) for target, own in sums.items()}
    ranked = [_candidate(target, own) for target, own in sums.items()]
    return data, sorted(ranked, key=lambda candidate: -candidate.score)


def p_of_rival(data: Gains, first: Candidate, other: Candidate) -> float:
    """Of "`other` are the target's parents": by the difference of scores, Bonferroni over all sets of this size."""
    difference = _score_by_sequence(data, first) - _score_by_sequence(data, other)
    error = float(difference.std()) * len(data) ** 0.5
    z = float(difference.sum()) / error if error > 0 else 0.0
    return min(1.0, comb(data.n_ctx, len(other.target)) * upper_tail(z))


def _coarse(data: Gains, allowed: Sequence[int], max_parents: int) -> list[list[tuple[int, ...]]]:
    """For each number of parents the best sets of positions."""
    found: list[list[tuple[int, ...]]] = []
    gains = data.at - data.at.mean(dim=0)
    seeds: Collection[tuple[int, ...]] = [()]
    for size in range(1, max_parents + 1):
        sets = sorted({tuple(sorted({*seed, t})) for seed in seeds for t in allowed if t not in seed})
        n = _n_coarse(data, len(sets), size)
        scores = np.array([_sum_of_largest(data.tokens[:n], gains[:n], target) for target in sets])
        order = [sets[index] for index in np.argsort(-scores, kind="stable")]
        found.append(order[:FINALISTS])
        seeds = order[: KEPT[min(size, len(KEPT)) - 1]]
    return found


def _n_coarse(data: Gains, n_sets: int, size: int) -> int:
    """How many sequences a coarse pass uses."""
    affordable = _WORK / (n_sets * max(comb(data.n_ctx, size + 1), 1))
    return int(min(len(data), max(affordable, _LEAST_MATCHES * data.d_vocab**size)))


def _sum_of_largest(tokens: torch.Tensor, gains: torch.Tensor, target: tuple[int, ...]) -> float:
    """Sum over positions of the largest z-score of a match; gains have mean zero."""
    n_ctx, deviation = gains.shape[1], gains.std(dim=0).double().clamp_min(1e-6)
    largest = torch.zeros(n_ctx, dtype=torch.float64)
    for m, sums in enumerate(sums_by_last_key(tokens, gains, torch.ones(len(tokens), 1), target)):
        if len(sums):
            z = sums[:, :-1] / (sums[:, -1:].clamp_min(1.0).sqrt() * deviation[m + 1 :])
            largest[m + 1 :] = torch.maximum(largest[m + 1 :], z.amax(dim=0))
    return float(largest.sum())


def _z(sums: MatchSums) -> np.ndarray:
    """z-scores of "the gain is that of a uniform token", [keys, position]; 0 where there is nothing."""
    return np.nan_to_num(sums.gain / np.sqrt(np.maximum(sums.chance, 1e-9))[:, None])


def _guidance(sums: MatchSums) -> float:
    return float(_z(sums).max(axis=0).sum()) if len(sums.keys) else 0.0


def _hit_rate(data: Gains, sums: MatchSums) -> float:
    """The chance of a full match to hit the label: the median over positions, of their most significant match."""
    z, d_vocab = _z(sums), data.d_vocab
    best = z.argmax(axis=0)
    clear = np.flatnonzero(z.max(axis=0) > 0.5 * np.sort(z.max(axis=0))[-max(1, len(best) // 4)])
    gain = sums.gain[best[clear], clear] / np.maximum(sums.n[best[clear]], 1)
    return float(np.clip((np.median(gain) + 1) / d_vocab, 1 / d_vocab, 1.0)) if len(clear) else 1.0


def _with_moments(data: Gains, target: tuple[int, ...], sums: MatchSums) -> MatchSums:
    """The sums for a new law of full matches of labels: its moments are the same in every sequence."""
    return MatchSums(
        sums.keys, sums.gain, sums.n, sums.n * float(data.full[0]), sums.n * float(data.spread[0]), sums.chance
    )


def _candidate(target: tuple[int, ...], sums: MatchSums) -> Candidate:
    h = sums.gain - sums.full[:, None] / 2
    if not len(h):
        return Candidate(target, sums, 0.0, np.full(h.shape[1], -1))
    h = np.where(np.isfinite(h), h, 0.0)
    return Candidate(target, sums, float(h.max(axis=0).sum()), np.where(h.max(axis=0) > 0, h.argmax(axis=0), -1))


def _score_by_sequence(data: Gains, candidate: Candidate) -> torch.Tensor:
    total = torch.zeros(len(data), dtype=torch.float64)
    for i in np.flatnonzero(candidate.best >= 0).tolist():
        held = data.match(candidate.sums.keys[candidate.best[i]].tolist(), candidate.target)
        total += (data.at[:, i] - data.full / 2) * held
    return total
