"""What a training has so far - losses, recorded states, weights -, saved now and then, and stopped in good order."""

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from types import FrameType
from typing import Literal

import numpy as np
import torch

from causal_circuits.graphs import attention_cells
from causal_circuits.models import HookedTransformer
from causal_circuits.recording import RecordAt, Snapshot, TrainingRecord
from causal_circuits.storage import plain_values
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
from causal_circuits.training.fused_run import FusedRun
from causal_circuits.training.health import DivergenceError
from causal_circuits.training.recipe import TrainConfig
from causal_circuits.training.recorded import RecordedStates
from causal_circuits.training.steps import stage_at
from causal_circuits.training.structured_run import StructuredRun


class Progress:
    """A run and what it has so far: losses, recorded states and, where asked for, checkpoints; made before step 0.

    Attributes:
        models, tasks, configs, record, path: what is trained, and how.
        start: the checkpoint to go on from (the models have its weights), or None.
        step: steps done by earlier calls.
        losses: [step, member].
        states: of each member.
    """

    def __init__(
        self,
        models: Sequence[HookedTransformer],
        tasks: Sequence[Task],
        configs: Sequence[TrainConfig],
        record: RecordAt,
        checkpoints: Checkpoints | None,
        path: Literal["fused", "structured"],
    ) -> None:
        self.models, self.tasks, self.configs, self.record, self.path = models, tasks, configs, record, path
        self._checkpoints, self._began, self._interrupted = checkpoints, time.perf_counter(), False
        self._n_steps = configs[0].steps
        self.losses, self.states = np.empty((self._n_steps, len(models))), self._new_states()
        self.start: State | None = None
        if checkpoints is not None:
            self._identity = identity_of(models, tasks, configs, record, path)
            self.start = load_state(checkpoints.folder, self._identity, self._restore, checkpoints.exact)
            if self.start is None:
                self.states = self._new_states()  # a checkpoint that was skipped may have filled them in part
            else:
                give_weights(models, self.start, checkpoints.folder)
        self.step = self._saved = self.start.step if self.start else 0
        self._earlier_s = self._saved_s = self.start.seconds if self.start else 0.0

    def _new_states(self) -> list[RecordedStates]:
        """Those of an ensemble's members have a subfolder each."""
        folder, n_records = self.record.folder, len(self.record.within(self._n_steps))
        if folder is None or len(self.models) == 1:
            return [RecordedStates(n_records, folder) for _ in self.models]
        return [RecordedStates(n_records, Path(folder) / f"member_{i:03d}") for i in range(len(self.models))]

    def _restore(self, state: State) -> None:
        self.losses[: state.step] = state.tensors["losses"].numpy()
        for member, states in enumerate(self.states):
            states.restore(state.part(f"record.{member}"))

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Within, Ctrl-C stops the run at its next `save_or_stop`; a second Ctrl-C at once.

        Without checkpoints there is nothing to save, and Ctrl-C does what it always does.
        """
        if self._checkpoints is None or threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True

        before = signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def save_or_stop(self, step: int, run: FusedRun | StructuredRun) -> None:
        """Between two steps: save where it is due; stop where it was asked for."""
        if self._checkpoints is None:
            if step == self._n_steps:
                self._write_indices(step)
            return
        stop = self._interrupted and step < self._n_steps
        if stop or step == self._n_steps or (step > self._saved and step % self._checkpoints.every == 0):
            self._save(step, run, self._checkpoints)
        if stop:
            where = f"at step {step:,} of {self._n_steps:,}, saved in {self._checkpoints.folder}"
            raise KeyboardInterrupt(f"interrupted {where}")

    def _save(self, step: int, run: FusedRun | StructuredRun, checkpoints: Checkpoints) -> None:
        run.write_back()
        weights = weights_of(self.models)
        wrong = [name for name, weight in weights.items() if not isfinite(float(weight.sum()))]
        if wrong:
            raise self._divergence("a weight", "became non-finite", step - 1, int(wrong[0].partition(".")[0]))
        tensors = {f"weights.{name}": weight for name, weight in weights.items()} | run.optimizer_state()
        tensors["losses"] = torch.from_numpy(self.losses[:step])
        for member, states in enumerate(self.states):
            tensors |= {f"record.{member}.{name}": value for name, value in states.state().items()}
        self._saved, self._saved_s = step, self._seconds()
        save_state(checkpoints.folder, self._identity, State(step, self._saved_s, tensors))
        self._write_indices(step)

    def _write_indices(self, step: int) -> None:
        """Beside what is streamed to disk: what it is, and its checksums."""
        for states, record in zip(self.states, self.records(step), strict=True):
            states.write_index(record)

    def check(self, step: int, without_gradient: int | None) -> None:
        """Raise a DivergenceError if a loss of this step is non-finite, or one member's gradient is."""
        losses = self.losses[step]
        if not isfinite(float(losses.sum())):
            member = int(np.flatnonzero(~np.isfinite(losses))[0])
            raise self._divergence("the loss", f"became {losses[member]}", step, member)
        if without_gradient is not None:
            raise self._divergence("a gradient", "became non-finite", step, without_gradient)

    def _divergence(self, what: str, became: str, step: int, member: int) -> DivergenceError:
        stage, _, _ = stage_at(self.configs[member].stages, step)
        good = "no checkpoint was kept"
        if self._checkpoints is not None and self._saved:
            good = f"the last good checkpoint is that of step {self._saved:,} in {self._checkpoints.folder}"
        dtype = self.models[member].W_U.dtype
        advice = f"lower the learning rate (now {stage.learning_rate})"
        if dtype.itemsize < 4:  # torch's optimisers do not get far there, whatever the rate
            advice = f"train in float32, with model.float(): this model is in {str(dtype).removeprefix('torch.')}"
        whose = f" of member {member}" if len(self.configs) > 1 else ""
        message = f"{what}{whose} {became} at step {step:,}: {advice}; {good}"
        return DivergenceError(message, step, member, self._saved or None)

    def _seconds(self) -> float:
        return self._earlier_s + time.perf_counter() - self._began

    def records(self, step: int) -> list[TrainingRecord]:
        """What the first `step` steps left behind."""
        seconds = self._saved_s if 0 < step == self._saved else self._seconds()
        return [
            TrainingRecord(
                losses=torch.from_numpy(self.losses[:step, member].copy()),
                config=plain_values(config),
                seconds=seconds,
                sequences_per_s=step * config.batch_size * len(self.models) / seconds,
                path=self.path,
                **self.states[member].fields(),
            )
            for member, config in enumerate(self.configs)
        ]


def parents_found(tasks: Sequence[Task], snapshots: Sequence[Snapshot], record: RecordAt) -> str:
    """For the progress bar: "training, 7 of 18 parents", edges that are a row's maximum in a head of layer 0."""
    graphs = [task.graph for task in tasks if task.graph is not None]
    if not record.attention or (record.layers is not None and 0 not in record.layers) or len(graphs) < len(tasks):
        return "training"
    found, n_edges = 0, sum(len(attention_cells(graph)) for graph in graphs)
    for snapshot, graph in zip(snapshots, graphs, strict=True):
        assert snapshot.attention is not None
        attention = snapshot.attention[snapshot.layers.index(0)]
        (first, second), key = attention.topk(2).values.unbind(dim=-1), attention.argmax(dim=-1)
        is_clear = first - second > 1e-6  # of a uniform row no key is the maximum, nor of one with NaN
        found += sum(bool(((key == parent) & is_clear)[:, child].any()) for child, parent in attention_cells(graph))
    return f"training, {found} of {n_edges} parents"
