"""Interleaved Markov chains whose lag is latent: the task of "selective induction heads".

D'Angelo, Croce & Flammarion, "Selective Induction Heads: How Transformers Select Causal Structures In Context" (2025,
arXiv 2509.08184): one transition matrix for all sequences; in each a lag k is drawn, and every token follows the one k
before it. Who predicts the next token has to find out which of the latest tokens is its parent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import Count, Place, Several, check_arguments
from causal_circuits.tasks import transition_matrices as _matrices
from causal_circuits.tasks.base import Seed, Task, generator_at, seed_sequence
from causal_circuits.tasks.batch import Batch, check_probabilities, check_tokens


@check_arguments
@dataclass(frozen=True, eq=False, repr=False)
class LagTask(Task):
    """Markov chains in which token i depends on token i - k alone, with a lag k drawn anew in every sequence.

    The first k tokens follow the stationary law, each for itself: k interleaved chains. `graph` is None, for it differs
    from sequence to sequence; ``LagTask(..., lags=(2,))`` draws the sequences of one lag.

    Args:
        n_ctx: length of the sequences, above the largest lag.
        d_vocab: number of tokens, at least 2.
        lags: those that are drawn, all as often.
        transition_matrix: [d_vocab, d_vocab], entries above 0; None draws one with Dirichlet(alpha) rows.
        matrix_seed: of that draw.
        alpha: concentration of that draw.

    >>> task = LagTask(n_ctx=16, d_vocab=4, lags=(1, 2))
    >>> batch = task.sample(500, seed=0)
    >>> laws = task.predictors(batch.tokens)
    >>> list(laws)
    ['stationary', 'lag average', 'maximum likelihood', 'normalized likelihood', 'Bayes']
    >>> losses = [float(-(batch.target_probs * law.log()).sum(dim=1).mean()) for law in laws.values()]
    >>> losses[4] == min(losses), losses[0] == max(losses)
    (True, True)
    """

    n_ctx: int = 16
    d_vocab: Several = 4
    lags: tuple[int, ...] = (1, 2)
    transition_matrix: Float[np.ndarray, "token token"] | None = None
    matrix_seed: int = 0
    alpha: float = 0.5

    has_query = False

    def __post_init__(self) -> None:
        if (
            not self.lags
            or len(set(self.lags)) < len(self.lags)
            or not 1 <= min(self.lags) <= max(self.lags) < self.n_ctx
        ):
            raise ValueError(f"lags must be different and lie in 1 .. n_ctx - 1 = {self.n_ctx - 1}: got {self.lags}")
        if not 0.1 <= self.alpha <= 1e6:
            raise ValueError(f"alpha must lie in [0.1, 1e6]: got {self.alpha}")
        _ = self.matrix  # validated where it is made

    def __repr__(self) -> str:
        return f"LagTask(n_ctx={self.n_ctx}, d_vocab={self.d_vocab}, lags={self.lags})"

    @cached_property
    def matrix(self) -> Float[np.ndarray, "token token"]:
        """The transition matrix, float64."""
        matrix, size = self.transition_matrix, (self.d_vocab, self.d_vocab)
        if matrix is None:
            generator = np.random.default_rng(seed_sequence(self.matrix_seed))
            matrix = _matrices.draw_dirichlet(generator, np.full(size, self.alpha), 1)[0]
        if matrix.shape != size:
            raise ValueError(f"transition_matrix must be [d_vocab, d_vocab] = {list(size)}: got {list(matrix.shape)}")
        check_probabilities("transition_matrix", torch.from_numpy(matrix), 1e-3)
        if matrix.min() <= 0:
            raise ValueError(
                f"entries of transition_matrix must be above 0: got {matrix.min():.3g}; mix in a uniform row"
            )
        return matrix / matrix.sum(axis=1, keepdims=True, dtype=np.float64)

    @property
    def stationary(self) -> Float[np.ndarray, " token"]:
        """The stationary law of the transition matrix."""
        return _matrices.stationary_law(self.matrix[None])[0]

    def draws(self, seed: Seed, first: Place, n: Count) -> Batch:
        """`n` sequences, a function of seed, `first` and `n` (not of single places)."""
        generator, every = generator_at(seed, first), np.arange(n)
        lag = np.array(self.lags)[generator.integers(len(self.lags), size=n)]
        numbers = generator.random((self.n_ctx, n))
        rows = np.vstack([self.matrix, self.stationary])  # the last row: of a token without a parent
        laws = _matrices.cumulative_laws(rows)
        tokens = np.full((n, self.n_ctx), self.d_vocab)
        for t in range(self.n_ctx):
            parents = np.where(lag <= t, tokens[every, np.maximum(t - lag, 0)], self.d_vocab)
            tokens[:, t] = _matrices.inverse_cdf(laws[parents], numbers[t])
        targets = self.matrix[tokens[every, self.n_ctx - lag]].astype(np.float32)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets))

    def identity(self) -> Mapping[str, Any]:
        """Sizes, lags and the transition matrix."""
        return {"n_ctx": self.n_ctx, "d_vocab": self.d_vocab, "lags": list(self.lags), "matrix": self.matrix.tolist()}

    def log_likelihoods(self, tokens: Int[Tensor, "batch n_ctx"]) -> Float[Tensor, "batch lag"]:
        """The log-likelihood of every sequence under each of the lags, exact, float64."""
        check_tokens(tokens, self.d_vocab, self.n_ctx)
        log_matrix, log_law = torch.from_numpy(np.log(self.matrix)), torch.from_numpy(np.log(self.stationary))
        each = [
            log_law[tokens[:, :lag]].sum(dim=1) + log_matrix[tokens[:, :-lag], tokens[:, lag:]].sum(dim=1)
            for lag in self.lags
        ]
        return torch.stack(each, dim=1)

    def lag_weights(self, tokens: Int[Tensor, "batch n_ctx"]) -> Float[Tensor, "batch lag"]:
        """What the selective induction head of the paper goes by: each lag's mean share of the likelihood of a token.

        The share of lag k at position i is P[x_(i-k), x_i] over its sum over lags, the mean is over positions from the
        largest lag on: layer 0's attention is that share, layer 1's takes the mean.
        """
        check_tokens(tokens, self.d_vocab, self.n_ctx)
        matrix, start = torch.from_numpy(self.matrix), max(self.lags)
        each = [matrix[tokens[:, start - lag : self.n_ctx - lag], tokens[:, start:]] for lag in self.lags]
        likelihoods = torch.stack(each, dim=1)
        return (likelihoods / likelihoods.sum(dim=1, keepdim=True)).mean(dim=2)

    def predictors(self, tokens: Int[Tensor, "batch n_ctx"]) -> dict[str, Float[Tensor, "batch d_vocab"]]:
        """Five predictions of the next token, float64.

        Whatever came before ("stationary"); by all lags alike ("lag average"); by the most likely lag; by the lag with
        the largest `lag_weights`, to which the paper's construction converges ("normalized likelihood"); by every lag
        with its posterior probability, which is optimal ("Bayes").
        """
        likelihoods, shares, n_lags = self.log_likelihoods(tokens), self.lag_weights(tokens), len(self.lags)
        by_lag = torch.stack([torch.from_numpy(self.matrix)[tokens[:, -lag]] for lag in self.lags], dim=1)
        chosen = {
            "lag average": torch.full_like(likelihoods, 1 / n_lags),
            "maximum likelihood": torch.nn.functional.one_hot(likelihoods.argmax(dim=1), n_lags).double(),
            "normalized likelihood": torch.nn.functional.one_hot(shares.argmax(dim=1), n_lags).double(),
            "Bayes": likelihoods.softmax(dim=1),
        }
        stationary = torch.from_numpy(self.stationary).expand(len(tokens), -1)
        return {"stationary": stationary, **{name: (w[:, None] @ by_lag)[:, 0] for name, w in chosen.items()}}
