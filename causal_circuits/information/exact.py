"""The chi-squared information between positions of a forest, averaged over the prior.

For one transition matrix pi with stationary law mu, the joint law of two positions of a forest follows from pi along
the path through their lowest common ancestor; only pi is averaged over by Monte Carlo, so every result carries a
standard error. Probabilities below 1e-308 count as zero: at alpha .001 two tokens have .38 where .50 is exact.

    chi2_ij = sum_{s', s} (P(x_i = s', x_j = s) - P_i(s') P_j(s))^2 / (P_i(s') P_j(s))

Axes: ``matrix`` (a transition matrix), then the tokens of the later position i (s') and of the earlier position j (s).
What it predicts of a gradient is in `gradient`. With several parents a position no pair tells what a parent is worth:
see `match_gradient`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import Several, check_arguments
from causal_circuits.display import Result
from causal_circuits.graphs import parents_of
from causal_circuits.tasks import InContextTask

Matrices = Float[np.ndarray, "matrix row token"]
Laws = Float[np.ndarray, "matrix token"]


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
    pi, law = draw_matrices(task, n_matrices, seed)
    for cells, joint in joint_laws(task, pi, law):
        fill_cells(mean, error, cells, _chi_squared(joint))
    return Information(torch.from_numpy(mean), torch.from_numpy(error), n_matrices)


def draw_matrices(task: InContextTask, n_matrices: int, seed: int) -> tuple[Matrices, Laws]:
    """Transition matrices of the task's prior and the laws of root tokens, float64, rows with sum one."""
    matrices, law = task.draw_matrices(n_matrices, np.random.default_rng(seed))
    pi = matrices[1].astype(np.float64)
    return pi / pi.sum(axis=-1, keepdims=True), law.astype(np.float64)


def joint_laws(
    task: InContextTask, pi: Matrices, law: Laws
) -> Iterator[tuple[list[tuple[int, int]], Float[np.ndarray, "matrix token token"]]]:
    """(pairs i > j that share a joint law, that law), for the pairs of a forest with a common ancestor.

    The law depends on three numbers only: how deep the lowest common ancestor lies (irrelevant if roots are
    stationary) and how far i and j lie below it.
    """
    same: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for cell, (depth, below_i, below_j) in path_lengths(task.graph, task.n_ctx).items():
        key = (0 if task.root_law == "stationary" else depth, below_i, below_j)
        same.setdefault(key, []).append(cell)
    powers = [np.broadcast_to(np.eye(task.d_vocab), pi.shape)]
    for _ in range(max((max(key) for key in same), default=0)):
        powers.append(powers[-1] @ pi)
    for (depth, below_i, below_j), cells in same.items():
        at_ancestor = np.einsum("na,nas->ns", law, powers[depth])
        from_i = (at_ancestor[:, :, None] * powers[below_i]).transpose(0, 2, 1)
        yield cells, from_i @ powers[below_j]


def path_lengths(graph: nx.DiGraph, n_ctx: int) -> dict[tuple[int, int], tuple[int, int, int]]:
    """For i > j with a common ancestor: the lowest one's depth, and how many steps below it each lies."""
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
                lengths[i, j] = len(lines[lowest]) - 1, lines[i][lowest], lines[j][lowest]
    return lengths


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
