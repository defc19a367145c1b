"""What layer 1's gradient should be: chi-squared mutual information between positions, exact for forests.

For one kernel pi with stationary law mu, the joint law of two positions follows from pi along the path through their
lowest common ancestor; only the kernel is averaged over by Monte Carlo, so every result carries a standard error.

    chi2_ij = sum_{s', s} (P(x_i = s', x_j = s) - mu(s') mu(s))^2 / (mu(s') mu(s))
    g_ij    = sum_{s', s} pi(s' | s) / mu(s') (P(x_i = s', x_j = s) - mu(s') mu(s))

averaged over the prior. At the true parent both are the same number, and no other earlier position has a larger g:
the largest entry of a row of g is the parent (Nichani, Damian & Lee 2024, section 5).
"""

from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.graphs import parents_of
from causal_circuits.tasks import Batch, InContextTask


@dataclass(frozen=True)
class Information:
    """A quantity for every pair of positions, averaged over kernels or over sequences.

    Attributes:
        value: float64 [n_ctx, n_ctx]; row i (child), column j < i; zero on and above the diagonal.
        standard_error: of the Monte Carlo average over kernels, the same shape.
        n_samples: kernels, or sequences, averaged over.
    """

    value: Float[Tensor, "n_ctx n_ctx"]
    standard_error: Float[Tensor, "n_ctx n_ctx"]
    n_samples: int


def chi_squared_information(task: InContextTask, n_kernels: int = 4096, seed: int = 0) -> Information:
    """The chi-squared mutual information of every pair of positions, nats-free (a pure number).

    It is 0 if and only if the two tokens are independent given the kernel.

    >>> from causal_circuits import pairs_graph
    >>> information = chi_squared_information(InContextTask(pairs_graph(6), d_vocab=3, alpha=1.0))
    >>> information.value[2, 1].item()      # 1 and 2 share no ancestor
    0.0
    """
    return _average(task, n_kernels, seed, lambda joint, law, kernels: _chi_squared(joint, law))


def predicted_gradient(task: InContextTask, n_kernels: int = 4096, seed: int = 0) -> Information:
    """g_ij, to which minus the gradient of layer 1's attention weights is proportional at the start (section 5).

    The factor is beta0 / (d_vocab n_ctx) for minus the gradient with respect to attention *weights*, in the limit of
    long contexts; `score_gradient_of` turns g into the gradient of attention *scores*.
    """

    def value(joint: np.ndarray, law: np.ndarray, kernels: np.ndarray) -> np.ndarray:
        excess = joint - law[:, :, None] * law[:, None, :]
        return np.einsum("nst,nts->n", kernels / law[:, None, :], excess)

    return _average(task, n_kernels, seed, value)


def score_gradient_of(g: Float[Tensor, "n_ctx n_ctx"]) -> Float[Tensor, "n_ctx n_ctx"]:
    """G through the softmax Jacobian of uniform causal attention: (g_ij - mean_{k <= i} g_ik) / (i + 1), 0 above.

    >>> score_gradient_of(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    tensor([[ 0.0000,  0.0000],
            [ 0.2500, -0.2500]])
    """
    visible = torch.arange(1, len(g) + 1, dtype=g.dtype)[:, None]
    lower = g.tril()
    return ((lower - lower.sum(dim=1, keepdim=True) / visible) / visible).tril()


