"""The gradient of layer 0's attention at a finite context length, exact to first order in beta0.

At A1 = 0, A2 = beta0 I the reduced model predicts with the frequencies mu_hat of the *whole sequence*, query included.
To first order in beta0, with T = n_ctx, S = d_vocab and h_j = 1[x_j = x_T],

    -dL/da_ij = beta0 / (S T) G_ij,        G_ij = S E[ (pi(x_i | x_T) / mu_hat(x_i) - m) h_j ],

where m is the probability that pi(. | x_T) gives to tokens that occur. For T -> infinity mu_hat -> mu, m -> 1 and G is
the paper's g (`predicted_gradient`), which is an information at an edge. G is none: it is the expected gradient itself,
computed without sequences, and at finite T another matrix than g. A measured gradient has slope 1 on G. On g its slope
is .44 to .87 at alpha .1 and n_ctx 20 to 200, least for few tokens: rare ones need contexts longer than 1 / mu.

The mean of 1 / N over the number N of occurrences of a token looks intractable and is not: E[1 / N; B] is the integral
over t in 0 .. 1 of E[t^(N-1); B], and for a forest E[t^N; x_i = a, x_j = s] is a product of messages, because a forest
whose tokens are weighted one by one is again a Markov forest, with tilted matrices. The integrand is a polynomial in t,
so Gauss-Legendre quadrature is exact up to a tolerance chosen beforehand. Only the matrix is averaged by Monte Carlo.
"""

from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float

from causal_circuits.arguments import Several, check_arguments
from causal_circuits.graphs import parents_of
from causal_circuits.information.exact import Information, draw_matrices
from causal_circuits.information.gradient import check_query, gradient_of_matrices, predicted_gradient
from causal_circuits.information.tilted_forest import tilt
from causal_circuits.tasks import InContextTask
from causal_circuits.tasks.batch import chunks

_CONTROL_MATRICES = 2**15
_LIMIT_MATRICES = 2**13
_STEEPEST = 2.0  # G follows g, damped: a steeper regression is an accident of few matrices
_MOST_NUMBERS = 2**18  # of one position and token that are held at once: they stay in the cache
_TOLERANCE = 1e-7  # of the quadrature, relative


