"""The job of `induction_head.py` and `causal_graph.py`: train, recover the graph, detect the heads, prove the circuit.

Not a script. `run` is the job, in order; `Findings` is what it found.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

import causal_circuits as cc

N_TEST = 16_384
N_PROOF = 1_024
N_GRADIENT = 8_192
N_INFORMATION = 20_000
BETA_0 = 0.1  # layer 2's scale in the reduced model whose first gradient is compared with theory, to first order in it


@dataclass
class Findings:
    """Everything that one run found out."""

    task: cc.InContextTask
    config: cc.TrainConfig
    model: object
    record: cc.TrainingRecord
    health: cc.TrainingHealth
    references: cc.ReferenceLosses
    test_loss: float
    found: cc.ExtractedGraph
    recovery: cc.GraphRecovery
    by_attention: cc.GraphRecovery
    attention: torch.Tensor
    heads: list[cc.HeadScores]
    ablations: list[tuple[str, cc.AblationResult]]
    knock_out: cc.KnockOut
    information: cc.Information
    first_gradient: torch.Tensor
    examples: cc.Batch
    film: cc.SequenceAttention
    phases: cc.PredictorDistances
    seed: int
    seconds: float = 0.0

    @property
    def start(self) -> str:
        """What the model held before the first step."""
        scale = self.config.warm_start
        if scale is None:
            return "from zero, nothing written in"
        return f"from a warm start: layer 2's match and the read-out were written in, {scale:g} times the identity"

    @property
    def parent_attention(self) -> list[float]:
        """Mean attention on each true edge: the largest over the heads of layer 0."""
        return [float(self.attention[0, :, child, parent].max()) for parent, child in self.context_edges]

    @property
    def context_edges(self) -> list[tuple[int, int]]:
        """True edges inside the context."""
        return sorted(cc.latent_edges(self.task.graph), key=lambda edge: edge[1])

    @property
    def n_recovered(self) -> int:
        """True edges that were found, by attention and the test for information."""
        return len(self.context_edges) - len(self.recovery.missing)

    @property
    def n_by_attention(self) -> int:
        """True edges among those that attention alone gives."""
        return len(self.context_edges) - len(self.by_attention.missing)

    @property
    def effects(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Knock-out effects of true edges, and of all other causal entries outside the query's row."""
        effect = self.knock_out.effect.amax(dim=0)
        is_edge = cc.parent_mask(self.task)
        causal = torch.ones_like(is_edge).tril()
        causal[-1] = False
        return effect[is_edge & causal], effect[causal & ~is_edge]

    def auroc(self, children_only: bool = False) -> float:
        """How well knock-out effects tell true edges from other entries."""
        return cc.edge_auroc(self.knock_out.effect.amax(dim=0), self.task.graph, children_only=children_only)


def run(task: cc.InContextTask, config: cc.TrainConfig, quiet: bool, kept: Path | None = None) -> Findings:
    """Train, recover, detect, prove, all from the seed of `config`; `kept` is where an interrupted run goes on from."""
    say = (lambda text: None) if quiet else (lambda text: print(text, file=sys.stderr, flush=True))
    seed = config.seed
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, n_heads=(1, 1))

    say(f"{task!r}\n1/5  the gradient before training, and the information that is its limit in long contexts")
    information = cc.predicted_gradient(task, seed=seed)
    untrained = cc.warm_start(cc.reduced_transformer(task.d_vocab, task.n_ctx), BETA_0)
    before = cc.take_snapshot(untrained, task.sample(N_GRADIENT, seed=(seed, 1)))

    say(f"2/5  training, {config.steps} steps of {config.batch_size} sequences")
    test = task.sample(N_TEST, seed=(seed, 2))
    examples = telling_examples(task, test[:512])
    film = cc.SequenceFilm(examples.tokens[0], folder=kept and kept / "film")
    phases = cc.PredictorFilm(
        test[:N_PROOF], cc.named_predictors(task, test[:N_PROOF]), folder=kept and kept / "phases"
    )

    def watch(step: int, model: object) -> None:
        film(step, model)
        phases(step, model)

    checkpoints = None if kept is None else cc.Checkpoints(kept)
    record = cc.train(model, task, config, progress=False if quiet else None, on_record=watch, checkpoints=checkpoints)

    say("3/5  test loss and the lines to read it against")
    test_loss = float(cc.evaluate(model, test).mean())
    references = cc.reference_losses(task, test, seed=seed)

    say("4/5  the graph in layer 1's attention, its roots by information, and what each head does")
    found = cc.extract_graph(model, task, n_sequences=N_INFORMATION, seed=seed + 1)
    heads = cc.detect_induction_heads(model, task, seed=seed + 1)

    say("5/5  the proof: ablate every head, cut every attention entry")
    proof = task.sample(N_PROOF, seed=(seed, 3))
    ablations = [
        (f"L{layer}H{head}", cc.ablate_heads(model, proof, [(layer, head)], method, seed=seed))
        for layer, head in cc.live_heads(model)
        for method in cc.ABLATION_METHODS
    ]
    return Findings(
        task=task,
        config=config,
        model=model,
        record=record,
        health=cc.training_health(record, task, model),
        references=references,
        test_loss=test_loss,
        found=found,
        recovery=cc.compare_graphs(task.graph, found),
        by_attention=cc.compare_graphs(task.graph, found.from_attention),
        attention=cc.mean_attention(model, test.tokens[:4096]),
        heads=heads,
        ablations=ablations,
        knock_out=cc.knock_out_edges(model, proof),
        information=information,
        first_gradient=before.score_gradients[0, 0],
        examples=examples,
        film=film.result(record.steps),
        phases=phases.result(record.steps),
        seed=seed,
    )


def telling_examples(task: cc.InContextTask, batch: cc.Batch, n: int = 3) -> cc.Batch:
    """The first sequences in which induction has something to find: two matches or more, most tokens in use."""
    matches = cc.induction_mask(task, batch.tokens)[:, -1].sum(dim=1)
    distinct = torch.tensor([len(set(tokens)) for tokens in batch.tokens.tolist()])
    telling = (matches >= 2) & (distinct > task.d_vocab // 2)
    order = torch.argsort(telling.int(), descending=True, stable=True)
    return batch[order[:n]]


def share_of_gain(findings: Findings, result: cc.AblationResult) -> float:
    """Loss increase over gain, gain = best unigram minus the model's test loss; NaN if the model gained nothing."""
    gain = findings.references.best_unigram - findings.test_loss
    return result.share_of_gain_lost(result.baseline_loss + gain)
