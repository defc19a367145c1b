"""Joint laws of two positions given the transition matrices: along paths, by enumeration, or by sampling.

Axes: ``matrix`` (a transition matrix for each in-degree), then the tokens of the later position i (s') and of the
earlier position j (s).
"""

from collections.abc import Iterator

import networkx as nx
import numpy as np
from einops import rearrange
from jaxtyping import Float, Int

from causal_circuits.graphs import parents_of
from causal_circuits.tasks import InContextTask

MOST_ENUMERATED = 2**13  # sequences, d_vocab ** n_ctx, that are summed over one by one
MOST_SAMPLED_MATRICES = 256
SAMPLED_SEQUENCES = 4096  # from each matrix
_MOST_NUMBERS = 2**24  # held at once

Matrices = dict[int, Float[np.ndarray, "matrix row token"]]
Laws = Float[np.ndarray, "matrix token"]


def draw(task: InContextTask, n_matrices: int, seed: int) -> tuple[Matrices, Laws]:
    """Transition matrices of the task's prior and the laws of root tokens, float64, rows with sum one."""
    if n_matrices < 2:
        raise ValueError(f"an average over transition matrices needs at least 2 of them: got n_matrices={n_matrices}")
    matrices, law = task.draw_matrices(n_matrices, np.random.default_rng(seed))
    exact = {k: matrix.astype(np.float64) for k, matrix in matrices.items()}
    return {k: matrix / matrix.sum(axis=-1, keepdims=True) for k, matrix in exact.items()}, law.astype(np.float64)


def propagated(
    task: InContextTask, matrices: Matrices, law: Laws
) -> Iterator[tuple[list[tuple[int, int]], Float[np.ndarray, "matrix token token"]]]:
    """(pairs i > j that share a joint law, that law), for the pairs of a forest with a common ancestor.

    The law depends on three numbers only: how deep the lowest common ancestor lies (irrelevant if roots are
    stationary) and how far i and j lie below it.
    """
    pi = matrices.get(1)
    if pi is None:
        return
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
    """For i > j with a common ancestor: the lowest one's depth, and how many steps below it each lies.

    Other pairs are independent given the matrix.

    >>> path_lengths(cc.chain_graph(5), 5)[3, 1]
    (1, 2, 0)
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
                lengths[i, j] = len(lines[lowest]) - 1, lines[i][lowest], lines[j][lowest]
    return lengths


def can_enumerate(task: InContextTask) -> bool:
    """Whether there are few enough sequences to sum over all of them."""
    return bool(task.d_vocab**task.n_ctx <= MOST_ENUMERATED)


def every_sequence(task: InContextTask) -> Int[np.ndarray, "sequence n_ctx"]:
    """All d_vocab ** n_ctx sequences of tokens."""
    shape = (task.d_vocab,) * task.n_ctx
    return np.stack(np.unravel_index(np.arange(task.d_vocab**task.n_ctx), shape), axis=1)


def sequence_laws(
    task: InContextTask, matrices: Matrices, law: Laws, tokens: Int[np.ndarray, "sequence n_ctx"]
) -> Iterator[tuple[Matrices, Float[np.ndarray, "matrix sequence"]]]:
    """(some of the matrices, the probability of every sequence under each of them), piece by piece."""
    chunk = max(1, _MOST_NUMBERS // tokens.size)
    for start in range(0, len(law), chunk):
        piece = {k: matrix[start : start + chunk] for k, matrix in matrices.items()}
        probability = np.ones((len(law[start : start + chunk]), len(tokens)))
        for position in range(task.n_ctx):
            probability *= _conditional(task, piece, law[start : start + chunk], tokens, position)
        yield piece, probability


def enumerated(
    task: InContextTask, matrices: Matrices, law: Laws, seed: int
) -> Iterator[Float[np.ndarray, "matrix pair token token"]]:
    """Joint laws of all pairs (in the order of `numpy.tril_indices`), by summing over every sequence of tokens."""
    n_ctx, d_vocab = task.n_ctx, task.d_vocab
    for _, probability in sequence_laws(task, matrices, law, every_sequence(task)):
        cube = probability.reshape(-1, *(d_vocab,) * n_ctx)
        pairs = []
        for i, j in zip(*np.tril_indices(n_ctx, -1), strict=True):
            summed = cube.sum(axis=tuple(1 + k for k in range(n_ctx) if k not in (i, j)))
            pairs.append(summed.transpose(0, 2, 1))  # axes were (x_j, x_i), since j < i
        yield np.stack(pairs, axis=1)


def _conditional(
    task: InContextTask, matrices: Matrices, law: Laws, tokens: np.ndarray, position: int
) -> Float[np.ndarray, "matrix sequence"]:
    """P(the token at `position` | its parents' tokens) for every matrix and sequence."""
    parents = parents_of(task.graph, position)
    if task.has_query and position == task.n_ctx - 1:
        return np.full((len(law), len(tokens)), 1.0 / task.d_vocab)
    if not parents:
        return law[:, tokens[:, position]]
    return matrices[len(parents)][:, task.matrix_row(tokens[:, parents]), tokens[:, position]]


def sampled(
    task: InContextTask, matrices: Matrices, law: Laws, seed: int
) -> Iterator[Float[np.ndarray, "matrix pair token token"]]:
    """Relative frequencies of all pairs of tokens in `SAMPLED_SEQUENCES` sequences drawn from each matrix."""
    generator = np.random.default_rng((seed, 1))
    below = np.tril_indices(task.n_ctx, -1)
    for index in range(len(law)):
        one = {k: matrix[index] for k, matrix in matrices.items()}
        tokens, _ = sample_sequences(task, one, law[index], generator, SAMPLED_SEQUENCES)
        one_hot = rearrange(np.eye(task.d_vocab, dtype=np.float32)[tokens], "sequence i a -> sequence (i a)")
        counts = rearrange(one_hot.T @ one_hot, "(i a) (j b) -> i j a b", a=task.d_vocab, b=task.d_vocab)
        yield counts[below][None].astype(np.float64) / SAMPLED_SEQUENCES


def sample_sequences(
    task: InContextTask,
    matrices: dict[int, Float[np.ndarray, "row token"]],
    law: Float[np.ndarray, " token"],
    generator: np.random.Generator,
    n: int,
) -> tuple[Int[np.ndarray, "sequence n_ctx"], Float[np.ndarray, "n_ctx token"]]:
    """(`n` sequences from one matrix, the law of each position's token given its parents, averaged over them)."""
    tokens = np.empty((n, task.n_ctx), dtype=np.int64)
    laws = np.empty((task.n_ctx, task.d_vocab))
    for position in range(task.n_ctx):
        parents = parents_of(task.graph, position)
        if task.has_query and position == task.n_ctx - 1:
            rows = np.full((1, task.d_vocab), 1.0 / task.d_vocab)
        elif not parents:
            rows = law[None]
        else:
            rows = matrices[len(parents)][task.matrix_row(tokens[:, parents])]
        laws[position] = rows.mean(axis=0)
        uniforms = generator.random((n, 1))
        tokens[:, position] = np.minimum((uniforms > rows.cumsum(axis=1)).sum(axis=1), task.d_vocab - 1)
    return tokens, laws
