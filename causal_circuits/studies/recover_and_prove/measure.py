"""The job, in order: the gradient before training, training, the graph, the heads, the proof."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import causal_circuits as cc

N_TEST = 16_384
N_PROOF = 1_024
N_GRADIENT = 8_192
N_INFORMATION = 20_000
BETA_0 = 0.1  # layer 1's scale in the reduced model whose first gradient is compared with theory, to first order in it


@dataclass(frozen=True)
class Findings:
    """Everything that one run found out, and what that is beside the truth."""

    task: cc.InContextTask
    warm_start: float | None
    model: cc.models.HookedTransformer
    record: cc.TrainingRecord
    health: cc.training.TrainingHealth
    references: cc.tasks.ReferenceLosses
    test_loss: float
    found: cc.discovery.ExtractedGraph
    attention: Tensor  # [layer, head_index, query_pos, key_pos], mean over test sequences
    heads: list[cc.heads.HeadScores]
    ablations: list[tuple[str, cc.interventions.AblationResult]]
    knock_out: cc.interventions.KnockOut
    information: cc.information.Information
    first_gradient: Tensor
    examples: list[cc.films.SequenceAttention]  # the first at every recorded step
    phases: cc.films.PredictorDistances

    @cached_property
    def edges(self) -> list[tuple[int, int]]:
        return sorted(cc.latent_edges(self.task.graph), key=lambda edge: edge[1])

    @cached_property
    def recovery(self) -> cc.graphs.GraphRecovery:
        return cc.compare_graphs(self.task.graph, self.found)

    @cached_property
    def by_attention(self) -> cc.graphs.GraphRecovery:
        return cc.compare_graphs(self.task.graph, self.found.from_attention)

    def count(self, recovery: cc.graphs.GraphRecovery) -> int:
        return len(self.edges) - len(recovery.missing)

    @cached_property
    def parent_attention(self) -> list[float]:
        """Mean attention on each true edge: the largest over the heads of layer 0."""
        return [float(self.attention[0, :, child, parent].max()) for parent, child in self.edges]

    @cached_property
    def effects(self) -> tuple[Tensor, Tensor]:
        """Knock-out effects of true edges, and of all other causal entries outside the query's row."""
        effect, is_edge = self.knock_out.effect.amax(dim=0), cc.heads.parent_mask(self.task)
        causal = torch.ones_like(is_edge).tril()
        causal[-1] = False
        return effect[is_edge & causal], effect[causal & ~is_edge]

    def auroc(self, children_only: bool = False) -> float:
        """How well knock-out effects tell true edges from other entries."""
        return cc.edge_auroc(self.knock_out.effect.amax(dim=0), self.task.graph, children_only=children_only)

    @property
    def excess(self) -> float:
        return self.test_loss - self.references.edge_posterior

    @cached_property
    def ablation_rows(self) -> list[dict[str, Any]]:
        """A row for each head and method; the gain is what the model has over the best unigram on the test set."""
        gain = self.references.best_unigram - self.test_loss
        return [
            {
                "what": what,
                "method": result.method,
                "loss": result.loss,
                "standard_error": result.standard_error,
                "share_of_gain_lost": result.share_of_gain_lost(result.baseline_loss + gain),
            }
            for what, result in self.ablations
        ]

    @property
    def start(self) -> str:
        if self.warm_start is None:
            return "from zero, nothing written in"
        written = "layer 1's match and the read-out were written in"
        return f"from a warm start: {written}, {self.warm_start:g} times the identity"


def measure(
    parents: Sequence[int | None],
    name: str,
    d_vocab: int,
    alpha: float,
    steps: int,
    warm_start: bool,
    seed: int,
    scratch: Path | None,
    progress: bool | None,
) -> Findings:
    graph = cc.graph_from_parents(parents)
    graph.graph["name"] = name
    task = cc.InContextTask(graph, d_vocab=d_vocab, alpha=alpha)
    stages = cc.TrainConfig(cc.training.default_stages(steps), seed=seed)
    config = cc.TrainConfig.warm(steps, seed=seed) if warm_start else stages
    model = cc.disentangled_transformer(d_vocab, task.n_ctx, n_heads=(1, 1))
    untrained = cc.models.warm_start(cc.reduced_transformer(d_vocab, task.n_ctx), BETA_0)
    before = cc.training.take_snapshot(untrained, task.sample(N_GRADIENT, seed=(seed, 1)))
    assert before.score_gradients is not None

    test, proof = task.sample(N_TEST, seed=(seed, 2)), task.sample(N_PROOF, seed=(seed, 3))
    examples = choose_examples(task, test[:512])
    film = cc.films.SequenceRecorder(examples.tokens[0], folder=scratch and scratch / "film")
    predictors = cc.films.named_predictors(task, test[:N_PROOF])
    phases = cc.films.PredictorRecorder(test[:N_PROOF], predictors, folder=scratch and scratch / "phases")

    def watch(step: int, model: cc.models.HookedTransformer) -> None:
        film(step, model)
        phases(step, model)

    checkpoints = None if scratch is None else cc.Checkpoints(scratch)
    record = cc.train(model, task, config, progress=progress, on_record=watch, checkpoints=checkpoints)
    rest = [cc.films.sequence_attention(model, tokens) for tokens in examples.tokens[1:]]
    return Findings(
        task=task,
        warm_start=config.warm_start,
        model=model,
        record=record,
        health=cc.training.training_health(record, task, model),
        references=cc.reference_losses(task, test, seed=seed),
        test_loss=float(cc.evaluate(model, test).mean()),
        found=cc.extract_graph(model, task, n_sequences=N_INFORMATION, seed=seed + 1),
        attention=cc.mean_attention(model, test.tokens[:4096]),
        heads=cc.detect_induction_heads(model, task, seed=seed + 1),
        ablations=[
            (f"L{layer}H{head}", cc.ablate_heads(model, proof, [(layer, head)], method, seed=seed))
            for layer, head in cc.models.live_heads(model)
            for method in cc.interventions.ABLATION_METHODS
        ],
        knock_out=cc.knock_out_edges(model, proof),
        information=cc.predicted_gradient(task, seed=seed),
        first_gradient=before.score_gradients[0, 0],
        examples=[film.result(record.steps), *rest],
        phases=phases.result(record.steps),
    )


def choose_examples(task: cc.InContextTask, batch: cc.Batch, n: int = 2) -> cc.Batch:
    """The first sequences in which induction has something to find: two matches or more, most tokens in use."""
    matches = cc.heads.induction_mask(task, batch.tokens)[:, -1].sum(dim=1)
    distinct = torch.tensor([len(set(tokens)) for tokens in batch.tokens.tolist()])
    telling = (matches >= 2) & (distinct > task.d_vocab // 2)
    return batch[torch.argsort(telling.int(), descending=True, stable=True)[:n]]
