"""Random transition matrices and their stationary laws, drawn a batch at a time in numpy.

Axes: ``batch``, then the parents' tokens flattened into ``row`` (d_vocab ** n_parents of them), then
``token``. Everything here is vectorised over the batch and safe for concentrations down to 1e-3, where
the gammas behind a Dirichlet draw underflow unless they are taken in log space.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments, shown
from causal_circuits.tasks.batch import check_probabilities

# Below this concentration a float32 gamma underflows often enough to matter (P is about 1e-38 ** alpha an entry).
LOG_SPACE_BELOW = 0.09


def draw_with_laws(
    generator: np.random.Generator, alpha: Float[np.ndarray, "*prior token token"], n: int
) -> tuple[Float[np.ndarray, "batch *prior token token"], Float[np.ndarray, "batch *prior token"]]:
    """One-parent transition matrices and their stationary laws, exact also where a matrix's entries underflow."""
    n_states = alpha.shape[-1]
    if alpha.min() < LOG_SPACE_BELOW:
        log_matrices = draw_log_dirichlet(generator, alpha, n)
        laws = log_stationary_law(log_matrices.reshape(-1, n_states, n_states))
        matrices = np.exp(log_matrices).astype(np.float32)
    else:
        matrices = draw_dirichlet(generator, alpha, n)
        laws = stationary_law(matrices.reshape(-1, n_states, n_states))
    return matrices, laws.reshape(matrices.shape[:-1])


def draw_dirichlet(
    generator: np.random.Generator, alpha: Float[np.ndarray, "*prior token"], n: int
) -> Float[np.ndarray, "batch *prior token"]:
    """`n` matrices whose rows are independent Dirichlet draws: row r ~ Dirichlet(alpha[r]); float32, [n, *alpha.shape].

    The gammas are float32 where that is exact enough, and in log space for small concentrations
    (Gamma(a) = Gamma(a + 1) U^(1/a)), so that a row always sums to one.
    """
    if alpha.min() < LOG_SPACE_BELOW:
        return np.exp(draw_log_dirichlet(generator, alpha, n)).astype(np.float32)
    if np.all(alpha == alpha.flat[0]):
        gammas = generator.standard_gamma(float(alpha.flat[0]), size=(n, *alpha.shape), dtype=np.float32)
    else:
        gammas = generator.standard_gamma(alpha, size=(n, *alpha.shape)).astype(np.float32)
    gammas += np.float32(1e-37)  # a row of underflowed gammas would divide by zero
    batch_last = np.ascontiguousarray(np.moveaxis(gammas, 0, -1))  # what follows wants it so in memory
    batch_last /= batch_last.sum(axis=-2, keepdims=True)
    return np.moveaxis(batch_last, -1, 0)


def draw_log_dirichlet(
    generator: np.random.Generator, alpha: Float[np.ndarray, "*prior token"], n: int
) -> Float[np.ndarray, "batch *prior token"]:
    """The logarithm of Dirichlet draws, float64, finite for concentrations as small as 1e-3.

    Gamma(a) has the law of Gamma(a + 1) U^(1/a) with U uniform (Marsaglia & Tsang 2000), and the log of
    that neither under- nor overflows.
    """
    shape = (n, *alpha.shape)
    log_gammas = np.log(generator.standard_gamma(alpha + 1.0, size=shape))
    log_gammas += np.log1p(-generator.random(size=shape)) / alpha
    log_gammas -= log_gammas.max(axis=-1, keepdims=True)
    return log_gammas - np.log(np.exp(log_gammas).sum(axis=-1, keepdims=True))


@check_arguments
def stationary_law(matrices: Float[np.ndarray, "batch token token"]) -> Float[np.ndarray, "batch token"]:
    """The stationary law of every matrix of a batch, by GTH elimination in float64.

    Grassmann, Taksar & Heyman (1985): eliminate states one at a time; no subtraction occurs, so the
    result has small *relative* error also for nearly reducible chains. Entries must be positive.

    >>> stationary_law(np.array([[[0.5, 0.5], [0.25, 0.75]]])).round(3)
    array([[0.333, 0.667]])
    """
    return laws_of_first_rows(matrices, matrices[None, :, 0])[0]


def log_stationary_law(log_matrices: Float[np.ndarray, "batch token token"]) -> Float[np.ndarray, "batch token"]:
    """`stationary_law` for matrices given in logs, whose entries may be as small as exp(-10,000)."""
    return laws_of_first_rows(log_matrices, log_matrices[None, :, 0], in_logs=True)[0]


