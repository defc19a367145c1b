"""What layer 1's gradient should be: information between positions, exact for forests and for small DAGs.

For one kernel pi with stationary law mu, the joint law of two positions of a forest follows from pi along the path
through their lowest common ancestor; only the kernel is averaged over by Monte Carlo, so every result carries a
standard error.

    chi2_ij = sum_{s', s} (P(x_i = s', x_j = s) - P_i(s') P_j(s))^2 / (P_i(s') P_j(s))
    I_ij    = sum_{s', s} P(x_i = s', x_j = s) log( P(x_i = s', x_j = s) / (P_i(s') P_j(s)) )
    g_ij    = sum_{s', s} pi(s' | s) / mu(s') (P(x_i = s', x_j = s) - mu(s') mu(s))

averaged over the prior. At the true parent g and chi2 are the same number, and no other earlier position has a larger
g: the largest entry of a row of g is the parent (Nichani, Damian & Lee 2024, section 5). With several parents a
position the joint laws come from `causal_circuits.information.pair_laws`: enumeration of all sequences where there are
few, sampling elsewhere.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.information import pair_laws
from causal_circuits.tasks import InContextTask

Method = Literal["propagation", "enumeration", "sampling", "sequences"]
PairValue = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Information:
    """A quantity for every pair of positions, averaged over kernels or over sequences.

    Attributes:
        value: float64 [n_ctx, n_ctx]; row i (child), column j < i; zero above the diagonal.
        standard_error: of the Monte Carlo average over kernels, or over sequences, the same shape.
        n_samples: kernels, or sequences, averaged over.
        method: "propagation" along paths of a forest, "enumeration" of every sequence, "sampling" of sequences from
            each kernel (all three average over drawn kernels), or "sequences": estimated from data.
    """

    value: Float[Tensor, "n_ctx n_ctx"]
    standard_error: Float[Tensor, "n_ctx n_ctx"]
    n_samples: int
    method: Method = "propagation"


def chi_squared_information(task: InContextTask, n_kernels: int = 4096, seed: int = 0) -> Information:
    """The chi-squared mutual information of every pair of positions (a pure number), averaged over kernels.

    It is 0 if and only if the two tokens are independent given the kernel. By propagation for any graph with at most
    one parent a position, else by enumeration or sampling: `Information.method` says which.

    >>> from causal_circuits import pairs_graph
    >>> information = chi_squared_information(InContextTask(pairs_graph(6), d_vocab=3, alpha=1.0))
    >>> information.value[2, 1].item()      # 1 and 2 share no ancestor
    0.0
    """
    bias = float(task.d_vocab - 1) ** 2  # of the plug-in estimate from n sequences, times n
    return _average(task, n_kernels, seed, _chi_squared, bias)


def mutual_information(task: InContextTask, n_kernels: int = 4096, seed: int = 0) -> Information:
    """Shannon's mutual information of every pair of positions in nats, averaged over kernels.

    At most log(1 + chi-squared) for each kernel, and 0 for the same pairs. Methods as in `chi_squared_information`.

    >>> from causal_circuits import chain_graph
    >>> information = mutual_information(InContextTask(chain_graph(5), d_vocab=2, kernels=np.full((2, 2), 0.5)))
    >>> information.value.abs().max().item() < 1e-12
    True
    """
    return _average(task, n_kernels, seed, _mutual, (task.d_vocab - 1) ** 2 / 2)


def predicted_gradient(task: InContextTask, n_kernels: int = 4096, seed: int = 0) -> Information:
    """g_ij, to which minus the gradient of layer 1's attention weights is proportional at the start (section 5).

    The factor is beta0 / (d_vocab n_ctx) for minus the gradient with respect to attention *weights*, in the limit of
    long contexts; `score_gradient_of` turns g into the gradient of attention *scores*, and
    `finite_context_gradient` leaves the limit out. The diagonal, g_ii = trace(pi) - 1, is zero on average under a
    symmetric prior and is left at zero here.
    """
    check_stationary_forest(task)
    mean, error = np.zeros((2, task.n_ctx, task.n_ctx))
    for cells, values in gradient_of_kernels(task, *pair_laws.draw(task, n_kernels, seed)):
        _fill(mean, error, cells, values)
    return Information(torch.from_numpy(mean), torch.from_numpy(error), n_kernels)


def gradient_of_kernels(
    task: InContextTask, kernels: pair_laws.Kernels, law: pair_laws.Laws
) -> Iterator[tuple[list[tuple[int, int]], Float[np.ndarray, " kernel"]]]:
    """(pairs i > j that share a value of g, that value for every kernel); other pairs have zero."""
    pi = kernels[1]
    ratio = np.divide(pi, law[:, None, :], out=np.zeros_like(pi), where=law[:, None, :] > 0)
    independent = law[:, :, None] * law[:, None, :]
    for cells, joint in pair_laws.propagated(task, kernels, law):
        yield cells, np.einsum("nst,nts->n", ratio, joint - independent)


def score_gradient_of(g: Float[Tensor, "n_ctx n_ctx"]) -> Float[Tensor, "n_ctx n_ctx"]:
    """G through the softmax Jacobian of uniform causal attention: (g_ij - mean_{k <= i} g_ik) / (i + 1), 0 above.

    >>> score_gradient_of(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    tensor([[ 0.0000,  0.0000],
            [ 0.2500, -0.2500]])
    """
    visible = torch.arange(1, len(g) + 1, dtype=g.dtype)[:, None]
    lower = g.tril()
    return ((lower - lower.sum(dim=1, keepdim=True) / visible) / visible).tril()


def _average(task: InContextTask, n_kernels: int, seed: int, value: PairValue, bias: float) -> Information:
    """The mean and standard error over kernels of `value(joint[kernel, s', s])` for every pair of positions."""
    mean, error = np.zeros((2, task.n_ctx, task.n_ctx))
    if max(task.in_degrees, default=1) <= 1:
        kernels, law = pair_laws.draw(task, n_kernels, seed)
        for cells, joint in pair_laws.propagated(task, kernels, law):
            _fill(mean, error, cells, value(joint))
        return Information(torch.from_numpy(mean), torch.from_numpy(error), n_kernels)
    if task.d_vocab**task.n_ctx <= pair_laws.MOST_ENUMERATED:
        laws, offset, method = pair_laws.enumerated, 0.0, "enumeration"
    else:
        laws, offset, method = pair_laws.sampled, bias / pair_laws.SAMPLED_SEQUENCES, "sampling"
        n_kernels = min(n_kernels, pair_laws.MOST_SAMPLED_KERNELS)
    kernels, law = pair_laws.draw(task, n_kernels, seed)
    values = np.concatenate([value(joint) for joint in laws(task, kernels, law, seed)]) - offset
    below = np.tril_indices(task.n_ctx, -1)
    mean[below] = values.mean(axis=0)
    error[below] = values.std(axis=0) / max(n_kernels - 1, 1) ** 0.5
    return Information(torch.from_numpy(mean), torch.from_numpy(error), n_kernels, method)  # type: ignore[arg-type]


def _fill(mean: np.ndarray, error: np.ndarray, cells: list[tuple[int, int]], values: np.ndarray) -> None:
    rows, columns = zip(*cells, strict=True)
    mean[rows, columns] = values.mean()
    error[rows, columns] = values.std() / max(len(values) - 1, 1) ** 0.5


def _marginals(joint: np.ndarray) -> np.ndarray:
    """P_i(s') P_j(s) for joints [..., s', s]."""
    return joint.sum(axis=-1)[..., :, None] * joint.sum(axis=-2)[..., None, :]


def _chi_squared(joint: np.ndarray) -> np.ndarray:
    independent = _marginals(joint)
    square = (joint - independent) ** 2
    return np.divide(square, independent, out=np.zeros_like(square), where=independent > 0).sum(axis=(-2, -1))


def _mutual(joint: np.ndarray) -> np.ndarray:
    independent = _marginals(joint)
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=(joint > 0) & (independent > 0))
    return (joint * np.log(ratio)).sum(axis=(-2, -1))


def check_stationary_forest(task: InContextTask) -> None:
    """Raise a ValueError unless each position has at most one parent and roots follow the stationary law."""
    if max(task.in_degrees, default=1) > 1:
        raise ValueError(
            f"the predicted gradient needs at most one parent a position: this graph has in-degrees {task.in_degrees}; "
            "chi_squared_information and mutual_information take any graph"
        )
    if task.root_law != "stationary":
        raise ValueError(
            f"the predicted gradient needs roots drawn from the stationary law: this task has roots={task.root_law!r}"
        )
