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

from causal_circuits.discovery.edge_scores import Contrasts, EdgeScores
from causal_circuits.discovery.testing import holm

_CALIBRATED = (0.5, 2.0)  # the median share of their expected score between which edges found bear it out


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


@dataclass(frozen=True)
class _Cells:
    """Which entries are tested: usable pairs j < i, each row's largest (0 where there is none), and all the others."""

    earlier: Bool[np.ndarray, "position position"]
    best: Int[np.ndarray, " position"]
    rivals: Bool[np.ndarray, "position position"]

    @property
    def has_key(self) -> Bool[np.ndarray, " position"]:
        return np.asarray(self.earlier.any(axis=1))

    @property
    def n_entries(self) -> int:
        return max(int(self.earlier.sum()), 1)


def edge_tests(
    scores: EdgeScores, usable: Bool[np.ndarray, " position"], level: float, probabilities: bool
) -> EdgeTest:
    """Test every entry of the usable positions.

    Args:
        scores: of the sequences.
        usable: positions that may be a parent or a child.
        level: family-wise error, for the sample sizes and for roots of labelled data.
        probabilities: whether targets are probabilities, so that the score of an edge is known beforehand. Where the
            edges found contradict that score, targets are no laws of what was drawn (a model's guesses, say) and are
            treated like labels.
    """
    n = len(usable)
    cells = _cells(scores, usable)
    raw, sizes, rival, spread = _against_rivals(scores, cells, usable, level)
    p_value = np.ones((n, n))
    p_value[np.flatnonzero(cells.has_key), cells.best[cells.has_key]] = raw[cells.has_key]
    p_value[cells.earlier] = holm(p_value[cells.earlier].tolist())
    found = np.flatnonzero(cells.has_key & (p_value.min(axis=1) < level))
    background, tops = _background(scores, cells), scores.score[found, cells.best[found]]
    if probabilities and len(found):
        shares = (tops - background) / np.maximum(scores.expected[cells.best[found]] - background, 1e-12)
        probabilities = bool(_CALIBRATED[0] <= np.median(shares) <= _CALIBRATED[1])
    labelled = np.full(n, np.median(tops) if len(found) else np.nan)
    edge_score = scores.expected if probabilities else labelled
    gap = edge_score - background
    weight = np.divide(scores.score - background, gap, out=np.full((n, n), np.nan), where=gap > 0)
    typical = float(np.nanmean(gap)) if np.isfinite(gap).any() else 0.0
    return EdgeTest(
        p_value=p_value,
        weight=np.where(cells.earlier, weight, 0.0),
        best=np.where(cells.has_key, cells.best, -1),
        rival=np.where(cells.rivals.any(axis=1), rival, -1),
        p_root=_roots(scores, cells, background, edge_score, probabilities),
        sequences_needed=np.where(cells.has_key, sizes, np.inf),
        edge_sequences_needed=spread.typical_sample_size(typical, level / cells.n_entries),
    )


def _cells(scores: EdgeScores, usable: Bool[np.ndarray, " position"]) -> _Cells:
    n = len(usable)
    earlier = np.tril(np.ones((n, n), dtype=bool), -1) & usable & usable[:, None]
    best = np.where(earlier.any(axis=1), np.where(earlier, scores.score, -np.inf).argmax(axis=1), 0)
    rivals = earlier.copy()
    rivals[np.arange(n), best] = False
    return _Cells(earlier, best, rivals)


def _against_rivals(
    scores: EdgeScores, cells: _Cells, usable: Bool[np.ndarray, " position"], level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Contrasts]:
    """For each row's largest entry: p-value, sample size, closest rival; and the contrasts with rivals themselves."""
    contrasts = scores.against_rivals(cells.best)
    against = np.where(cells.rivals, contrasts.p_values(), 0.0)
    needed = np.where(cells.rivals, contrasts.sample_sizes(level / cells.n_entries), 0.0)
    raw, sizes = against.max(axis=1), needed.max(axis=1)
    for child in np.flatnonzero(cells.has_key & ~cells.rivals.any(axis=1)).tolist():
        parent = int(cells.best[child])
        raw[child], sizes[child] = _single_key(scores, child, parent, usable, level / cells.n_entries)
    spread = contrasts.only(cells.rivals)
    return raw, sizes, np.where(cells.rivals, contrasts.mean, np.inf).argmin(axis=1), spread


def _single_key(scores: EdgeScores, child: int, parent: int, usable: np.ndarray, level: float) -> tuple[float, float]:
    """p-value and sample size of the one entry of a row with one earlier position (Bonferroni over the tests)."""
    others = np.flatnonzero(usable)
    others = others[(others != child) & (others != parent)]
    reached, match = scores.of_first_pair(child, parent, others)
    n_tests = len(others) + 1
    p_values = np.concatenate([reached.p_values().max(axis=1), match.p_values().max(axis=1)])
    sizes = [c.sample_sizes(level / n_tests).max(axis=1) for c in (reached, match)]
    return min(1.0, n_tests * float(p_values.min())), float(np.concatenate(sizes).min())


def _background(scores: EdgeScores, cells: _Cells) -> float:
    """The score of an independent pair: the median over all entries that are not their row's maximum.

    Of a single pair, the score it would have if it were independent (`EdgeScores.of_first_pair`).
    """
    if cells.rivals.any():
        return float(np.median(scores.score[cells.rivals]))
    if not cells.earlier.any():
        return 0.0
    child = int(np.flatnonzero(cells.has_key)[0])
    parent = int(cells.best[child])
    _, match = scores.of_first_pair(child, parent, np.zeros(0, dtype=np.int64))
    return float(scores.score[child, parent] - match.mean[0, 0])


def _roots(
    scores: EdgeScores, cells: _Cells, background: float, edge_score: np.ndarray, probabilities: bool
) -> Float[np.ndarray, " position"]:
    """p-values of "this position has a parent"; for labels an edge is taken to reach halfway to those found."""
    p_root = np.full(len(cells.best), np.nan)
    if probabilities:
        falls_short = scores.against_edge()
    elif np.isfinite(edge_score).all():
        falls_short = scores.below((background + float(edge_score.max())) / 2)
    else:
        return p_root
    raw = np.where(cells.earlier, falls_short.p_values(), 0.0).max(axis=1)
    p_root[cells.has_key] = holm(raw[cells.has_key].tolist())
    return p_root
