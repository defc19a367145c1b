"""Heads that start from matches, are trained, read, proved, and asked why an edge is missing."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

import causal_circuits as cc
from causal_circuits.statistics import auroc

NOISE = 2.0  # standard errors
Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A task and a training: the settings of every cell; `read`: whether the graph in the heads is asked for."""

    parents: Sequence[Sequence[int]]
    d_vocab: int
    alpha: float
    n_heads: Sequence[int]
    steps: int
    seed: int
    quick: bool
    read: bool

    @property
    def task(self) -> cc.InContextTask:
        return cc.InContextTask(cc.graph_from_parents(self.parents), d_vocab=self.d_vocab, alpha=self.alpha)

    @property
    def config(self) -> cc.TrainConfig:
        """Several heads start where matches point; a single head has no full match to start from."""
        if self.n_heads[0] > 1:
            return cc.TrainConfig.matched(self.steps, seed=self.seed)
        return cc.TrainConfig(stages=cc.training.default_stages(self.steps), seed=self.seed)

    def train(self, scratch: Path | None, **options: Any) -> tuple[cc.models.HookedTransformer, cc.TrainingRecord]:
        """A new model, trained; fewer heads than parents are wanted here."""
        sizes = (self.d_vocab, self.task.n_ctx, tuple(self.n_heads))
        alone = self.n_heads[0] == 1  # from zero, heads of layer 1 would stay equal
        model = cc.disentangled_transformer(*sizes, init_scale=0.01 if alone else 0.0, seed=self.seed)
        checkpoints = None if scratch is None else cc.Checkpoints(scratch)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*the graph cannot be learned whole")
            return model, cc.train(model, self.task, self.config, checkpoints=checkpoints, **options)

    @property
    def test(self) -> cc.Batch:
        return self.task.sample(4096 if self.quick else 16_384, seed=(self.seed, 2))

    @property
    def data(self) -> cc.Batch:
        return self.task.sample(8192 if self.quick else 20_000, seed=(self.seed, 4))


def measure_training(scratch: Path | None, progress: bool | None, **settings: Any) -> Row:
    """The test loss of one training; also the graph in its heads, if it is to be read."""
    setting = Setting(**settings)
    model, _ = setting.train(scratch, record=cc.RecordAt(steps=()), progress=progress)
    return loss_of(model, setting) | (read(model, setting) if setting.read else {})


def loss_of(model: cc.models.HookedTransformer, setting: Setting) -> Row:
    loss = float(cc.evaluate(model, setting.test).mean())
    return {"loss": loss, "excess": loss - setting.task.bayes_loss(setting.test)}


def read(model: cc.models.HookedTransformer, setting: Setting) -> Row:
    attention = cc.mean_attention(model, setting.test.tokens[:4096])[0, : setting.n_heads[0]]
    return {"found": cc.extract_graph(model, setting.task, batch=setting.data), "attention": attention}


def measure_heads(scratch: Path | None, progress: bool | None, **settings: Any) -> Row:
    setting = Setting(**settings)
    task, test = setting.task, setting.test
    model, record = setting.train(scratch, progress=progress)
    seen = read(model, setting)
    found, attention = seen["found"], seen["attention"]
    proof = task.sample(256 if setting.quick else 1024, seed=(setting.seed, 3))
    # Cutting an entry with less than 1% of its row's attention cannot cost much.
    in_use = (cc.mean_attention(model, proof.tokens)[0, : setting.n_heads[0]] >= 0.01).nonzero().tolist()
    cut = cc.knock_out_edges(model, proof, entries=[(h, q, k) for h, q, k in in_use]).effect
    return {
        **loss_of(model, setting),
        **seen,
        "model": model,
        "record": record,
        "references": cc.reference_losses(task, test, seed=setting.seed),
        "parents_known": cc.tasks.subset_losses(task, test),
        "without_graph": without_graph(task, test),
        "edges": count_edges(task, found),
        "missing": explain_missing(task, model, found, attention, test[:4096]),
        "cut": cut,
        "knock_out": [knock_out_row(head, cut[head.head]) for head in found.heads],
        "ablated": {
            f"L{layer}H{head}": cc.ablate_heads(model, proof, [(layer, head)], "mean")
            for layer, head in cc.models.live_heads(model)
        },
        "information": information_rows(task, setting.data),
    }


