"""Checkpoints: everything that a training needs to go on, in files that are whole or not there.

A checkpoint is two files, `step_000000500.safetensors` (weights, optimiser, losses, records so far) and the same name
with `.json` (schema, step, what the run is, size and SHA-256 of the tensors, SHA-256 of itself), the JSON moved to its
place last. Sequences need no state: those of step s are a function of the seed and s. So a run that goes on from a
checkpoint does, number for number, what it would have done without the interruption; what decides the rounding besides
(versions of libraries, vector width, on the structured path threads) is part of what a run is.
"""

import json
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causal_circuits import native
from causal_circuits.arguments import Count, check_arguments
from causal_circuits.models import HookedTransformer
from causal_circuits.recording import RecordAt
from causal_circuits.storage import digest, first_difference, read_checked, write_checked
from causal_circuits.tasks import InContextTask, Task
from causal_circuits.training.recipe import TrainConfig

FORMAT = "causal_circuits.checkpoint/4"  # 4: a checksum for each row of a streamed record
KEPT = 2  # the newest checkpoint and, should that one be damaged, the one before it


class CheckpointError(ValueError):
    """A checkpoint is of another run, or of a model of other sizes.

    >>> with TemporaryDirectory() as folder:
    ...     try:
    ...         cc.training.restore_checkpoint(cc.disentangled_transformer(3, 6), folder)
    ...     except cc.training.CheckpointError as error:
    ...         print("no whole checkpoint" in str(error))
    True
    """


@check_arguments
@dataclass(frozen=True)
class Checkpoints:
    """Where a training keeps checkpoints, and how often; the same call, given again, goes on from the newest.

    Ctrl-C (in the main thread) finishes the step at hand, saves, and raises KeyboardInterrupt; a second one stops at
    once. A run that has finished leaves its last state: the same call then returns its record without training.

    Args:
        folder: of this run and no other; made if missing. The two newest checkpoints are kept.
        every: steps between checkpoints.
        exact: go on only where the result will be bit for bit what it would have been without the stop: versions of
            the libraries, vector width and, on the structured path, threads and device must be those of the
            checkpoint. False goes on all the same.

    >>> from torch import equal
    >>> task, config = cc.InContextTask(cc.chain_graph(4), d_vocab=3), cc.TrainConfig.joint(20, batch_size=8)
    >>> with TemporaryDirectory() as folder:
    ...     first = cc.train(cc.disentangled_transformer(3, 4), task, config, checkpoints=Checkpoints(folder, every=10))
    ...     again = cc.train(cc.disentangled_transformer(3, 4), task, config, checkpoints=Checkpoints(folder, every=10))
    >>> equal(first.losses, again.losses), first.seconds == again.seconds
    (True, True)
    """

    folder: str | os.PathLike[str]
    every: Count = 500
    exact: bool = True


