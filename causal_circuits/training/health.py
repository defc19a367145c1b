"""Trainings that go wrong: a loss that is no number stops the run; one that rises or never falls is told afterwards."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from causal_circuits.arguments import check_arguments
from causal_circuits.recording import TrainingRecord

# A tenth of a run at each end is compared; shorter runs say nothing.
SHORTEST = 40
# A loss has moved when two tenths differ by this many standard errors and by this share of the loss.
CLEAR, SHARE = 5.0, 0.01


class DivergenceError(FloatingPointError):
    """The loss or a gradient of a training step is no longer a number.

    Attributes:
        step: at which it happened; so many optimiser steps were done before.
        member: of the ensemble; 0 where one model is trained.
        checkpoint: the step of the last good checkpoint (`restore_checkpoint` gives its weights to a model), or None.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.disentangled_transformer(3, 6)
    >>> config = cc.TrainConfig.joint(20, learning_rate=1e30, batch_size=8)
    >>> try:
    ...     cc.train(model, task, config)
    ... except cc.DivergenceError as error:
    ...     print(error.checkpoint is None, 0 < error.step < 20)
    True True
    """

    def __init__(self, message: str, step: int, member: int, checkpoint: int | None) -> None:
        super().__init__(message)
        self.step, self.member, self.checkpoint = step, member, checkpoint


@check_arguments
@dataclass(frozen=True)
class TrainingHealth:
    """What became of a training's loss.

    Attributes:
        verdict: "falls", "plateau" (it ends where it began), "diverges" (it ends above its start), "rises" (it ends
            clearly above its lowest tenth) or "too short" to tell.
        first, lowest, last: mean loss of the first tenth, of the lowest and of the last, nats.
        advice: what to try; empty where nothing is wrong.

    >>> import torch
    >>> from causal_circuits import TrainingRecord, training_health
    >>> falling = torch.linspace(2.0, 1.0, 200, dtype=torch.float64)
    >>> training_health(TrainingRecord(falling, (), falling[:0], attention=None, score_gradients=None)).verdict
    'falls'
    """

    verdict: Literal["falls", "plateau", "diverges", "rises", "too short"]
    first: float
    lowest: float
    last: float
    advice: str


ADVICE = {
    "falls": "",
    "too short": "",
    "plateau": "the loss never left its start: raise the learning rate, start from a warm layer 2 "
    "(TrainConfig(warm_start=4.0)), or train longer",
    "diverges": "the loss ends above its start: lower the learning rate (a third is a good first try), or give the "
    'last stage schedule="cosine"',
    "rises": "the loss fell and rose again: lower the learning rate of the stage in which it rose, or give that stage "
    'schedule="cosine"',
}


@check_arguments
def training_health(record: TrainingRecord) -> TrainingHealth:
    """Whether the loss fell, never left its plateau, or went up; and what to try.

    Means of tenths of the run are compared. A difference counts if it is five standard errors (of the batches' losses
    about their tenth's mean) and one per cent of the loss.

    >>> from causal_circuits import InContextTask, TrainConfig, chain_graph, disentangled_transformer, train
    >>> task, model = InContextTask(chain_graph(6), d_vocab=3), disentangled_transformer(3, 6)
    >>> idle = TrainConfig.joint(60, learning_rate=1e-9, batch_size=64, warm_start=None)
    >>> training_health(train(model, task, idle)).verdict
    'plateau'
    """
    losses = record.losses.numpy()
    if len(losses) < SHORTEST:
        ends = [float(part.mean()) for part in (losses[:1], losses, losses[-1:])] if len(losses) else [0.0] * 3
        return TrainingHealth("too short", ends[0], min(ends), ends[2], "")
    tenths = np.array_split(losses, 10)
    means = np.array([tenth.mean() for tenth in tenths])
    spread = np.array([tenth.std(ddof=1) / len(tenth) ** 0.5 for tenth in tenths])
    low = int(means.argmin())

    def above(a: int, b: int) -> bool:
        return bool(means[a] - means[b] > max(CLEAR * np.hypot(spread[a], spread[b]), SHARE * abs(means[b])))

    verdict: Literal["falls", "plateau", "diverges", "rises"]
    if above(9, 0):
        verdict = "diverges"
    elif above(9, low):
        verdict = "rises"
    elif above(0, 9) or losses[0] - means[9] > max(CLEAR * tenths[9].std(ddof=1), SHARE * abs(means[9])):
        verdict = "falls"  # perhaps within the first tenth, all of it
    else:
        verdict = "plateau"
    return TrainingHealth(verdict, float(means[0]), float(means[low]), float(means[9]), ADVICE[verdict])
