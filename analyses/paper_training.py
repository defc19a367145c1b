"""Long runs with the paper's own optimisers: interrupted ones go on where they stopped, and are measured on the way.

Not a script. `train_recipe` is `cc.train_ensemble` with checkpoints, plus measurements every so many steps, which are
kept beside the checkpoints with the time spent so far.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import causal_circuits as cc

Measure = Callable[[], dict[str, float]]
PROGRESS, FORMAT = "progress", "causal_circuits.progress/1"


@dataclass(frozen=True)
class Recipe:
    """How a figure of the paper was trained."""

    steps: int
    learning_rate: float
    optimizer: str
    schedule: str
    weight_decay: float = 0.0
    batch_size: int = 1024

    def config(self, seed: int) -> cc.TrainConfig:
        """One stage, from the weights that the model comes with."""
        stage = cc.Stage(
            self.steps,
            self.learning_rate,
            optimizer=self.optimizer,
            schedule=self.schedule,
            weight_decay=self.weight_decay,
        )
        return cc.TrainConfig((stage,), self.batch_size, warm_start=None, seed=seed)


@dataclass
class Run:
    """How far a run is.

    Attributes:
        step: optimiser steps done.
        losses: [member, step]; the training loss of every step.
        history: what was measured, with its step and the mean training loss since the step before.
        wall_s, cpu_s: spent on it so far, earlier calls included; with `here`, in this call alone.
    """

    recipe: Recipe
    step: int
    losses: torch.Tensor
    history: list[dict[str, float]]
    wall_s: float
    cpu_s: float
    wall_here_s: float
    cpu_here_s: float

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
            "steps_per_cpu_s": self.step / self.cpu_s if self.cpu_s else None,
            "history": self.history,
        }


class Progress:
    """Measurements and times of a run, on disk after every measurement; a step measured again is written over.

    Raises:
        CheckpointError: what was measured so far is damaged: it cannot be had again without training again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._wall, self._cpu = folder, time.perf_counter(), time.process_time()
        kept: dict[str, Any] = {"wall_s": 0.0, "cpu_s": 0.0, "measured": {}}
        path = folder / f"{PROGRESS}.json"
        try:
            if path.is_file():
                kept, _ = cc.storage.read_checked(path, FORMAT, "list of measurements")
            self.measured: dict[int, dict[str, float]] = {int(step): dict(m) for step, m in kept["measured"].items()}
            self._earlier = float(kept["wall_s"]), float(kept["cpu_s"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise cc.CheckpointError(f"{error}: delete {folder} to train again") from error

    def here(self) -> tuple[float, float]:
        """Wall and processor seconds of this call."""
        return time.perf_counter() - self._wall, time.process_time() - self._cpu

    def spent(self) -> tuple[float, float]:
        """The same with all earlier calls."""
        here = self.here()
        return self._earlier[0] + here[0], self._earlier[1] + here[1]

    def add(self, step: int, found: dict[str, float]) -> None:
        """Keep what was measured after `step` steps."""
        self.measured[step] = found
        wall_s, cpu_s = self.spent()
        head = {"format": FORMAT, "wall_s": wall_s, "cpu_s": cpu_s, "measured": self.measured}
        cc.storage.write_checked(self._folder, PROGRESS, head)

    def history(self, losses: torch.Tensor) -> list[dict[str, float]]:
        """Every measurement so far, beside the mean training loss of the steps that led to it."""
        steps = [step for step in sorted(self.measured) if 0 < step <= losses.shape[1]]
        return [
            {"step": step, "train_loss": float(losses[:, before:step].mean()), **self.measured[step]}
            for before, step in zip([0, *steps], steps, strict=False)
        ]


def train_recipe(
    models: Sequence[Any],
    tasks: Sequence[cc.InContextTask],
    recipe: Recipe,
    *,
    folder: Path,
    seed: int,
    deadline: float,
    quiet: bool,
    every: int,
    measure: Measure,
) -> Run:
    """Train models side by side until the end or the deadline; measure and save every so many steps.

    Member m of several draws its data from the seed 1000 seed + m.
    """
    progress = Progress(folder)
    left = (deadline - time.perf_counter()) / 60

    def look(step: int, model: Any) -> None:
        if model is models[0]:
            progress.add(step, measure())

    seeds = [1000 * seed + member for member in range(len(models))]
    wanted = sorted({*range(every, recipe.steps, every), recipe.steps})
    try:
        records = cc.train_ensemble(
            models,
            tasks,
            [recipe.config(s) for s in seeds],
            record=cc.RecordAt(tuple(wanted), attention=False, score_gradients=False, layers=(0,)),
            progress=False if quiet else None,
            on_record=look,
            checkpoints=cc.Checkpoints(folder, every, minutes=None if left == float("inf") else max(left, 1e-9)),
        )
    except cc.TrainingPaused as paused:
        records = paused.records
    losses = torch.stack([record.losses for record in records])
    return Run(recipe, losses.shape[1], losses, progress.history(losses), *progress.spent(), *progress.here())