def estimate_gradient(
    tokens: Int[Tensor, "batch n_ctx"], target_probs: Float[Tensor, "batch d_vocab"], smoothing: float = 0.5
) -> Information:
    """g_ij from data alone: the first-order gradient of layer 1's attention weights, in closed form.

    The sample mean of d_vocab (pi(x_i | s_T) / mu_hat(x_i)) (1[x_j = s_T] - mu_hat(s_T)), with s_T the query's
    token and mu_hat the sequence's own (smoothed) token frequencies. It assumes nothing about the graph but a uniform
    query in the last position. At a finite context mu_hat stands in for mu, which shrinks all entries by a common
    factor of about 0.3 to 0.9 and leaves a root's row a small bias: compare entries with each other rather than with
    theory.

    Args:
        tokens: sequences with the query last; integers in 0 .. d_vocab - 1.
        target_probs: the row of the kernel that the query names.
        smoothing: added to every token count.
    """
    Batch(tokens, target_probs).check(target_probs.shape[-1])
    n, n_ctx = tokens.shape
    d_vocab = target_probs.shape[1]
    totals = np.zeros((2, n_ctx, n_ctx))
    for start in range(0, n, 4096):
        context = tokens[start : start + 4096, :-1].cpu()
        targets = target_probs[start : start + 4096].cpu().double()
        counts = torch.zeros_like(targets).scatter_add_(1, context, torch.ones(context.shape, dtype=torch.float64))
        ratio = targets / ((counts + smoothing) / (n_ctx - 1 + d_vocab * smoothing))
        child = torch.gather(ratio, 1, context)
        hit = (context == tokens[start : start + 4096, -1:].cpu()).double()
        elsewhere = (hit.sum(dim=1, keepdim=True) - hit) / max(n_ctx - 2, 1)  # frequency among the others than i
        first = child.T @ hit - (child * elsewhere).sum(dim=0)[:, None]
        squares = child.square()
        second = (
            squares.T @ hit - 2 * (squares * elsewhere).T @ hit + (squares * elsewhere.square()).sum(dim=0)[:, None]
        )
        totals[0, :-1, :-1] += (d_vocab * first).numpy()
        totals[1, :-1, :-1] += (d_vocab**2 * second).numpy()
    mean, square = np.tril(totals, -1) / n
    error = np.sqrt(np.clip(square - mean**2, 0.0, None) / max(n - 1, 1))
    return Information(torch.from_numpy(mean), torch.from_numpy(error), n)


def _chi_squared(joint: np.ndarray, law: np.ndarray) -> np.ndarray:
    independent = law[:, :, None] * law[:, None, :]
    return ((joint - independent) ** 2 / independent).sum(axis=(1, 2))


def _average(
    task: InContextTask, n_kernels: int, seed: int, value: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
) -> Information:
    """The mean and standard error over kernels of `value(joint[s', s], law, kernels)` for every pair of positions."""
    _check_forest(task)
    kernels, law = task.draw_kernels(n_kernels, np.random.default_rng(seed))
    pi = kernels[1].astype(np.float64)
    pi /= pi.sum(axis=-1, keepdims=True)
    law = np.clip(law, 1e-300, None)
    powers = [np.broadcast_to(np.eye(task.d_vocab), pi.shape)]
    known: dict[tuple[int, int], tuple[float, float]] = {}
    mean, error = np.zeros((2, task.n_ctx, task.n_ctx))
    for (i, j), depths in _path_lengths(task.graph, task.n_ctx).items():
        if depths not in known:
            while len(powers) <= max(depths):
                powers.append(powers[-1] @ pi)
            below_i, below_j = (powers[depth] for depth in depths)
            joint = np.einsum("na,nas,nat->nst", law, below_i, below_j)
            values = value(joint, law, pi)
            known[depths] = float(values.mean()), float(values.std() / max(len(values) - 1, 1) ** 0.5)
        mean[i, j], error[i, j] = known[depths]
    return Information(torch.from_numpy(mean), torch.from_numpy(error), len(pi))


def _path_lengths(graph: nx.DiGraph, n_ctx: int) -> dict[tuple[int, int], tuple[int, int]]:
    """For i > j with a common ancestor: how many steps each lies below the lowest one; other pairs are independent.

    >>> from causal_circuits import chain_graph
    >>> _path_lengths(chain_graph(4), 4)[2, 0]
    (2, 0)
    """
    lines: list[dict[int, int]] = []  # for each position, its ancestors (itself included) and the steps up to them
    for position in range(n_ctx):
        line = {position: 0}
        for parent in parents_of(graph, position):
            line |= {ancestor: steps + 1 for ancestor, steps in lines[parent].items()}
        lines.append(line)
    lengths = {}
    for i in range(n_ctx):
        for j in range(i):
            common = lines[i].keys() & lines[j].keys()
            if common:
                lowest = min(common, key=lambda ancestor: lines[i][ancestor])
                lengths[i, j] = lines[i][lowest], lines[j][lowest]
    return lengths


def _check_forest(task: InContextTask) -> None:
    if max(task.in_degrees, default=1) > 1:
        raise ValueError(
            f"exact information needs at most one parent a position: this graph has in-degrees {task.in_degrees}"
        )
    if task.root_law != "stationary":
        raise ValueError(
            f"exact information needs roots drawn from the stationary law: this task has roots={task.root_law!r}"
        )
