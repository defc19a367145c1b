"""The first-order gradient where no path gives a joint law: by summing over all sequences, or by sampling them.

For several parents a position, or a target whose parent is an ordinary position. With h_j = 1[x_j = x_t], x_t the last
token or the one that a head's last row copies, y the target and S = d_vocab,

    G_ij = S E[ (y(x_i) / mu_hat(x_i) - m) h_j ],    g_ij = S E[ (y(x_i) / nu(x_i) - 1) h_j ],

where mu_hat are the frequencies of the sequence itself, m is what y gives to tokens that occur, and nu is the mean of
mu_hat given the matrices (see `gradient` and `finite_context`).
"""

import numpy as np
import torch
from jaxtyping import Float

from causal_circuits.information import pair_laws
from causal_circuits.information.exact import Information, Method
from causal_circuits.tasks import InContextTask

MOST_SAMPLED_MATRICES = 1024
SAMPLED_SEQUENCES = 1024  # from each matrix


def check_last_key(task: InContextTask, last_key: int | None) -> None:
    """Raise a ValueError unless `last_key` is None, or a position of a graph without a query."""
    if last_key is not None and task.has_query:
        raise ValueError(
            f"last_key is for graphs without a query: here the last token is the query, got last_key={last_key}; "
            "leave it out"
        )
    last_key_or_last(last_key, task.n_ctx)


def last_key_or_last(last_key: int | None, n_ctx: int) -> int:
    """The position that last rows copy, by default the last one; a ValueError if there is no such position."""
    if last_key is not None and not 0 <= last_key < n_ctx:
        raise ValueError(f"last_key must be a position of the context 0 .. {n_ctx - 1}: got {last_key}")
    return n_ctx - 1 if last_key is None else last_key


def enumerated_gradient(
    task: InContextTask, n_matrices: int, seed: int, last_key: int | None, *, own_frequencies: bool = False
) -> Information:
    """The limit g, or G with `own_frequencies`, by summing over every sequence; Monte Carlo over matrices only."""
    matrices, law = pair_laws.draw(task, n_matrices, seed)
    tokens, d_vocab = pair_laws.every_sequence(task), task.d_vocab
    counts = np.eye(d_vocab)[tokens].sum(axis=1)  # [sequence, token]
    own = task.n_ctx / np.take_along_axis(counts, tokens, axis=1)
    row = task.matrix_row(tokens[:, list(task.target_parents)])
    hit = (tokens == tokens[:, [last_key_or_last(last_key, task.n_ctx)]]).astype(float)
    values = []
    for some, probability in pair_laws.sequence_laws(task, matrices, law, tokens):
        matrix = some[len(task.target_parents)]
        at_child = matrix[:, row[:, None], tokens]  # y(x_i), [matrix, sequence, child]
        if own_frequencies:
            occurs = np.einsum("ksa,sa->ks", matrix[:, row], (counts > 0).astype(float))
            child = at_child * own - occurs[:, :, None]
        else:
            share = probability @ counts / task.n_ctx
            child = _excess(at_child, share[:, tokens])
        weighted = (probability[:, :, None] * child).transpose(0, 2, 1)
        values.append(d_vocab * (weighted @ hit))
    return _averaged(np.concatenate(values), last_key, "enumeration", diagonal=own_frequencies)


def sampled_gradient(task: InContextTask, n_matrices: int, seed: int, last_key: int | None) -> Information:
    """The limit g from 1,024 sequences of each of at most 1,024 matrices."""
    n_matrices = min(n_matrices, MOST_SAMPLED_MATRICES)
    matrices, law = pair_laws.draw(task, n_matrices, seed)
    generator = np.random.default_rng((seed, 2))
    values = np.empty((n_matrices, task.n_ctx, task.n_ctx))
    for index in range(n_matrices):
        one = {k: matrix[index] for k, matrix in matrices.items()}
        tokens, laws = pair_laws.sample_sequences(task, one, law[index], generator, SAMPLED_SEQUENCES)
        row = task.matrix_row(tokens[:, list(task.target_parents)])
        at_child = one[len(task.target_parents)][row[:, None], tokens]
        hit = (tokens == tokens[:, [last_key_or_last(last_key, task.n_ctx)]]).astype(float)
        values[index] = task.d_vocab * (_excess(at_child, laws.mean(axis=0)[tokens]).T @ hit) / len(tokens)
    return _averaged(values, last_key, "sampling", diagonal=False)


def _excess(law: np.ndarray, share: np.ndarray) -> np.ndarray:
    """y(x_i) / nu(x_i) - 1; -1 where nu is 0."""
    return np.divide(law, share, out=np.zeros_like(law), where=share > 0) - 1.0


def _averaged(
    values: Float[np.ndarray, "matrix n_ctx n_ctx"], last_key: int | None, method: Method, *, diagonal: bool
) -> Information:
    """Mean and standard error over matrices, of the entries that mean something."""
    n = len(values)
    mean, error = values.mean(axis=0), values.std(axis=0) / max(n - 1, 1) ** 0.5
    for matrix in (mean, error):
        matrix[:] = np.tril(matrix, 0 if diagonal else -1)
        if last_key is not None:
            matrix[-1] = 0.0
    return Information(torch.from_numpy(mean), torch.from_numpy(error), n, method)
