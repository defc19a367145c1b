"""A score for every pair of positions whose null is exact at any context length.

The log loss makes layer 0's gradient divide by each sequence's own token frequencies, and the last softmax subtracts a
mean over positions: both leave a root's row a small bias that many sequences make significant. Without both, what
remains of the first-order gradient is, with h_j = 1[x_j = x_T] and y the target (probabilities or a one-hot label),

    u_ij = mean over sequences of a_i h_j,        a_i = d_vocab y(x_i).

If pi has stationary law mu, the query is uniform and x_i is independent of x_j given pi, then E u_ij = E |mu|^2 = c at
any context length: **the row of a root is flat**. If p is the parent of i,

    E u_ip - c = E sum_s mu(s) |pi(. | s) - mu|^2,

the information of the edge in the Euclidean in place of the chi-squared metric, the same for every edge of a task; for
any other earlier j, which reaches i only through p, data processing makes E u_ij at most E u_ip. Under an edge x_i is
drawn from y whenever h_j = 1, so that its score is known without knowing any edge: E u_ip = E[ d_vocab |y|^2 h_p ]. So
a forest is contradicted by a row without an edge that is not flat, or not at c = P(x_i = x_j), and by a child whose
edge falls short of its score, or that agrees with another position more or less often than y says where its parent
equals the query. From a_i may be subtracted any function of y, which removes most of the noise; a non-uniform query is
weighted by one over its frequency.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from causal_circuits.statistics import bernstein_p_value, bernstein_sample_size
from causal_circuits.tasks.batch import chunks

_CHUNK = 8192  # sequences
_LEAST_BOUND = 1e-3  # of terms that are of order one: what is smaller by far is rounding


@dataclass(frozen=True)
class Contrasts:
    """Mean and variance over n sequences of differences of scores, which exceed their mean by `bound` at most."""

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

    def flipped(self) -> "Contrasts":
        """The same differences the other way round."""
        return Contrasts(-self.mean, self.variance, self.bound, self.n)


class _Piece(NamedTuple):
    """Some sequences, with the terms of the module's text."""

    context: Int[np.ndarray, "sequence position"]
    child: Float[np.ndarray, "sequence position"]  # a less the offset
    hit: Float[np.ndarray, "sequence position"]  # h, weighted by the query
    equals_query: Bool[np.ndarray, "sequence position"]  # 1[x_j = x_T]
    sharpness: Float[np.ndarray, "sequence 1"]  # d_vocab |y|^2 less the offset
    offset: Float[np.ndarray, "sequence 1"]


