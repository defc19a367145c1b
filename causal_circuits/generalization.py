"""Out of distribution: how far predictions are from a transition matrix never trained on, and the worst one found.

Theorem 2 of Nichani, Damian & Lee (2024): a model trained on one prior tends, as the context grows, to pi~(. | s_T) for
*any* matrix pi~ whose entries are bounded below. The error measured here, for a matrix and a query token s, is

    E [ max_{s'} | f(s_1 .. s_T)_{s'} - pi~(s' | s) |  given  s_T = s ],

and the uniform error is its largest value over query tokens - and, in `worst_matrix`, over matrices too.
"""

from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import Count, Place, check_arguments
from causal_circuits.display import Result
from causal_circuits.tasks import InContextTask, bounded_below

ELITE = 4  # matrices that a search goes on from
Predictor = Callable[[Tensor], Tensor]  # tokens [batch, n_ctx] -> probabilities [batch, d_vocab]


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class WorstMatrix(Result):
    """What a search over transition matrices found.

    Attributes:
        matrix: float64 [d_vocab, d_vocab], entries at least gamma / d_vocab.
        error: its score, the largest seen.
        start_error: the largest score among the random matrices that the search started from.

    >>> found = worst_matrix(lambda matrix: float(matrix[0, 0]), d_vocab=3, n_start=8, n_rounds=8)
    >>> found.error >= found.start_error, found.matrix.shape
    (True, (3, 3))
    """

    matrix: Float[np.ndarray, "d_vocab d_vocab"]
    error: float
    start_error: float


@check_arguments
def prediction_errors(
    predictor: Predictor,
    graph: nx.DiGraph,
    matrix: Float[np.ndarray, "d_vocab d_vocab"],
    *,
    n_sequences: int = 1024,
    seed: int = 0,
    reference: Predictor | None = None,
) -> Float[np.ndarray, " d_vocab"]:
    """For each query token, the mean over sequences of the largest ``|f - pi~(. | s_T)|`` over tokens.

    Args:
        predictor: tokens to probabilities: a model's ``log_probs(model, tokens).exp()``, an edge posterior, ...
        graph: a forest with a query.
        matrix: the transition matrix of every sequence.
        n_sequences, seed: of the sequences; one seed compares matrices on common random numbers.
        reference: measure the distance to this predictor in place of the matrix's own row.

    Returns:
        float64 [d_vocab]; NaN for a token that no sequence asks for.

    >>> uniform = lambda tokens: torch.full((len(tokens), 2), 0.5)
    >>> prediction_errors(uniform, cc.chain_graph(8), np.array([[0.9, 0.1], [0.3, 0.7]])).round(2).tolist()
    [0.4, 0.2]
    """
    task = InContextTask(graph, d_vocab=len(matrix), transition_matrices=matrix)
    if not task.has_query:
        raise ValueError("prediction errors are per query token: the graph must be a forest with a query")
    batch = task.sample(n_sequences, seed=seed)
    with torch.no_grad():
        truth = batch.target_probs if reference is None else reference(batch.tokens)
        error = (predictor(batch.tokens).double() - truth.double()).abs().amax(dim=-1).numpy()
    query = batch.tokens[:, -1].numpy()
    with np.errstate(invalid="ignore"):
        return np.bincount(query, error, minlength=len(matrix)) / np.bincount(query, minlength=len(matrix))


@check_arguments
def worst_matrix(
    score: Callable[[np.ndarray], float],
    d_vocab: int,
    *,
    gamma: float = 0.1,
    n_start: Count = 64,
    n_rounds: Place = 64,
    seed: int = 0,
) -> WorstMatrix:
    """The transition matrix of the largest score that a search over all with entries >= gamma / d_vocab finds.

    Starts from `n_start` random matrices, from nearly uniform to deterministic; keeps the best 4; in every
    round each of them has one child - one row replaced, two rows swapped, or all entries scaled by random factors - and
    the best of parents and children stay. So the result is never worse than the best start. Gradient-free: the sampling
    of tokens has no gradient.

    >>> worst = worst_matrix(lambda matrix: float(matrix[0, 0]), d_vocab=3, gamma=0.3, seed=0)
    >>> bool(0.7 < worst.error <= 0.8)          # at most (1 - gamma) + gamma / d_vocab
    True
    """
    generator = np.random.default_rng(seed)
    concentration = 10.0 ** generator.uniform(-2, 1, size=n_start)
    starts = [generator.dirichlet(np.full(d_vocab, a), size=d_vocab) for a in concentration]
    elite = sorted(((score(bounded_below(k, gamma)), i, k) for i, k in enumerate(starts)), reverse=True)[:ELITE]
    start_error, serial = elite[0][0], n_start
    for _ in range(n_rounds):
        children = [_mutated(matrix, generator) for _, _, matrix in elite]
        elite += [(score(bounded_below(k, gamma)), serial + i, k) for i, k in enumerate(children)]
        serial += len(children)
        elite = sorted(elite, reverse=True)[:ELITE]  # the serial number settles ties
    return WorstMatrix(bounded_below(elite[0][2], gamma), elite[0][0], start_error)


def _mutated(matrix: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A row redrawn, two rows swapped, or every entry scaled; still a stochastic matrix."""
    child, n_states, kind = matrix.copy(), len(matrix), generator.integers(4)
    if kind == 0:
        child[generator.integers(n_states)] = generator.dirichlet(np.full(n_states, 10.0 ** generator.uniform(-2, 1)))
    elif kind == 1:
        one, other = generator.permutation(n_states)[:2]
        child[[one, other]] = child[[other, one]]
    else:
        child = (child + 1e-3) * np.exp(generator.normal(0.0, 0.5, size=child.shape))
    return child / child.sum(axis=1, keepdims=True)
