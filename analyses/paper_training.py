"""Long runs with the paper's own optimisers, cut into segments: an interrupted run goes on where it stopped.

Not a script. A run is told apart by its `Recipe`, seed and sizes; its state (weights, optimiser, losses, measurements)
is one safetensors file, replaced as a whole after every segment.

* `train_sgd`: one model or many side by side on the fused step. Gradient descent has no state beside the weights, so a
  segment is a `cc.train_ensemble` of its own; under a cosine every step is a stage, with the whole run's rate.
* `train_adamw`: one model, any HookedTransformer; Adam's moments are part of the state.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

import causal_circuits as cc

Measure = Callable[[], dict[str, float]]


@dataclass(frozen=True)
class Recipe:
    """How a figure of the paper was trained."""

    steps: int
    learning_rate: float
    optimizer: str
    schedule: str
    weight_decay: float = 0.0
    batch_size: int = 1024

    def rate(self, step: int) -> float:
        """The learning rate of a step of the whole run."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))


@dataclass
class Run:
    """How far a run is.

    Attributes:
        step: optimiser steps done.
        losses: [member, step]; the training loss of every step.
        history: what was measured after each segment, with its step.
        wall_s, cpu_s: spent on it so far, earlier calls included; with `here`, in this call alone.
    """

    recipe: Recipe
    step: int = 0
    losses: torch.Tensor = field(default_factory=lambda: torch.empty(0, 0))
    history: list[dict[str, float]] = field(default_factory=list)
    wall_s: float = 0.0
    cpu_s: float = 0.0
    wall_here_s: float = 0.0
    cpu_here_s: float = 0.0

    @property
    def complete(self) -> bool:
        """Whether every step was done."""
        return self.step >= self.recipe.steps

    def summary(self) -> dict[str, Any]:
        """For results.json."""
        return {
            "recipe": asdict(self.recipe),
            "steps_done": self.step,
            "complete": self.complete,
            "train_wall_s": self.wall_s,
            "train_cpu_s": self.cpu_s,
            "history": self.history,
        }


