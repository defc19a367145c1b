"""When each edge of the graph begins to matter, as a model is trained.

Three clocks that need not agree: *attention* shows an edge when its weight has grown; the edge *matters* when cutting
it costs loss; and before either, its *information* says how hard the gradient pulls at it. An onset is the first
recorded step from which a curve stays half-way from its first to its last value, or beyond.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.circuits.build import circuit_model
from causal_circuits.circuits.counterfactuals import Counterfactual
from causal_circuits.circuits.graph import Edge
from causal_circuits.circuits.ground_truth import GraphScores, score_against_graph
from causal_circuits.circuits.onsets import onset
from causal_circuits.graphs import attention_cells
from causal_circuits.information import chi_squared_information, score_gradient_of
from causal_circuits.interventions import knock_out_edges
from causal_circuits.models import HookedTransformer
from causal_circuits.recording import RecordAt, TrainingRecord
from causal_circuits.tasks import Batch, InContextTask
from causal_circuits.training import TrainConfig, train_ensemble


@dataclass(frozen=True)
class Formation:
    """What every edge did at every recorded step.

    Attributes:
        steps: recorded steps.
        cells: (query_pos, key_pos) = (child, parent) of each edge of the latent graph.
        information: [cell]; chi-squared mutual information of child and parent, which theory says is the gradient by
            attention weights; in a stationary forest the same for all edges.
        pull: [cell]; that through the softmax of uniform attention: the gradient by the score, large in short rows.
        attention: [step, cell]; mean weight on it, the largest over heads.
        effect: [step, cell]; loss when it is cut minus loss, nats, the largest over heads.
        standard_error: [step, cell]; of that effect.
        circuit_edges: the edges between heads, and `circuit_effect`, [step, edge], the exact effect of cutting each.
        scores: the knock-out effects held to the graph, at each step.
        loss: [step]; on the batch that all this is measured on, nats.
        record: what training left.
    """

    steps: tuple[int, ...]
    cells: tuple[tuple[int, int], ...]
    information: Float[Tensor, " cell"]
    pull: Float[Tensor, " cell"]
    attention: Float[Tensor, "step cell"]
    effect: Float[Tensor, "step cell"]
    standard_error: Float[Tensor, "step cell"]
    circuit_edges: tuple[Edge, ...]
    circuit_effect: Float[Tensor, "step edge"]
    scores: tuple[GraphScores, ...]
    loss: Float[Tensor, " step"]
    record: TrainingRecord

    @property
    def attention_onset(self) -> Float[Tensor, " cell"]:
        """The step at which attention shows each edge; NaN if it never does."""
        return onset(self.steps, self.attention)

    @property
    def causal_onset(self) -> Float[Tensor, " cell"]:
        """The step at which each edge begins to matter; NaN if it ends without an effect three errors above zero."""
        found = onset(self.steps, self.effect)
        return torch.where(self.effect[-1] > 3 * self.standard_error[-1], found, torch.nan)

    @property
    def circuit_onset(self) -> Float[Tensor, " edge"]:
        """The step at which each edge between heads begins to matter; NaN if it ends as it began, or below."""
        return onset(self.steps, self.circuit_effect.float())

    @property
    def order_by_pull(self) -> float:
        """Spearman's rank correlation of `pull` and earliness of the causal onset, over edges that have one.

        1 if the edges that the gradient pulls hardest are the first to matter; NaN where all are alike.
        """
        late = self.causal_onset.double()
        formed = ~late.isnan()
        return _rank_correlation(self.pull[formed].numpy(), -late[formed].numpy())


def watch_formation(
    model: HookedTransformer,
    task: InContextTask,
    config: TrainConfig | None = None,
    *,
    record: RecordAt | None = None,
    batch: Batch | None = None,
    counterfactual: Counterfactual = "mean",
    seed: int = 0,
    progress: bool | None = None,
) -> Formation:
    """Train a model and measure every edge at every recorded step, on the same sequences each time.

    Args:
        model: disentangled, two layers or more; trained in place.
        task: its graph has an edge.
        config, progress: as in `train`.
        record: when; the default is twelve steps, dense at the start.
        batch: what to measure on; the default is 1,024 sequences drawn from (seed, 4).
        counterfactual: of the edges between heads.
        seed: of that batch and of the counterfactual.
    """
    return watch_formations(
        [model],
        task,
        [config or TrainConfig()],
        record=record,
        batch=batch,
        counterfactual=counterfactual,
        seed=seed,
        progress=progress,
    )[0]


def watch_formations(
    models: Sequence[HookedTransformer],
    task: InContextTask,
    configs: Sequence[TrainConfig],
    *,
    record: RecordAt | None = None,
    batch: Batch | None = None,
    counterfactual: Counterfactual = "mean",
    seed: int = 0,
    progress: bool | None = None,
) -> list[Formation]:
    """The same for several runs on one task, trained side by side (`train_ensemble`): what intervals over seeds need.

    Args:
        models, configs: one for each run; configurations may differ in their seeds.
        task, record, batch, counterfactual, seed, progress: as in `watch_formation`.
    """
    cells = tuple(attention_cells(task.graph))
    if not cells:
        raise ValueError("the graph has no edge between context positions: there is nothing whose onset could be seen")
    batch = task.sample(1024, seed=(seed, 4)) if batch is None else batch
    states: dict[int, list[_State]] = {id(model): [] for model in models}

    def measure(step: int, at: HookedTransformer) -> None:
        states[id(at)].append(_measure(step, at, task, batch, cells, counterfactual, seed))

    records = train_ensemble(models, [task] * len(models), configs, record=record, progress=progress, on_record=measure)
    query, key = torch.tensor(cells).T
    of_pairs = chi_squared_information(task).value
    information, pull = of_pairs[query, key], score_gradient_of(of_pairs)[query, key]
    circuit_edges = circuit_model(models[0], batch[:2]).edges
    return [
        _formation(states[id(model)], cells, information, pull, circuit_edges, left)
        for model, left in zip(models, records, strict=True)
    ]


@dataclass(frozen=True)
class _State:
    """All edges at one step."""

    step: int
    attention: Tensor
    effect: Tensor
    error: Tensor
    circuit_effect: Tensor
    scores: GraphScores
    loss: float


def _measure(
    step: int,
    model: HookedTransformer,
    task: InContextTask,
    batch: Batch,
    cells: Sequence[tuple[int, int]],
    counterfactual: Counterfactual,
    seed: int,
) -> _State:
    cut = knock_out_edges(model, batch)
    query, key = torch.tensor(cells).T
    best = cut.effect.argmax(dim=0)[query, key]
    return _State(
        step=step,
        attention=cut.attention[:, query, key].amax(dim=0),
        effect=cut.effect[best, query, key],
        error=cut.standard_error[best, query, key],
        circuit_effect=circuit_model(model, batch, counterfactual=counterfactual, seed=seed).effects(),
        scores=score_against_graph(cut.effect, task.graph),
        loss=cut.baseline_loss,
    )


def _formation(
    states: Sequence[_State],
    cells: tuple[tuple[int, int], ...],
    information: Tensor,
    pull: Tensor,
    circuit_edges: tuple[Edge, ...],
    record: TrainingRecord,
) -> Formation:
    return Formation(
        steps=tuple(state.step for state in states),
        cells=cells,
        information=information,
        pull=pull,
        attention=torch.stack([state.attention for state in states]),
        effect=torch.stack([state.effect for state in states]),
        standard_error=torch.stack([state.error for state in states]),
        circuit_edges=circuit_edges,
        circuit_effect=torch.stack([state.circuit_effect for state in states]),
        scores=tuple(state.scores for state in states),
        loss=torch.tensor([state.loss for state in states]),
        record=record,
    )


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's, ties sharing their mean rank; NaN where there is nothing to order."""
    ranks = [(v[:, None] > v).sum(axis=1) + 0.5 * (v[:, None] == v).sum(axis=1) for v in (x, y)]
    orderable = len(x) > 1 and all(rank.std() > 0 for rank in ranks)
    return float(np.corrcoef(*ranks)[0, 1]) if orderable else float("nan")
