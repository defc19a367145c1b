"""The two ways to run a training: step by step through a model's own forward, or many models at once on the fused step.

A run holds the weights while it lasts. Both kinds draw the same sequences for the same configuration, step by step.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from threading import Event

import numpy as np
import torch
from torch import Tensor

from causal_circuits.models import HookedTransformer
from causal_circuits.models.fused import Weights, kernel_for, live_weights, sizes_of
from causal_circuits.recording import RecordAt, Snapshot
from causal_circuits.tasks import Batch, InContextTask
from causal_circuits.tasks.task import Filler
from causal_circuits.training.checkpoints import State
from causal_circuits.training.recipe import Stage, TrainConfig
from causal_circuits.training.steps import gradient_step, take_snapshot, trainable_parameters
from causal_circuits.training.updates import Updates

# Ends the seed of every training stream: a test set drawn with sample(seed=0) is not the first batch of a run.
TRAINING_STREAM = 2402_14735


class StructuredRun:
    """One model, any depth, device, precision and hooks: the structured or the plain forward, and autograd."""

    path = "structured"

    def records_by_itself(self, record: RecordAt) -> bool:
        """Whether `gradients` leaves the record behind: never on this path."""
        return False

    def __init__(
        self, model: HookedTransformer, task: InContextTask, config: TrainConfig, start: State | None = None
    ) -> None:
        self._model, self._config = model, config
        self._draw = task.stream((config.seed, TRAINING_STREAM))
        self._pool = ThreadPoolExecutor(1)
        self._step = start.step if start else 0
        self._updates = Updates(trainable_parameters(model), config.stages, start=start)
        self._ahead = [self._pool.submit(self._draw_batch, self._step + ahead) for ahead in range(2)]

    def _draw_batch(self, step: int) -> Batch:
        size, weight = self._config.batch_size, self._model.W_U
        return self._draw(size, step * size).to(weight.device, weight.dtype)

    def snapshots(self, step: int, record: RecordAt) -> list[Snapshot]:
        """The state of the model, measured on the batch of this step."""
        return [take_snapshot(self._model, self._ahead[0].result(), step, record)]

    def gradients(self, record: RecordAt | None = None) -> "np.ndarray":
        """Set the gradients of this step; its loss, [1]. Nothing is recorded on the way."""
        loss = gradient_step(self._model, self._ahead.pop(0).result())
        self._step += 1
        self._ahead.append(self._pool.submit(self._draw_batch, self._step + 1))
        return np.array([loss])

    def write_back(self) -> None:
        """Nothing to do: the model itself is trained."""

    def gradients_finite(self) -> bool:
        """Whether every gradient of this step is a number."""
        gradients = (p.grad for p in trainable_parameters(self._model).values() if p.grad is not None)
        return all(isfinite(float(gradient.sum())) for gradient in gradients)

    def update(self) -> None:
        """One step of the optimiser."""
        self._updates.step()

    def optimizer_state(self) -> dict[str, Tensor]:
        """What the optimiser remembers, for a checkpoint."""
        return self._updates.state()

    def close(self) -> None:
        """Stop drawing; leave no gradients behind."""
        self._pool.shutdown(cancel_futures=True)
        self._model.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class _Job:
    """A thread's piece of work: sequences of one member to differentiate, and to draw for the step to come."""

    batch: tuple[np.ndarray, np.ndarray]
    weights: Weights
    sums: Weights
    drawn: tuple[np.ndarray, np.ndarray]
    first: int
    fill: Filler


