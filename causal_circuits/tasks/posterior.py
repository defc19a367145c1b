"""The edge posterior as a function of a task's parts, and the loss that everything is measured in.

`InContextTask` predicts with it; `tasks.predictors` says what it means beside the other reference losses.
"""

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.graphs import parents_of
from causal_circuits.tasks.base import Task
from causal_circuits.tasks.batch import check_probabilities

ROUNDED = 5e-3  # from a sum of 1: what bfloat16 rounds probabilities by


@check_arguments
def cross_entropy(
    probs: Float[Tensor, "batch d_vocab"], target_probs: Float[Tensor, "batch d_vocab"]
) -> Float[Tensor, " batch"]:
    """-sum target log(probs) for every sequence, in nats; 0 log 0 is 0.

    >>> cross_entropy(torch.tensor([[0.5, 0.5]]), torch.tensor([[1.0, 0.0]])).exp().tolist()
    [2.0]
    """
    check_probabilities("probs", probs, ROUNDED)
    check_probabilities("target_probs", target_probs, ROUNDED)
    return -torch.special.xlogy(target_probs.double(), probs.double()).sum(dim=-1)


def posterior(task: Any, tokens: Int[Tensor, "batch n_ctx"], graph: nx.DiGraph) -> Float[Tensor, "batch d_vocab"]:
    """The posterior mean of the target's row given the edges of `graph`, whose matrices an InContextTask draws."""
    task.check_tokens(tokens)
    if task.given_matrices is not None:
        return mixture_of_given(task, tokens, graph)
    in_degree = len(task.target_parents)
    row = task.matrix_row(tokens[:, list(task.target_parents)].cpu().numpy())
    counts = following_counts(task, tokens, range(in_degree), graph) + torch.from_numpy(task.alphas[in_degree][row])
    return counts / counts.sum(dim=-1, keepdim=True)


def following_counts(
    task: Task, tokens: Tensor, which: Sequence[int], graph: nx.DiGraph
) -> Float[Tensor, "batch d_vocab"]:
    """How often each token followed, along the edges of `graph`, the target's tokens at the parents numbered `which`.

    Counted over the positions with as many parents as the target.
    """
    in_degree = len(task.target_parents)
    counts = torch.zeros(len(tokens), task.d_vocab, dtype=torch.float64)
    children = [i for i in range(task.n_ctx) if graph.in_degree(i) == in_degree]
    if not children:
        return counts
    tokens = tokens.cpu()
    match = torch.ones(len(tokens), len(children), dtype=torch.float64)
    for number in which:
        parents = [parents_of(graph, child)[number] for child in children]
        match *= tokens[:, parents] == tokens[:, [task.target_parents[number]]]
    return counts.scatter_add_(1, tokens[:, children], match)


def mixture_of_given(
    task: Any, tokens: Tensor, graph: nx.DiGraph, include_roots: bool = False
) -> Float[Tensor, "batch d_vocab"]:
    """Posterior mean over the user's finite set of transition matrices, given the edges of `graph`."""
    array = tokens.cpu().numpy()
    n_matrices = len(next(iter(task.given_matrices.values())))
    log_likelihood = np.zeros((len(array), n_matrices))
    with np.errstate(divide="ignore"):
        for position in range(task.n_ctx):
            parents = parents_of(graph, position)
            if parents:
                row = task.matrix_row(array[:, list(parents)])
                log_likelihood += np.log(task.given_matrices[len(parents)][:, row, array[:, position]]).T
            elif include_roots and task.given_laws is not None and position in task.root_positions:
                log_likelihood += np.log(task.given_laws[:, array[:, position]]).T
    best = log_likelihood.max(axis=1, keepdims=True)
    if np.isneginf(best).any():
        raise ValueError(
            f"tokens must be possible under one of the transition matrices: sequence "
            f"{int(np.isneginf(best).argmax())} is not; check that the tokens were drawn from this task"
        )
    weights = np.exp(log_likelihood - best)
    weights /= weights.sum(axis=1, keepdims=True)
    target_row = task.matrix_row(array[:, list(task.target_parents)])
    rows = task.given_matrices[len(task.target_parents)][:, target_row]
    return torch.from_numpy(np.einsum("bk,kbt->bt", weights, rows))
