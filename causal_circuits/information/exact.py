"""Information between positions, averaged over the prior: exact for forests and for small DAGs.

For one transition matrix pi with stationary law mu, the joint law of two positions of a forest follows from pi along
the path through their lowest common ancestor; only pi is averaged over by Monte Carlo, so every result carries a
standard error. Probabilities below 1e-308 count as zero: at alpha .001 two tokens have .38 where .50 is exact.

    chi2_ij = sum_{s', s} (P(x_i = s', x_j = s) - P_i(s') P_j(s))^2 / (P_i(s') P_j(s))
    I_ij    = sum_{s', s} P(x_i = s', x_j = s) log( P(x_i = s', x_j = s) / (P_i(s') P_j(s)) )

With several parents a position the joint laws come from `causal_circuits.information.pair_laws`: enumeration of all
sequences where there are few, sampling elsewhere. What they predict of a gradient is in `gradient`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Result
from causal_circuits.information import pair_laws
from causal_circuits.tasks import InContextTask

Method = Literal["propagation", "enumeration", "sampling", "sequences"]
PairValue = Callable[[np.ndarray], np.ndarray]


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class Information(Result):
    """A quantity for every pair of positions, averaged over transition matrices or over sequences.

    Attributes:
        value: float64 [n_ctx, n_ctx]; row i (child), column j < i; zero above the diagonal.
        standard_error: of the Monte Carlo average over matrices, or over sequences, the same shape.
        n_samples: matrices, or sequences, averaged over.
        method: "propagation" along paths of a forest, "enumeration" of every sequence, "sampling" of sequences from
            each matrix (all three average over drawn matrices), or "sequences": estimated from data.

    >>> information = cc.chi_squared_information(cc.InContextTask(cc.chain_graph(6), d_vocab=3), n_matrices=64)
    >>> information.method, information.n_samples, bool(information.value[1, 0] > information.value[2, 0] > 0)
    ('propagation', 64, True)
    """

    value: Float[Tensor, "n_ctx n_ctx"]
    standard_error: Float[Tensor, "n_ctx n_ctx"]
    n_samples: int
    method: Method = "propagation"


@check_arguments
def chi_squared_information(task: InContextTask, n_matrices: int = 4096, seed: int = 0) -> Information:
    """The chi-squared mutual information of every pair of positions (a pure number), averaged over transition matrices.

    It is 0 if and only if the two tokens are independent given the matrix. By propagation for any graph with at most
    one parent a position, else by enumeration or sampling: `Information.method` says which.

    >>> information = chi_squared_information(cc.InContextTask(cc.pairs_graph(6), d_vocab=3, alpha=1.0))
    >>> information.value[2, 1].item()      # 1 and 2 share no ancestor
    0.0
    """
    bias = float(task.d_vocab - 1) ** 2  # of the plug-in estimate from n sequences, times n
    return _average(task, n_matrices, seed, _chi_squared, bias)


@check_arguments
def mutual_information(task: InContextTask, n_matrices: int = 4096, seed: int = 0) -> Information:
    """Shannon's mutual information of every pair of positions in nats, averaged over transition matrices.

    At most log(1 + chi-squared) for each matrix, and 0 for the same pairs. Methods as in `chi_squared_information`.

    >>> task = cc.InContextTask(cc.chain_graph(5), d_vocab=2, transition_matrices=np.full((2, 2), 0.5))
    >>> mutual_information(task).value.abs().max().item() < 1e-12
    True
    """
    return _average(task, n_matrices, seed, _mutual, (task.d_vocab - 1) ** 2 / 2)


def _average(task: InContextTask, n_matrices: int, seed: int, value: PairValue, bias: float) -> Information:
    """The mean and standard error over matrices of `value(joint[matrix, s', s])` for every pair of positions."""
    mean, error = np.zeros((2, task.n_ctx, task.n_ctx))
    if max(task.in_degrees, default=1) <= 1:
        matrices, law = pair_laws.draw(task, n_matrices, seed)
        for cells, joint in pair_laws.propagated(task, matrices, law):
            fill_cells(mean, error, cells, value(joint))
        return Information(torch.from_numpy(mean), torch.from_numpy(error), n_matrices)
    if pair_laws.can_enumerate(task):
        laws, offset, method = pair_laws.enumerated, 0.0, "enumeration"
    else:
        laws, offset, method = pair_laws.sampled, bias / pair_laws.SAMPLED_SEQUENCES, "sampling"
        n_matrices = min(n_matrices, pair_laws.MOST_SAMPLED_MATRICES)
    matrices, law = pair_laws.draw(task, n_matrices, seed)
    values = np.concatenate([value(joint) for joint in laws(task, matrices, law, seed)]) - offset
    below = np.tril_indices(task.n_ctx, -1)
    mean[below] = values.mean(axis=0)
    error[below] = values.std(axis=0) / max(n_matrices - 1, 1) ** 0.5
    return Information(torch.from_numpy(mean), torch.from_numpy(error), n_matrices, method)  # type: ignore[arg-type]


def fill_cells(mean: np.ndarray, error: np.ndarray, cells: list[tuple[int, int]], values: np.ndarray) -> None:
    """Put the mean of `values` over matrices, and its standard error, into the cells (row, column)."""
    rows, columns = zip(*cells, strict=True)
    mean[rows, columns] = values.mean()
    error[rows, columns] = values.std() / max(len(values) - 1, 1) ** 0.5


def _marginals(joint: np.ndarray) -> np.ndarray:
    return joint.sum(axis=-1)[..., :, None] * joint.sum(axis=-2)[..., None, :]


def _chi_squared(joint: np.ndarray) -> np.ndarray:
    """The sum of (P(s' | s) - P(s'))(P(s | s') - P(s)), factors of at most 1: products of marginals can underflow."""
    of_i, of_j = joint.sum(axis=-1, keepdims=True), joint.sum(axis=-2, keepdims=True)
    given = [np.divide(joint, law, out=np.zeros_like(joint), where=law > 0) for law in (of_j, of_i)]
    return ((given[0] - of_i) * (given[1] - of_j)).sum(axis=(-2, -1))


def _mutual(joint: np.ndarray) -> np.ndarray:
    independent = _marginals(joint)
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=(joint > 0) & (independent > 0))
    return (joint * np.log(ratio)).sum(axis=(-2, -1))
