"""How to train: stages with their optimisers, and the recipes that the package knows."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch

from causal_circuits.arguments import check_arguments


@check_arguments
@dataclass(frozen=True)
class Stage:
    """A stretch of training with its own optimiser.

    Args:
        steps: optimiser steps, at least 1.
        learning_rate: at the start of the stage.
        train: the parameters it moves: "W_Q.0" is the paper's A^(1), "W_Q.1" its A^(2), "W_U" the read-out.
            None moves all of them.
        optimizer: "adam", "adamw" or "sgd".
        schedule: "constant", "cosine" (to zero) or "linear" (to zero).
        weight_decay: of Adam(W) and SGD.

    >>> Stage(100, 0.3, train=("W_Q.0",)).optimizer
    'adam'
    >>> Stage(1000, 0.1, schedule="cosine").train is None
    True
    """

    steps: int
    learning_rate: float
    train: tuple[str, ...] | None = None
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a stage needs at least 1 step: got {self.steps}")
        if self.train is not None and not self.train:
            raise ValueError("a stage's train must name a parameter: got (); None trains all of them")
        if not (0 < self.learning_rate < float("inf")):
            raise ValueError(f"learning_rate must be positive and finite: got {self.learning_rate}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}: got {self.optimizer!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(SCHEDULES)}: got {self.schedule!r}")


OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
    "linear": lambda progress: 1.0 - progress,
}


@check_arguments
def default_stages(steps: int = 2000) -> tuple[Stage, ...]:
    """The recipe that recovered the graph on every forest tried (ARCHITECTURE.md has the comparison).

    >>> [(stage.steps, stage.learning_rate, stage.train) for stage in default_stages(2000)]
    [(100, 0.3, ('W_Q.0',)), (1900, 0.1, None)]
    """
    if steps < 2:
        raise ValueError(f"the default recipe has two stages and needs at least 2 steps: got {steps}")
    first = max(1, min(100, steps // 5))
    return (
        Stage(steps=first, learning_rate=0.3, train=("W_Q.0",)),
        Stage(steps=steps - first, learning_rate=0.1, schedule="cosine"),
    )


@check_arguments
@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        stages: one after the other; the default finds the graph first (layer 1's attention alone, against a warm
            layer 2), then trains everything.
        batch_size: fresh sequences a step.
        warm_start: scale of the identity blocks that layer 2 and W_U are given before the first step (beta0 of
            Algorithm 1). It overwrites those blocks: None leaves the model as it comes, to go on with a trained one.
        seed: of the data: one long stream of sequences, kept apart from whatever `Task.sample` is asked
            for; step s trains on its sequences s batch_size, ..., whatever the path and the number of threads.

    >>> [stage.steps for stage in TrainConfig().stages]
    [100, 1900]
    >>> TrainConfig.joint(500, learning_rate=0.05, batch_size=256).batch_size
    256
    """

    stages: tuple[Stage, ...] = field(default_factory=default_stages)
    batch_size: int = 1024
    warm_start: float | None = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("training needs at least one stage: got none")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more: got {self.seed}")

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    @classmethod
    def joint(cls, steps: int = 1500, learning_rate: float = 0.03, **kwargs: object) -> "TrainConfig":
        """Everything at once; `kwargs` go to the stage (optimizer, schedule, weight_decay) or to the config.

        ``TrainConfig.joint(steps, 1.0, optimizer="sgd", warm_start=None)`` is the paper's own training.
        """
        of_config = {key: kwargs.pop(key) for key in ("batch_size", "warm_start", "seed") if key in kwargs}
        stage = Stage(steps=steps, learning_rate=learning_rate, **{"schedule": "cosine", **kwargs})  # type: ignore[arg-type]
        return cls(stages=(stage,), **of_config)  # type: ignore[arg-type]

    @classmethod
    def two_stage(cls, first: int = 100, second: int = 1400, **kwargs: object) -> "TrainConfig":
        """Algorithm 1: layer 1's attention alone, then layer 2 (and W_U) alone."""
        rest = ("W_Q.1", "W_U")
        stages = (Stage(first, 0.3, train=("W_Q.0",)), Stage(second, 0.03, train=rest, schedule="cosine"))
        return cls(stages=stages, **{"warm_start": 1.0, **kwargs})  # type: ignore[arg-type]
