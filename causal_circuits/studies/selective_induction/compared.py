"""The architectures that are compared: two layers, three, ordinary ones, and three layers written by hand."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

import causal_circuits as cc

Blocks = dict[str, list[tuple[str, ...]]]
SELECTIVE, DEEP, PLANTED = "three layers, mechanism's blocks", "three layers", "planted"
GIVEN = "three layers, blocks, layer 1 given"
ORDINARY = {"ordinary, two layers": 2, "ordinary, three layers": 3}
APART = 10.0  # initial weights of layer 1 are so many times as large, and sum to zero over heads


def architectures(lags: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Name -> heads of each layer: all of two layers with one head or as many as lags, and of three the paper's."""
    k = n_residues(lags)
    two = {f"two layers, {a} and {b} heads": (a, b) for a in (1, k) for b in (1, k)}
    return {**two, DEEP: (1, k, 1), SELECTIVE: (1, k, 1), GIVEN: (1, k, 1)}


def n_residues(lags: Sequence[int]) -> int:
    """The smallest m for which the lags differ modulo m: so many heads of layer 1 tell their candidates apart."""
    return next(m for m in range(len(set(lags)), max(lags) + 2) if len({lag % m for lag in lags}) == len(set(lags)))


def new_model(
    architecture: str, task: cc.tasks.LagTask, scale: float, blocks: Blocks | None, seed: int
) -> cc.models.HookedTransformer:
    """The architecture with small random weights: from zero, heads of one layer would stay alike."""
    if architecture in ORDINARY:
        return cc.models.ordinary_transformer(
            task.d_vocab,
            task.n_ctx,
            d_model=32,
            d_head=16,
            d_mlp=0,
            n_layers=ORDINARY[architecture],
            n_heads=n_residues(task.lags),
            seed=seed,
        )
    heads = architectures(task.lags)[architecture]
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, heads, init_scale=scale, seed=seed)
    for name, mask in cc.training.block_masks(model, blocks or {}).items():
        cc.training.trainable_parameters(model)[name].data *= mask
    if blocks:  # heads of layer 1 start apart: two that start alike settle on the same residue and cover half of it
        layer_1 = model.blocks[1].attn.W_Q.data
        layer_1.copy_(APART * (layer_1 - layer_1.mean(dim=0)))
    return model


def mechanism_blocks(n_heads: int) -> Blocks:
    """The blocks of weights through which the three layers select a lag."""
    means = [(f"L1H{head}.L0H0.position", "position") for head in range(n_heads)]
    return {
        "W_Q.0": [("token", "token"), ("position", "position")],
        "W_Q.1": [("position", "position")],
        "W_Q.2": [("position", "position"), *means],
        "W_U": [("L2H0.token",)],
    }


@torch.no_grad()
def planted(task: cc.tasks.LagTask, looking: float = 20.0, selecting: float = 100.0) -> cc.models.HookedTransformer:
    """Three layers that select a lag.

    Layer 0, position i: attention to i - k is the share of lag k in the likelihood of token i. Layer 1, head r, last
    position: the mean of these rows over positions i of residue r; what it copies at position p belongs to the lag k
    with p = r - k modulo m. Layer 2 adds them up for each lag, attends to n_ctx - k, and W_U reads log P there.
    """
    n, m = task.n_ctx, n_residues(task.lags)
    model = cc.disentangled_transformer(task.d_vocab, n, (1, m, 1))
    log_matrix = torch.from_numpy(np.log(task.matrix)).float()
    block = partial(cc.models.attention_block, model)
    block(0, 0, "token", "token").copy_(log_matrix.T)
    for lag in task.lags:
        block(0, 0, "position", "position").diagonal(-lag).fill_(looking)
        block(2, 0, "position", "position")[n - 1, n - lag] = looking
    for head in range(m):
        summed = torch.arange(max(task.lags), n)
        block(1, head, "position", "position")[n - 1, summed[summed % m == head]] = looking
        for lag in task.lags:
            belongs = torch.arange(n) % m == (head - lag) % m
            block(2, 0, f"L1H{head}.L0H0.position", "position")[belongs, n - lag] = selecting
    model.unembed.W_U[cc.models.slots(model)["L2H0.token"].slice] = log_matrix
    return model
