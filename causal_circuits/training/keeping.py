"""What a training has so far, kept safe: losses, snapshots and weights, saved now and then, and stops in good order."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from types import FrameType

import numpy as np
import torch

from causal_circuits.models import HookedTransformer
from causal_circuits.recording import RecordAt, TrainingRecord, to_plain
from causal_circuits.tasks import Task
from causal_circuits.training.checkpoints import (
    Checkpoints,
    State,
    give_weights,
    identity_of,
    load_state,
    save_state,
    weights_of,
)
from causal_circuits.training.health import DivergenceError
from causal_circuits.training.recipe import TrainConfig
from causal_circuits.training.runs import FusedRun, StructuredRun
from causal_circuits.training.snapshots import SnapshotStore


class TrainingPaused(Exception):  # no error: it is what `minutes` asked for
    """Training stopped because its time was up; the same call goes on.

    Attributes:
        step: steps done.
        records: what a finished run would have returned, up to here.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> from tempfile import TemporaryDirectory
    >>> model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(9, batch_size=8)
    >>> with TemporaryDirectory() as folder:
    ...     try:
    ...         cc.train(model, task, config, checkpoints=cc.Checkpoints(folder, minutes=1e-9))
    ...     except cc.TrainingPaused as paused:
    ...         print(paused.step < 9)
    True
    """

    def __init__(self, message: str, step: int, records: list[TrainingRecord]) -> None:
        super().__init__(message)
        self.step, self.records = step, records


class Keeper:
    """Losses, snapshots and, where asked for, checkpoints of a run; made before its first step.

    Attributes:
        start: the checkpoint to go on from (the models have its weights), or None.
        losses: [step, member].
        stores: of each member's snapshots.
    """

    def __init__(
        self,
        models: Sequence[HookedTransformer],
        tasks: Sequence[Task],
        configs: Sequence[TrainConfig],
        record: RecordAt,
        checkpoints: Checkpoints | None,
        path: str,
    ) -> None:
        self._models, self._configs, self._checkpoints, self._path = models, configs, checkpoints, path
        self._n_steps, self._began, self._stop = configs[0].steps, time.perf_counter(), ""
        self.losses, self.stores = np.empty((self._n_steps, len(models))), self._new_stores(record)
        self.start: State | None = None
        if checkpoints is not None:
            self._identity = identity_of(models, tasks, configs, record, path)
            self.start = load_state(checkpoints.folder, self._identity, self._restore, checkpoints.exact)
            if self.start is None:
                self.stores = self._new_stores(record)  # a checkpoint that was passed over may have filled them in part
            else:
                give_weights(models, self.start, checkpoints.folder)
        self._saved, self._spent = self.step, self.start.seconds if self.start else 0.0

    @property
    def step(self) -> int:
        """Steps done by earlier calls."""
        return self.start.step if self.start else 0

    def _new_stores(self, record: RecordAt) -> list[SnapshotStore]:
        """Where the snapshots of each member go; members of an ensemble have a subfolder each."""
        n_members, n_records = len(self._models), len(record.within(self._n_steps))
        if record.folder is None or n_members == 1:
            return [SnapshotStore(n_records, record.folder) for _ in range(n_members)]
        return [SnapshotStore(n_records, Path(record.folder) / f"member_{i:03d}") for i in range(n_members)]

    def _restore(self, state: State) -> None:
        losses = state.tensors.get("losses")
        fits = losses is not None and losses.dtype == torch.float64 and state.step <= self._n_steps
        if losses is None or not fits or losses.shape != self.losses[: state.step].shape:
            raise ValueError(f"the checkpoint of step {state.step:,} is damaged: its losses are not those of its steps")
        self.losses[: state.step] = losses.numpy()
        for member, store in enumerate(self.stores):
            store.restore(state.part(f"record.{member}"))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the end of the time allowed or a Ctrl-C stops the run at its next `visit`; a second Ctrl-C at once.

        Without checkpoints there is nothing to save, and Ctrl-C does what it always does.
        """
        if self._checkpoints is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            if self._stop:
                raise KeyboardInterrupt
            self._stop = "interrupt"

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def visit(self, step: int, run: FusedRun | StructuredRun) -> None:
        """Between two steps: save where it is due; stop where it was asked for."""
        if self._checkpoints is None:
            if step == self._n_steps:
                self._write_indices(step)
            return
        minutes = self._checkpoints.minutes
        late = minutes is not None and step > self.step and time.perf_counter() - self._began >= 60 * minutes
        stop = (late or bool(self._stop)) and step < self._n_steps
        if stop or step == self._n_steps or (step > self._saved and step % self._checkpoints.every == 0):
            self._save(step, run, self._checkpoints)
        if not stop:
            return
        where = f"at step {step:,} of {self._n_steps:,}, saved in {self._checkpoints.folder}"
        if self._stop:
            raise KeyboardInterrupt(f"interrupted {where}")
        raise TrainingPaused(f"paused {where}: the same call goes on", step, self.records(step))

    def _save(self, step: int, run: FusedRun | StructuredRun, checkpoints: Checkpoints) -> None:
        run.write_back()
        weights = weights_of(self._models)
        wrong = [name for name, weight in weights.items() if not isfinite(float(weight.sum()))]
        if wrong:
            raise self._divergence("a weight", "became no number", step - 1, int(wrong[0].partition(".")[0]))
        tensors = {f"weights.{name}": weight for name, weight in weights.items()} | run.optimizer_state()
        tensors["losses"] = torch.from_numpy(self.losses[:step])
        for member, store in enumerate(self.stores):
            tensors |= {f"record.{member}.{name}": value for name, value in store.state().items()}
        self._saved, self._spent = step, self._seconds()
        save_state(checkpoints.folder, self._identity, State(step, self._spent, tensors))
        self._write_indices(step)

    def _write_indices(self, step: int) -> None:
        """Beside what is streamed to disk: what it is, and its checksums."""
        if any(store.streams for store in self.stores):
            for store, record in zip(self.stores, self.records(step), strict=True):
                store.write_index(record)

    def check(self, step: int, without_gradient: int | None) -> None:
        """Raise a DivergenceError unless the losses and gradients of a step are numbers (or one member's are not)."""
        losses = self.losses[step]
        if not isfinite(float(losses.sum())):
            member = int(np.flatnonzero(~np.isfinite(losses))[0])
            raise self._divergence("the loss", f"became {losses[member]}", step, member)
        if without_gradient is not None:
            raise self._divergence("a gradient", "became no number", step, without_gradient)

    def _divergence(self, what: str, became: str, step: int, member: int) -> DivergenceError:
        ends = np.cumsum([stage.steps for stage in self._configs[member].stages])
        stage = self._configs[member].stages[int(np.searchsorted(ends, step, side="right"))]
        good = "no checkpoint was kept"
        if self._checkpoints is not None and self._saved:
            good = f"the last good checkpoint is that of step {self._saved:,} in {self._checkpoints.folder}"
        dtype = self._models[member].W_U.dtype
        advice = f"lower the learning rate (now {stage.learning_rate})"
        if dtype.itemsize < 4:  # torch's optimisers do not get far there, whatever the rate
            advice = f"train in float32, with model.float(): this model is in {str(dtype).removeprefix('torch.')}"
        whose = f" of member {member}" if len(self._configs) > 1 else ""
        message = f"{what}{whose} {became} at step {step:,}: {advice}; {good}"
        return DivergenceError(message, step, member, self._saved or None)

    def _seconds(self) -> float:
        return (self.start.seconds if self.start else 0.0) + time.perf_counter() - self._began

    def records(self, step: int) -> list[TrainingRecord]:
        """What the first `step` steps left behind."""
        seconds = self._spent if 0 < step == self._saved else self._seconds()
        return [
            TrainingRecord(
                losses=torch.from_numpy(self.losses[:step, member].copy()),
                config=to_plain(config),
                seconds=seconds,
                sequences_per_s=step * config.batch_size * len(self._models) / seconds,
                path=self._path,
                **self.stores[member].fields(),
            )
            for member, config in enumerate(self._configs)
        ]
