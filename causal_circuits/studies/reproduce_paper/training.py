"""How a figure is made: settings that all cells share, and trainings that are measured on the way."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import causal_circuits as cc

FORMAT = "causal_circuits.measured/1"
Models = Sequence[cc.models.HookedTransformer]
Tasks = Sequence[cc.InContextTask]


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


@dataclass(frozen=True)
class Job:
    """The settings of a cell; `began` is when it was started (after a kill: again)."""

    seed: int
    faithful: bool
    quick: bool
    scratch: Path | None
    progress: bool | None
    began: tuple[float, float] = field(default_factory=clocks)

    def test(self, task: cc.InContextTask, member: int = 0) -> cc.Batch:
        return task.sample(512 if self.quick else 16_384, seed=(self.seed + member, 2))

    def train(
        self, models: Models, tasks: Tasks, config: cc.TrainConfig, every: int, measure: Callable[[], dict[str, float]]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """`train_measured` from this seed."""
        return train_measured(
            models, tasks, replace(config, seed=self.seed), every, measure, self.scratch, self.progress
        )

    def spent(self) -> dict[str, float]:
        wall_s, cpu_s = (now - began for now, began in zip(clocks(), self.began, strict=True))
        return {"wall_s": wall_s, "cpu_s": cpu_s}


def train_measured(
    models: Models,
    tasks: Tasks,
    config: cc.TrainConfig,
    every: int,
    measure: Callable[[], dict[str, float]],
    scratch: Path | None,
    progress: bool | None = False,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Train models side by side; measure and save every so many steps, and at the end; one that was killed goes on.

    Member m draws its data from the seed 1000 config.seed + m; what `measure` returns is kept beside the checkpoints.
    Returns the losses [member, step], and for results.json recipe, times (since the last kill) and history.
    """
    (wall, cpu), measured = clocks(), dict[int, dict[str, float]]()
    if scratch is not None and (scratch / "measured.json").is_file():
        kept, _ = cc.storage.read_checked(scratch / "measured.json", FORMAT, "list of measurements")
        measured = {int(step): found for step, found in kept["measured"].items()}

    def look(step: int, model: cc.models.HookedTransformer) -> None:
        if model is models[0]:
            measured[step] = measure()
            if scratch is not None:
                cc.storage.write_checked(scratch, "measured", {"format": FORMAT, "measured": measured})

    steps = tuple(sorted({*range(every, config.steps, every), config.steps}))
    records = cc.train_ensemble(
        models,
        tasks,
        [replace(config, seed=1000 * config.seed + member) for member in range(len(models))],
        record=cc.RecordAt(steps, attention=False, score_gradients=False, layers=(0,)),
        progress=progress,
        on_record=look,
        checkpoints=None if scratch is None else cc.Checkpoints(scratch, every),
    )
    losses = torch.stack([record.losses for record in records])
    recipe = asdict(config.stages[0])
    del recipe["train"]
    cpu_s = time.process_time() - cpu
    return losses, {
        "recipe": recipe | {"batch_size": config.batch_size},
        "steps_done": config.steps,
        "complete": True,
        "train_wall_s": time.perf_counter() - wall,
        "train_cpu_s": cpu_s,
        "steps_per_cpu_s": config.steps / cpu_s,
        "history": [
            {"step": step, "train_loss": float(losses[:, before:step].mean()), **measured[step]}
            for before, step in zip((0, *steps), steps, strict=False)
        ],
    }
