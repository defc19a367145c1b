"""The optimisers of a run, stage after stage; what they remember goes into checkpoints."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from causal_circuits.training.checkpoints import CheckpointError, State
from causal_circuits.training.recipe import OPTIMIZERS, SCHEDULES, Stage


class Updates:
    """The optimiser of every step, stage after stage, its learning rate set.

    Args:
        parameters, stages: as in a TrainConfig.
        name: of this optimiser among those of a run.
        start: where to go on from.
    """

    def __init__(
        self,
        parameters: dict[str, torch.nn.Parameter],
        stages: Sequence[Stage],
        name: str = "0",
        start: State | None = None,
    ) -> None:
        self._parameters, self._name = parameters, name
        done = start.step if start else 0
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps = self._remaining(stages, done, start.part(f"optimizer.{name}") if start else {})

    def _remaining(
        self, stages: Sequence[Stage], done: int, remembered: dict[str, Tensor]
    ) -> Iterator[torch.optim.Optimizer]:
        for stage in stages:
            first, done = min(done, stage.steps), max(done - stage.steps, 0)
            if first == stage.steps:
                continue
            chosen: list[Tensor] = [self._parameters[name] for name in stage.train or self._parameters]
            options: dict[str, Any] = {"lr": stage.learning_rate, "weight_decay": stage.weight_decay}
            self._optimizer = OPTIMIZERS[stage.optimizer](chosen, **options)
            if first:
                _restore(self._optimizer, remembered)
            for step in range(first, stage.steps):
                rate = stage.learning_rate * SCHEDULES[stage.schedule](step / stage.steps)
                for group in self._optimizer.param_groups:
                    group["lr"] = rate
                yield self._optimizer

    def step(self) -> None:
        """The next step of the optimiser."""
        next(self._steps).step()

    def state(self) -> dict[str, Tensor]:
        """What it remembers after the last step: "optimizer.name.parameter.quantity"."""
        kept = self._optimizer.state_dict()["state"] if self._optimizer else {}
        return {
            f"optimizer.{self._name}.{index}.{quantity}": value
            for index, quantities in kept.items()
            for quantity, value in quantities.items()
            if value is not None
        }


def _restore(optimizer: torch.optim.Optimizer, remembered: dict[str, Tensor]) -> None:
    """Give an optimiser what `Updates.state` kept."""
    moments = () if isinstance(optimizer, torch.optim.SGD) else ("step", "exp_avg", "exp_avg_sq")
    state: dict[int, dict[str, Tensor]] = {}
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        found = {name: remembered[f"{index}.{name}"] for name in moments if f"{index}.{name}" in remembered}
        sizes = {name: value.shape if value.is_floating_point() else None for name, value in found.items()}
        if found and sizes != {name: torch.Size() if name == "step" else parameter.shape for name in moments}:
            raise CheckpointError(f"the checkpoint's optimiser is another run's: it does not fit parameter {index}")
        state |= {index: found} if found else {}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