@check_arguments
def finite_context_gradient(task: InContextTask, n_matrices: Several = 512, seed: int = 0) -> Information:
    """G_ij of the module's text: minus the gradient of layer 0's attention weights, times d_vocab n_ctx / beta0.

    `through_softmax(G)` times beta0 / (d_vocab n_ctx) is minus the gradient of the reduced model's attention scores
    for beta0 -> 0, diagonal and query row included, at any context length. Tends to `predicted_gradient` as n_ctx
    grows. Exact given the matrices.

    Args:
        task: whose gradient; the last position is a query.
        n_matrices: transition matrices drawn from the prior.
        seed: of the matrices.

    Raises:
        ValueError: the graph has no query.

    >>> task = cc.InContextTask(cc.chain_graph(8), d_vocab=3, alpha=0.1)        # a short context
    >>> ratio = finite_context_gradient(task).value[2, 1] / cc.predicted_gradient(task).value[2, 1]
    >>> 0.3 < ratio.item() < 0.9
    True
    """
    check_query(task)
    pi, law = draw_matrices(task, n_matrices, seed)
    chunk = max(1, _MOST_NUMBERS // (task.n_ctx * task.d_vocab * (len(quadrature(task.n_ctx)[0]) + 1)))
    values = np.concatenate([_of_matrices(task, pi[some], law[some]) for some in chunks(n_matrices, chunk)])
    limit = np.zeros_like(values)
    for cells, of_matrices in gradient_of_matrices(task, pi, law):
        rows, columns = zip(*cells, strict=True)
        limit[:, rows, columns] = of_matrices[:, None]
    many, many_laws = draw_matrices(task, _CONTROL_MATRICES, seed + 1)
    few, reference = (_edge_informations(*drawn, task.n_ctx) for drawn in ((pi, law), (many, many_laws)))
    exact = predicted_gradient(task, _LIMIT_MATRICES, seed + 2)
    return _controlled(values, limit, few - reference.mean(axis=0), np.cov(reference.T) / len(reference), exact)


def _edge_informations(
    pi: Float[np.ndarray, "matrix token token"], law: Float[np.ndarray, "matrix token"], n_ctx: int
) -> Float[np.ndarray, "matrix control"]:
    """How informative parent and child are: sum mu(s) (pi(a | s) - mu(a))^2 / (mu(a) + d) for d = 1/T, 1 and 1/100 T.

    Small d gives the chi-squared, large d the Euclidean information; a context of T tokens sees something between.
    """
    square = np.einsum("ks,ksa->ka", law, (pi - law[:, None, :]) ** 2)
    return np.stack([(square / (law + d)).sum(axis=1) for d in (1 / n_ctx, 1.0, 0.01 / n_ctx)], axis=1)


def _controlled(
    values: Float[np.ndarray, "matrix n_ctx n_ctx"],
    limit: Float[np.ndarray, "matrix n_ctx n_ctx"],
    controls: Float[np.ndarray, "matrix control"],
    uncertainty: Float[np.ndarray, "control control"],
    exact: Information,
) -> Information:
    """The mean over matrices of `values`, made precise by what is known better: informations of edges, and g itself.

    How informative a matrix is explains most of the spread between matrices at an edge; elsewhere `limit`, the g of the
    same matrices, does, whose mean is `exact`. It is regressed on where the former explain less than half of it, with
    a bounded slope: far apart in a chain, rare matrices hold nearly all of g, and few draws say nothing of them. Of
    the controls, whose true mean is 0, `uncertainty` is the covariance of what stands for it.
    """
    n = len(values)
    used = min(controls.shape[1], max(1, n // 16))
    features = np.concatenate([np.ones((n, 1)), controls[:, :used]], axis=1)
    solve = np.linalg.pinv(features)
    flat, known = values.reshape(n, -1), limit.reshape(n, -1)
    fits = [solve @ numbers for numbers in (flat, known)]  # at the controls' own means, the constants are the means
    left, left_known = flat - features @ fits[0], known - features @ fits[1]
    power = (left_known**2).sum(axis=0)
    unexplained = power > 0.5 * ((known - known.mean(axis=0)) ** 2).sum(axis=0)  # at an edge, the controls said it all
    slope = np.divide((left * left_known).sum(axis=0), power, out=np.zeros_like(power), where=unexplained & (power > 0))
    slope = slope.clip(-_STEEPEST, _STEEPEST)
    mean = fits[0][0] + slope * (exact.value.numpy().ravel() - fits[1][0])
    rest = ((left - slope * left_known) ** 2).sum(axis=0) / max(n - features.shape[1] - 1, 1)
    by_controls = fits[0][1:] - slope * fits[1][1:]
    of_controls = np.einsum("cx,cd,dx->x", by_controls, uncertainty[:used, :used], by_controls)
    error = np.sqrt(rest / n + of_controls + (slope * exact.standard_error.numpy().ravel()) ** 2)
    shape = values.shape[1:]
    return Information(torch.from_numpy(mean.reshape(shape)), torch.from_numpy(error.reshape(shape)), n)


@lru_cache(maxsize=64)
def quadrature(n_ctx: int) -> tuple[np.ndarray, np.ndarray]:
    """The fewest nodes and weights on 0 .. 1 that integrate t^(N-1) to 1 / N for N = 1 .. n_ctx."""
    counts = np.arange(1, n_ctx + 1)
    for n_nodes in range(1, n_ctx // 2 + 2):
        nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
        nodes, weights = (nodes + 1) / 2, weights / 2
        integrals = (weights * nodes ** (counts[:, None] - 1)).sum(axis=1)
        if np.abs(integrals * counts - 1).max() < _TOLERANCE:
            break
    return nodes, weights


def _of_matrices(
    task: InContextTask, pi: Float[np.ndarray, "matrix token token"], law: Float[np.ndarray, "matrix token"]
) -> Float[np.ndarray, "matrix n_ctx n_ctx"]:
    """G of every matrix: for each token a, the sequences in which x_i = a, by the number of their a's."""
    n_ctx, d_vocab, last = task.n_ctx, task.d_vocab, task.n_ctx - 1
    parents = [next(iter(parents_of(task.graph, position)), -1) for position in range(last)]
    nodes, weights = quadrature(n_ctx)
    found = np.zeros((len(pi), n_ctx, n_ctx))
    for a in range(d_vocab):
        forest = tilt(parents, pi, law, a, np.concatenate([[0.0], nodes]))
        absent, total = forest.total[:, 0], forest.total[:, 1:] * weights  # E[t^count] at t = 0, and times the weights
        queries = np.arange(d_vocab) == a  # the query itself is one more a if it is a
        power = np.where(queries[:, None], 1.0, 1.0 / nodes)  # t^(N-1), N the count of a's in context and query
        reach = np.zeros((len(pi), len(nodes) + 1, d_vocab))  # nothing at t = 0
        reach[:, 1:] = n_ctx * np.einsum("kq,sq,ks->kqs", total, power, pi[:, :, a])
        found[:, :last, :last] += forest.expectations(reach)
        marginal = forest.marginals  # [matrix, node, position, token]
        found[:, last, :last] += n_ctx * pi[:, a, a, None] * np.einsum("kq,kqj->kj", total, marginal[:, 1:, :, a])
        found[:, last, last] += n_ctx * pi[:, a, a] * total.sum(axis=1)
        others = np.where(queries, 0.0, pi[:, :, a])  # pi(a | s) for queries s that are not a
        missed = np.einsum("ks,k,kjs->kj", others, absent, marginal[:, 0])
        found[:, :, :last] += missed[:, None, :]
        found[:, last, last] += others.sum(axis=1) * absent
    found[:, :, :last] -= 1.0  # m would be 1 if no token were missing
    found[:, last, last] -= d_vocab
    return np.tril(found)
