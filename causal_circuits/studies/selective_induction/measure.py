"""One architecture from one seed: its loss between Bayes and all lags alike, its patterns, when its layers form."""

from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

import causal_circuits as cc
from causal_circuits.studies.selective_induction.compared import (
    GIVEN,
    ORDINARY,
    PLANTED,
    SELECTIVE,
    mechanism_blocks,
    n_residues,
    new_model,
    planted,
)

Row = dict[str, Any]
N_TEST = 2048
WEAK = 1.0  # of the planted weights that select, where gradients are taken: larger ones saturate layer 2
# Learning rate of Adam and scale of the initial weights, chosen on seeds 100 to 104.
RECIPES = {"blocks": (0.1, 0.05), "disentangled": (0.02, 0.02), "ordinary": (0.005, 0.0)}


def measure_planted(seed: int, lags: list[int], d_vocab: int, n_ctx: int) -> Row:
    """The circuit written by hand, its loss, and the gradient at each layer while that layer alone is empty."""
    task = cc.tasks.LagTask(n_ctx, d_vocab, tuple(lags), matrix_seed=seed)
    test, model = task.sample(N_TEST, seed=(seed, 7)), planted(task)
    scale = references(task, test)
    return {
        "architecture": PLANTED,
        "seed": seed,
        "share": scale(float(cc.evaluate(model, test).mean())),
        **{name: scale(loss) for name, loss in predictor_losses(task, test).items()},
        "patterns": patterns(model, task, seed),
        **first_gradients(task, test),
    }


def measure_training(
    architecture: str, seed: int, lags: list[int], d_vocab: int, n_ctx: int, steps: int, batch_size: int, progress: bool
) -> Row:
    """One training; of the mechanism's blocks also when each layer formed, and what is lost without each head."""
    task = cc.tasks.LagTask(n_ctx, d_vocab, tuple(lags), matrix_seed=seed)
    test = task.sample(N_TEST, seed=(seed, 7))
    kind = {SELECTIVE: "blocks", GIVEN: "blocks"}.get(
        architecture, "ordinary" if architecture in ORDINARY else "disentangled"
    )
    rate, scale = RECIPES[kind]
    blocks = mechanism_blocks(n_residues(lags)) if kind == "blocks" else None
    model = new_model(architecture, task, scale, blocks, seed)
    config = cc.TrainConfig.joint(steps, rate, batch_size=batch_size, seed=seed, blocks=blocks)
    states: list[Row] = []
    watch = partial(watch_layers, states=states, task=task, seed=seed)
    watched = architecture == SELECTIVE
    given = {1: cc.mean_attention(planted(task), test.tokens[:8])[1]} if architecture == GIVEN else {}
    at = cc.RecordAt(steps=moments(steps) if watched else (steps,), attention=False, score_gradients=False)
    on_record = watch if watched else None
    cc.train(model, task, config, record=at, on_record=on_record, progress=progress, attention=given)
    share = references(task, test)
    with cc.training.clamped_attention(model, given):
        loss = float(cc.evaluate(model, test).mean())
    row = {"architecture": architecture, "seed": seed, "share": share(loss)}
    if not watched:
        return row
    heads = cc.models.live_heads(model)
    cuts = {f"layer {layer}": [head for head in heads if head[0] == layer] for layer in range(3)}
    cuts |= {f"L1H{head}": [(1, head)] for layer, head in heads if layer == 1}
    without = {name: share(cc.ablate_heads(model, test, cut).loss) for name, cut in cuts.items()}
    onsets = {name: onset(states, name) for name in states[0] if name != "step"}
    return {**row, "without": without, "states": states, "onsets": onsets, "patterns": patterns(model, task, seed)}