def count_edges(task: cc.InContextTask, found: cc.discovery.ExtractedGraph) -> Row:
    """Edges attended to and confirmed, inferred from the sequences only, and those of attention without any test."""
    true, alone = set(task.graph.edges), cc.compare_graphs(task.graph, found.from_attention)
    attended, inferred = set(found.edges), set(found.inferred)
    return {
        "edges": len(true),
        "recovered": len(true & (attended | inferred)),
        "exact": attended | inferred == true,
        "false_edges": len((attended | inferred) - true),
        "attended": len(true & attended),
        "inferred": len(true & inferred),
        "attention_alone": {"recovered": len(true) - len(alone.missing), "false_edges": len(alone.false)},
    }


def without_graph(task: cc.InContextTask, batch: cc.Batch) -> Row:
    """The best loss without any edge: the tokens of positions, counted; those with the target's parents are its draws.

    Such a position is a draw from the target's law itself, whatever the tokens: where there are some, a model needs no
    graph to predict. Pseudo-counts are calibrated, as in `cc.tasks.subset_loss`.
    """
    draws = [i for i in range(task.n_ctx) if cc.graphs.parents_of(task.graph, i) == task.target_parents]
    losses = [cc.tasks.subset_loss(task, batch, []), cc.tasks.best_unigram_loss(batch)]
    if draws:
        counts = torch.nn.functional.one_hot(batch.tokens[:, draws], task.d_vocab).sum(dim=1).double()
        smooth = [counts + pseudo for pseudo in cc.tasks.PSEUDO_COUNTS]
        losses += [
            float(cc.tasks.cross_entropy(c / c.sum(dim=1, keepdim=True), batch.target_probs).mean()) for c in smooth
        ]
    loss, posterior = min(losses), task.bayes_loss(batch)
    return {"loss": loss, "graph_is_worth": loss - posterior, "direct_draws": draws}


def knock_out_row(head: cc.discovery.HeadReport, cut: torch.Tensor) -> Row:
    """What cutting a head's own edges costs, and what cutting any other entry does."""
    effect = cut.nan_to_num(0.0).numpy()  # entries hardly in use were not cut
    own, visible = np.zeros(effect.shape, dtype=bool), np.tril(np.ones(effect.shape, dtype=bool))
    for parent, child in head.edges:
        own[min(child, len(own) - 1), parent] = True
    return {
        "head": f"L0H{head.head}",
        "role": head.role,
        "edges": int(own.sum()),
        "effect of its edges": fmean(effect[own].tolist()) if own.any() else float("nan"),
        "smallest": float(effect[own].min()) if own.any() else float("nan"),
        "effect of other entries": fmean(effect[visible & ~own].tolist()),
        "AUROC, own edges": auroc(effect[visible], own[visible]),
    }


def children(task: cc.InContextTask) -> dict[int, tuple[int, ...]]:
    """The positions with a row of their own that have as many parents as the target, with these."""
    above = {child: cc.graphs.parents_of(task.graph, child) for child in range(task.n_ctx - 1)}
    return {child: parents for child, parents in above.items() if len(parents) == len(task.target_parents)}


