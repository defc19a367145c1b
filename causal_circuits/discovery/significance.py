"""From edge scores to decisions: a p-value for every entry, corrected over all of them, and what would be enough data.

Nulls, each exact for any forest whose roots follow the stationary law (see `edge_scores` for why):

* "j is not the parent of i". Then either i is a root, and its row is flat, or another position's score is at least as
  large: p_ij is the largest p-value of "u_ij is at most u_ik" over rivals k. Only a row's maximum can have p below 1.
* "some earlier position has MIN_SHARE of an edge's score" (for roots): p is the largest p-value of "u_ij falls short of
  it" over all j.

`forest` adds what these two leave open: whether a position without an edge is independent of the earlier ones, and
whether a child's one parent explains it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from causal_circuits.discovery.edge_scores import Contrasts, EdgeScores
from causal_circuits.discovery.forest import ForestTest, forest_tests
from causal_circuits.statistics import bernstein_sample_size, holm

MIN_SHARE = 0.5  # of an edge's score that an edge must have, and a root's row must not; every edge has the same score
_BORNE_OUT = (0.5, 2.0)  # the median share of their expected score between which edges found bear it out


@dataclass(frozen=True)
class EdgeTest:
    """What every entry's test says; rows are children, columns parents, positions before the query.

    Attributes:
        p_value: Holm-corrected over all entries j < i; 1 elsewhere.
        weight: (score - background) / (an edge's score - background): 1 at an edge, 0 at an independent pair; NaN if an
            edge's score is not known, 0 where nothing is tested.
        best: the candidate parent of each position, -1 where there is none.
        rival: the position that comes closest to it, -1 where there is none.
        p_root: of "an earlier position has MIN_SHARE of an edge's score", Holm-corrected over positions; NaN where it
            cannot be tested.
        sequences_needed: at which the candidate's corrected p-value would reach the level, if its score stayed; inf if
            it never would.
        root_sequences_needed: at which p_root would.
        edge_sequences_needed: at which a typical edge of this task would; inf if not even that is known.
        forest: what every forest implies, tested.
        laws: whether weights compare with the score that laws give an edge; else with the edges found.
        hidden, n, level: as given; n sequences count as independent.
    """

    p_value: Float[np.ndarray, "position position"]
    weight: Float[np.ndarray, "position position"]
    best: Int[np.ndarray, " position"]
    rival: Int[np.ndarray, " position"]
    p_root: Float[np.ndarray, " position"]
    sequences_needed: Float[np.ndarray, " position"]
    root_sequences_needed: Float[np.ndarray, " position"]
    edge_sequences_needed: float
    forest: ForestTest
    laws: bool
    hidden: Bool[np.ndarray, " position"]
    n: int
    level: float


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
    scores: EdgeScores,
    usable: Bool[np.ndarray, " position"],
    hidden: Bool[np.ndarray, " position"],
    level: float,
    laws: bool,
) -> EdgeTest:
    """Test every entry of the usable positions; hidden ones may be a parent all the same.

    If the edges found contradict by far the score that laws give an edge, nothing is said of roots.
    """
    n = len(usable)
    cells = _cells(scores, usable)
    raw, sizes, rival, contrasts = _against_rivals(scores, cells, usable, level)
    raw = np.maximum(raw, _hidden_parent(scores, hidden, laws))
    p_value = np.ones((n, n))
    p_value[np.flatnonzero(cells.has_key), cells.best[cells.has_key]] = raw[cells.has_key]
    p_value[cells.earlier] = holm(p_value[cells.earlier].tolist())
    is_child = cells.has_key & (p_value.min(axis=1) < level)
    found = np.flatnonzero(is_child)
    background, tops = _background(scores, cells), scores.score[found, cells.best[found]]
    labelled = np.full(n, np.median(tops) if len(found) else np.nan)
    edge_score = scores.expected if laws else labelled
    gap = edge_score - background
    weight = np.divide(scores.score - background, gap, out=np.full((n, n), np.nan), where=gap > 0)
    # a typical edge exceeds its rivals by the mean gap, with the variance that they have on average
    edge_needed = np.inf
    if np.isfinite(gap).any() and cells.rivals.any():
        spread = np.array([contrasts.variance[cells.rivals].mean()])
        typical = np.array([np.nanmean(gap)])
        edge_needed = bernstein_sample_size(typical, spread, contrasts.bound, level / cells.n_entries)[0]
    p_root, root_sizes = np.full(n, np.nan), np.full(n, np.inf)
    borne_out = not len(found) or _BORNE_OUT[0] <= np.median(weight[found, cells.best[found]]) <= _BORNE_OUT[1]
    if borne_out and np.isfinite(edge_score).all() and (gap > 0).all():  # else an edge has no more than independence
        below = scores.against_edge(MIN_SHARE, background) if laws else scores.below(background + MIN_SHARE * gap[0])
        p_root, root_sizes = _roots(below, cells, level)
    return EdgeTest(
        p_value=p_value,
        weight=np.where(cells.earlier, weight, 0.0),
        best=np.where(cells.has_key, cells.best, -1),
        rival=np.where(cells.rivals.any(axis=1), rival, -1),
        p_root=p_root,
        sequences_needed=np.where(cells.has_key, sizes, np.inf),
        root_sequences_needed=root_sizes,
        edge_sequences_needed=float(edge_needed),
        forest=forest_tests(scores, cells.earlier, np.where(is_child, cells.best, -1), background, laws, level),
        laws=laws,
        hidden=hidden,
        n=scores.n,
        level=level,
    )


def _hidden_parent(
    scores: EdgeScores, hidden: Bool[np.ndarray, " position"], laws: bool
) -> Float[np.ndarray, " position"]:
    """p-values of "a hidden earlier position is the parent"; an edge has its score whatever the law of its parent."""
    barred = np.tril(np.ones((len(hidden), len(hidden)), dtype=bool), -1) & hidden
    if laws and hidden.any():
        return np.asarray(np.where(barred, scores.against_edge().p_values(), 0.0).max(axis=1))
    return barred.any(axis=1).astype(np.float64)


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
    return raw, sizes, np.where(cells.rivals, contrasts.mean, np.inf).argmin(axis=1), contrasts


def _single_key(scores: EdgeScores, child: int, parent: int, usable: np.ndarray, level: float) -> tuple[float, float]:
    """p-value and sample size of the one entry of a row with one earlier position.

    Independent tokens agree as often as they score, and score no more than every other position with one of the two.
    Either the score is above the agreement, or it is below and above the scores with another position (Bonferroni): the
    second alone would trust that position to keep to the forest, and the first alone the targets to be laws.
    """
    others = np.flatnonzero(usable)
    others = others[(others != child) & (others != parent)]
    reached, match = scores.of_first_pair(child, parent, others)
    missed, n_tests = match.flipped(), max(len(others), 1)
    above, below = float(match.p_values()[0, 0]), float(missed.p_values()[0, 0])
    another = n_tests * float(reached.p_values().max(axis=1).min(initial=1.0))
    sizes = [float(c.sample_sizes(level / 2)[0, 0]) for c in (match, missed)]
    of_another = float(reached.sample_sizes(level / 2 / n_tests).max(axis=1).min(initial=np.inf))
    return min(1.0, 2 * min(above, max(below, another))), min(sizes[0], max(sizes[1], of_another))


def _background(scores: EdgeScores, cells: _Cells) -> float:
    """The score of an independent pair: the lower quartile of all entries, most of which are independent or more.

    Of a single pair, the score it would have if it were independent (`EdgeScores.of_first_pair`).
    """
    if cells.rivals.any():
        return float(np.quantile(scores.score[cells.earlier], 0.25, method="lower"))
    if not cells.earlier.any():
        return 0.0
    child = int(np.flatnonzero(cells.has_key)[0])
    parent = int(cells.best[child])
    _, match = scores.of_first_pair(child, parent, np.zeros(0, dtype=np.int64))
    return float(scores.score[child, parent] - match.mean[0, 0])


def _roots(
    below: Contrasts, cells: _Cells, level: float
) -> tuple[Float[np.ndarray, " position"], Float[np.ndarray, " position"]]:
    """p-values of "an earlier position's score is not below", and the sequences at which they would reach the level."""
    n_roots = max(int(cells.has_key.sum()), 1)
    p_root = np.full(len(cells.best), np.nan)
    raw = np.where(cells.earlier, below.p_values(), 0.0).max(axis=1)
    p_root[cells.has_key] = holm(raw[cells.has_key].tolist())
    sizes = np.where(cells.earlier, below.sample_sizes(level / n_roots), 0.0).max(axis=1)
    return p_root, np.where(cells.has_key, sizes, np.inf)
