"""One step and its measurements: the gradient by the fastest path that honours every hook, the loss, a snapshot."""

from collections.abc import Sequence

import torch
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.models import HookedTransformer, check_forward, log_probs
from causal_circuits.models.fused import can_fuse, fused_step
from causal_circuits.models.layout import has_layout
from causal_circuits.models.structured import autograd_step, choose_forward, usable_for_gradients
from causal_circuits.recording import RecordAt, Snapshot, watch_attention
from causal_circuits.tasks import Batch
from causal_circuits.tasks.base import Seed
from causal_circuits.tasks.batch import chunks
from causal_circuits.training.recipe import SCHEDULES, Stage, TrainConfig

# Ends the seed of every training stream: a test set drawn with sample(seed=0) is not the first batch of a run.
TRAINING_STREAM = 2402_14735
MATCH_STREAM = 2402_14736  # and of the sequences that `match_start` looks at


@check_arguments
def gradient_step(model: HookedTransformer, batch: Batch) -> float:
    """Set the gradient of the mean loss on a batch, by the fastest path that honours every hook; return the loss.

    >>> loss = cc.training.gradient_step(model, batch)
    >>> abs(loss - float(cc.evaluate(model, batch).mean())) < 1e-5, model.W_U.grad.shape == model.W_U.shape
    (True, True)
    """
    if can_fuse(model) and not batch.every_position:
        return fused_step(model, batch.tokens, batch.target_probs)
    return autograd_step(model, batch, choose_forward(model, batch.every_position))


@check_arguments
def mean_loss(model: HookedTransformer, batch: Batch) -> Tensor:
    """Mean soft-label cross-entropy, nats; a scalar that can be differentiated.

    At the last position, or over all positions where the batch has targets after every one.

    >>> mean = cc.training.mean_loss(model, batch)
    >>> abs(float(mean.detach()) - float(cc.evaluate(model, batch).mean())) < 1e-5
    True
    """
    return -(batch.target_probs * log_probs(model, batch.tokens, batch.every_position)).sum(dim=-1).mean()


@check_arguments
@torch.no_grad()
def evaluate(model: HookedTransformer, batch: Batch) -> Tensor:
    """The loss of every sequence of a batch, float64 [batch], nats.

    Of the last position, or the mean over positions where the batch has targets after every one.

    Raises:
        ValueError: tokens or targets that are none of the model's vocabulary, or no probabilities.

    >>> losses = cc.evaluate(model, batch)
    >>> losses.dtype, len(losses), float(losses.mean()) < cc.tasks.best_unigram_loss(batch)
    (torch.float64, 64, True)
    """
    batch.check(model.cfg.d_vocab, d_vocab_out=model.cfg.d_vocab_out, every_position=None)
    batch = batch.to(model.W_U.device, model.W_U.dtype)
    pieces = [batch[rows] for rows in chunks(len(batch))]
    check_forward(model, batch.tokens, each_alone=len(pieces) > 1)
    losses = [
        -(piece.target_probs * log_probs(model, piece.tokens, piece.every_position)).sum(dim=-1) for piece in pieces
    ]
    return torch.cat([loss.double().reshape(len(loss), -1).mean(dim=1) for loss in losses]).cpu()


@check_arguments
def take_snapshot(model: HookedTransformer, batch: Batch, step: int = 0, record: RecordAt | None = None) -> Snapshot:
    """Attention and its gradients on one batch by hooks; a pass of its own, so it does not touch the training.

    The parameters' gradients, if they have any, stay as they are.

    >>> cc.training.take_snapshot(model, batch, record=cc.RecordAt(score_gradients=False)).score_gradients is None
    True
    """
    record = record or RecordAt()
    frozen = [block.attn.W_Q for block in model.blocks if not block.attn.W_Q.requires_grad]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    try:
        for parameter in frozen:  # a frozen layer's scores have gradients too
            parameter.requires_grad_(True)
        with torch.inference_mode(False), torch.enable_grad(), watch_attention(model, record.layers) as watched:
            loss = mean_loss(model, usable_for_gradients(batch))
            if (record.score_gradients or record.weight_gradients) and loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for parameter, gradient in gradients:
            parameter.grad = gradient
    return Snapshot(
        step=step,
        loss=float(loss.detach()),
        attention=watched.attention().cpu() if record.attention else None,
        score_gradients=watched.score_gradients().cpu() if record.score_gradients else None,
        weight_gradients=watched.weight_gradients().cpu() if record.weight_gradients else None,
        layers=tuple(sorted(watched.patterns)),
    )


@check_arguments
def trainable_parameters(model: HookedTransformer) -> dict[str, torch.nn.Parameter]:
    """What can be trained, under the names that a Stage uses: "W_Q.0", "W_Q.1", ..., "W_U".

    Of an ordinary transformer, every parameter under its own name.

    >>> list(trainable_parameters(cc.disentangled_transformer(3, 6)))
    ['W_Q.0', 'W_Q.1', 'W_U']
    """
    if not has_layout(model):
        return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    named = {f"W_Q.{layer}": block.attn.W_Q for layer, block in enumerate(model.blocks)}
    named["W_U"] = model.unembed.W_U
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}


def training_seed(config: TrainConfig) -> Seed:
    """The seed of a run's stream of sequences."""
    return config.seed, TRAINING_STREAM


def stage_at(stages: Sequence[Stage], step: int) -> tuple[Stage, int, float]:
    """The stage of a step, how many of its steps are done, and its learning rate now."""
    done = step
    for stage in stages:
        if done < stage.steps:
            return stage, done, stage.learning_rate * SCHEDULES[stage.schedule](done / stage.steps)
        done -= stage.steps
    raise ValueError(f"the stages have {step - done} steps: got step {step}")
