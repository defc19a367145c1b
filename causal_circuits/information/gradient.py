"""What layer 0's first gradient tends to in long contexts: at an edge, an information.

The reduced model at A1 = 0, A2 = beta0 I compares every position's copy with the token x_T of the last position. To
first order in beta0, minus its gradient with respect to attention weights is beta0 / (d_vocab n_ctx) times

    g_ij = d_vocab E[ (y(x_i) / nu(x_i) - 1) 1(x_j = x_T) ],

with y the target and nu(a) the share of a's in the context, which for long contexts depends on the transition
matrices alone: here it is its mean given them. For a forest whose roots follow the stationary law mu, nu = mu and

    g_ij = E_pi [ sum_{s', s} pi(s' | s) / mu(s') (P(x_i = s', x_j = s) - mu(s') mu(s)) ]:

at the true parent that is the chi-squared information, elsewhere it is none (it may be negative), and no other earlier
position has a larger g: the largest entry of a row of g is the parent (Nichani, Damian & Lee 2024, by data processing).

With several parents a position another gradient counts: see `match_gradient`.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import Several, check_arguments
from causal_circuits.graphs import parents_of
from causal_circuits.information.exact import (
    Information,
    Laws,
    Matrices,
    draw_matrices,
    fill_cells,
    joint_laws,
    path_lengths,
)
from causal_circuits.tasks import InContextTask

OfMatrices = Iterator[tuple[list[tuple[int, int]], Float[np.ndarray, " matrix"]]]


@check_arguments
def predicted_gradient(task: InContextTask, n_matrices: Several = 4096, seed: int = 0) -> Information:
    """g_ij of the module's text, to which minus the gradient of layer 0's attention weights is proportional.

    The factor is beta0 / (d_vocab n_ctx), at the start of training and in the limit of long contexts;
    `through_softmax` turns g into the gradient of attention *scores*, and `finite_context_gradient` leaves the limit
    out. Pairs j < i only: the diagonal and the query's row, trace(pi) - 1, are zero on average under a symmetric prior
    and are left at zero.

    Args:
        task: whose gradient; the last position is a query.
        n_matrices: transition matrices drawn from the prior.
        seed: of the matrices.

    Raises:
        ValueError: the graph has no query.

    >>> g = predicted_gradient(cc.InContextTask(cc.chain_graph(5), d_vocab=3)).value
    >>> g[1:4].argmax(dim=1).tolist()  # the parents of positions 1 to 3
    [0, 1, 2]
    """
    check_query(task)
    mean, error = np.zeros((2, task.n_ctx, task.n_ctx))
    for cells, values in gradient_of_matrices(task, *draw_matrices(task, n_matrices, seed)):
        fill_cells(mean, error, cells, values)
    return Information(torch.from_numpy(mean), torch.from_numpy(error), n_matrices)


def check_query(task: InContextTask) -> None:
    """Raise a ValueError unless the last position is a query."""
    if not task.has_query:
        raise ValueError(
            "the gradient is predicted for graphs whose last position is a query: the target's parents are "
            f"{task.target_parents}; match_gradient(batch, {task.target_parents}) predicts it from sequences"
        )


def gradient_of_matrices(task: InContextTask, pi: Matrices, law: Laws) -> OfMatrices:
    """(pairs i > j that share a value of g, that value for every matrix); other pairs have zero."""
    if task.root_law != "stationary":
        yield from _with_other_roots(task, pi, law)
        return
    independent = law[:, :, None] * law[:, None, :]
    for cells, joint in joint_laws(task, pi, law):
        yield cells, np.einsum("nst,nts->n", pi, _given_child(joint - independent, law))


def _given_child(joint: Float[np.ndarray, "matrix child key"], law: Laws) -> np.ndarray:
    """Joint / law of the child, zero where it is: at most of order one, however small the law; pi / law overflows."""
    return np.divide(joint, law[:, :, None], out=np.zeros_like(joint), where=law[:, :, None] > 0)


def _with_other_roots(task: InContextTask, pi: Matrices, law: Laws) -> OfMatrices:
    """Where a token's law depends on its depth, unrelated pairs have a value too: one for each pair of depths."""
    last = task.n_ctx - 1
    depths: list[int] = []
    for position in range(last):
        depths.append(max((depths[parent] + 1 for parent in parents_of(task.graph, position)), default=0))
    laws = [law]
    for _ in range(max(depths)):
        laws.append(np.einsum("ns,nst->nt", laws[-1], pi))
    share = np.mean([laws[depth] for depth in depths], axis=0)
    related = path_lengths(task.graph, last)
    for cells, joint in joint_laws(task, pi, law):
        yield cells, np.einsum("nst,nts->n", pi, _given_child(joint, share)) - 1.0
    unrelated: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for i, j in itertools.combinations(range(last - 1, -1, -1), 2):
        if (i, j) not in related:
            unrelated.setdefault((depths[i], depths[j]), []).append((i, j))
    for (of_i, of_j), cells in unrelated.items():
        joint = laws[of_i][:, :, None] * laws[of_j][:, None, :]
        yield cells, np.einsum("nst,nts->n", pi, _given_child(joint, share)) - 1.0


@check_arguments
def through_softmax(
    g: Float[Tensor, "n_ctx n_ctx"], attention: Float[Tensor, "n_ctx n_ctx"] | None = None
) -> Float[Tensor, "n_ctx n_ctx"]:
    """The gradient of attention scores, P_ij (g_ij - sum_k P_ik g_ik), from that of weights; 0 above the diagonal.

    The pattern P is `attention`, uniform causal attention by default: (g_ij - mean_{k <= i} g_ik) / (i + 1).

    >>> g = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    >>> through_softmax(g)[1]  # half of it at the parent, minus half at the other position, each times the weight .5
    tensor([ 0.2500, -0.2500])
    """
    pattern = torch.ones_like(g).tril() if attention is None else attention.to(g.dtype)
    pattern = pattern / pattern.sum(dim=-1, keepdim=True) if attention is None else pattern
    return pattern * (g - (pattern * g).sum(dim=-1, keepdim=True))
