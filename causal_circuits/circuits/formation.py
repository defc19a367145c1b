"""When each edge of the graph begins to matter, as a model is trained.

Three clocks that need not agree: *attention* shows an edge when its weight has grown; the edge *matters* when cutting
it moves the prediction and cutting other entries of its row does not; its *information* says how hard the gradient
pulls at it. An onset is the first recorded step from which a curve stays half-way from its first to its last value.

Cuts are judged by the divergence, not the loss: early predictions are bad and any help counts much, so by the loss
every edge is of use from the first step (a forest, d_vocab 3: 3 to 19 thousandths of a nat at the warm start, 1 to 17
after training). And by their share of the row, because all divergences grow as the read-out sharpens, long after.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.counterfactuals import Counterfactual
from causal_circuits.circuits.evaluate import circuit_model
from causal_circuits.circuits.graph import Edge, circuit_edges, circuit_graph
from causal_circuits.circuits.ground_truth import GraphScores, score_against_graph
from causal_circuits.circuits.onsets import onset
from causal_circuits.display import Frame, Result, frame
from causal_circuits.graphs import attention_cells
from causal_circuits.information import chi_squared_information, through_softmax
from causal_circuits.interventions import KnockOut, knock_out_edges
from causal_circuits.models import HookedTransformer
from causal_circuits.recording import RecordAt, TrainingRecord
from causal_circuits.statistics import rank_correlation
from causal_circuits.tasks import Batch, InContextTask
from causal_circuits.training import TrainConfig, train


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class CircuitFormation(Result):
    """What every edge did at every recorded step.

    Attributes:
        steps: recorded steps.
        cells: (query_pos, key_pos) = (child, parent) of each edge of the latent graph.
        information: [cell]; chi-squared mutual information of child and parent, which theory says is the gradient by
            attention weights; in a stationary forest the same for all edges, NaN where positions
            have several parents.
        pull: [cell]; that through the softmax of uniform attention: the gradient by the score, large in short rows.
        attention: [step, cell]; mean weight on it, the largest over heads.
        effect: [step, cell]; how far the prediction moves when it is cut (KL, nats), the largest over heads.
        standard_error: [step, cell]; of that effect.
        share: [step, cell]; that effect as a share of the effects of all entries of its row and head, each cut alone.
        circuit_edges: the edges between heads, and `circuit_effect`, [step, edge], the exact effect of cutting each
            (loss, nats).
        scores: the knock-out effects held to the graph, at each step.
        loss: [step]; on the batch that all this is measured on, nats.
        record: what training left.

    >>> task, config = cc.InContextTask(cc.chain_graph(6), d_vocab=3), cc.TrainConfig.joint(4, batch_size=64)
    >>> found = watch_formation(cc.disentangled_transformer(3, 6), task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> found.cells, tuple(found.attention.shape)
    (((1, 0), (2, 1), (3, 2), (4, 3)), (2, 4))
    """

    steps: tuple[int, ...]
    cells: tuple[tuple[int, int], ...]
    information: Float[Tensor, " cell"]
    pull: Float[Tensor, " cell"]
    attention: Float[Tensor, "step cell"]
    effect: Float[Tensor, "step cell"]
    standard_error: Float[Tensor, "step cell"]
    share: Float[Tensor, "step cell"]
    circuit_edges: tuple[Edge, ...]
    circuit_effect: Float[Tensor, "step edge"]
    scores: tuple[GraphScores, ...]
    loss: Float[Tensor, " step"]
    record: TrainingRecord

    def to_frame(self) -> Frame:
        """A row an edge of the graph: what pulls on it, when it formed, and what it is worth at the end."""
        columns = {
            "parent": [parent for _, parent in self.cells],
            "child": [child for child, _ in self.cells],
            "pull": self.pull.numpy(),
            "attention_onset": self.attention_onset.numpy(),
            "causal_onset": self.causal_onset.numpy(),
            "attention": self.attention[-1].numpy(),
            "effect": self.effect[-1].numpy(),
        }
        return frame(columns)

    @property
    def attention_onset(self) -> Float[Tensor, " cell"]:
        """The step at which attention shows each edge; NaN if it never does."""
        return onset(self.steps, self.attention)

    @property
    def causal_onset(self) -> Float[Tensor, " cell"]:
        """When each edge begins to matter, by its share; NaN if it ends without an effect three errors above zero."""
        found = onset(self.steps, self.share)
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
        return rank_correlation(self.pull[formed].numpy(), -late[formed].numpy())


@check_arguments
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
) -> CircuitFormation:
    """Train a model and measure every edge at every recorded step, on the same sequences each time.

    Args:
        model: disentangled, two layers or more; trained in place.
        task: its graph has an edge.
        config, progress: as in `train`.
        record: when; the default is twelve steps, dense at the start.
        batch: what to measure on; the default is 1,024 sequences drawn from (seed, 4).
        counterfactual: of the edges between heads.
        seed: of that batch and of the counterfactual.

    >>> task, config = cc.InContextTask(cc.chain_graph(6), d_vocab=3), cc.TrainConfig.joint(4, batch_size=64)
    >>> found = watch_formation(cc.disentangled_transformer(3, 6), task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> found.steps, bool((found.effect[-1] >= 0).all())
    ((0, 4), True)
    """
    cells = tuple(attention_cells(task.graph))
    if not cells:
        raise ValueError("the graph has no edge between context positions: there is nothing whose onset could be seen")
    batch = task.sample(1024, seed=(seed, 4)) if batch is None else batch
    states: list[dict[str, Any]] = []

    def measure(step: int, model: HookedTransformer) -> None:
        cut = knock_out_edges(model, batch, metric="kl_to_model")
        whole = circuit_model(model, batch, counterfactual=counterfactual, seed=seed)
        of_circuits = {"circuit_effect": whole.effects(), "loss": torch.tensor(whole.mean_cost(whole.full))}
        states.append({"steps": step, **_of_entries(cut, task), **of_circuits})

    left = train(model, task, config, record=record, progress=progress, on_record=measure)
    query, key = torch.tensor(cells).T
    alone = max(task.in_degrees) == 1
    information = chi_squared_information(task).value if alone else torch.full((task.n_ctx,) * 2, torch.nan)
    return CircuitFormation(
        cells=cells,
        information=information[query, key],
        pull=through_softmax(information)[query, key],
        circuit_edges=tuple(circuit_edges(circuit_graph(model))),
        record=left,
        **_joined(states),
    )


def _of_entries(cut: KnockOut, task: InContextTask) -> dict[str, Any]:
    """What one step's knock-outs say of each edge of the latent graph, by the head where its effect is largest."""
    query, key = torch.tensor(attention_cells(task.graph)).T
    best = cut.effect.argmax(dim=0)[query, key]
    effect = cut.effect[best, query, key]
    rows = cut.effect.nan_to_num().clamp(min=0).sum(dim=-1)[best, query]
    return {
        "attention": cut.attention[:, query, key].amax(dim=0),
        "effect": effect,
        "standard_error": cut.standard_error[best, query, key],
        "share": effect.clamp(min=0) / rows.clamp(min=1e-12),
        "scores": score_against_graph(cut.effect, task.graph),
    }


def _joined(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tensors of all steps stacked, anything else as a tuple."""
    columns = {name: [state[name] for state in states] for name in states[0]}
    return {name: torch.stack(of) if isinstance(of[0], Tensor) else tuple(of) for name, of in columns.items()}
