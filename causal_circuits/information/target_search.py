"""The target's parents: the positions that matches with the rest of the graph single out.

For keys j and candidates a let h = E[(g - full / 2) 1_M]: half of E[full 1_M] for the true parents of a position and
the true a; less for every other pair, whatever the number of keys, because a match that is not the true one loses
full / 2 wherever it holds alone and gains nothing where it does not hold. So the true a maximises the sum over
positions of max_j h (where it is positive), and the true parents of each position are its best match.

There are comb(n_ctx, k) candidates, and each costs a contraction over all sequences. A coarse pass therefore goes from
one position to k: for every m candidate positions the sum over i of the largest z-score of an m-key match is taken on
as many sequences as are needed; the best sets are extended by every further position, and the best of all sizes are
compared by h on all sequences. From the third position on only the best keys of each i are extended, by one key.
Two candidates are compared outside both: the matches of a's own positions hold their own token.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import torch

from causal_circuits.information.matches import BLOCK, Gains, MatchSums, key_sets, match_sums, sums_by_last_key
from causal_circuits.statistics import upper_tail
from causal_circuits.tasks.batch import chunks

KEPT = (64, 16)  # candidates of one and of more positions that are extended
FINALISTS = 12  # of each size, compared on all sequences
EXTENDED = 4  # keys of each position that are extended
_LEAST_MATCHES = 100  # that a coarse pass sees of each pair of keys and candidates
_CLEAR = 1e-3  # the p-value at which a larger set is better than a smaller one
_WORK = 1e10  # multiplications of a coarse pass, below which it may use all sequences


@dataclass(frozen=True)
class Candidate:
    """A choice of target's parents, with the sum over positions of the largest h on all sequences.

    best are the keys of the best match of each position, an index into `key_sets`; -1 where no h is above 0.
    """

    target: tuple[int, ...]
    score: float
    best: np.ndarray

    @property
    def with_match(self) -> list[int]:
        """The positions that have a best match and are no target's parents themselves."""
        return [i for i in np.flatnonzero(self.best >= 0).tolist() if i not in self.target]

    def keys(self, position: int) -> list[int]:
        """The keys of a position's best match."""
        return key_sets(len(self.best) - 1, len(self.target))[self.best[position]].tolist()


def candidates(data: Gains, allowed: Sequence[int], max_parents: int) -> tuple[Gains, list[Candidate]]:
    """The best choices, the most likely first, with `data` as given; of labels with the rate of hits that they show."""
    finalists = [target for size in _coarse(data, allowed, max_parents) for target in size]
    if data.of_labels:
        data = data.with_labels_hit(max(_score_and_hit_rate(data, target) for target in finalists)[1])
    ranked = [_candidate(target, match_sums(data, target)) for target in finalists]
    return data, _best_first(data, sorted(ranked, key=lambda candidate: -candidate.score))


def p_of_rival(data: Gains, first: Candidate, other: Candidate) -> float:
    """Of "`other` are the target's parents": by the difference of scores, Bonferroni over all sets of its size."""
    difference = _difference(data, first, other)
    error = float(difference.std()) * len(data) ** 0.5
    z = float(difference.sum()) / error if error > 0 else 0.0
    return min(1.0, comb(data.n_ctx, len(other.target)) * upper_tail(z))


def _difference(data: Gains, first: Candidate, other: Candidate) -> torch.Tensor:
    """The difference of the scores, by sequence, over the positions outside both sets."""
    excluded = {*first.target, *other.target}
    return _score_by_sequence(data, first, excluded) - _score_by_sequence(data, other, excluded)


def _best_first(data: Gains, ranked: list[Candidate]) -> list[Candidate]:
    """The best of the smallest size that no larger set is significantly better than, put first."""
    largest_first = sorted(ranked, key=lambda candidate: -len(candidate.target))  # of one size the best comes first
    first = largest_first[0]
    for other in largest_first[1:]:
        smaller = len(other.target) < len(first.target)
        if p_of_rival(data, first, other) >= _CLEAR if smaller else float(_difference(data, first, other).sum()) < 0:
            first = other
    return [first, *(other for other in ranked if other is not first)]


def _coarse(data: Gains, allowed: Sequence[int], max_parents: int) -> list[list[tuple[int, ...]]]:
    found: list[list[tuple[int, ...]]] = []
    gains = data.observed - data.observed.mean(dim=0)
    seeds: Collection[tuple[int, ...]] = [()]
    for size in range(1, max_parents + 1):
        scores: dict[tuple[int, ...], float] = {}
        if size < 3:
            sets = {tuple(sorted({*seed, t})) for seed in seeds for t in allowed if t not in seed}
            n = _n_coarse(data, len(sets), size)
            scores = {target: _sum_of_largest(data.tokens[:n], gains[:n], target) for target in sets}
        else:
            for seed in seeds:
                for target, score in extension_scores(data.tokens, gains, seed, allowed).items():
                    scores[target] = max(score, scores.get(target, 0.0))
        order = sorted(scores, key=lambda target: (-scores[target], target))
        found.append(order[:FINALISTS])
        seeds = order[: KEPT[min(size, len(KEPT)) - 1]]
    return found