class EdgeScores:
    """u_ij of a set of sequences, and the differences that tests are made of.

    `score` is u over the positions before the query, row child, column parent; `expected` the score of an edge from
    each position if targets are probabilities. n sequences count as independent: fewer than there are if some are
    copies.
    """

    def __init__(
        self, tokens: Int[np.ndarray, "sequence n_ctx"], targets: Float[np.ndarray, "sequence d_vocab"], n: int
    ) -> None:
        self.tokens, self.targets, self.n = tokens, targets, n
        self.d_vocab = targets.shape[1]
        share = np.bincount(tokens[:, -1], minlength=self.d_vocab) / len(tokens)
        self._query_weight = np.divide(1.0, self.d_vocab * share, out=np.zeros(self.d_vocab), where=share > 0)
        self._offset = self._fit_offset()
        n_positions = tokens.shape[1] - 1
        self.score, self.expected = np.zeros((n_positions, n_positions)), np.zeros(n_positions)
        self._square = np.zeros_like(self.score)  # mean of (a_i h_j)^2
        self._bound = _LEAST_BOUND
        for piece in self._pieces():
            self.score += _summed(piece.child, piece.hit) / len(tokens)
            self._square += _summed(piece.child**2, piece.hit**2) / len(tokens)
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
        for piece in chunks(len(self.tokens), _CHUNK):
            context, query, y = self.tokens[piece, :-1], self.tokens[piece, -1:], self.targets[piece]
            offset = self._offset[piece, None]
            child = self.d_vocab * np.take_along_axis(y, context, axis=1) - offset
            equals_query = context == query
            hit = np.where(equals_query, self._query_weight[query], 0.0)
            sharpness = self.d_vocab * np.einsum("ns,ns->n", y, y)[:, None] - offset
            yield _Piece(context, child, hit, equals_query, sharpness, offset)

    def against_rivals(self, best: Int[np.ndarray, " position"]) -> Contrasts:
        """u_i,best(i) - u_ij for every row i and column j."""
        square = np.zeros_like(self.score)
        for piece in self._pieces():
            at_best, hit, squares = piece.hit[:, best], piece.hit, piece.child**2
            square += np.einsum("ni,ni->i", squares, at_best**2)[:, None] - 2 * _summed(squares * at_best, hit)
        mean = np.take_along_axis(self.score, best[:, None], axis=1) - self.score
        return self._contrasts(mean, self._square + square / len(self.tokens))

    def against_edge(self, share: float = 1.0, background: float = 0.0) -> Contrasts:
        """The score that lies `share` of the way from the background to an edge's, less u_ij.

        An edge's score is that of the terms d_vocab |y|^2 h_j: with share 1 the background does not matter.
        """
        rest = (1 - share) * background
        mean, cross = share * self.expected - self.score, np.zeros_like(self.score)
        for piece in self._pieces():
            missing = share * piece.sharpness - 2 * piece.child
            cross += share * _summed(missing * piece.sharpness, piece.hit**2)
        square = self._square + cross / len(self.tokens)
        return self._contrasts(mean + rest, square + 2 * rest * mean + rest**2)

    def against_row(self, earlier: Bool[np.ndarray, "position position"]) -> Contrasts:
        """u_ij less the mean of the row's other entries, among those that `earlier` names (two or more in a row)."""
        count = earlier.sum(axis=1)[:, None].astype(np.float64)
        share = np.divide(1.0, count - 1, out=np.zeros_like(count), where=count > 1)
        square = np.zeros_like(self.score)
        total = (self.score * earlier).sum(axis=1, keepdims=True)
        for piece in self._pieces():
            hits, squares = _summed(piece.hit.T, earlier.T.astype(np.float64)), piece.child**2
            square += (squares * hits**2).sum(axis=0)[:, None] - 2 * count * _summed(squares * hits, piece.hit)
        square = count**2 * self._square + square / len(self.tokens)
        return self._contrasts((count * self.score - total) * share, square * share**2)

    def against_agreement(self) -> Contrasts:
        """d_vocab y(x_i) h_j - 1[x_i = x_j]: both have expectation E |mu|^2 if i and j are independent given pi."""
        mean, square = np.zeros_like(self.score), np.zeros_like(self.score)
        for piece in self._pieces():
            law = piece.child + piece.offset
            equal = _agreements(piece.context)
            mean += _summed(law, piece.hit) - equal
            square += _summed(law**2, piece.hit**2) - 2 * _summed(law * piece.equals_query, piece.hit) + equal
        return self._contrasts(mean / len(self.tokens), square / len(self.tokens))

    def beyond_parent(self, parent: Int[np.ndarray, " position"]) -> Contrasts:
        """h_p (1[x_i = x_j] - y(x_j)) for the parent p of each i (-1 if none): how much oftener they agree than y says.

        Where the parent equals the query, x_i is drawn from y, whatever x_j is: the expectation is zero for every
        j < i, the parent included, under any law of the tokens.
        """
        mean, square = np.zeros_like(self.score), np.zeros_like(self.score)
        for piece in self._pieces():
            law = (piece.child + piece.offset) / self.d_vocab
            for i in np.flatnonzero(parent >= 0).tolist():
                equal, hit = (piece.context[:, [i]] == piece.context) - law, piece.hit[:, parent[i]]
                mean[i] += hit @ equal
                square[i] += hit**2 @ equal**2
        n = len(self.tokens)
        bound = 2 * float(self._query_weight.max())
        mean, square = mean / n, square / n
        return Contrasts(mean, self._unbiased(square - mean**2), bound, self.n)

    def between_edges(self, child: Int[np.ndarray, " edge"], parent: Int[np.ndarray, " edge"]) -> Contrasts:
        """The score of edge k less that of edge l ([l, k]): zero in expectation for edges of one forest."""
        square = np.zeros((len(child), len(child)))
        for piece in self._pieces():
            score = piece.child[:, child] * piece.hit[:, parent]
            square += _summed(score, score)
        score, own = self.score[child, parent], np.diagonal(square)
        mean = score[None] - score[:, None]
        return self._contrasts(mean, (own[None] + own[:, None] - 2 * square) / len(self.tokens))

    def below(self, threshold: float) -> Contrasts:
        """The threshold less u_ij."""
        variance = self._unbiased(self._square - self.score**2)
        return Contrasts(threshold - self.score, variance, 2 * self._bound, self.n)

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
    rows: Float[np.ndarray, "sequence row"], columns: Float[np.ndarray, "sequence column"]
) -> Float[np.ndarray, "row column"]:
    """Sum over sequences of rows[:, i] columns[:, j]: torch's product keeps to torch's number of threads."""
    return (torch.from_numpy(rows).T @ torch.from_numpy(columns)).numpy()


def _agreements(context: Int[np.ndarray, "sequence position"]) -> Float[np.ndarray, "position position"]:
    """In how many sequences each pair of positions has the same token."""
    return np.stack([(context == context[:, [i]]).sum(axis=0) for i in range(context.shape[1])]).astype(np.float64)
