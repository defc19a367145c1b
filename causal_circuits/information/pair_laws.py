"""Joint laws of two positions of a forest given the transition matrices, along the path between them.

Axes: ``matrix`` (a transition matrix), then the tokens of the later position i (s') and of the earlier position j (s).
"""

from collections.abc import Iterator

import networkx as nx
import numpy as np
from jaxtyping import Float

from causal_circuits.graphs import parents_of
from causal_circuits.tasks import InContextTask

Matrices = Float[np.ndarray, "matrix row token"]
Laws = Float[np.ndarray, "matrix token"]


def draw(task: InContextTask, n_matrices: int, seed: int) -> tuple[Matrices, Laws]:
    """Transition matrices of the task's prior and the laws of root tokens, float64, rows with sum one."""
    matrices, law = task.draw_matrices(n_matrices, np.random.default_rng(seed))
    pi = matrices[1].astype(np.float64)
    return pi / pi.sum(axis=-1, keepdims=True), law.astype(np.float64)


def propagated(
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
