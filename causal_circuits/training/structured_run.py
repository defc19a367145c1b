"""A training step by step through a model's own forward and autograd: any depth, device, precision and hooks."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from causal_circuits.models import HookedTransformer
from causal_circuits.models.structured import autograd_step, choose_forward
from causal_circuits.recording import RecordAt, Snapshot
from causal_circuits.tasks import Batch, Task
from causal_circuits.tasks.base import checked_draws
from causal_circuits.training.checkpoints import CheckpointError, State
from causal_circuits.training.clamps import block_masks
from causal_circuits.training.recipe import OPTIMIZERS, Stage, TrainConfig
from causal_circuits.training.relative_positions import share_by_distance
from causal_circuits.training.steps import stage_at, take_snapshot, trainable_parameters, training_seed


class StructuredRun:
    """One model, any depth, device, precision and hooks: the structured or the plain forward, and autograd."""

    path: Literal["structured"] = "structured"

    def __init__(self, model: HookedTransformer, task: Task, config: TrainConfig, start: State | None = None) -> None:
        self._model, self._task, self._config = model, task, config
        self._pool = ThreadPoolExecutor(1)
        self._step = start.step if start else 0
        self._forward = choose_forward(model, task.every_position)
        self._masks = block_masks(model, config.blocks) if config.blocks else {}
        self._optimizer = StagedOptimizer(trainable_parameters(model), config.stages, start)
        self._ahead = [self._pool.submit(self._draw_batch, self._step + ahead) for ahead in range(2)]

    def _draw_batch(self, step: int) -> Batch:
        size, weight = self._config.batch_size, self._model.W_U
        batch = checked_draws(self._task, training_seed(self._config), step * size, size)
        return batch.to(weight.device, weight.dtype)

    def snapshots(self, step: int, record: RecordAt) -> list[Snapshot]:
        """The state of the model, measured on the batch of this step."""
        return [take_snapshot(self._model, self._ahead[0].result(), step, record)]

    def gradients(self) -> np.ndarray:
        """Set the gradients of this step; its loss, [1]."""
        loss = autograd_step(self._model, self._ahead.pop(0).result(), self._forward)
        if self._config.relative_positions:
            share_by_distance(self._model)
        parameters = trainable_parameters(self._model) if self._masks else {}
        for name, mask in self._masks.items():
            if (gradient := parameters[name].grad) is not None:
                gradient *= mask
        self._step += 1
        self._ahead.append(self._pool.submit(self._draw_batch, self._step + 1))
        return np.array([loss])

    def write_back(self) -> None:
        """Nothing to do: the model itself is trained."""

    def non_finite_member(self) -> int | None:
        """Which member has a non-finite gradient, if one has."""
        gradients = (p.grad for p in trainable_parameters(self._model).values() if p.grad is not None)
        return None if all(isfinite(float(gradient.sum())) for gradient in gradients) else 0

    def read_back(self) -> None:
        """Look at the model again, after somebody else had it in hand: its forward may have to be another one."""
        self._forward = choose_forward(self._model, self._task.every_position)

    def update(self) -> None:
        """One step of the optimiser."""
        self._optimizer.step()

    def optimizer_state(self) -> dict[str, Tensor]:
        """What the optimiser remembers, for a checkpoint."""
        return self._optimizer.state()

    def close(self) -> None:
        """Stop drawing; leave no gradients behind."""
        self._pool.shutdown(cancel_futures=True)
        self._model.zero_grad(set_to_none=True)


class StagedOptimizer:
    """torch's optimisers, one a stage, with the learning rate of every step; `start` is a checkpoint to go on from."""

    def __init__(
        self, parameters: dict[str, torch.nn.Parameter], stages: Sequence[Stage], start: State | None = None
    ) -> None:
        self._parameters, self._stages = parameters, stages
        self._step, self._remembered = (start.step, start.part("optimizer.0")) if start else (0, {})
        self._optimizer: torch.optim.Optimizer | None = None

    def step(self) -> None:
        """The next step; a stage begins with an optimiser of its own."""
        stage, done, rate = stage_at(self._stages, self._step)
        if done == 0 or self._optimizer is None:
            chosen: list[Tensor] = [self._parameters[name] for name in stage.train or self._parameters]
            options: dict[str, Any] = {"lr": stage.learning_rate, "weight_decay": stage.weight_decay}
            self._optimizer = OPTIMIZERS[stage.optimizer](chosen, **options)
            if done:
                _restore(self._optimizer, self._remembered)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._step += 1

    def state(self) -> dict[str, Tensor]:
        """What it remembers after the last step: "optimizer.0.parameter.quantity"."""
        kept = self._optimizer.state_dict()["state"] if self._optimizer else {}
        return {
            f"optimizer.0.{index}.{quantity}": value
            for index, quantities in kept.items()
            for quantity, value in quantities.items()
            if value is not None
        }


def _restore(optimizer: torch.optim.Optimizer, remembered: dict[str, Tensor]) -> None:
    """Give an optimiser what `StagedOptimizer.state` kept."""
    moments = () if isinstance(optimizer, torch.optim.SGD) else ("step", "exp_avg", "exp_avg_sq")
    state: dict[int, dict[str, Tensor]] = {}
    for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        found = {name: remembered[f"{index}.{name}"] for name in moments if f"{index}.{name}" in remembered}
        sizes = {name: value.shape if value.is_floating_point() else None for name, value in found.items()}
        if found and sizes != {name: torch.Size() if name == "step" else parameter.shape for name in moments}:
            raise CheckpointError(f"the checkpoint's optimiser is another run's: it does not fit parameter {index}")
        state |= {index: found} if found else {}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
