"""A score for every pair of positions whose null is exact at any context length.

The log loss makes layer 1's gradient divide by each sequence's own token frequencies, and the last softmax subtracts a
mean over positions: both tie every position to every other and leave a root's row a small bias that many sequences
make significant. Leave both out and what remains of the first-order gradient is, with h_j = 1[x_j = x_T] and y the
target (probabilities or a one-hot label),

    u_ij = mean over sequences of a_i h_j,        a_i = d_vocab y(x_i).

If pi has stationary law mu, the query is uniform and x_i is independent of x_j given pi, then E u_ij = E |mu|^2 = c:
one constant for all such pairs, at any context length. So **the row of a root is flat**. If p is the parent of i,

    E u_ip - c = E sum_s mu(s) |pi(. | s) - mu|^2,

the information of the edge in the Euclidean in place of the chi-squared metric: the same for every edge of a task; and
for any other earlier position j, which reaches i only through p, data processing (Jensen and Cauchy-Schwarz, given pi)
makes E u_ij at most E u_ip. Under an edge x_i is drawn from y whenever h_j = 1, so that the score an edge must have is
known without knowing any edge: E u_ip = E[ d_vocab |y|^2 h_p ].

From a_i may be subtracted any function of y: it shifts whole rows, and removes most of the noise. A non-uniform query
is weighted by one over its frequency.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from causal_circuits.discovery.testing import bernstein_p_value, bernstein_sample_size

_CHUNK = 8192  # sequences
_LEAST_BOUND = 1e-3  # of terms that are of order one: what is smaller by far is rounding


@dataclass(frozen=True)
class Contrasts:
    """For rows of pairs, the mean and variance of differences of scores, one number a sequence.

    Attributes:
        mean, variance: of the differences over sequences.
        bound: what a difference can exceed its mean by.
        n: sequences that count.
    """

    mean: Float[np.ndarray, "row key"]
    variance: Float[np.ndarray, "row key"]
    bound: float
    n: int

    def p_values(self) -> Float[np.ndarray, "row key"]:
        """One-sided, against "the difference is at most zero"."""
        return bernstein_p_value(self.mean, self.variance, self.bound, self.n)

    def sample_sizes(self, p_value: float) -> Float[np.ndarray, "row key"]:
        """Sequences at which the p-value would be this small."""
        return bernstein_sample_size(self.mean, self.variance, self.bound, p_value)

    def only(self, chosen: Bool[np.ndarray, "row key"]) -> "Contrasts":
        """Those of the chosen cells, as one row."""
        return Contrasts(self.mean[chosen][None], self.variance[chosen][None], self.bound, self.n)

    def typical_sample_size(self, mean: float, p_value: float) -> float:
        """The sample size for one difference of the given mean and the average variance; inf if that is not known."""
        if not (mean > 0 and self.variance.size):
            return float("inf")
        spread = np.array([self.variance.mean()])
        return float(bernstein_sample_size(np.array([mean]), spread, self.bound, p_value)[0])


@dataclass(frozen=True)
class _Piece:
    """Some sequences: context tokens, a and h [sequence, position]; d_vocab |y|^2 less the offset [sequence, 1]."""

    context: Int[np.ndarray, "sequence position"]
    child: Float[np.ndarray, "sequence position"]
    hit: Float[np.ndarray, "sequence position"]
    sharpness: Float[np.ndarray, "sequence 1"]
    offset: Float[np.ndarray, "sequence 1"]


class EdgeScores:
    """u_ij of a set of sequences, and the differences that tests are made of.

    Args:
        tokens: [sequence, n_ctx], the query last.
        targets: [sequence, d_vocab] probabilities or one-hot labels.
        n: sequences that count as independent; fewer than there are if some are copies.

    Attributes:
        score: u [position, position] over the context positions before the query; row child, column parent.
        expected: [position]; the score of an edge from each position if targets are probabilities, to compare with
            `score`.
    """

    def __init__(
        self, tokens: Int[np.ndarray, "sequence n_ctx"], targets: Float[np.ndarray, "sequence d_vocab"], n: int
    ) -> None:
        self.tokens, self.targets, self.n = tokens, targets, n
        self.d_vocab = targets.shape[1]
        asked = np.bincount(tokens[:, -1], minlength=self.d_vocab) / len(tokens)
        self._query_weight = np.divide(1.0, self.d_vocab * asked, out=np.zeros(self.d_vocab), where=asked > 0)
        self._offset = self._fit_offset()
        n_positions = tokens.shape[1] - 1
        self.score, self.expected = np.zeros((n_positions, n_positions)), np.zeros(n_positions)
        self._bound = _LEAST_BOUND
        for piece in self._pieces():
            self.score += _summed(piece.child, piece.hit) / len(tokens)
            self.expected += (piece.sharpness * piece.hit).sum(axis=0) / len(tokens)
            largest = np.abs(piece.child).max(axis=1) * piece.hit.max(axis=1)
            self._bound = max(self._bound, float(largest.max()))

    def _fit_offset(self) -> Float[np.ndarray, " sequence"]:
        """The least-squares fit of the mean of d_vocab y(x_i) over positions by a constant and |y|^2."""
        sharpness = np.einsum("ns,ns->n", self.targets, self.targets)
        mean = self.d_vocab * np.take_along_axis(self.targets, self.tokens[:, :-1], axis=1).mean(axis=1)
        features = np.stack([np.ones_like(sharpness), sharpness], axis=1)
        return features @ np.linalg.lstsq(features, mean, rcond=None)[0]

    def _pieces(self) -> Iterator["_Piece"]:
        for start in range(0, len(self.tokens), _CHUNK):
            piece = slice(start, start + _CHUNK)
            context, query, y = self.tokens[piece, :-1], self.tokens[piece, -1:], self.targets[piece]
            offset = self._offset[piece, None]
            child = self.d_vocab * np.take_along_axis(y, context, axis=1) - offset
            hit = np.where(context == query, self._query_weight[query], 0.0)
            yield _Piece(context, child, hit, self.d_vocab * np.einsum("ns,ns->n", y, y)[:, None] - offset, offset)

    def against_rivals(self, best: Int[np.ndarray, " position"]) -> Contrasts:
        """u_i,best(i) - u_ij for every row i and column j."""
        square = np.zeros_like(self.score)
        for piece in self._pieces():
            at_best, hit, squares = piece.hit[:, best], piece.hit, piece.child**2
            square += np.einsum("ni,ni->i", squares, at_best**2)[:, None]
            square += _summed(squares, hit**2) - 2 * _summed(squares * at_best, hit)
        mean = np.take_along_axis(self.score, best[:, None], axis=1) - self.score
        return self._contrasts(mean, square / len(self.tokens))

    def against_edge(self) -> Contrasts:
        """The score that an edge j -> i must have less the one it has, d_vocab (|y|^2 - y(x_i)) h_j."""
        mean, square = np.zeros_like(self.score), np.zeros_like(self.score)
        for piece in self._pieces():
            missing = piece.sharpness - piece.child
            mean += _summed(missing, piece.hit)
            square += _summed(missing**2, piece.hit**2)
        n = len(self.tokens)
        return self._contrasts(mean / n, square / n)

    def below(self, threshold: float) -> Contrasts:
        """The threshold less u_ij."""
        square = np.zeros_like(self.score)
        for piece in self._pieces():
            square += _summed(piece.child**2, piece.hit**2)
        centred = square / len(self.tokens) - self.score**2
        return Contrasts(threshold - self.score, self._unbiased(centred), 2 * self._bound, self.n)

    def of_first_pair(self, child: int, parent: int, others: Int[np.ndarray, " other"]) -> tuple[Contrasts, Contrasts]:
        """Tests of a row with one earlier position, each valid if that position is not the parent.

        If x_child and x_parent are independent given pi, every other position is independent of one of the two, so
        that the larger of its scores with them has expectation c or more: for each other position the contrasts with
        both ([other, 2]). And P(x_child = x_parent) = c too: the other contrast ([1, 1]).
        """
        sums, match = np.zeros((2, len(others), 2)), np.zeros((2, 1, 1))
        for piece in self._pieces():
            pair = (piece.child[:, child] * piece.hit[:, parent])[:, None]
            for k, key in enumerate((parent, child)):
                difference = pair - piece.child[:, others] * piece.hit[:, [key]]
                sums[:, :, k] += difference.sum(axis=0), (difference**2).sum(axis=0)
            equal = piece.context[:, [child]] == piece.context[:, [parent]]
            difference = pair + piece.offset * piece.hit[:, [parent]] - equal
            match += np.array([difference.sum(), (difference**2).sum()]).reshape(2, 1, 1)
        sums, match = sums / len(self.tokens), match / len(self.tokens)
        return self._contrasts(*sums), self._contrasts(*match)

    def _contrasts(self, mean: np.ndarray, square: np.ndarray) -> Contrasts:
        return Contrasts(mean, self._unbiased(square - mean**2), 2 * self._bound, self.n)

    def _unbiased(self, variance: np.ndarray) -> np.ndarray:
        return np.clip(variance, 0.0, None) * self.n / max(self.n - 1, 1)


def _summed(
    rows: Float[np.ndarray, "sequence position"], columns: Float[np.ndarray, "sequence position"]
) -> Float[np.ndarray, "position position"]:
    """Sum over sequences of rows[:, i] columns[:, j]: torch's product keeps to torch's number of threads."""
    return (torch.from_numpy(rows).T @ torch.from_numpy(columns)).numpy()
