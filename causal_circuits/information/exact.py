"""The chi-squared information between positions of a forest, averaged over the prior.

For one transition matrix pi with stationary law mu, the joint law of two positions of a forest follows from pi along
the path through their lowest common ancestor; only pi is averaged over by Monte Carlo, so every result carries a
standard error. Probabilities below 1e-308 count as zero: at alpha .001 two tokens have .38 where .50 is exact.

    chi2_ij = sum_{s', s} (P(x_i = s', x_j = s) - P_i(s') P_j(s))^2 / (P_i(s') P_j(s))

What it predicts of a gradient is in `gradient`. With several parents a position no pair tells what a parent is worth:
see `match_gradient`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import Several, check_arguments
from causal_circuits.display import Result
from causal_circuits.information import pair_laws
from causal_circuits.tasks import InContextTask


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class Information(Result):
    """A quantity for every pair of positions, averaged over transition matrices or over sequences.

    Attributes:
        value: float64 [n_ctx, n_ctx]; row i (child), column j < i; zero above the diagonal.
        standard_error: of the Monte Carlo average over matrices, or over sequences, the same shape.
        n_samples: matrices, or sequences, averaged over.

    >>> information = cc.chi_squared_information(cc.InContextTask(cc.chain_graph(6), d_vocab=3), n_matrices=64)
    >>> information.n_samples, bool(information.value[1, 0] > information.value[2, 0] > 0)
    (64, True)
    """

    value: Float[Tensor, "n_ctx n_ctx"]
    standard_error: Float[Tensor, "n_ctx n_ctx"]
    n_samples: int


@check_arguments
def chi_squared_information(task: InContextTask, n_matrices: Several = 4096, seed: int = 0) -> Information:
    """The chi-squared mutual information of every pair of positions (a pure number), averaged over transition matrices.

    It is 0 if and only if the two tokens are independent given the matrix.

    Raises:
        ValueError: some position has several parents.

    >>> information = chi_squared_information(cc.InContextTask(cc.pairs_graph(6), d_vocab=3, alpha=1.0))
    >>> information.value[2, 1].item()      # 1 and 2 share no ancestor
    0.0
    """
    if max(task.in_degrees) > 1:
        raise ValueError(
            f"the information of a pair needs at most one parent a position: got in-degrees {task.in_degrees}; with "
            "several parents see match_gradient"
        )
    mean, error = np.zeros((2, task.n_ctx, task.n_ctx))
    pi, law = pair_laws.draw(task, n_matrices, seed)
    for cells, joint in pair_laws.propagated(task, pi, law):
        fill_cells(mean, error, cells, _chi_squared(joint))
    return Information(torch.from_numpy(mean), torch.from_numpy(error), n_matrices)


def fill_cells(mean: np.ndarray, error: np.ndarray, cells: list[tuple[int, int]], values: np.ndarray) -> None:
    """Put the mean of `values` over matrices, and its standard error, into the cells (row, column)."""
    rows, columns = zip(*cells, strict=True)
    mean[rows, columns] = values.mean()
    error[rows, columns] = values.std() / max(len(values) - 1, 1) ** 0.5


def _chi_squared(joint: np.ndarray) -> np.ndarray:
    """The sum of (P(s' | s) - P(s'))(P(s | s') - P(s)), factors of at most 1: products of marginals can underflow."""
    of_i, of_j = joint.sum(axis=-1, keepdims=True), joint.sum(axis=-2, keepdims=True)
    given = [np.divide(joint, law, out=np.zeros_like(joint), where=law > 0) for law in (of_j, of_i)]
    return ((given[0] - of_i) * (given[1] - of_j)).sum(axis=(-2, -1))