def extension_scores(
    tokens: torch.Tensor, gains: torch.Tensor, seed: tuple[int, ...], allowed: Sequence[int]
) -> dict[tuple[int, ...], float]:
    """`_sum_of_largest` of the seed with one more position, from the seed's best keys of each i with one key more."""
    n_ctx, k = gains.shape[1], len(seed)
    z = _z_scores(tokens, gains, seed)
    best = torch.topk(z, min(EXTENDED, len(z)), dim=0).indices.T  # [i, choice]
    keys = torch.from_numpy(key_sets(n_ctx - 1, k))[best]  # [i, choice, k]
    sums = torch.zeros(2, keys[..., 0].numel(), n_ctx, len(allowed), dtype=torch.float64)
    for block in chunks(len(tokens), BLOCK):
        rows = tokens[block]
        held = (rows[:, keys] == rows[:, list(seed)][:, None, None]).all(dim=3).to(gains.dtype)
        gained = held * gains[block, :, None]
        equal = (rows[:, :, None] == rows[:, None, list(allowed)]).to(gains.dtype).flatten(1)
        for part, matches in zip(sums, (gained, held), strict=True):
            part += (matches.flatten(1).T @ equal).view_as(part)
    z = sums[0] / sums[1].clamp_min(1.0).sqrt()
    z = z.view(n_ctx, -1, n_ctx, len(allowed)) / gains.std(dim=0).double().clamp_min(1e-6).view(-1, 1, 1, 1)
    bounds = torch.nn.functional.pad(keys, (1, 0), value=-1)
    bounds = torch.cat([bounds, torch.arange(n_ctx).view(-1, 1, 1).expand(-1, keys.shape[1], 1)], dim=2)
    earlier = (bounds[..., -2] < bounds[..., -1])[..., None]
    key, scores = torch.arange(n_ctx), dict[tuple[int, ...], float]()
    for c, t in enumerate(allowed):
        slot = sum(t > a for a in seed)  # keys stand in the order of the target's parents
        fits = (bounds[..., slot, None] < key) & (key < bounds[..., slot + 1, None]) & earlier
        if t not in seed:
            scores[tuple(sorted((*seed, t)))] = float(torch.where(fits, z[..., c], 0.0).amax(dim=(1, 2)).sum())
    return scores


def _n_coarse(data: Gains, n_sets: int, size: int) -> int:
    affordable = _WORK / (n_sets * max(comb(data.n_ctx, size + 1), 1))
    return int(min(len(data), max(affordable, _LEAST_MATCHES * data.d_vocab**size)))


def _sum_of_largest(tokens: torch.Tensor, gains: torch.Tensor, target: tuple[int, ...]) -> float:
    """Sum over positions of the largest z-score of a match."""
    return (
        float(_z_scores(tokens, gains, target).amax(dim=0).clamp_min(0.0).sum())
        if gains.shape[1] > len(target)
        else 0.0
    )


def _z_scores(tokens: torch.Tensor, gains: torch.Tensor, target: tuple[int, ...]) -> torch.Tensor:
    """[keys, position], in the order of `key_sets`, 0 unless the keys come before; gains have mean zero."""
    deviation = gains.std(dim=0).double().clamp_min(1e-6)
    by_last_key = sums_by_last_key(tokens, gains, torch.ones(len(tokens), 1), target)
    parts = [
        torch.nn.functional.pad(sums[:, :-1] / (sums[:, -1:].clamp_min(1.0).sqrt() * deviation[m + 1 :]), (m + 1, 0))
        for m, sums in enumerate(by_last_key)
    ]
    return torch.cat(parts)


def _score_and_hit_rate(data: Gains, target: tuple[int, ...]) -> tuple[float, float]:
    """The sum over positions of their largest z-score, and how often these matches hit the label, by their median."""
    sums = match_sums(data, target)
    z = np.nan_to_num(sums.gain / np.sqrt(np.maximum(sums.chance_variance, 1e-9))[:, None])
    if not len(z):
        return 0.0, 1.0
    best, largest = z.argmax(axis=0), z.max(axis=0)
    clear = np.flatnonzero(largest >= 0.5 * np.quantile(largest, 0.75))
    gain = np.nan_to_num(sums.gain[best[clear], clear]) / np.maximum(sums.n[best[clear]], 1)
    return float(largest.sum()), float(np.clip((np.median(gain) + 1) / data.d_vocab, 1 / data.d_vocab, 1.0))


def _candidate(target: tuple[int, ...], sums: MatchSums) -> Candidate:
    if not len(sums.keys):
        return Candidate(target, 0.0, np.full(sums.gain.shape[1], -1))
    h = np.nan_to_num(sums.gain - sums.full_mean[:, None] / 2)
    largest = h.max(axis=0)
    return Candidate(target, float(largest.sum()), np.where(largest > 0, h.argmax(axis=0), -1))


def _score_by_sequence(data: Gains, candidate: Candidate, excluded: Collection[int]) -> torch.Tensor:
    total = torch.zeros(len(data), dtype=torch.float64)
    for i in candidate.with_match:
        if i not in excluded:
            total += (data.observed[:, i] - data.full_mean / 2) * data.match(candidate.keys(i), candidate.target)
    return total
