"""Transition matrices that the Dirichlet prior hardly ever draws: what a model that learned the *graph* must survive.

Every family is a random transition matrix K0 mixed with the uniform one,

    K = (1 - gamma) K0 + gamma / d_vocab,

so that all entries are at least gamma / d_vocab: the condition under which Theorem 2 of Nichani, Damian & Lee (2024)
promises out-of-distribution generalisation, and under which roots have one stationary law.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float

from causal_circuits.arguments import Count, Several, check_arguments
from causal_circuits.tasks.batch import check_probabilities

Draw = Callable[[np.random.Generator, int, int], np.ndarray]


def _dirichlet(alpha: float) -> Draw:
    return lambda generator, n, d_vocab: generator.dirichlet(np.full(d_vocab, alpha), size=(n, d_vocab))


def _sparse(generator: np.random.Generator, n: int, d_vocab: int) -> np.ndarray:
    """Each row lives on two random tokens, in random proportions."""
    rank = generator.random((n, d_vocab, d_vocab)).argsort(axis=-1).argsort(axis=-1)
    share = generator.random((n, d_vocab, 1))
    return np.where(rank == 0, share, np.where(rank == 1, 1.0 - share, 0.0))


def _sticky(generator: np.random.Generator, n: int, d_vocab: int) -> np.ndarray:
    """A token repeats itself with probability .8 to 1, else the next one is drawn from a random row."""
    stay = generator.uniform(0.8, 1.0, size=(n, d_vocab, 1))
    return stay * np.eye(d_vocab) + (1.0 - stay) * _dirichlet(1.0)(generator, n, d_vocab)


def _periodic(generator: np.random.Generator, n: int, d_vocab: int) -> np.ndarray:
    """The tokens in a random circle, each followed by the next."""
    order = generator.random((n, d_vocab)).argsort(axis=-1)
    matrices = np.zeros((n, d_vocab, d_vocab))
    np.put_along_axis(matrices.reshape(n, -1), order * d_vocab + np.roll(order, -1, axis=1), 1.0, axis=1)
    return matrices


def _near_deterministic(generator: np.random.Generator, n: int, d_vocab: int) -> np.ndarray:
    """Each token is followed by one random token."""
    return np.eye(d_vocab)[generator.integers(d_vocab, size=(n, d_vocab))]


_FAMILIES: dict[str, Draw] = {
    "dirichlet 0.1": _dirichlet(0.1),
    "dirichlet 0.3": _dirichlet(0.3),
    "dirichlet 1": _dirichlet(1.0),
    "dirichlet 10": _dirichlet(10.0),
    "sparse": _sparse,
    "sticky": _sticky,
    "periodic": _periodic,
    "near-deterministic": _near_deterministic,
}
MATRIX_FAMILIES = tuple(_FAMILIES)


@check_arguments
def matrix_family(
    name: str, n: Count = 256, d_vocab: Several = 3, *, gamma: float = 0.1, seed: int = 0
) -> Float[np.ndarray, "matrix d_vocab d_vocab"]:
    """`n` transition matrices of a family for an `InContextTask`, entries at least gamma / d_vocab.

    Args:
        name: one of `MATRIX_FAMILIES`.
        n, d_vocab: how many, over how many tokens.
        gamma: share of the uniform matrix mixed in, in [0, 1).
        seed: of the draws.

    >>> matrix_family("periodic", n=1, d_vocab=3, gamma=0.3, seed=1).round(2).tolist()
    [[[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]]
    """
    if name not in _FAMILIES:
        raise ValueError(f"a family of matrices must be one of {', '.join(MATRIX_FAMILIES)}: got {name!r}")
    return bounded_below(_FAMILIES[name](np.random.default_rng(seed), n, d_vocab), gamma)


@check_arguments
def bounded_below(
    matrices: Float[np.ndarray, "*matrix d_vocab d_vocab"], gamma: float
) -> Float[np.ndarray, "*matrix d_vocab d_vocab"]:
    """(1 - gamma) K + gamma / d_vocab: stochastic matrices with every entry at least gamma / d_vocab.

    >>> bounded_below(np.eye(2), 0.5).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must lie in [0, 1): got {gamma}; 0.1 keeps entries above 0.1 / d_vocab")
    if matrices.size == 0:
        raise ValueError(f"there must be a matrix to bound: got none, shape {list(matrices.shape)}")
    check_probabilities("rows of a transition matrix", torch.from_numpy(matrices), 1e-3)
    return (1.0 - gamma) * matrices + gamma / matrices.shape[-1]
