"""What no forest leaves behind: a position without a parent that depends on another, a child of more than one parent.

Under the assumptions of `edge_scores`, each null is exact at any context length:

* "i is independent of j", for positions without an edge: u_ij is how often i and j agree. Two-sided.
* "i is independent of every earlier position", for the same: its row is flat, each u_ij the mean of the others.
  Two-sided, Bonferroni over j.
* "j tells nothing of i beyond its parent", for children: where the parent equals the query, i agrees with j as often
  as a draw from the target law would. Two-sided.
* "i is drawn from one parent's row alone": some earlier position has the score of an edge. For targets that are laws it
  is known beforehand; for labels no other edge's score is larger.

One Holm correction covers all of them, so that at most a share `level` of true forests is contradicted anywhere.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from causal_circuits.discovery.edge_scores import Contrasts, EdgeScores
from causal_circuits.statistics import holm

_FULL = 0.99  # of an edge's score: targets in half precision are laws too
_FEWEST = 3  # positions without an edge, from which on more may be said of all of them


@dataclass(frozen=True)
class ForestTest:
    """Holm-corrected p-values of what every forest implies; small ones contradict it.

    Attributes:
        p_independent: [i, j] of "i is independent of j" in rows without an edge, of "j tells nothing of i beyond its
            parent" in rows with one; 1 where j is not an earlier position of use.
        p_flat: [i] of "i is independent of every earlier position"; NaN in rows with an edge or less than two entries.
        p_one_parent: [i] of "i is drawn from one parent's row alone"; NaN where it cannot be tested.
        fits_targets: False if none of the positions without an edge, three at least, scores and agrees alike with any
            earlier one: the targets are not the laws of these tokens, or all depend on each other.
    """

    p_independent: Float[np.ndarray, "position position"]
    p_flat: Float[np.ndarray, " position"]
    p_one_parent: Float[np.ndarray, " position"]
    fits_targets: bool


def forest_tests(
    scores: EdgeScores,
    earlier: Bool[np.ndarray, "position position"],
    parent: Int[np.ndarray, " position"],
    background: float,
    laws: bool,
    level: float,
) -> ForestTest:
    """Test what a forest implies, given the parent found of each position (-1 if none)."""
    agreement = _two_sided(scores.against_agreement())
    pairs = np.where((parent >= 0)[:, None], _two_sided(scores.beyond_parent(parent)), agreement)
    pairs[~earlier] = np.nan
    raw = np.vstack([pairs, _flat(scores, earlier, parent), _one_parent(scores, earlier, parent, background, laws)])
    adjusted, tested, n_pairs = np.full(raw.shape, np.nan), np.isfinite(raw), int(earlier.sum())
    adjusted[tested] = holm(raw[tested].tolist())
    *p_independent, p_flat, p_one_parent = adjusted
    without_edge = earlier & (parent < 0)[:, None]
    fits = without_edge.any(axis=1).sum() < _FEWEST or (agreement[without_edge] * n_pairs > level).any()
    return ForestTest(np.where(earlier, p_independent, 1.0), p_flat, p_one_parent, bool(fits))


def _two_sided(contrasts: Contrasts) -> Float[np.ndarray, "row key"]:
    return np.minimum(1.0, 2 * np.minimum(contrasts.p_values(), contrasts.flipped().p_values()))


def _flat(
    scores: EdgeScores, earlier: Bool[np.ndarray, "position position"], parent: Int[np.ndarray, " position"]
) -> Float[np.ndarray, " position"]:
    count = earlier.sum(axis=1)
    smallest = np.where(earlier, _two_sided(scores.against_row(earlier)), 1.0).min(axis=1)
    return np.where((parent < 0) & (count > 1), np.minimum(1.0, count * smallest), np.nan)


def _one_parent(
    scores: EdgeScores,
    earlier: Bool[np.ndarray, "position position"],
    parent: Int[np.ndarray, " position"],
    background: float,
    laws: bool,
) -> Float[np.ndarray, " position"]:
    single = np.full(len(parent), np.nan)
    if laws:
        missing = np.where(earlier, scores.against_edge(_FULL, background).p_values(), 0.0).max(axis=1)
        return np.where(earlier.any(axis=1), missing, np.nan)
    child = np.flatnonzero(parent >= 0)
    if len(child) > 1:
        larger = scores.between_edges(child, parent[child]).p_values()
        single[child] = np.minimum(1.0, (len(child) - 1) * larger.min(axis=1))
    return single
