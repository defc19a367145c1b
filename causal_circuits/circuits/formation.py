"""When each edge of the graph begins to matter, as a model is trained.

Three clocks that need not agree: *attention* shows an edge when its weight has grown; the edge *matters* when cutting
it costs loss; and before either, its *information* says how strong its gradient is. An onset is the first recorded step
from which a curve stays at half of its final value or above.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.circuits.build import circuit_model
from causal_circuits.circuits.counterfactuals import Counterfactual
from causal_circuits.circuits.graph import Edge
from causal_circuits.circuits.ground_truth import GraphScores, score_against_graph
from causal_circuits.graphs import attention_cells
from causal_circuits.interventions import knock_out_edges
from causal_circuits.models import HookedTransformer
from causal_circuits.recording import RecordAt, TrainingRecord
from causal_circuits.tasks import Batch, InContextTask
from causal_circuits.training import TrainConfig, train


@dataclass(frozen=True)
class Formation:
    """What every edge did at every recorded step.

    Attributes:
        steps: recorded steps.
        cells: (query_pos, key_pos) = (child, parent) of each edge of the latent graph.
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
    cells = tuple(attention_cells(task.graph))
    if not cells:
        raise ValueError("the graph has no edge between context positions: there is nothing whose onset could be seen")
    batch = task.sample(1024, seed=(seed, 4)) if batch is None else batch
    rows: list[tuple[int, Tensor, Tensor, Tensor, Tensor, GraphScores, float]] = []

    def measure(step: int, at: HookedTransformer) -> None:
        cut = knock_out_edges(at, batch)
        query, key = torch.tensor(cells).T
        best = cut.effect.argmax(dim=0)[query, key]
        whole = circuit_model(at, batch, counterfactual=counterfactual, seed=seed)
        scores = score_against_graph(cut.effect, task.graph)
        attention = cut.attention[:, query, key].amax(dim=0)
        effect, error = cut.effect[best, query, key], cut.standard_error[best, query, key]
        rows.append((step, attention, effect, error, whole.effects(), scores, cut.baseline_loss))

    left = train(model, task, config, record=record, progress=progress, on_record=measure)
    steps, attention, effects, errors, circuit_effects, graph_scores, losses = zip(*rows, strict=True)
    return Formation(
        steps=steps,
        cells=cells,
        attention=torch.stack(attention),
        effect=torch.stack(effects),
        standard_error=torch.stack(errors),
        circuit_edges=circuit_model(model, batch).edges,
        circuit_effect=torch.stack(circuit_effects),
        scores=graph_scores,
        loss=torch.tensor(losses),
        record=left,
    )


def onset(steps: Sequence[int], curves: Float[Tensor, "step cell"]) -> Float[Tensor, " cell"]:
    """The first step from which each curve stays at half of its final value or above; NaN if that is not positive.

    >>> onset((0, 10, 100), torch.tensor([[0.0, 0.9], [0.8, 0.1], [1.0, 1.0]]))
    tensor([ 10., 100.])
    """
    stays = (curves >= curves[-1] / 2).flip(0).cumprod(dim=0).flip(0).bool()
    first = torch.tensor(steps, dtype=torch.float32)[stays.int().argmax(dim=0)]
    return torch.where(curves[-1] > 0, first, torch.nan)


@dataclass(frozen=True)
class OnsetInterval:
    """The mean onset over edges, over several seeds.

    Attributes:
        mean: over seeds of the mean over edges that have an onset, in steps.
        low, high: 95% bootstrap interval over seeds (with three seeds or fewer, little more than their range).
        never: the share of edges, over all seeds, without an onset.
    """

    mean: float
    low: float
    high: float
    never: float


def onset_interval(
    onsets: Sequence[Float[Tensor, " cell"]], *, n_bootstrap: int = 1000, seed: int = 0
) -> OnsetInterval:
    """Sum up the onsets of several runs.

    Args:
        onsets: one tensor for each seed (`Formation.causal_onset` or `attention_onset`).
        n_bootstrap, seed: of the interval.

    >>> onset_interval([torch.tensor([10.0, 30.0]), torch.tensor([20.0, float("nan")])]).mean
    20.0
    """
    if not onsets:
        raise ValueError("an interval over seeds needs at least one run: got none")
    means = torch.stack([run.nanmean() for run in onsets]).double()
    never = float(torch.stack([run.isnan().float().mean() for run in onsets]).mean())
    means = means[~means.isnan()]
    if not len(means):
        return OnsetInterval(float("nan"), float("nan"), float("nan"), never)
    draws = torch.randint(len(means), (n_bootstrap, len(means)), generator=torch.Generator().manual_seed(seed))
    low, high = means[draws].mean(dim=-1).quantile(torch.tensor([0.025, 0.975], dtype=means.dtype)).tolist()
    return OnsetInterval(float(means.mean()), low, high, never)
