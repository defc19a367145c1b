"""In-context Markov chains, predicted after every position: the task of "statistical induction heads".

Edelman, Edelman, Goel, Malach & Tsilivis, "The Evolution of Statistical Induction Heads: In-Context Learning Markov
Chains" (2024, arXiv 2402.11004): every sequence has a transition matrix of its own, its first token follows the
stationary law, and the next token is to be predicted everywhere. Three ways to do so, each better than the one before:
all tokens alike, by how often each was seen (unigram), by what followed the current token (bigram).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import Count, Place, Several, check_arguments
from causal_circuits.graphs import ngram_graph
from causal_circuits.tasks import transition_matrices as _matrices
from causal_circuits.tasks.base import Seed, Task, generator_at
from causal_circuits.tasks.batch import Batch, check_tokens
from causal_circuits.tasks.predictors import smoothed

Prior = Literal["dirichlet", "doubly stochastic", "independent"]


@check_arguments
@dataclass(frozen=True, eq=False)
class MarkovTask(Task):
    """Markov chains with a fresh transition matrix for each sequence, and targets after every position.

    Args:
        n_ctx: length of the sequences, at least 2.
        d_vocab: number of tokens, at least 2.
        prior: of the transition matrix: ``"dirichlet"`` rows; ``"doubly stochastic"``, a mixture of all d_vocab!
            permutations with Dirichlet weights, whose stationary law is uniform, so that counting tokens tells nothing;
            ``"independent"``, one Dirichlet row for all tokens, so that the token before tells nothing.
        alpha: concentration of the Dirichlet draws.

    >>> task = MarkovTask(n_ctx=100, d_vocab=3)
    >>> batch = task.sample(8, seed=0)
    >>> tuple(batch.tokens.shape), tuple(batch.target_probs.shape)
    ((8, 100), (8, 100, 3))
    """

    n_ctx: int = 100
    d_vocab: Several = 3
    prior: Prior = "dirichlet"
    alpha: float = 1.0

    every_position = True
    has_query = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "graph", nx.freeze(ngram_graph(self.n_ctx, 1)))
        if not 0.1 <= self.alpha <= 1e6:
            raise ValueError(f"alpha must lie in [0.1, 1e6]: got {self.alpha}")
        if self.prior == "doubly stochastic" and self.d_vocab > 6:
            raise ValueError(
                f"doubly stochastic matrices mix d_vocab! permutations: got d_vocab {self.d_vocab}, at most 6"
            )

    def draw_matrices(self, n: int, generator: np.random.Generator) -> Float[np.ndarray, "batch token token"]:
        """`n` transition matrices of the prior."""
        size = self.d_vocab
        if self.prior == "independent":
            row = _matrices.draw_dirichlet(generator, np.full((1, size), self.alpha), n)
            return np.repeat(row, size, axis=1).astype(np.float64)
        if self.prior == "dirichlet":
            return _matrices.draw_dirichlet(generator, np.full((size, size), self.alpha), n).astype(np.float64)
        every = np.eye(size)[list(permutations(range(size)))]
        weights = _matrices.draw_dirichlet(generator, np.full((1, len(every)), self.alpha), n)[:, 0]
        return np.einsum("np,pij->nij", weights, every)

    def draws(self, seed: Seed, first: Place, n: Count) -> Batch:
        """`n` sequences, a function of seed and `first` (not of single places)."""
        generator = generator_at(seed, first)
        matrices = self.draw_matrices(n, generator)
        laws, rows = map(_matrices.cumulative_laws, (_matrices.stationary_law(matrices), matrices))
        numbers, every = generator.random((self.n_ctx, n)), np.arange(n)
        tokens = np.empty((n, self.n_ctx), dtype=np.int64)
        tokens[:, 0] = _matrices.inverse_cdf(laws, numbers[0])
        for t in range(1, self.n_ctx):
            tokens[:, t] = _matrices.inverse_cdf(rows[every, tokens[:, t - 1]], numbers[t])
        targets = matrices[every[:, None], tokens].astype(np.float32)
        return Batch(torch.from_numpy(tokens), torch.from_numpy(targets))

    def identity(self) -> Mapping[str, Any]:
        """Sizes and prior."""
        return {"n_ctx": self.n_ctx, "d_vocab": self.d_vocab, "prior": self.prior, "alpha": float(self.alpha)}


@check_arguments
def next_token_predictors(
    tokens: Int[Tensor, "batch n_ctx"], d_vocab: int, alpha: float = 1.0
) -> dict[str, Float[Tensor, "batch n_ctx d_vocab"]]:
    """After every position, three predictions of the next token: "uniform", "unigram" and "bigram".

    The unigram predictor is (alpha + how often a token was seen so far) over its sum, the bigram predictor (alpha + how
    often it followed the current token), which is exact Bayes for Dirichlet(alpha) rows but for the first token.
    float64.

    >>> predicted = next_token_predictors(torch.tensor([[0, 1, 0]]), d_vocab=2)
    >>> {name: [round(p, 2) for p in probs[0, -1].tolist()] for name, probs in predicted.items()}
    {'uniform': [0.5, 0.5], 'unigram': [0.6, 0.4], 'bigram': [0.33, 0.67]}
    """
    check_tokens(tokens, d_vocab)
    one_hot = torch.nn.functional.one_hot(tokens, d_vocab).double()
    seen = one_hot.cumsum(dim=1)
    same = torch.tril(tokens[:, :, None] == tokens[:, None, :-1], diagonal=-1)  # [batch, now, before]
    followed = same.double() @ one_hot[:, 1:]
    counts = {"uniform": torch.zeros_like(seen), "unigram": seen, "bigram": followed}
    return {name: smoothed(count, alpha) for name, count in counts.items()}
