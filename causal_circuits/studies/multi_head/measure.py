"""Heads that are trained one after the other, read, proved, and asked why an edge is missing."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

import causal_circuits as cc
from causal_circuits.statistics import auroc

NOISE = 2.0  # standard errors
Row = Mapping[str, Any]
Lift = cc.information.ConditionalInformation


@dataclass(frozen=True)
class Setting:
    """A task and a training: the settings of every cell; `read`: whether the graph in the heads is asked for."""

    parents: Sequence[Sequence[int]]
    d_vocab: int
    alpha: float
    n_heads: Sequence[int]
    steps: int
    settle: int
    seed: int
    quick: bool
    read: bool

    @property
    def task(self) -> cc.InContextTask:
        """The sequences of the graph."""
        return cc.InContextTask(cc.graph_from_parents(self.parents), d_vocab=self.d_vocab, alpha=self.alpha)

    def train(
        self, scratch: Path | None, **options: Any
    ) -> tuple[cc.models.HookedTransformer, cc.TrainingRecord, tuple[cc.training.Turn, ...]]:
        """A new model whose heads are put on duty one after the other; fewer heads than parents are wanted here."""
        model = cc.disentangled_transformer(self.d_vocab, self.task.n_ctx, tuple(self.n_heads))
        config = cc.training.TurnConfig(steps=self.steps, settle=self.settle, seed=self.seed)
        checkpoints = None if scratch is None else cc.Checkpoints(scratch)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*the graph cannot be learned whole")
            return model, *cc.training.train_in_turns(model, self.task, config, checkpoints=checkpoints, **options)

    @property
    def test(self) -> cc.Batch:
        """Test sequences."""
        return self.task.sample(4096 if self.quick else 16_384, seed=(self.seed, 2))

    @property
    def data(self) -> cc.Batch:
        """The sequences that the heads are read on."""
        return self.task.sample(8192, seed=(self.seed, 4))


def measure_training(scratch: Path | None, progress: bool | None, **settings: Any) -> Row:
    """The test loss of one training; also the graph in its heads, if it is to be read."""
    setting = Setting(**settings)
    model, _, turns = setting.train(scratch, record=cc.RecordAt(steps=()), progress=progress)
    loss = float(cc.evaluate(model, setting.test).mean())
    row: dict[str, Any] = {"loss": loss, "excess": loss - setting.task.bayes_loss(setting.test)}
    if setting.read:
        row |= {"found": cc.extract_graph(model, setting.task, batch=setting.data), "turn": turns[0]}
    return row


def measure_heads(scratch: Path | None, progress: bool | None, **settings: Any) -> Row:
    """Train, read, explain, prove."""
    setting = Setting(**settings)
    task, test, n_heads = setting.task, setting.test, setting.n_heads[0]
    model, record, turns = setting.train(scratch, progress=progress)
    found = cc.extract_graph(model, task, batch=setting.data)
    attention = cc.mean_attention(model, test.tokens[:4096])[0, :n_heads]
    alone, given = information_of_true_parents(task, setting.data)
    proof = task.sample(256 if setting.quick else 1024, seed=(setting.seed, 3))
    # Cutting an entry with less than 1% of its row's attention cannot cost much.
    in_use = (cc.mean_attention(model, proof.tokens)[0, :n_heads] >= 0.01).nonzero().tolist()
    references = cc.reference_losses(task, test, seed=setting.seed)
    loss = float(cc.evaluate(model, test).mean())
    cut = cc.knock_out_edges(model, proof, entries=[(h, q, k) for h, q, k in in_use]).effect
    recovery, n_edges = cc.compare_graphs(task.graph, found), task.graph.number_of_edges()
    return {
        "model": model,
        "record": record,
        "turns": turns,
        "references": references,
        "parents_known": cc.tasks.subset_losses(task, test),
        "loss": loss,
        "excess": loss - references.edge_posterior,
        "found": found,
        "edges": {
            "edges": n_edges,
            "recovered": n_edges - len(recovery.missing),
            "exact": recovery.exact,
            "false_edges": len(recovery.false),
        },
        "attention": attention,
        "missing": explain_missing(task, model, found, attention, alone, given, test[:4096]),
        "cut": cut,
        "knock_out": [knock_out_row(head, cut[head.head]) for head in found.heads],
        "ablated": {
            f"L{layer}H{head}": cc.ablate_heads(model, proof, [(layer, head)], "mean")
            for layer, head in cc.models.live_heads(model)
        },
        "information": information_rows(task, alone, given),
    }


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


def information_of_true_parents(task: cc.InContextTask, data: cc.Batch) -> tuple[Lift, list[Lift]]:
    """The lift of every pair alone, and for each parent number given the true parents of all others."""
    matches = []
    for number, t in enumerate(task.target_parents):  # what a head would copy that carries this number everywhere
        keys = {child: parents[number] for child, parents in children(task).items()}
        matches.append(cc.information.HeadKeys(t, tuple(keys.get(child, -1) for child in range(task.n_ctx))))
    others = [[], *([*matches[:number], *matches[number + 1 :]] for number in range(len(matches)))]
    alone, *given = (cc.information.conditional_information(data.tokens, data.target_probs, on) for on in others)
    return alone, given


def information_rows(task: cc.InContextTask, alone: Lift, given: Sequence[Lift]) -> list[Row]:
    """For each parent number, the mean lift over its edges: alone, and given the others."""
    rows: list[Row] = []
    for number, t in enumerate(task.target_parents):
        edges = [(child, parents[number]) for child, parents in children(task).items()]
        row: dict[str, Any] = {"parent number": number + 1, "of the target": t, "edges": len(edges)}
        for name, lift in (("lift alone", alone), ("lift given the others", given[number])):
            row[name] = fmean(float(lift.value[i, j, t]) for i, j in edges) if edges else float("nan")
        rows.append(row)
    return rows


def explain_missing(
    task: cc.InContextTask,
    model: cc.models.HookedTransformer,
    found: cc.discovery.ExtractedGraph,
    attention: torch.Tensor,
    alone: Lift,
    given: Sequence[Lift],
    batch: cc.Batch,
) -> list[Row]:
    """Why each true edge that no head carries is missing; explained if it tells nothing, or is of no use here."""
    k, target = len(task.target_parents), task.n_ctx
    rows: list[Row] = []
    for parent, child in sorted(set(task.graph.edges) - set(found.edges)):
        above = cc.graphs.parents_of(task.graph, child)
        number = above.index(parent)
        t = task.target_parents[min(number, k - 1)]
        weight = float(attention[:, min(child, target - 1), parent].max())
        lift, error, change, change_error, explained = *(float("nan"),) * 4, True
        if child != target:
            information = given[number] if len(above) == k else alone
            lift, error = (float(part[child, parent, t]) for part in (information.value, information.standard_error))
        if child == target:
            explained, reason = False, f"no row goes with position {parent}: see the rows of that parent number"
        elif len(above) != k:
            reason = (
                f"its child has {len(above)} parents, the target {k}: their transition matrices are independent, and "
                f"the lift that it has ({lift:.2f} +- {error:.2f}) is inherited"
            )
        elif parent == t:
            reason = "it is the target's parent too: its match always holds and tells nothing"
        elif lift < NOISE * error:
            reason = f"it tells nothing: lift {lift:.3f} +- {error:.3f}"
        elif child == target - 1:
            reason = "its child is the last position, whose row has the target's parents to copy"
        else:
            change, change_error = loss_if_carried(task, model, found, child, batch)
            explained = change > -NOISE * change_error
            use = "is of no use to the model as it is" if explained else "was not learned"
            reason = (
                f"attention {weight:.2f}; the row {use}: carrying its parents changes the loss by {change:+.5f} +- "
                f"{change_error:.5f} nats"
            )
        row = {"parent": parent, "child": child, "lift": lift, "lift_error": error, "attention": weight}
        rows.append(
            row | {"loss_if_carried": change, "loss_error": change_error, "explained": explained, "reason": reason}
        )
    return rows


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
    return float(change.mean()), float(change.std()) / len(change) ** 0.5
