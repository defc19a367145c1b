"""From edge scores to decisions: a p-value for every entry, corrected over all of them, and what would be enough data.

Nulls, each exact for any forest whose roots follow the stationary law (see `edge_scores` for why):

* "j is not the parent of i". Then either i is a root, and its row is flat, or another position's score is at least as
  large: p_ij is the largest p-value of "u_ij is at most u_ik" over rivals k. Only a row's maximum can have p below 1.
* "i has a parent" (for roots). Then some j has the score of an edge: p is the largest p-value of "u_ij falls
  short of an edge's score" over all j.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from causal_circuits.discovery.edge_scores import EdgeScores
from causal_circuits.discovery.testing import holm


@dataclass(frozen=True)
class EdgeTest:
    """What every entry's test says; rows are children, columns parents, positions before the query.

    Attributes:
        p_value: Holm-corrected over all entries j < i; 1 elsewhere.
        weight: (score - background) / (an edge's score - background): 1 at an edge, 0 at an independent pair; NaN if an
            edge's score is not known, 0 where nothing is tested.
        best: the candidate parent of each position, -1 where there is none.
        rival: the position that comes closest to it, -1 where there is none.
        p_root: of "it has a parent", Holm-corrected over positions; NaN where it cannot be tested.
        sequences_needed: at which the candidate's corrected p-value would reach the level, if its score stayed; inf if
            it never would.
        edge_sequences_needed: at which a typical edge of this task would; inf if not even that is known.
    """

    p_value: Float[np.ndarray, "position position"]
    weight: Float[np.ndarray, "position position"]
    best: Int[np.ndarray, " position"]
    rival: Int[np.ndarray, " position"]
    p_root: Float[np.ndarray, " position"]
    sequences_needed: Float[np.ndarray, " position"]
    edge_sequences_needed: float


def edge_tests(
    scores: EdgeScores, usable: Bool[np.ndarray, " position"], level: float, probabilities: bool
) -> EdgeTest:
    """Test every entry of the usable positions.

    Args:
        scores: of the sequences.
        usable: positions that may be a parent or a child.
        level: family-wise error, for the sample sizes and for roots of labelled data.
        probabilities: whether targets are probabilities, so that the score of an edge is known beforehand.
    """
    n = len(usable)
    earlier = np.tril(np.ones((n, n), dtype=bool), -1) & usable & usable[:, None]
    n_entries = max(int(earlier.sum()), 1)
    masked = np.where(earlier, scores.score, -np.inf)
    has_key = earlier.any(axis=1)
    best = np.where(has_key, masked.argmax(axis=1), 0)
    rivals = earlier.copy()
    rivals[np.arange(n), best] = False
    contrasts = scores.against_rivals(best)
    against = np.where(rivals, contrasts.p_values(), 0.0)
    needed = np.where(rivals, contrasts.sample_sizes(level / n_entries), 0.0)
    raw, sizes, rival = against.max(axis=1), needed.max(axis=1), against.argmax(axis=1)
    for child in np.flatnonzero(has_key & ~rivals.any(axis=1)):
        raw[child], sizes[child] = _single_key(scores, int(child), int(best[child]), usable, level / n_entries)
    p_value = np.ones((n, n))
    p_value[np.flatnonzero(has_key), best[has_key]] = raw[has_key]
    p_value[earlier] = holm(p_value[earlier].tolist())
    background = _background(scores, rivals, earlier, best)
    found = has_key & (p_value.min(axis=1) < level)
    edge_score = _edge_scores(scores, best, found, probabilities)
    gap = edge_score - background
    weight = np.divide(scores.score - background, gap, out=np.full((n, n), np.nan), where=gap > 0)
    spread = contrasts.variance[rivals].mean() if rivals.any() else np.nan
    typical = float(np.nanmean(gap)) if np.isfinite(gap).any() else 0.0
    edge_needed = contrasts.typical_sample_size(typical, float(spread), level / n_entries)
    return EdgeTest(
        p_value=p_value,
        best=np.where(has_key, best, -1),
        rival=np.where(rivals.any(axis=1), rival, -1),
        weight=np.where(earlier, weight, 0.0),
        p_root=_roots(scores, earlier, has_key, background, edge_score, probabilities),
        sequences_needed=np.where(has_key, sizes, np.inf),
        edge_sequences_needed=edge_needed,
    )


def _single_key(scores: EdgeScores, child: int, parent: int, usable: np.ndarray, level: float) -> tuple[float, float]:
    """p-value and sample size of the one entry of a row with one earlier position (Bonferroni over the tests)."""
    others = np.flatnonzero(usable)
    others = others[(others != child) & (others != parent)]
    reached, match = scores.of_first_pair(child, parent, others)
    n_tests = len(others) + 1
    p_values = np.concatenate([reached.p_values().max(axis=1), match.p_values().max(axis=1)])
    sizes = [c.sample_sizes(level / n_tests).max(axis=1) for c in (reached, match)]
    return min(1.0, n_tests * float(p_values.min())), float(np.concatenate(sizes).min())


def _background(scores: EdgeScores, rivals: np.ndarray, earlier: np.ndarray, best: np.ndarray) -> float:
    """The score of an independent pair: the median over all entries that are not their row's maximum.

    Of a single pair, the score it would have if it were independent (`EdgeScores.of_first_pair`).
    """
    if rivals.any():
        return float(np.median(scores.score[rivals]))
    if not earlier.any():
        return 0.0
    child = int(np.flatnonzero(earlier.any(axis=1))[0])
    _, match = scores.of_first_pair(child, int(best[child]), np.zeros(0, dtype=np.int64))
    return float(scores.score[child, best[child]] - match.mean[0, 0])


def _edge_scores(scores: EdgeScores, best: np.ndarray, found: np.ndarray, probabilities: bool) -> np.ndarray:
    """The score that an edge from each position must have; for labels, the median of the edges found."""
    if probabilities:
        return scores.expected
    tops = scores.score[np.flatnonzero(found), best[found]]
    return np.full(len(best), np.median(tops) if len(tops) else np.nan)


def _roots(
    scores: EdgeScores,
    earlier: np.ndarray,
    has_key: np.ndarray,
    background: float,
    edge_score: np.ndarray,
    probabilities: bool,
) -> np.ndarray:
    """p-values of "this position has a parent"; for labels an edge is taken to reach halfway to those found."""
    p_root = np.full(len(has_key), np.nan)
    if probabilities:
        falls_short = scores.against_edge()
    elif np.isfinite(edge_score).all():
        falls_short = scores.below((background + float(edge_score.max())) / 2)
    else:
        return p_root
    raw = np.where(earlier, falls_short.p_values(), 0.0).max(axis=1)
    p_root[has_key] = holm(raw[has_key].tolist())
    return p_root
