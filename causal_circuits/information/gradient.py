"""What layer 0's first gradient tends to in long contexts, for any causal graph: at a forest's edges, an information.

The reduced model at A1 = 0, A2 = beta0 I compares every position's copy with the token x_T of the last position. To
first order in beta0, minus its gradient with respect to attention weights is beta0 / (d_vocab n_ctx) times

    g_ij = d_vocab E[ (y(x_i) / nu(x_i) - 1) 1(x_j = x_T) ],

with y the target and nu(a) the share of a's in the context, which for long contexts depends on the transition
matrices alone: here it is its mean given them. For a forest whose roots follow the stationary law mu, nu = mu and

    g_ij = E_pi [ sum_{s', s} pi(s' | s) / mu(s') (P(x_i = s', x_j = s) - mu(s') mu(s)) ]:

at the true parent that is the chi-squared information, elsewhere it is none (it may be negative), and no other earlier
position has a larger g: the largest entry of a row of g is the parent (Nichani, Damian & Lee 2024, section 5).

With several parents a head's last row must copy a parent t of the target: x_t (`last_key`) takes the place of x_T. At
the target's l-th parent the l-th parents stand out then, but no inequality says that they must: other parents' matches
are left to chance, and in a 3-gram over two tokens some rows of g have their maximum elsewhere.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.graphs import parents_of
from causal_circuits.information import pair_laws
from causal_circuits.information.dag_gradient import check_last_key, enumerated_gradient, sampled_gradient
from causal_circuits.information.exact import Information, fill_cells
from causal_circuits.tasks import InContextTask

OfMatrices = Iterator[tuple[list[tuple[int, int]], Float[np.ndarray, " matrix"]]]


@check_arguments
def predicted_gradient(
    task: InContextTask, n_matrices: int = 4096, seed: int = 0, *, last_key: int | None = None
) -> Information:
    """g_ij of the module's text, to which minus the gradient of layer 0's attention weights is proportional.

    The factor is beta0 / (d_vocab n_ctx), at the start of training and in the limit of long contexts;
    `through_softmax` turns g into the gradient of attention *scores*, and `finite_context_gradient` leaves the limit
    out. Pairs j < i only: the diagonal and the row of a query, trace(pi) - 1 in a forest, are zero on average under a
    symmetric prior and are left at zero.

    Graphs with a query: along paths, exact given the matrices. Others (several parents, or a target whose parent is an
    ordinary position): by summing over all sequences where there are few, else by sampling (at most 1,024 matrices);
    `Information.method` says which, and the standard error holds all that is random.

    Args:
        task: whose gradient.
        n_matrices: transition matrices drawn from the prior.
        seed: of matrices and samples.
        last_key: graphs without a query only: the position t whose token a head's last row copies; the last row of g is
            then zero, since it is fixed. By default x_T, the last token itself, as in the reduced model of one head.

    >>> task = cc.InContextTask(cc.ngram_graph(8, order=2), d_vocab=2, alpha=0.3)      # p(i) = (i - 2, i - 1)
    >>> [predicted_gradient(task, 256, last_key=t).value[5, :5].argmax().item() for t in (6, 7)]
    [3, 4]
    """
    check_last_key(task, last_key)
    if not task.has_query:
        by = enumerated_gradient if pair_laws.can_enumerate(task) else sampled_gradient
        return by(task, n_matrices, seed, last_key)
    mean, error = np.zeros((2, task.n_ctx, task.n_ctx))
    for cells, values in gradient_of_matrices(task, *pair_laws.draw(task, n_matrices, seed)):
        fill_cells(mean, error, cells, values)
    return Information(torch.from_numpy(mean), torch.from_numpy(error), n_matrices)


def gradient_of_matrices(task: InContextTask, matrices: pair_laws.Matrices, law: pair_laws.Laws) -> OfMatrices:
    """(pairs i > j that share a value of g, that value for every matrix); other pairs have zero. For a query."""
    if task.root_law != "stationary":
        yield from _with_other_roots(task, matrices, law)
        return
    independent = law[:, :, None] * law[:, None, :]
    for cells, joint in pair_laws.propagated(task, matrices, law):
        yield cells, np.einsum("nst,nts->n", matrices[1], _given_child(joint - independent, law))


def _given_child(joint: Float[np.ndarray, "matrix child key"], law: pair_laws.Laws) -> np.ndarray:
    """Joint / law of the child, zero where it is: at most of order one, however small the law; pi / law overflows."""
    return np.divide(joint, law[:, :, None], out=np.zeros_like(joint), where=law[:, :, None] > 0)


def _with_other_roots(task: InContextTask, matrices: pair_laws.Matrices, law: pair_laws.Laws) -> OfMatrices:
    """Where a token's law depends on its depth, unrelated pairs have a value too: one for each pair of depths."""
    pi, last = matrices[1], task.n_ctx - 1
    depths: list[int] = []
    for position in range(last):
        depths.append(max((depths[parent] + 1 for parent in parents_of(task.graph, position)), default=0))
    laws = [law]
    for _ in range(max(depths)):
        laws.append(np.einsum("ns,nst->nt", laws[-1], pi))
    share = np.mean([laws[depth] for depth in depths], axis=0)
    related = pair_laws.path_lengths(task.graph, last)
    for cells, joint in pair_laws.propagated(task, matrices, law):
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
