"""Theory beside measurement: how well a gradient matches what information predicts.

The softmax stands between attention weights, whose gradient is proportional to g, and attention scores, whose gradient
hooks record: at attention P, dS_ij = P_ij (g_ij - sum_k P_ik g_ik). At uniform causal attention that is
`through_softmax(g)`.
"""

from dataclasses import dataclass
from typing import Literal

import networkx as nx
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Result
from causal_circuits.graphs import n_ctx_of, parents_of
from causal_circuits.information.gradient import through_softmax

Matrix = Float[Tensor, "n_ctx n_ctx"]
Of = Literal["weights", "scores"]


@check_arguments
@dataclass(frozen=True, repr=False)
class GradientComparison(Result):
    """A measured gradient against its prediction (minus the gradient, both), over all pairs j < i.

    The last row is left out: it is a query's, or, in a graph without one, the row that copies the target's parents.

    Attributes:
        correlation: Pearson's.
        slope: of the least-squares line through the origin, measured on predicted; 1 where both are in one unit.
        parent_ranks: for each true edge, the rank of the parent in its row of the measured gradient, the child's other
            parents left out; 1 is the largest.
        rows_right: the share of children whose row's largest entry is a parent.
        variance_explained: of the measured gradient by the best multiple of the prediction plus a constant.
        variance_explained_without_jacobian: the same by g itself, not put through the softmax; equal for weights.
        noise_share: mean squared standard error over the variance of the measured entries; NaN if no error was given.
            What a perfect prediction would leave unexplained.

    >>> g = cc.predicted_gradient(task).value
    >>> measured = cc.measured_gradient(batch.tokens, batch.target_probs).value
    >>> comparison = cc.compare_gradient(measured, g, task.graph)
    >>> 0 < comparison.correlation <= 1, len(comparison.parent_ranks)
    (True, 4)
    """

    correlation: float
    slope: float
    parent_ranks: tuple[int, ...]
    rows_right: float
    variance_explained: float
    variance_explained_without_jacobian: float
    noise_share: float


@check_arguments
def compare_gradient(
    measured: Matrix,
    predicted: Matrix,
    graph: nx.DiGraph,
    *,
    of: Of = "weights",
    attention: Matrix | None = None,
    standard_error: Matrix | None = None,
) -> GradientComparison:
    """Compare a measured gradient of layer 0's attention with the g that predicts it.

    Args:
        measured: minus the gradient by attention weights or scores, as `measured_gradient` gives it and records hold
            it; multiply what is recorded of the reduced model by d_vocab n_ctx / beta0 to give the slope a meaning.
        predicted: g, as `predicted_gradient` or `finite_context_gradient` gives it.
        graph: the true graph.
        of: "weights" compares as it is, "scores" puts `predicted` through the softmax first.
        attention: the pattern at which a score gradient was taken; None is uniform causal attention.
        standard_error: of `measured`.

    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=1.0)
    >>> g = cc.predicted_gradient(task).value
    >>> round(compare_gradient(2 * g, g, task.graph).slope, 6)
    2.0
    """
    n_ctx = n_ctx_of(graph)
    if not measured.shape == predicted.shape == (n_ctx, n_ctx):
        raise ValueError(
            f"gradient and prediction must be [n_ctx, n_ctx] over the graph's {n_ctx} positions: "
            f"got {list(measured.shape)} and {list(predicted.shape)}"
        )
    for name, matrix in (("measured", measured), ("predicted", predicted)):
        if not bool(matrix.tril(-1)[:-1].isfinite().all()):
            raise ValueError(
                f"a comparison needs finite gradients: {name} holds NaN or infinity; leave such states out"
            )
    mapped = predicted.double() if of == "weights" else through_softmax(predicted.double(), attention)
    below = torch.ones(n_ctx, n_ctx, dtype=torch.bool).tril(-1)
    below[-1] = False
    x, y, plain = (matrix.double()[below].numpy() for matrix in (mapped, measured, predicted))
    ranks = _parent_ranks(measured, graph)
    best = [min(of_child.values()) for of_child in ranks.values()]
    errors = None if standard_error is None else standard_error.double()[below].numpy()
    correlation = _correlation(x, y)
    return GradientComparison(
        correlation=correlation,
        slope=float(x @ y / (x @ x)) if x @ x > 0 else float("nan"),
        parent_ranks=tuple(rank for of_child in ranks.values() for rank in of_child.values()),
        rows_right=float(np.mean([rank == 1 for rank in best])) if best else float("nan"),
        variance_explained=correlation**2,
        variance_explained_without_jacobian=_correlation(plain, y) ** 2,
        noise_share=float("nan") if errors is None or y.var() == 0 else float((errors**2).mean() / y.var()),
    )


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if len(x) > 1 and x.std() > 0 and y.std() > 0 else float("nan")


def _parent_ranks(measured: Matrix, graph: nx.DiGraph) -> dict[int, dict[int, int]]:
    """{child: {parent: its rank among the earlier positions that are no other parent}}, ties counting against it."""
    ranks: dict[int, dict[int, int]] = {}
    for child in range(n_ctx_of(graph) - 1):
        parents = list(parents_of(graph, child))
        others = measured[child, [j for j in range(child) if j not in parents]]
        if parents:
            ranks[child] = {j: 1 + int((others >= measured[child, j]).sum()) for j in parents}
    return ranks
