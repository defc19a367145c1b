"""Kernels that the Dirichlet prior of training hardly ever draws: what a model that learned the *graph* must survive.

Every family is a random stochastic matrix K0 mixed with the uniform one,

    K = (1 - gamma) K0 + gamma / d_vocab,

so that all entries are at least gamma / d_vocab: the condition under which Theorem 2 of Nichani, Damian & Lee (2024)
promises out-of-distribution generalisation, and under which roots have one stationary law.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from causal_circuits.arguments import check_arguments

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
    kernel = np.zeros((n, d_vocab, d_vocab))
    np.put_along_axis(kernel.reshape(n, -1), order * d_vocab + np.roll(order, -1, axis=1), 1.0, axis=1)
    return kernel


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
KERNEL_FAMILIES = tuple(_FAMILIES)


@check_arguments
def kernel_family(
    name: str, n: int = 256, d_vocab: int = 3, *, gamma: float = 0.1, seed: int = 0
) -> Float[np.ndarray, "kernel d_vocab d_vocab"]:
    """`n` kernels of a family, all entries at least gamma / d_vocab; `InContextTask(kernels=...)` takes them.

    Args:
        name: one of `KERNEL_FAMILIES`.
        n, d_vocab: how many kernels, over how many tokens.
        gamma: share of the uniform kernel mixed in, in [0, 1).
        seed: of the kernels.

    >>> kernel_family("periodic", n=1, d_vocab=3, gamma=0.3, seed=1).round(2).tolist()
    [[[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]]
    """
    if name not in _FAMILIES:
        raise ValueError(f"a kernel family must be one of {', '.join(KERNEL_FAMILIES)}: got {name!r}")
    for what, value, least in (("n", n, 1), ("d_vocab", d_vocab, 2)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ValueError(f"{what} must be an integer of at least {least}: got {value!r}")
    return bounded_below(_FAMILIES[name](np.random.default_rng(seed), n, d_vocab), gamma)


@check_arguments
def bounded_below(
    kernels: Float[np.ndarray, "*kernel d_vocab d_vocab"], gamma: float
) -> Float[np.ndarray, "*kernel d_vocab d_vocab"]:
    """(1 - gamma) K + gamma / d_vocab: stochastic matrices with every entry at least gamma / d_vocab.

    >>> bounded_below(np.eye(2), 0.5).tolist()
    [[0.75, 0.25], [0.25, 0.75]]
    """
    if not 0 <= gamma < 1:
        raise ValueError(f"gamma must lie in [0, 1): got {gamma}; 0.1 keeps entries above 0.1 / d_vocab")
    if kernels.size == 0:
        raise ValueError(f"there must be a kernel to bound: got none, shape {list(kernels.shape)}")
    sums = kernels.sum(axis=-1)
    if not (kernels.min() >= 0 and np.abs(sums - 1).max() <= 1e-3):
        raise ValueError(
            f"each row of a kernel must be probabilities that sum to 1: got entries from {kernels.min():.3g} and sums "
            f"in [{sums.min():.4g}, {sums.max():.4g}]; divide by the row sums"
        )
    return (1.0 - gamma) * kernels + gamma / kernels.shape[-1]