@dataclass(frozen=True)
class State:
    """A run between two steps."""

    step: int  # steps done
    seconds: float  # wall time spent on them, earlier calls included
    tensors: dict[str, Tensor]  # weights ("weights.0.W_U"), optimiser, losses and records

    def part(self, name: str) -> dict[str, Tensor]:
        """The tensors under a name, the name taken off: of "weights", "0.W_U" for "weights.0.W_U"."""
        prefix = f"{name}."
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def weights_of(models: Sequence[HookedTransformer]) -> dict[str, Tensor]:
    """Every parameter that a training may move, by member and name."""
    return {
        f"{member}.{name}": parameter.detach()
        for member, model in enumerate(models)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


# ---- what a run is


def identity_of(
    models: Sequence[HookedTransformer],
    tasks: Sequence[Task],
    configs: Sequence[TrainConfig],
    record: RecordAt,
    path: str,
) -> dict[str, Any]:
    """What a checkpoint must have in common with the run that wants to go on from it, as JSON values.

    The models count as they stand before the first step (after the warm start).
    """
    members = [
        {"task": _task_values(task), "config": asdict(config), "initial weights": digest(weights_of([model]))}
        for model, task, config in zip(models, tasks, configs, strict=True)
    ]
    recorded = asdict(record) | {"folder": record.folder is not None}
    identity = {"path": path, "machine": _what_decides_bits(path, models[0]), "record": recorded, "members": members}
    return json.loads(json.dumps(identity))  # type: ignore[no-any-return]  # tuples become lists, as in the file


def _what_decides_bits(path: str, model: HookedTransformer) -> dict[str, Any]:
    """What the rounding of a run depends on, besides the run itself."""
    decides: dict[str, Any] = {"processor": platform.machine(), "numpy": version("numpy")}
    if path == "fused":
        return decides | {"core": version("causal-circuits"), "instructions": native.core().instruction_set()}
    decides |= {name: version(name) for name in ("torch", "transformer-lens")}
    return decides | {"device": model.W_U.device.type, "threads of torch": torch.get_num_threads()}


def _task_values(task: Task) -> dict[str, Any]:
    """All that decides a task's sequences: what it says itself and, of other classes than ours, the class and sizes."""
    if isinstance(task, InContextTask):
        return dict(task.identity())
    kind = type(task)
    values = {
        "class": f"{kind.__module__}.{kind.__qualname__}",
        "n_ctx": task.n_ctx,
        "d_vocab": int(task.d_vocab),
        "identity": task.identity(),
    }
    try:
        json.dumps(values, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{kind.__name__}.identity() must return JSON values: {error}; use numbers, strings, lists and dicts"
        ) from error
    return values


# ---- files


def save_state(folder: str | os.PathLike[str], identity: Mapping[str, Any], state: State) -> None:
    """Write a checkpoint; remove those older than the one before it, and later ones, which were skipped as damaged."""
    head = {"format": FORMAT, "step": state.step, "seconds": state.seconds, "identity": identity}
    written = write_checked(folder, f"step_{state.step:09d}", head, state.tensors)
    every = sorted(written.parent.glob("step_*.json"))
    newest = every.index(written) + 1
    for old in every[: max(newest - KEPT, 0)] + every[newest:]:
        old.unlink(missing_ok=True)
        old.with_suffix(".safetensors").unlink(missing_ok=True)


@check_arguments
def restore_checkpoint(model: HookedTransformer, folder: str | os.PathLike[str]) -> int:
    """Give a model the weights of the newest whole checkpoint of its training; returns how many steps it had done.

    Raises:
        CheckpointError: there is no whole checkpoint, or it is of a model of other sizes.

    >>> model, again = cc.disentangled_transformer(3, 6), cc.disentangled_transformer(3, 6)
    >>> with TemporaryDirectory() as folder:
    ...     config, kept = cc.TrainConfig.joint(4, batch_size=8), cc.Checkpoints(folder, every=2)
    ...     record = cc.train(model, task, config, checkpoints=kept)
    ...     cc.training.restore_checkpoint(again, folder)
    4
    >>> bool((again.W_U == model.W_U).all())
    True
    """
    state = load_state(folder, None)
    if state is None:
        raise CheckpointError(f"{folder} holds no whole checkpoint: name the folder that was given to Checkpoints")
    give_weights([model], state, folder)
    return state.step


def give_weights(models: Sequence[HookedTransformer], state: State, folder: str | os.PathLike[str]) -> None:
    """Give models the weights of a checkpoint."""
    kept, weights = state.part("weights"), weights_of(models)
    for name in sorted({*kept, *weights}):
        there, here = (None if name not in some else _kind(some[name]) for some in (kept, weights))
        if there != here:
            raise CheckpointError(
                f"the checkpoint in {folder} is another model's: {name} is {there} there, {here} here"
            )
    for name, weight in weights.items():
        weight.copy_(kept[name])


def _kind(weight: Tensor) -> str:
    return str(list(weight.shape)) if weight.is_floating_point() else f"{list(weight.shape)} {weight.dtype}"


def load_state(
    folder: str | os.PathLike[str],
    identity: Mapping[str, Any] | None,
    restore: Callable[[State], None] | None = None,
    exact: bool = True,
) -> State | None:
    """The newest whole checkpoint of a run (of any, without an identity); None if there is none.

    A damaged one is named in a warning and skipped; `restore`, given each, may raise a ValueError to call it so.

    Raises:
        CheckpointError: the checkpoint is of another run: of another task, model or configuration, or (if `exact`) of
            other versions or threads.
    """
    for path in sorted(Path(folder).glob("step_*.json"), reverse=True):
        try:
            head, tensors = read_checked(path, FORMAT, "checkpoint")
            if identity is not None:
                _check_identity(folder, head["identity"], identity, exact)
            state = State(head["step"], head["seconds"], tensors)
            if restore is not None:
                restore(state)
        except CheckpointError:
            raise
        except (ValueError, OSError) as error:
            warnings.warn(f"{error}: skipped for the checkpoint before it", stacklevel=2)
            continue
        return state
    return None


def _check_identity(
    folder: str | os.PathLike[str], there: Mapping[str, Any], here: Mapping[str, Any], exact: bool
) -> None:
    """Raise a CheckpointError that names the first difference between two runs, if there is one."""
    machine = {} if exact else {"machine": here["machine"]}
    other = first_difference({**there, **machine}, here)
    if other is None:
        return
    where, remedy = f"{other[0]} is {other[1]} there, {other[2]} here", "name another folder, or delete this one"
    if other[0].startswith("machine"):
        raise CheckpointError(
            f"the checkpoints in {folder} would not be gone on from bit for bit: {where}; "
            f"Checkpoints(..., exact=False) goes on all the same, or {remedy}"
        )
    raise CheckpointError(f"the checkpoints in {folder} are of another run: {where}; {remedy}")
