"""Long trainings with the paper's own optimisers, measured on the way; one that was killed goes on."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

import causal_circuits as cc

MEASURED, FORMAT = "measured", "causal_circuits.measured/1"


class Stopwatch:
    """Wall and processor seconds since it was made, and those of earlier calls."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def add(self, wall_s: float, cpu_s: float) -> None:
        """What an earlier call spent."""
        self._wall, self._cpu = self._wall - wall_s, self._cpu - cpu_s

    def read(self) -> dict[str, float]:
        """For results.json."""
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": time.process_time() - self._cpu}


def train_measured(
    models: Sequence[cc.models.HookedTransformer],
    tasks: Sequence[cc.InContextTask],
    config: cc.TrainConfig,
    *,
    every: int,
    measure: Callable[[], dict[str, float]],
    scratch: Path | None,
    watch: Stopwatch,
    progress: bool | None = False,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Train models side by side; measure and save every so many steps, and at the end.

    Member m draws its data from the seed 1000 config.seed + m. `measure` looks at the models; what it returns is kept
    in `scratch` beside the checkpoints. `watch` is given the seconds of calls that were cut short. Returns the losses
    [member, step], and for results.json recipe, times and history.

    Raises:
        ValueError: what was measured before a kill is damaged: it cannot be had without training again.
    """
    began, measured = watch.read(), _measured_before(scratch, watch)

    def look(step: int, model: cc.models.HookedTransformer) -> None:
        if model is not models[0]:
            return
        measured[step] = measure()
        if scratch is not None:
            head = {"format": FORMAT, "seconds": watch.read(), "measured": measured}
            cc.storage.write_checked(scratch, MEASURED, head)

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
    history = [
        {"step": step, "train_loss": float(losses[:, before:step].mean()), **measured[step]}
        for before, step in zip((0, *steps), steps, strict=False)
    ]
    spent = {name: seconds - began[name] for name, seconds in watch.read().items()}
    recipe = {**asdict(config.stages[0]), "batch_size": config.batch_size}
    return losses, {
        "recipe": {name: value for name, value in recipe.items() if name != "train"},
        "steps_done": config.steps,
        "complete": True,
        "train_wall_s": spent["wall_s"],
        "train_cpu_s": spent["cpu_s"],
        "steps_per_cpu_s": config.steps / spent["cpu_s"],
        "history": history,
    }


def _measured_before(scratch: Path | None, watch: Stopwatch) -> dict[int, dict[str, float]]:
    """What earlier calls measured, by step; the watch is given their seconds."""
    path = None if scratch is None else scratch / f"{MEASURED}.json"
    if path is None or not path.is_file():
        return {}
    try:
        kept, _ = cc.storage.read_checked(path, FORMAT, "list of measurements")
        watch.add(**kept["seconds"])
        return {int(step): dict(found) for step, found in kept["measured"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{error}: delete {path.parent} to train again") from error


@dataclass(frozen=True)
class Job:
    """How a figure is made: the settings that all cells share."""

    seed: int
    faithful: bool
    quick: bool
    scratch: Path | None
    progress: bool | None
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def n_test(self) -> int:
        """Test sequences."""
        return 512 if self.quick else 16_384

    @property
    def going_on(self) -> dict[str, Any]:
        """What `train_measured` needs to know to go on."""
        return {"scratch": self.scratch, "watch": self.watch, "progress": self.progress}
