"""Algorithm 1 of the paper, in the reduced and in the full model: stage 1 moves layer 0, stage 2 layer 1.

`two_stage` measures it, `generalization` and `structure_learning` use what it trains.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

import causal_circuits as cc

FIRST, SECOND = ("W_Q.0",), ("W_Q.1", "W_U")
SEED_STRIDE = 1_000_003  # stage 2 draws its batches with another seed than stage 1


@dataclass(frozen=True)
class Variant:
    """One way to run Algorithm 1."""

    name: str  # as tables show it
    reduced: bool  # the paper's reduced model; else the full disentangled transformer, one head a layer
    optimizer: str  # "sgd" is the paper's gradient descent
    beta0: float  # layer 1 in stage 1 (and, in the full model, the read-out) is beta0 times the identity


GRADIENT_DESCENT = Variant("reduced, gradient descent", reduced=True, optimizer="sgd", beta0=1.0)
REDUCED_ADAM = Variant("reduced, Adam", reduced=True, optimizer="adam", beta0=1.0)
FULL_ADAM = Variant("full, Adam", reduced=False, optimizer="adam", beta0=2.0)
VARIANTS = (GRADIENT_DESCENT, REDUCED_ADAM, FULL_ADAM)


def variant(name: str) -> Variant:
    return next(variant for variant in VARIANTS if variant.name == name)


def empty_model(variant: Variant, task: cc.Task) -> cc.models.HookedTransformer:
    """The untrained model, A1 = 0."""
    make = cc.reduced_transformer if variant.reduced else cc.disentangled_transformer
    return make(task.d_vocab, task.n_ctx)


def first_stage(variant: Variant, task: cc.Task, steps: int) -> cc.Stage:
    """Layer 0's attention alone.

    Gradient descent takes the step size .3 d_vocab n_ctx^2 / beta0: minus the gradient of A1's last row is
    beta0 / (d_vocab n_ctx^2) times a chi-squared information at the start, so a step moves a score by .3 of that.
    """
    if variant.optimizer == "adam":
        return cc.Stage(steps, 0.3, train=FIRST)
    return cc.Stage(steps, 0.3 * task.d_vocab * task.n_ctx**2 / variant.beta0, train=FIRST, optimizer="sgd")


def second_stage(variant: Variant, steps: int) -> cc.Stage:
    """Layer 1 alone: A2, and in the full model the read-out, which the reduced model does not have."""
    train = SECOND[:1] if variant.reduced else SECOND
    if variant.optimizer == "adam":
        return cc.Stage(steps, 0.1 if variant.reduced else 0.03, train=train, schedule="cosine")
    return cc.Stage(steps, 4.0, train=train, optimizer="sgd")


def run_stage(
    number: Literal[1, 2],
    variant: Variant,
    model: cc.models.HookedTransformer,
    task: cc.Task,
    steps: int,
    *,
    batch_size: int,
    seed: int,
    record_steps: Sequence[int] = (),
) -> cc.TrainingRecord:
    """Train one stage in place: the first from `beta0`, the second from where the first ended."""
    stage = first_stage(variant, task, steps) if number == 1 else second_stage(variant, steps)
    beta0, seed = (variant.beta0, seed) if number == 1 else (None, seed + SEED_STRIDE)
    config = cc.TrainConfig((stage,), batch_size=batch_size, warm_start=beta0, seed=seed)
    record = cc.RecordAt(steps=tuple(record_steps), score_gradients=False)
    return cc.train(model, task, config, record=record, progress=False)


def match_strength(model: cc.models.HookedTransformer) -> float:
    """Mean diagonal minus mean off-diagonal entry of a reduced model's A2: how much more a matching token scores."""
    d_vocab = model.cfg.d_vocab
    a2 = model.blocks[1].attn.W_Q[0, cc.models.slots(model)["token"].slice, :d_vocab].detach().double()
    diagonal = float(a2.trace())
    return diagonal / d_vocab - (float(a2.sum()) - diagonal) / (d_vocab * (d_vocab - 1))


def has_every_token(tokens: torch.Tensor, d_vocab: int) -> torch.Tensor:
    """For each context (query included) whether every token occurs: where one does not, the reduced model says 0."""
    return torch.stack([(tokens == token).any(dim=1) for token in range(d_vocab)]).all(dim=0)