def laws_of_first_rows(
    matrices: Float[np.ndarray, "batch token token"],
    rows: Float[np.ndarray, "choice batch token"],
    in_logs: bool = False,
) -> Float[np.ndarray, "choice batch token"]:
    """The stationary law of every matrix with its first row replaced by each of `rows`; both may be given in logs.

    The elimination touches no row by the first one: what it does to the others is done once for all choices.

    >>> matrices = draw_dirichlet(np.random.default_rng(0), np.ones((4, 4)), 5).astype(float)
    >>> rows = matrices[:, 1:3].swapaxes(0, 1)
    >>> laws = laws_of_first_rows(matrices, rows)
    >>> logs = laws_of_first_rows(np.log(matrices), np.log(rows), in_logs=True)
    >>> replaced = [np.concatenate([row[:, None], matrices[:, 1:]], axis=1) for row in rows]
    >>> alone = [[stationary_law_of_one(matrix) for matrix in some] for some in replaced]
    >>> np.allclose(laws, alone), np.allclose(logs, alone)
    (True, True)
    """
    add, multiply, divide = (np.logaddexp, np.add, np.subtract) if in_logs else (np.add, np.multiply, np.divide)
    n_choices, n_states = len(rows), matrices.shape[-1]
    first, others = rows.transpose(0, 2, 1), matrices.transpose(1, 2, 0)[1:]
    work = np.concatenate([first, others]).astype(np.float64, copy=False)  # the row of state k > 0 is n_choices + k - 1
    for k in range(n_states - 1, 0, -1):
        above, own = work[: n_choices + k - 1], work[n_choices + k - 1]
        divide(above[:, k], add.reduce(own[:k], axis=0), out=above[:, k])
        add(above[:, :k], multiply(above[:, k, None], own[:k]), out=above[:, :k])
    law = np.full(first.shape, 0.0 if in_logs else 1.0)
    for k in range(1, n_states):
        flows = multiply(law[:, 1:k], work[n_choices : n_choices + k - 1, k])
        law[:, k] = add.reduce([multiply(law[:, 0], work[:n_choices, k]), *flows.swapaxes(0, 1)], axis=0)
    if in_logs:
        law = np.exp(law - law.max(axis=1, keepdims=True))
    return (law / law.sum(axis=1, keepdims=True)).swapaxes(1, 2)


def stationary_law_of_one(matrix: Float[np.ndarray, "token token"]) -> Float[np.ndarray, " token"]:
    """The one stationary law of a matrix that may hold zeros (a periodic chain, say), by linear algebra.

    Raises:
        ValueError: the chain has several closed classes, hence several stationary laws.
    """
    n_states = matrix.shape[0]
    balance = matrix.T - np.eye(n_states)
    if np.linalg.matrix_rank(balance, tol=1e-10) < n_states - 1:
        raise ValueError(
            "a transition matrix must have one stationary law for roots to be drawn from: this one has several closed "
            "classes of tokens; connect them, or use roots='uniform'"
        )
    system = np.vstack([balance, np.ones(n_states)])
    law = np.linalg.lstsq(system, np.append(np.zeros(n_states), 1.0), rcond=None)[0]
    law = np.clip(law, 0.0, None)
    return law / law.sum()


def cumulative_rows(matrices: Float[np.ndarray, "batch row token"]) -> Float[np.ndarray, "batch_row token"]:
    """The cumulative distribution of every row, with +inf last so that rounding never leaves a draw unplaced."""
    batch_last = np.moveaxis(matrices, 0, -1)
    cumulative = np.empty(batch_last.shape, dtype=np.float32)
    cumulative[:, 0] = batch_last[:, 0]
    for token in range(1, batch_last.shape[1]):
        np.add(cumulative[:, token - 1], batch_last[:, token], out=cumulative[:, token])
    cumulative[cumulative == cumulative[:, -1:]] = np.inf
    return np.ascontiguousarray(np.moveaxis(cumulative, -1, 0)).reshape(-1, batch_last.shape[1])


def cumulative_laws(laws: Float[np.ndarray, "*batch token"]) -> Float[np.ndarray, "*batch token"]:
    """The cumulative distribution of every law in its own precision, with +inf last, for `inverse_cdf`."""
    cumulative = laws.cumsum(axis=-1)
    cumulative[..., -1] = np.inf
    return cumulative


def inverse_cdf(
    cumulative: Float[np.ndarray, "*batch token"], uniforms: Float[np.ndarray, "*batch"]
) -> Int[np.ndarray, "*batch"]:
    """The first token whose cumulative probability exceeds the uniform number."""
    return (uniforms[..., None] < cumulative).argmax(axis=-1)


def numbers(values: object, what: str) -> np.ndarray:
    """A float64 array, or a ValueError that says what was expected to be one."""
    try:
        values = values.detach().cpu().to_dense() if isinstance(values, Tensor) else values
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{what} must be a number or an array of numbers: got {shown(values)}") from error


def checked_matrix(matrix: np.ndarray, n_parents: int, d_vocab: int) -> Float[np.ndarray, "matrix row token"]:
    """The user's matrices of one in-degree, [alternative, row, token]; a ValueError if they are none."""
    expected = (d_vocab,) * (n_parents + 1)
    if matrix.shape == expected:
        matrix = matrix[None]
    if matrix.shape[1:] != expected or len(matrix) == 0:
        raise ValueError(
            f"a matrix with {n_parents} parent(s) over {d_vocab} tokens has shape {list(expected)}, or a leading axis "
            f"of alternatives: got {list(matrix.shape)}"
        )
    check_probabilities("rows of a transition matrix", torch.from_numpy(matrix), 1e-5)
    return (matrix / matrix.sum(axis=-1, keepdims=True)).reshape(len(matrix), d_vocab**n_parents, d_vocab)