class FusedRun:
    """One or many models of the same sizes on the fused step: weights, gradients and data in stacks, [member, ...].

    Every thread takes its share of the members, or of the batch when there are few: first the gradient, then the next
    step's sequences, which take the place of those just used. The optimiser runs meanwhile. Members whose stages are
    equal share one optimiser.
    """

    path = "fused"

    def __init__(
        self,
        models: Sequence[HookedTransformer],
        tasks: Sequence[InContextTask],
        configs: Sequence[TrainConfig],
        n_threads: int,
        start: State | None = None,
    ) -> None:
        order = sorted(range(len(models)), key=lambda i: (str(configs[i].stages), i))  # equal stages side by side
        self._models, self._configs = [models[i] for i in order], [configs[i] for i in order]
        self._tasks, self._place = [tasks[i] for i in order], np.argsort(order)
        n, size, first = len(models), configs[0].batch_size, self._tasks[0]
        self._kernel = kernel_for(sizes_of(models[0]), n * size * configs[0].steps)
        self._share = np.float32(1.0 / size)
        self._tokens = np.empty((n, size, first.n_ctx), np.int64)
        self._targets = np.empty((n, size, first.d_vocab), np.float32)
        shapes = [weight.shape for weight in live_weights(models[0])]
        flat_weights, self._weights = _stacks(n, shapes)
        for member, model in enumerate(self._models):
            for stack, weight in zip(self._weights, live_weights(model), strict=True):
                stack[member] = weight
        parts = 1 if n % n_threads == 0 or n > 4 * n_threads else min(n_threads, size)
        flat_sums, self._sums = _stacks(n * parts, shapes)
        self._flat_gradients, self._gradients = (flat_sums, self._sums) if parts == 1 else _stacks(n, shapes)
        self._jobs = [self._job(member, part, parts) for member in range(n) for part in range(parts)]
        self._losses = np.zeros(len(self._jobs))
        self._nothing = self._watched = np.empty((len(self._jobs), 0, 0, 0, 0), np.float32)
        self._pool, self._n_threads = ThreadPoolExecutor(n_threads), n_threads
        self._groups = [
            Updates(leaves, stages, f"{group}", start, fused=True)
            for group, (leaves, stages) in enumerate(self._leaves(flat_weights, self._flat_gradients))
        ]
        self._step = start.step if start else 0
        self._at_work = self._start(differentiate=False, step=self._step)

    def _job(self, member: int, part: int, parts: int) -> "_Job":
        size, task = self._configs[0].batch_size, self._tasks[member]
        rows = slice(size * part // parts, size * (part + 1) // parts)
        drawn = rows if task.counts else slice(0, size if part == 0 else 0)  # other tasks draw a batch from one stream
        first, second, unembed = (stack[member].numpy() for stack in self._weights)
        d_first, d_second, d_unembed = (stack[member * parts + part].numpy() for stack in self._sums)
        return _Job(
            batch=(self._tokens[member, rows], self._targets[member, rows]),
            weights=(first, second, unembed),
            sums=(d_first, d_second, d_unembed),
            drawn=(self._tokens[member, drawn], self._targets[member, drawn]),
            first=drawn.start,
            fill=task.filler((self._configs[member].seed, TRAINING_STREAM)),
        )

    def _leaves(
        self, weights: list[Tensor], gradients: list[Tensor]
    ) -> Iterator[tuple[dict[str, torch.nn.Parameter], tuple[Stage, ...]]]:
        """For each run of members with equal stages, their part of every stack as parameters with gradients."""
        stages = [config.stages for config in self._configs]
        changes = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]
        for start, end in pairwise([0, *changes, len(stages)]):
            leaves = {}
            for name, weight, gradient in zip(("W_Q.0", "W_Q.1", "W_U"), weights, gradients, strict=True):
                if name in trainable_parameters(self._models[start]):
                    leaves[name] = torch.nn.Parameter(weight[start:end])
                    leaves[name].grad = gradient[start:end]
            yield leaves, stages[start]

    def _start(self, differentiate: bool, step: int) -> list["Future[None]"]:
        """Set every thread to work on its share: first the gradients, if asked, then the sequences of `step`."""
        self._differentiated = [Event() for _ in range(min(self._n_threads, len(self._jobs)))]

        def share(thread: int) -> None:
            mine = range(thread, len(self._jobs), self._n_threads)
            try:
                for job in mine if differentiate else ():
                    self._differentiate(job)
            finally:
                self._differentiated[thread].set()
            if not all(task.counts for task in self._tasks):  # one job draws what several have just used
                for event in self._differentiated:
                    event.wait()
            for job in mine:
                self._fill(job, step)

        return [self._pool.submit(share, thread) for thread in range(len(self._differentiated))]

    def _finish(self) -> None:
        """Wait until the sequences of the step to come are drawn."""
        for future in self._at_work:
            future.result()

    def _fill(self, index: int, step: int) -> None:
        """Draw a job's sequences of a step."""
        job = self._jobs[index]
        if len(job.drawn[0]):
            job.fill(*job.drawn, step * self._configs[0].batch_size + job.first)

    def _differentiate(self, index: int) -> None:
        """Gradient and loss of a job's sequences."""
        job, share = self._jobs[index], self._share
        loss = self._kernel(*job.batch, job.weights, job.sums, self._watched[index], share)
        self._losses[index] = loss * float(share)

    def records_by_itself(self, record: RecordAt) -> bool:
        """Whether `gradients` leaves the record behind: layer 0's scores are what the fused step differentiates."""
        return record.layers == (0,)

    def gradients(self, record: RecordAt | None = None) -> "np.ndarray":
        """The gradients of this step in the stacks; the loss of every member, [member].

        With `record`, layer 0's attention and the gradient that reaches it are kept too, for `own_snapshots`.
        """
        n_ctx, _, n_heads, _ = sizes_of(self._models[0])
        if record is not None and (record.attention or record.weight_gradients):
            self._watched = np.empty((len(self._jobs), 2, n_heads, n_ctx, n_ctx), np.float32)
        else:
            self._watched = self._nothing
        self._finish()
        self._step += 1
        self._at_work = self._start(differentiate=True, step=self._step)
        for event in self._differentiated:
            event.wait()
        for future in self._at_work:
            if future.done():
                future.result()  # raises what went wrong in a thread
        n = len(self._models)
        if len(self._jobs) > n:
            for stack, gradient in zip(self._sums, self._gradients, strict=True):
                torch.sum(stack.view(n, -1, *stack.shape[1:]), dim=1, out=gradient)
        return self._losses.reshape(n, -1).sum(axis=1)[self._place]

    def gradients_finite(self) -> bool:
        """Whether every gradient of this step is a number."""
        return all(isfinite(float(gradient.sum())) for gradient in self._flat_gradients)

    def update(self) -> None:
        """One step of every optimiser."""
        for group in self._groups:
            group.step()

    def optimizer_state(self) -> dict[str, Tensor]:
        """What the optimisers remember, for a checkpoint."""
        return {name: value for group in self._groups for name, value in group.state().items()}

    def snapshots(self, step: int, record: RecordAt) -> list[Snapshot]:
        """The state of every member, measured on its batch of this step."""
        self._finish()
        self.write_back()
        taken = []
        for member in self._place:
            batch = Batch(torch.from_numpy(self._tokens[member]), torch.from_numpy(self._targets[member]))
            taken.append(take_snapshot(self._models[member], batch, step, record))
        return taken

    def own_snapshots(self, step: int, losses: "np.ndarray", record: RecordAt) -> list[Snapshot]:
        """Layer 0 of every member, as the last call of `gradients` saw it."""
        n, (n_ctx, n_tok, n_live, _) = len(self._models), sizes_of(self._models[0])
        shape = (n, 1, self._models[0].cfg.n_heads, n_ctx, n_ctx)  # dead heads attend uniformly and have no gradient
        attention = (torch.ones(n_ctx, n_ctx).tril() / torch.arange(1, n_ctx + 1)[:, None]).expand(shape).clone()
        gradients, of_weights = torch.zeros(shape), torch.zeros(shape)
        if self._watched.size > 0:
            summed = torch.from_numpy(self._watched.reshape(n, -1, *self._watched.shape[1:]).sum(axis=1))
            attention[:, 0, :n_live], of_weights[:, 0, :n_live] = summed[:, 0], summed[:, 1]
        gradients[:, 0, :n_live] = self._gradients[0][:, :, n_tok:, n_tok:]
        return [
            Snapshot(
                step=step,
                loss=float(losses[i]),
                attention=attention[member] if record.attention else None,
                score_gradients=gradients[member] if record.score_gradients else None,
                weight_gradients=of_weights[member] if record.weight_gradients else None,
            )
            for i, member in enumerate(self._place)
        ]

    def write_back(self) -> None:
        """Give the models the weights as they are now."""
        for member, model in enumerate(self._models):
            for live, stack in zip(live_weights(model), self._weights, strict=True):
                live.copy_(stack[member])

    def close(self) -> None:
        """Stop drawing; give the models their weights."""
        self._pool.shutdown(cancel_futures=True)
        self.write_back()


def _stacks(n: int, shapes: Sequence[torch.Size]) -> tuple[list[Tensor], list[Tensor]]:
    """Zeros for n members: flat [n, size] with rows of whole vectors, and the views [n, *shape] of what counts in them.

    The optimiser works on the flat rows; without the padding an entry's place in the stack would decide whether it is
    updated by a vector instruction or by the scalar rest of the loop, which round differently.
    """
    sizes = [shape.numel() for shape in shapes]
    flat = [torch.zeros(n, -(-size // 64) * 64) for size in sizes]
    return flat, [f[:, :size].view(n, *shape) for f, size, shape in zip(flat, sizes, shapes, strict=True)]