def information_rows(task: cc.InContextTask, data: cc.Batch) -> list[Row]:
    """For each parent number, how much of a draw from the target's law its match alone shows, and all matches do."""
    gains = task.d_vocab * torch.gather(data.target_probs, 1, data.tokens).double() - 1
    full = task.d_vocab * data.target_probs.square().sum(dim=1).double() - 1

    def share(child: int, keys: Sequence[int], target: Sequence[int]) -> float:
        held = (data.tokens[:, list(keys)] == data.tokens[:, list(target)]).all(dim=1)
        return float(gains[held, child].sum() / full[held].sum())

    rows: list[Row] = []
    for number, t in enumerate(task.target_parents):
        own = children(task)
        alone = [share(child, parents[number : number + 1], [t]) for child, parents in own.items()]
        whole = [share(child, parents, task.target_parents) for child, parents in own.items()]
        row = {"parent number": number + 1, "of the target": t, "edges": len(own)}
        nan = float("nan")
        rows.append(row | {"share alone": fmean(alone or [nan]), "share of all matches": fmean(whole or [nan])})
    return rows


def explain_missing(
    task: cc.InContextTask,
    model: cc.models.HookedTransformer,
    found: cc.discovery.ExtractedGraph,
    attention: torch.Tensor,
    batch: cc.Batch,
) -> list[Row]:
    """Why no head attends to a true edge; explained if the row is not needed for it, or has other work."""
    k, target = len(task.target_parents), task.n_ctx
    rows: list[Row] = []
    for parent, child in sorted(set(task.graph.edges) - set(found.edges)):
        above = cc.graphs.parents_of(task.graph, child)
        pattern = attention[:, min(child, target - 1)]
        change, error, kind = float("nan"), float("nan"), "not learned"
        if child == target:
            reason = "no head's last row attends to it"
        elif len(above) != k:
            kind = "another matrix"
            reason = f"its child has {len(above)} parents, the target {k}: their transition matrices are independent"
        elif child == target - 1:
            kind, reason = "no row", "its child is the last position, whose row has the target's parents to copy"
        elif parent == task.target_parents[above.index(parent)]:
            kind, reason = "not needed", "it is the target's parent too: its match always holds and tells nothing"
        else:
            change, error = loss_if_carried(task, model, found, child, batch)
            kind = kind_of_row(change, error, pattern, above)
            reason = f"attending to its row's parents changes the loss by {change:+.5f} +- {error:.5f} nats"
        row = {"parent": parent, "child": child, "attention": float(pattern[:, parent].max()), "kind": kind}
        row |= {"inferred": (parent, child) in found.inferred, "explained": kind != "not learned"}
        rows.append(row | {"loss_if_carried": change, "loss_error": error, "reason": f"{kind}: {reason}"})
    return rows


def kind_of_row(change: float, error: float, pattern: torch.Tensor, above: Sequence[int]) -> str:
    """What a row does that does not attend to its parents: a decoy attends elsewhere, and better for this model."""
    if change < -NOISE * error:
        return "not learned"
    weights, keys = pattern.max(dim=1)
    elsewhere = any(w >= 0.5 and key not in above for w, key in zip(weights.tolist(), keys.tolist(), strict=True))
    return "decoy" if elsewhere and change > NOISE * error else "not needed"


@torch.no_grad()
def loss_if_carried(
    task: cc.InContextTask,
    model: cc.models.HookedTransformer,
    found: cc.discovery.ExtractedGraph,
    child: int,
    batch: cc.Batch,
) -> tuple[float, float]:
    """How much the loss changes when a row attends to its true parents, each by the head that has its t; its error."""
    above = dict(zip(task.target_parents, cc.graphs.parents_of(task.graph, child), strict=True))
    heads = {head.head: above[head.last_key] for head in found.heads if head.last_key in above}

    def carry(pattern: torch.Tensor, hook: object) -> torch.Tensor:
        pattern = pattern.clone()
        for head, parent in heads.items():
            pattern[:, head, child] = 0.0
            pattern[:, head, child, parent] = 1.0
        return pattern

    before = cc.evaluate(model, batch)
    with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", carry)]):
        change = cc.evaluate(model, batch) - before
    return float(change.mean()), cc.interventions.standard_error(change)
