"""How to train: stages with their optimisers, and the recipes that the package knows."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from causal_circuits.arguments import Count, Several, check_arguments

Rows = Sequence[Sequence[float]]


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

    steps: Count
    learning_rate: float
    train: tuple[str, ...] | None = None
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.train is not None and not self.train:
            raise ValueError("a stage's train must name a parameter: got (); None trains all of them")
        if not (0 < self.learning_rate < float("inf")):
            raise ValueError(f"learning_rate must be positive and finite: got {self.learning_rate}")


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
def default_stages(steps: Several = 4500) -> tuple[Stage, ...]:
    """From zero: SGD finds the graph in two thirds of the steps, Adam sharpens it in the rest.

    For disentangled models; a reduced one learns from A2 = 0 to *avoid* matches and stays there (`TrainConfig.warm` is
    for it). docs/RECIPE.md says on which tasks it was measured and where it does not find the graph; with far fewer
    than 4,500 steps SGD has no time to.

    >>> [(stage.steps, stage.learning_rate, stage.optimizer) for stage in default_stages()]
    [(3000, 3.0, 'sgd'), (1500, 0.03, 'adam')]
    """
    last = max(1, steps // 3)
    return (
        Stage(steps=steps - last, learning_rate=3.0, optimizer="sgd"),
        Stage(steps=last, learning_rate=0.03, schedule="cosine"),
    )


@check_arguments
@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        stages: one after the other; the default trains everything, first with SGD, then with Adam.
        batch_size: fresh sequences a step.
        warm_start: scale of the identity blocks that layer 1 and W_U are given before the first step (beta0 of
            Algorithm 1): it writes in that layer 1 looks for the query's token among the copied ones and that W_U
            reads the attended token, so only layer 0 is left to be found. It overwrites those blocks. The default,
            None, leaves the model as it comes: zero if new, or as an earlier training left it.
        match_start: for several parents; from how many sequences to find where the gradient of order k points, which is
            written in before the first step (`start_from_matches` says what); None, the default, does not.
        seed: of the data: one long stream of sequences, kept apart from whatever `Task.sample` is asked
            for; step s trains on its sequences s batch_size, ..., whatever the path and the number of threads.
        relative_positions: whether a disentangled model learns of positions their distance alone
            (`training.relative_positions`).
        blocks: of a disentangled model, which blocks of a parameter are trained, by the names of their slots
            (`models.slots`): ``{"W_Q.0": [("position", "position")], "W_U": [("L1H0.token",)]}``, query slot first. All
            else in that parameter is frozen; one that is not named is trained whole.
        attention: layer -> its pattern, given and not learned, as in ``train(..., attention=...)``; kept as rows of
            numbers.

    >>> [stage.steps for stage in TrainConfig().stages]
    [3000, 1500]
    >>> TrainConfig.joint(500, learning_rate=0.05, batch_size=256).batch_size
    256
    """

    stages: tuple[Stage, ...] = field(default_factory=default_stages)
    batch_size: Count = 1024
    warm_start: float | None = None
    match_start: Count | None = None
    seed: int = 0
    relative_positions: bool = False
    blocks: Mapping[str, Sequence[tuple[str, ...]]] | None = None
    attention: Mapping[int, Sequence[Rows] | Rows] | None = None

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("training needs at least one stage: got none")
        if self.match_start is not None and self.warm_start is not None:
            raise ValueError("warm_start and match_start both write into the model: give one of them")
        if self.match_start is not None and self.relative_positions:
            raise ValueError("match_start writes in positions, not distances: give relative_positions=False")
        if self.blocks is not None and any(stage.weight_decay for stage in self.stages):
            raise ValueError(
                "weight decay would move the blocks that are frozen: give stages weight_decay=0, or blocks=None"
            )

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    @classmethod
    def joint(cls, steps: int = 1500, learning_rate: float = 0.03, **kwargs: object) -> "TrainConfig":
        """Everything at once; `kwargs` go to the stage (optimizer, schedule, weight_decay) or to the config.

        ``TrainConfig.joint(steps, 1.0, optimizer="sgd")`` is the paper's own training.
        """
        own = ("batch_size", "warm_start", "match_start", "seed", "relative_positions", "blocks", "attention")
        of_config = {key: kwargs.pop(key) for key in own if key in kwargs}
        stage = Stage(steps=steps, learning_rate=learning_rate, **{"schedule": "cosine", **kwargs})  # type: ignore[arg-type]
        return cls(stages=(stage,), **of_config)  # type: ignore[arg-type]

    @classmethod
    def warm(cls, steps: Several = 2000, scale: float = 4.0, **kwargs: object) -> "TrainConfig":
        """From a warm start, faster than from zero: layer 1's match and the read-out are written in, not learned.

        Before the first step `warm_start` sets them to `scale` times the identity; layer 0's attention is then trained
        alone (at most 100 steps), which finds the graph, and everything together afterwards.

        >>> config = TrainConfig.warm(2000)
        >>> [(stage.steps, stage.learning_rate, stage.train) for stage in config.stages], config.warm_start
        ([(100, 0.3, ('W_Q.0',)), (1900, 0.1, None)], 4.0)
        """
        first = max(1, min(100, steps // 5))
        stages = (Stage(first, 0.3, train=("W_Q.0",)), Stage(steps - first, 0.1, schedule="cosine"))
        return cls(stages=stages, **{"warm_start": scale, **kwargs})  # type: ignore[arg-type]

    @classmethod
    def matched(cls, steps: Several = 9000, **kwargs: object) -> "TrainConfig":
        """For several parents: started where the gradient of order k points (`start_from_matches`).

        Layer 0's attention is then trained alone (at most 120 steps), and everything together afterwards. Without the
        first stage a row can leave its parents for a decoy (docs/SEVERAL_PARENTS.md).

        >>> [stage.steps for stage in TrainConfig.matched().stages], TrainConfig.matched().match_start
        ([120, 8880], 20000)
        """
        first = max(1, min(120, steps // 10))
        stages = (Stage(first, 0.03, train=("W_Q.0",)), Stage(steps - first, 0.03, schedule="cosine"))
        return cls(stages=stages, **{"match_start": 20_000, **kwargs})  # type: ignore[arg-type]