def train_sgd(
    models: Sequence[Any],
    tasks: Sequence[cc.InContextTask],
    recipe: Recipe,
    *,
    checkpoint: Path,
    seed: int,
    deadline: float,
    quiet: bool,
    segment: int,
    measure: Measure,
) -> Run:
    """Gradient descent on many models side by side, from the checkpoint on, until the end or the deadline.

    Each segment draws data from a seed of its own (run seed, member, segment).
    """
    identity = identity_of(recipe, seed, segment, models)
    run = read_checkpoint(checkpoint, identity, recipe, models, None) or Run(recipe, losses=torch.empty(len(models), 0))
    with progress_bar(run, checkpoint, quiet) as bar:
        while not run.complete and time.perf_counter() < deadline:
            began, cpu = time.perf_counter(), time.process_time()
            n = min(segment, recipe.steps - run.step)
            stages = sgd_stages(recipe, run.step, n)
            seeds = [seed * 10**6 + member * 10**4 + run.step // segment for member in range(len(models))]
            configs = [cc.TrainConfig(stages, recipe.batch_size, warm_start=None, seed=s) for s in seeds]
            records = cc.train_ensemble(models, tasks, configs, record=cc.RecordAt(steps=()), progress=False)
            new = torch.stack([record.losses for record in records]).float()
            run.losses = torch.cat([run.losses, new], dim=1)
            finish_segment(run, n, began, cpu, measure, bar)
            write_checkpoint(checkpoint, identity, run, models, None)
    return run


def sgd_stages(recipe: Recipe, first: int, n: int) -> tuple[cc.Stage, ...]:
    """The stages of steps first .. first + n - 1 of a whole run: one, or under a cosine one a step."""
    if recipe.optimizer != "sgd":
        raise ValueError(f"only gradient descent can be cut into stages without its state: got {recipe.optimizer!r}")
    if recipe.schedule == "constant":
        return (cc.Stage(n, recipe.learning_rate, optimizer="sgd", weight_decay=recipe.weight_decay),)
    return tuple(
        cc.Stage(1, recipe.rate(step), optimizer="sgd", weight_decay=recipe.weight_decay)
        for step in range(first, first + n)
    )


def train_adamw(
    model: Any,
    task: cc.InContextTask,
    recipe: Recipe,
    *,
    checkpoint: Path,
    seed: int,
    deadline: float,
    quiet: bool,
    segment: int,
    measure: Measure,
) -> Run:
    """AdamW on one model, from the checkpoint on, until the end or the deadline; step s has sequences of its own."""
    identity = identity_of(recipe, seed, segment, [model])
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    run = read_checkpoint(checkpoint, identity, recipe, [model], optimizer) or Run(recipe, losses=torch.empty(1, 0))
    draw = task.stream((seed, 8128))
    with progress_bar(run, checkpoint, quiet) as bar:
        while not run.complete and time.perf_counter() < deadline:
            began, cpu = time.perf_counter(), time.process_time()
            n, new = min(segment, recipe.steps - run.step), []
            for step in range(run.step, run.step + n):
                optimizer.param_groups[0]["lr"] = recipe.rate(step)
                new.append(cc.training.gradient_step(model, draw(recipe.batch_size, step * recipe.batch_size)))
                optimizer.step()
            run.losses = torch.cat([run.losses, torch.tensor([new])], dim=1)
            if not torch.isfinite(run.losses[:, -1]).all():
                raise FloatingPointError(f"the loss became {new[-1]} before step {run.step + n}")
            finish_segment(run, n, began, cpu, measure, bar)
            write_checkpoint(checkpoint, identity, run, [model], optimizer)
    model.zero_grad(set_to_none=True)
    return run


def progress_bar(run: Run, checkpoint: Path, quiet: bool) -> Any:
    """Steps of the whole run; on a terminal only."""
    name = checkpoint.parent.name
    return tqdm(total=run.recipe.steps, initial=run.step, desc=name, unit="step", disable=True if quiet else None)


def finish_segment(run: Run, n: int, began: float, cpu: float, measure: Measure, bar: Any) -> None:
    """Count the steps, measure, show."""
    run.step += n
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    run.wall_s, run.wall_here_s = run.wall_s + wall_s, run.wall_here_s + wall_s
    run.cpu_s, run.cpu_here_s = run.cpu_s + cpu_s, run.cpu_here_s + cpu_s
    run.history.append({"step": run.step, "train_loss": float(run.losses[:, -n:].mean()), **measure()})
    bar.update(n)
    bar.set_postfix(loss=f"{run.history[-1]['train_loss']:.4f}", refresh=False)


def identity_of(recipe: Recipe, seed: int, segment: int, models: Sequence[Any]) -> str:
    """What a checkpoint must have in common with the run that wants to go on from it."""
    shapes = [[list(parameter.shape) for parameter in trained(model).values()] for model in models]
    return json.dumps({"recipe": asdict(recipe), "seed": seed, "segment": segment, "shapes": shapes})


def trained(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that training moves, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def write_checkpoint(
    path: Path, identity: str, run: Run, models: Sequence[Any], optimizer: torch.optim.Optimizer | None
) -> None:
    """The whole state in one file, the new one or the old one."""
    tensors = {f"{i}.{name}": p.detach() for i, model in enumerate(models) for name, p in trained(model).items()}
    tensors["losses"] = run.losses
    for index, state in (optimizer.state_dict()["state"] if optimizer else {}).items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
    numbers = {"step": run.step, "history": run.history, "wall_s": run.wall_s, "cpu_s": run.cpu_s}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    metadata = {"identity": identity, "numbers": json.dumps(numbers)}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, part, metadata=metadata)
    os.replace(part, path)


def read_checkpoint(
    path: Path, identity: str, recipe: Recipe, models: Sequence[Any], optimizer: torch.optim.Optimizer | None
) -> Run | None:
    """Put models and optimiser where the checkpoint has them; None if there is none of this very run."""
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata()
        if metadata.get("identity") != identity:
            return None
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118  # no mapping
    for i, model in enumerate(models):
        for name, parameter in trained(model).items():
            parameter.data.copy_(tensors[f"{i}.{name}"])
    if optimizer is not None:
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".")
                state.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return Run(recipe, losses=tensors["losses"], **json.loads(metadata["numbers"]))
