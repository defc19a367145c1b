"""The optimisers of a run, stage after stage; what they remember goes into checkpoints."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

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
        compiled: do the arithmetic of Adam and AdamW in `compiled.py`; the parameters are flat and of whole vectors.
    """

    def __init__(
        self,
        parameters: dict[str, torch.nn.Parameter],
        stages: Sequence[Stage],
        name: str = "0",
        start: State | None = None,
        compiled: bool = False,
    ) -> None:
        self._parameters, self._compiled, self._name = parameters, compiled, name
        done = start.step if start else 0
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps = self._remaining(stages, done, start.part(f"optimizer.{name}") if start else {})

    def _remaining(
        self, stages: Sequence[Stage], done: int, remembered: dict[str, Tensor]
    ) -> Iterator["torch.optim.Optimizer | _CompiledAdam"]:
        for stage in stages:
            first, done = min(done, stage.steps), max(done - stage.steps, 0)
            if first == stage.steps:
                continue
            chosen: list[Tensor] = [self._parameters[name] for name in stage.train or self._parameters]
            options: dict[str, Any] = {
                "lr": stage.learning_rate,
                "weight_decay": stage.weight_decay,
                "fused": self._compiled,
            }
            self._optimizer = OPTIMIZERS[stage.optimizer](chosen, **options)
            if first:
                _restore(self._optimizer, remembered)
            adam: _CompiledAdam | None = None
            for step in range(first, stage.steps):
                rate = stage.learning_rate * SCHEDULES[stage.schedule](step / stage.steps)
                for group in self._optimizer.param_groups:
                    group["lr"] = rate
                if adam is None and self._compiled and _has_begun(self._optimizer):
                    adam = _CompiledAdam(self._optimizer)
                yield adam or self._optimizer

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


def _has_begun(optimizer: torch.optim.Optimizer) -> TypeGuard[torch.optim.Adam]:
    """Whether it is Adam or AdamW, and has made what it remembers."""
    return isinstance(optimizer, torch.optim.Adam) and bool(optimizer.state)


class _CompiledAdam:
    """The arithmetic of torch's Adam or AdamW after its first step; what it remembers stays in torch's own object."""

    def __init__(self, optimizer: torch.optim.Adam) -> None:
        from causal_circuits.training.compiled import compiled_adam  # needs numba

        (self._group,), self._adam = optimizer.param_groups, compiled_adam()
        states = [(parameter, optimizer.state[parameter]) for parameter in self._group["params"]]
        self._arrays = [
            tuple(tensor.numpy() for tensor in (parameter.data, parameter.grad, state["exp_avg"], state["exp_avg_sq"]))
            for parameter, state in states
        ]
        self._counts = [state["step"].numpy() for _, state in states]
        self._done = int(self._counts[0])

    def step(self) -> None:
        """One step."""
        self._done += 1
        group, t = self._group, self._done
        (beta1, beta2), rate, decay = group["betas"], group["lr"], group["weight_decay"]
        decoupled = group["decoupled_weight_decay"]
        numbers = (
            1.0 - rate * decay if decoupled else 1.0,
            0.0 if decoupled else decay,
            rate / (1.0 - beta1**t),
            1.0 - beta1,
            1.0 - beta2,
            (1.0 - beta2**t) ** -0.5,
            group["eps"],
        )
        for arrays, count in zip(self._arrays, self._counts, strict=True):
            self._adam(*arrays, *numbers)
            count[...] = t


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
