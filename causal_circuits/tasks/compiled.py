"""The sampler's inner loop, compiled by numba: gammas and uniform numbers in, tokens out, one sequence after another.

It computes what `kernels.py` computes a batch at a time, from the same random numbers, so a seed gives the same
sequences with and without numba. It holds no lock of the interpreter, so batches can be drawn beside training.
"""

from functools import cache
from inspect import unwrap  # numba compiles the function itself, not a run-time type check around it

import numpy as np
from jaxtyping import Float, Int

try:
    import numba
except ImportError:  # the extra "fast" is not installed
    numba = None


def available() -> bool:
    """Whether numba is installed."""
    return numba is not None


def sample_forest(
    gammas: Float[np.ndarray, "batch row token"],
    uniforms: Float[np.ndarray, "batch n_ctx"],
    queries: Int[np.ndarray, " batch"],
    parents: Int[np.ndarray, " n_ctx"],
    target_parent: int,
) -> tuple[Int[np.ndarray, "batch n_ctx"], Float[np.ndarray, "batch token"]]:
    """Tokens and target rows for kernels whose rows are the gammas, normalised in place; roots ~ stationary law.

    Args:
        gammas: float32, every row with a positive sum.
        uniforms: float32, one a position.
        queries: the token of the last position where ``parents`` says -2.
        parents: of each position; -1 for a root, -2 for the query.
        target_parent: the position that names the target's row.
    """
    tokens = np.empty(uniforms.shape, dtype=np.int64)
    targets = np.empty((len(gammas), gammas.shape[1]), dtype=np.float32)
    _kernel()(gammas, uniforms, queries, parents, target_parent, tokens, targets)
    return tokens, targets


@cache
def _kernel():  # type: ignore[no-untyped-def]  # numba's dispatcher has no useful static type
    return numba.njit(nogil=True, cache=True, error_model="numpy")(unwrap(_sample))


def _sample(gammas, uniforms, queries, parents, target_parent, tokens, targets):  # type: ignore[no-untyped-def]
    n_batch, n_states, _ = gammas.shape
    work, cumulative = np.empty((n_states, n_states), np.float64), np.empty((n_states, n_states), np.float32)
    law, root_cumulative = np.empty(n_states, np.float64), np.empty(n_states, np.float32)
    for b in range(n_batch):
        kernel = gammas[b]
        for s in range(n_states):
            total = np.float32(0.0)
            for t in range(n_states):
                total += kernel[s, t]
            running = np.float32(0.0)
            for t in range(n_states):
                kernel[s, t] /= total
                running += kernel[s, t]
                cumulative[s, t] = running
                work[s, t] = kernel[s, t]
        for k in range(n_states - 1, 0, -1):  # Grassmann, Taksar & Heyman: see kernels.stationary_law
            leaving = 0.0
            for t in range(k):
                leaving += work[k, t]
            for s in range(k):
                work[s, k] /= leaving
                for t in range(k):
                    work[s, t] += work[s, k] * work[k, t]
        law[0] = 1.0
        mass = 1.0
        for k in range(1, n_states):
            law[k] = 0.0
            for s in range(k):
                law[k] += law[s] * work[s, k]
            mass += law[k]
        running = np.float32(0.0)
        for t in range(n_states):
            running += np.float32(law[t] / mass)
            root_cumulative[t] = running
        for i in range(len(parents)):
            if parents[i] == -2:
                tokens[b, i] = queries[b]
                continue
            row = root_cumulative if parents[i] == -1 else cumulative[tokens[b, parents[i]]]
            token = 0
            while token < n_states - 1 and uniforms[b, i] >= row[token] and row[token] < row[n_states - 1]:
                token += 1
            tokens[b, i] = token
        targets[b] = kernel[tokens[b, target_parent]]