def first_gradients(task: cc.tasks.LagTask, test: cc.Batch) -> Row:
    """Minus the gradient in one layer's scores while that layer alone is empty: does it point at the mechanism?

    Layer 0: its correlation with log P in the weights between tokens; summed by distance too, which tells a distance
    from others by its residue alone. Layer 1: does each head's favour the positions of its residue. Layer 2: does it
    favour the candidates.
    """
    model, n, m, found = planted(task, selecting=WEAK), task.n_ctx, n_residues(task.lags), {}
    for layer in range(3):
        kept = model.W_Q[layer].clone()
        model.blocks[layer].attn.W_Q.data.zero_()
        found[layer] = cc.training.take_snapshot(model, test).score_gradients[layer]  # type: ignore[index]
        if layer == 0:
            cc.training.gradient_step(model, test)
            tokens = -model.blocks[0].attn.W_Q.grad[0, : task.d_vocab, : task.d_vocab].T.double().numpy()
        model.blocks[layer].attn.W_Q.data.copy_(kept)
    by_distance = torch.stack([found[0][0].diagonal(-distance).sum() for distance in range(n)])
    summed = torch.arange(max(task.lags), n)
    last = [found[1][head, -1, summed] for head in range(m)]
    return {
        "gradient layer 0 with log P": float(np.corrcoef(tokens.ravel(), np.log(task.matrix).ravel())[0, 1]),
        "gradient layer 1 at residues": all(
            bool(row[summed % m == head].mean() > row[summed % m != head].mean()) for head, row in enumerate(last)
        ),
        "gradient layer 2 at the candidates": set(found[2][0, -1].topk(len(task.lags)).indices.tolist())
        == {n - lag for lag in task.lags},
        "gradient by distance": by_distance.tolist(),
    }


def predictor_losses(task: cc.tasks.LagTask, test: cc.Batch) -> dict[str, float]:
    laws = task.predictors(test.tokens).items()
    return {name: float(cc.tasks.cross_entropy(law, test.target_probs).mean()) for name, law in laws}


def references(task: cc.tasks.LagTask, test: cc.Batch) -> Any:
    """Loss -> where it lies between exact Bayes (0) and the average over lags (1)."""
    losses = predictor_losses(task, test)
    return lambda loss: (loss - losses["Bayes"]) / (losses["lag average"] - losses["Bayes"])


def patterns(model: cc.models.HookedTransformer, task: cc.tasks.LagTask, seed: int) -> dict[str, Any]:
    """Layer 0's mean pattern, the last rows of layer 1's heads, and layer 2's last row in sequences of each lag."""
    of_lag = {lag: replace(task, lags=(lag,)).sample(512, seed=(seed, 8)).tokens for lag in task.lags}
    seen = {lag: cc.mean_attention(model, tokens) for lag, tokens in of_lag.items()}
    mean: Tensor = torch.stack(list(seen.values())).mean(dim=0)
    return {
        "layer 0": mean[0, 0],
        "layer 1": mean[1, : n_residues(task.lags), -1],
        "layer 2": torch.stack([attention[2, 0, -1] for attention in seen.values()]),
    }


def watch_layers(
    step: int, model: cc.models.HookedTransformer, states: list[Row], task: cc.tasks.LagTask, seed: int
) -> None:
    """How much of each layer's part is there, at a recorded step."""
    seen, m, lags = patterns(model, task, seed), n_residues(task.lags), task.lags
    rows = torch.arange(max(lags), task.n_ctx)
    shares = torch.stack([seen["layer 1"][:, rows[rows % m == r]].sum(dim=1) for r in range(m)], dim=1)
    states.append(
        {
            "step": step,
            "layer 0 at the lags": sum(float(seen["layer 0"][rows, rows - lag].mean()) for lag in lags),
            "layer 1 by residue": float((shares / shares.sum(dim=1, keepdim=True)).max(dim=0).values.mean()),
            "layer 2 at the parent": fmean(
                float(row[task.n_ctx - lag]) for lag, row in zip(lags, seen["layer 2"], strict=True)
            ),
        }
    )


def moments(steps: int) -> tuple[int, ...]:
    """Twenty steps, dense at the start."""
    return tuple(sorted({round(steps * (k / 20) ** 2) for k in range(21)}))


def onset(states: list[Row], name: str) -> int | None:
    """The first recorded step at which a quantity is half way from where it starts to where it ends."""
    middle = (states[0][name] + states[-1][name]) / 2
    return next((state["step"] for state in states if state[name] > middle), None)
