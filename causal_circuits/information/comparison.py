"""Theory beside measurement: how well a gradient matches what information predicts, at one step or over training.

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
from causal_circuits.display import Frame, Result, frame
from causal_circuits.graphs import attention_cells, n_ctx_of, parent_attention, parents_of
from causal_circuits.information.gradient import through_softmax
from causal_circuits.recording import TrainingRecord
from causal_circuits.statistics import rank_correlation

Matrix = Float[Tensor, "n_ctx n_ctx"]
Of = Literal["weights", "scores"]
_FORMED = 0.5  # attention to the parent from which an edge counts as formed


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


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class EdgeFormation(Result):
    """How the agreement evolves over training, and in which order edges form.

    Attributes:
        steps: recorded steps.
        comparisons: at each of them, of the score gradient at that step's own attention.
        edges: (parent, child).
        attention: [record, edge]; attention from child to parent, mean over the batch.
        formed_at: for each edge the first recorded step from which on that attention stays at .5 or more, else None.
        information: [edge]; the pull on the edge's score at the start, g through the uniform softmax.
        order_agreement: Spearman's rank correlation of `information` and earliness; edges never formed come last; NaN
            with fewer than two edges or no differences.

    >>> model = cc.disentangled_transformer(3, 6)
    >>> config = cc.TrainConfig.joint(4, batch_size=512, warm_start=4.0)
    >>> record = cc.train(model, task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> formation = cc.information.edge_formation(record, cc.predicted_gradient(task).value.float(), task.graph)
    >>> formation.edges == tuple(sorted(cc.latent_edges(task.graph))), formation.steps == record.steps
    (True, True)
    """

    steps: tuple[int, ...]
    comparisons: tuple[GradientComparison, ...]
    edges: tuple[tuple[int, int], ...]
    attention: Float[Tensor, "record edge"]
    formed_at: tuple[int | None, ...]
    information: Float[Tensor, " edge"]
    order_agreement: float

    def to_frame(self) -> Frame:
        """A row an edge: the pull on it at the start, when it formed, and the attention to it at the end."""
        parents, children = zip(*self.edges, strict=True) if self.edges else ((), ())
        columns = {"information": self.information.numpy(), "formed_at": self.formed_at}
        return frame({"parent": parents, "child": children, **columns, "attention": self.attention[-1].numpy()})


@check_arguments
def edge_formation(
    record: TrainingRecord, predicted: Matrix, graph: nx.DiGraph, *, layer: int = 0, head: int = 0
) -> EdgeFormation:
    """Compare every recorded score gradient with g, and see which edges form first.

    Args:
        record: of a run that recorded attention and score gradients.
        predicted: g of the task.
        graph: the true graph.
        layer, head: whose.

    >>> model = cc.disentangled_transformer(3, 6)
    >>> config = cc.TrainConfig.joint(4, batch_size=512, warm_start=4.0)
    >>> record = cc.train(model, task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> formation = cc.information.edge_formation(record, cc.predicted_gradient(task).value.float(), task.graph)
    >>> [comparison.parent_ranks for comparison in formation.comparisons][0]
    (1, 1, 1, 1)
    """
    patterns, gradients = (record.of_layer(name, layer) for name in ("attention", "score_gradients"))
    if not 0 <= head < patterns.shape[1]:
        raise ValueError(f"head must be one of the record's 0 .. {patterns.shape[1] - 1}: got {head}")
    patterns, gradients = patterns[:, head], gradients[:, head]
    comparisons = tuple(
        compare_gradient(gradient, predicted, graph, of="scores", attention=pattern)
        for pattern, gradient in zip(patterns, gradients, strict=True)
    )
    attention, pull = parent_attention(patterns, graph), parent_attention(through_softmax(predicted), graph)
    formed_at = tuple(_formed(record.steps, weights) for weights in attention.T)
    late = np.array([np.inf if step is None else step for step in formed_at], dtype=float)
    return EdgeFormation(
        steps=record.steps,
        comparisons=comparisons,
        edges=tuple((j, i) for i, j in attention_cells(graph)),
        attention=attention,
        formed_at=formed_at,
        information=pull,
        order_agreement=rank_correlation(pull.double().numpy(), -late),
    )


def _formed(steps: tuple[int, ...], weights: Tensor) -> int | None:
    """The first step from which on the attention stays at one half or more."""
    below = (~(weights >= _FORMED)).nonzero()  # NaN is not formed
    first = int(below[-1]) + 1 if len(below) else 0
    return steps[first] if first < len(steps) else None


Relation = Literal["ancestor", "sibling", "uncle", "other relative", "unrelated"]


@check_arguments
@dataclass(frozen=True)
class RivalPosition:
    """The earlier position that comes closest to a child's parent.

    Attributes:
        child, parent, position: the edge and its rival.
        relation: what the rival is to the child.
        excess: the parent's value less the rival's; negative if data processing is violated.

    >>> rival = cc.information.closest_rivals(cc.chi_squared_information(task, n_matrices=64).value, task.graph)[0]
    >>> rival.child, rival.parent, rival.position, rival.relation, rival.excess > 0
    (2, 1, 0, 'ancestor', True)
    """

    child: int
    parent: int
    position: int
    relation: Relation
    excess: float


@check_arguments
def closest_rivals(value: Matrix, graph: nx.DiGraph) -> tuple[RivalPosition, ...]:
    """For every child with two earlier positions or more: the position other than its parent with the largest value.

    The data processing check: information about a child cannot be larger at an ancestor, a sibling or an uncle than at
    its parent, through whom all of it comes.

    Raises:
        ValueError: some position has several parents: no one of them has to tell more than another position.

    >>> task = cc.InContextTask(cc.graph_from_parents([None, 0, 0, 1]), d_vocab=3, alpha=1.0)
    >>> [(rival.child, rival.relation) for rival in closest_rivals(cc.predicted_gradient(task).value, task.graph)]
    [(2, 'sibling'), (3, 'uncle')]
    """
    if max(degree for _, degree in graph.in_degree) > 1:
        raise ValueError(
            "the data processing check needs at most one parent a position: information of several parents is joint; "
            "see match_gradient"
        )
    n_ctx = n_ctx_of(graph)
    if len(value) != n_ctx:
        raise ValueError(f"value must be [n_ctx, n_ctx] with the graph's n_ctx, {n_ctx}: got {list(value.shape)}")
    rivals = []
    for child in range(2, n_ctx - 1):
        if not parents_of(graph, child):
            continue
        (parent,) = parents_of(graph, child)
        row = value[child, :child].clone()
        if bool(row.isnan().any()):
            raise ValueError(f"rivals need a value for every earlier position: row {child} holds NaN")
        row[parent] = -torch.inf
        position = int(row.argmax())
        excess = float(value[child, parent] - row[position])
        rivals.append(RivalPosition(child, parent, position, _relation(graph, child, position), excess))
    return tuple(rivals)


def _relation(graph: nx.DiGraph, child: int, other: int) -> Relation:
    common = nx.lowest_common_ancestor(graph, child, other)
    if common is None:
        return "unrelated"
    up, down = nx.shortest_path_length(graph, common, child), nx.shortest_path_length(graph, common, other)
    if down == 0:
        return "ancestor"
    if down == 1 and up > 0:
        return "sibling" if up == 1 else "uncle"
    return "other relative"
