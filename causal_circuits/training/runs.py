"""The two ways to run a training: step by step through a model's own forward, or many models at once on the fused step.

A run holds the weights while it lasts. Both kinds draw the same sequences for the same configuration, step by step.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite
from threading import Event

import numpy as np
import torch
from torch import Tensor

from causal_circuits.models import HookedTransformer, attachments
from causal_circuits.models.fused import Weights, can_fuse, kernel_for, live_weights, sizes_of
from causal_circuits.models.structured import choose_forward
from causal_circuits.recording import RecordAt, Snapshot
from causal_circuits.tasks import Batch, InContextTask, Task
from causal_circuits.tasks.base import Seed, checked_draws
from causal_circuits.tasks.task import Filler, filler_of
from causal_circuits.training.checkpoints import State
from causal_circuits.training.recipe import Stage, TrainConfig
from causal_circuits.training.steps import autograd_step, take_snapshot, trainable_parameters
from causal_circuits.training.updates import Updates

# A step is cut into so many parts or more, whatever the number of threads, so that sums over parts, taken in their
# order, do not depend on which thread made them; parts hold at least SMALLEST_PART sequences.
PARTS, SMALLEST_PART = 8, 64
# Sequences that a thread draws before it looks for more to do.
DRAWN_AT_ONCE = 128
# Ends the seed of every training stream: a test set drawn with sample(seed=0) is not the first batch of a run.
TRAINING_STREAM = 2402_14735


class StructuredRun:
    """One model, any depth, device, precision and hooks: the structured or the plain forward, and autograd."""

    path = "structured"

    def records_by_itself(self, record: RecordAt) -> bool:
        """Whether `gradients` leaves the record behind: never on this path."""
        return False

    def __init__(self, model: HookedTransformer, task: Task, config: TrainConfig, start: State | None = None) -> None:
        self._model, self._task, self._config = model, task, config
        self._pool = ThreadPoolExecutor(1)
        self._step = start.step if start else 0
        self._forward = choose_forward(model)
        self._updates = Updates(trainable_parameters(model), config.stages, start=start)
        self._ahead = [self._pool.submit(self._draw_batch, self._step + ahead) for ahead in range(2)]

    def _draw_batch(self, step: int) -> Batch:
        size, weight = self._config.batch_size, self._model.W_U
        batch = checked_draws(self._task, (self._config.seed, TRAINING_STREAM), step * size, size)
        return batch.to(weight.device, weight.dtype)

    def snapshots(self, step: int, record: RecordAt) -> list[Snapshot]:
        """The state of the model, measured on the batch of this step."""
        return [take_snapshot(self._model, self._ahead[0].result(), step, record)]

    def gradients(self, record: RecordAt | None = None) -> "np.ndarray":
        """Set the gradients of this step; its loss, [1]. Nothing is recorded on the way."""
        loss = autograd_step(self._model, self._ahead.pop(0).result(), self._forward)
        self._step += 1
        self._ahead.append(self._pool.submit(self._draw_batch, self._step + 1))
        return np.array([loss])

    def write_back(self) -> None:
        """Nothing to do: the model itself is trained."""

    def without_gradient(self) -> int | None:
        """Which member has a gradient that is no number, if there is one."""
        gradients = (p.grad for p in trainable_parameters(self._model).values() if p.grad is not None)
        return None if all(isfinite(float(gradient.sum())) for gradient in gradients) else 0

    def read_back(self) -> None:
        """Look at the model again, after somebody else had it in hand: its forward may have to be another one."""
        self._forward = choose_forward(self._model)

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
class _Piece:
    """Sequences to draw in one go: into these arrays, from this place of a step on."""

    drawn: tuple[np.ndarray, np.ndarray]
    first: int
    fill: Filler


@dataclass(frozen=True)
class _Job:
    """A thread's piece of work: sequences to differentiate, and to draw for the step to come.

    Of several members, all sequences; of one, a part of them: then `places`, where their results go, is one of the
    member's.
    """

    places: slice
    batch: tuple[np.ndarray, np.ndarray]
    weights: Weights
    sums: Weights
    pieces: tuple[_Piece, ...]


@dataclass(frozen=True)
class _Turn:
    """What the threads do in one step, share by share.

    Attributes:
        differentiate: whether there are sequences yet.
        differentiated: whether a share's sequences have been used.
        to_draw: what of it is still to be drawn for the step to come, whose place in the stream is `first`.
    """

    differentiate: bool
    differentiated: list[Event]
    to_draw: list[deque[_Piece]]
    first: int


class FusedRun:
    """One or many models of the same sizes on the fused step: weights, gradients and data in stacks, [member, ...].

    Every thread, the caller's among them, takes its share of the members, or of the batch when there are few: first the
    gradient, then the next step's sequences, which take the place of those just used. The caller's also runs the
    optimiser. Members whose stages are equal share one.
    """

    path = "fused"

    def __init__(
        self,
        models: Sequence[HookedTransformer],
        tasks: Sequence[Task],
        configs: Sequence[TrainConfig],
        n_threads: int,
        start: State | None = None,
    ) -> None:
        from causal_circuits.training.compiled import compiled_sum  # needs numba

        order = sorted(range(len(models)), key=lambda i: (str(configs[i].stages), i))  # equal stages side by side
        self._models, self._configs = [models[i] for i in order], [configs[i] for i in order]
        self._tasks, self._place = [tasks[i] for i in order], np.argsort(order)
        n, size, first = len(models), configs[0].batch_size, self._tasks[0]
        self._trained = [set(trainable_parameters(model)) for model in self._models]
        self._kernel = kernel_for(sizes_of(models[0]), n * size * configs[0].steps)
        self._share = np.float32(1.0 / size)
        self._tokens = np.empty((n, size, first.n_ctx), np.int64)
        self._targets = np.empty((n, size, first.d_vocab), np.float32)
        shapes = [weight.shape for weight in live_weights(models[0])]
        self._weights = _Stacks(n, shapes)
        for member, model in enumerate(self._models):
            for stack, weight in zip(self._weights.views, live_weights(model), strict=True):
                stack[member] = weight
        parts = max(1, min(-(-PARTS // n), size // SMALLEST_PART))
        self._gradients = _Stacks(n, shapes)
        self._sums = (
            self._gradients.whole[None]
            if parts == 1
            else torch.zeros(parts, len(self._gradients.whole), dtype=torch.float32)
        )
        self._parts, self._whole = self._sums.numpy(), self._gradients.whole.numpy()
        self._losses = np.zeros(n * parts)
        self._total, self._add_up = 0.0, compiled_sum()
        self._nothing = self._watched = np.empty((n * parts, 0, 0, 0, 0), np.float32)
        self._uniform = np.tri(first.n_ctx, dtype=np.float32) / np.arange(1, first.n_ctx + 1, dtype=np.float32)[:, None]
        self._pool = ThreadPoolExecutor(n_threads)
        self._draws_its_own = all(map(_has_places, tasks))  # otherwise one job draws what several have just used
        if parts == 1:
            ends = [n * thread // n_threads for thread in range(n_threads + 1)]
            self._shares = [[self._job(slice(*members), 0, 1)] for members in pairwise(ends)]
        else:
            jobs = [self._job(slice(i, i + 1), part, parts) for i in range(n) for part in range(parts)]
            self._shares = [jobs[thread::n_threads] for thread in range(min(n_threads, len(jobs)))]
        self._groups = [
            Updates(leaves, stages, f"{group}", start, compiled=True)
            for group, (leaves, stages) in enumerate(self._leaves())
        ]
        self._step = start.step if start else 0
        self._start(self._step, differentiate=False)
        self._differentiate(self._turn, 0)

    def _job(self, members: slice, part: int, parts: int) -> "_Job":
        size = self._configs[0].batch_size
        rows = slice(size * part // parts, size * (part + 1) // parts)
        sums = _Stacks(len(self._models), self._weights.shapes, self._sums[part])
        return _Job(
            places=slice(members.start * parts + part, (members.stop - 1) * parts + part + 1),
            batch=(self._tokens[members, rows], self._targets[members, rows]),
            weights=tuple(stack[members].numpy() for stack in self._weights.flat),
            sums=tuple(stack[members].numpy() for stack in sums.flat),
            pieces=tuple(self._pieces(members, rows)),
        )

    def _pieces(self, members: slice, rows: slice) -> "Iterator[_Piece]":
        """What is to be drawn for some rows of some members' batches, of several small ones at once."""
        size, starts = self._configs[0].batch_size, range(rows.start, rows.stop, DRAWN_AT_ONCE)
        together = max(1, DRAWN_AT_ONCE // size) if self._draws_its_own else 1
        for start in range(members.start, members.stop, together):
            group = slice(start, min(start + together, members.stop))
            tasks, configs = self._tasks[group], self._configs[group]
            cuts = [slice(start, min(start + DRAWN_AT_ONCE, rows.stop)) for start in starts]
            if not _has_places(tasks[0]):  # such a task draws a batch in one call
                cuts = [slice(0, size)] if rows.start == 0 else []
            fill = _filler(tasks, [(config.seed, TRAINING_STREAM) for config in configs])
            yield from (_Piece((self._tokens[group, cut], self._targets[group, cut]), cut.start, fill) for cut in cuts)

    def _leaves(self) -> Iterator[tuple[dict[str, torch.nn.Parameter], tuple[Stage, ...]]]:
        """For each run of members with equal stages, their part of every stack as parameters with gradients."""
        stages = [config.stages for config in self._configs]
        changes = [i for i in range(1, len(stages)) if stages[i] != stages[i - 1]]
        for start, end in pairwise([0, *changes, len(stages)]):
            leaves = {}
            stacks = zip(("W_Q.0", "W_Q.1", "W_U"), self._weights.flat, self._gradients.flat, strict=True)
            for name, weight, gradient in stacks:
                if name in trainable_parameters(self._models[start]):
                    leaves[name] = torch.nn.Parameter(weight[start:end])
                    leaves[name].grad = gradient[start:end]
            yield leaves, stages[start]

    def _start(self, step: int, differentiate: bool = True) -> None:
        """Set the other threads to work: on the gradients of their shares, if asked, then on sequences of `step`."""
        differentiated = [Event() for _ in self._shares]
        to_draw = [deque(piece for job in share for piece in job.pieces) for share in self._shares]
        self._turn = turn = _Turn(differentiate, differentiated, to_draw, first=step * self._configs[0].batch_size)

        def work(thread: int) -> None:
            self._differentiate(turn, thread)
            self._draw(turn, thread)

        self._at_work = [self._pool.submit(work, thread) for thread in range(1, len(self._shares))]

    def _differentiate(self, turn: "_Turn", thread: int) -> None:
        """The gradients of a thread's share."""
        try:
            for job in self._shares[thread] if turn.differentiate else ():
                watched, losses = self._watched[job.places], self._losses[job.places]
                self._kernel(*job.batch, job.weights, job.sums, watched, self._share, losses)
        finally:
            turn.differentiated[thread].set()

    def _draw(self, turn: "_Turn", thread: int) -> None:
        """Sequences for the step to come, piece by piece until none is left: of this thread's share, then of others'.

        Shares are equal but time is not: the thread that runs the optimiser draws less.
        """
        owners = range(len(self._shares))
        for owner in (thread, *(other for other in owners if other != thread)):
            for event in [turn.differentiated[owner]] if self._draws_its_own else turn.differentiated:
                event.wait()
            while True:
                try:
                    piece = turn.to_draw[owner].popleft()
                except IndexError:
                    break
                piece.fill(*piece.drawn, turn.first + piece.first)

    def _finish(self) -> None:
        """Draw what is left of the sequences of the step to come."""
        self._draw(self._turn, 0)
        for future in self._at_work:
            future.result()

    def records_by_itself(self, record: RecordAt) -> bool:
        """Whether `gradients` leaves the record behind: layer 0's scores are what the fused step differentiates."""
        return record.layers == (0,)

    def gradients(self, record: RecordAt | None = None) -> "np.ndarray":
        """The gradients of this step in the stacks; the loss of every member, [member].

        With `record`, layer 0's attention and the gradient that reaches it are kept too, for `own_snapshots`.
        """
        n_ctx, _, n_heads, _ = sizes_of(self._models[0])
        if record is not None and (record.attention or record.weight_gradients):
            self._watched = np.empty((len(self._losses), 2, n_heads, n_ctx, n_ctx), np.float32)
        else:
            self._watched = self._nothing
        self._finish()
        self._step += 1
        self._start(self._step)
        self._differentiate(self._turn, 0)
        for event in self._turn.differentiated:
            event.wait()
        for future in self._at_work:
            if future.done():
                future.result()  # raises what went wrong in a thread
        self._total = self._add_up(self._parts, self._whole)
        return self._losses.reshape(len(self._models), -1).sum(axis=1)[self._place]

    def without_gradient(self) -> int | None:
        """Which member has a gradient that is no number, if there is one."""
        if isfinite(self._total):
            return None
        sums = sum(np.abs(flat.numpy()).sum(axis=1) for flat in self._gradients.flat)[self._place]
        return int(np.flatnonzero(~np.isfinite(sums))[0] if not np.isfinite(sums).all() else sums.argmax())

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
        n, n_tok, attention, of_weights = len(self._models), self._tasks[0].d_vocab, None, None
        if self._watched.size > 0:
            summed = self._watched.reshape(n, -1, *self._watched.shape[1:]).sum(axis=1)
            attention, of_weights = self._all_heads(summed[:, 0], self._uniform), self._all_heads(-summed[:, 1], 0.0)
        of_scores = self._all_heads(-self._gradients.views[0].numpy()[:, :, n_tok:, n_tok:], 0.0)
        return [
            Snapshot(
                step=step,
                loss=float(losses[i]),
                attention=attention[member] if record.attention and attention is not None else None,
                score_gradients=of_scores[member] if record.score_gradients else None,
                weight_gradients=of_weights[member] if record.weight_gradients and of_weights is not None else None,
            )
            for i, member in enumerate(self._place)
        ]

    def _all_heads(self, live: "np.ndarray", dead: "np.ndarray | float") -> Tensor:
        """[member, layer, head, query, key] of the live heads' matrices [member, head, query, key] and the dead ones'.

        Dead heads attend uniformly, without a gradient. A copy, in numpy: torch would give the interpreter's lock away.
        """
        n, n_live, n_ctx, _ = live.shape
        whole = np.empty((n, 1, self._models[0].cfg.n_heads, n_ctx, n_ctx), np.float32)
        whole[:, 0, :n_live], whole[:, 0, n_live:] = live, dead
        return torch.from_numpy(whole)

    def write_back(self) -> None:
        """Give the models the weights as they are now."""
        for member, model in enumerate(self._models):
            for live, stack in zip(live_weights(model), self._weights.views, strict=True):
                live.copy_(stack[member])

    def read_back(self) -> None:
        """Go on from the models' weights, after somebody else had them in hand.

        Raises:
            ValueError: something was attached to a model that the fused step does not see.
        """
        for member, model in enumerate(self._models):
            if set(trainable_parameters(model)) != self._trained[member]:
                raise ValueError(
                    "on_record may measure a model and edit its weights, but not freeze or free them in a training: "
                    f"now {', '.join(trainable_parameters(model)) or 'nothing'} would be trained; train in two runs"
                )
            if not can_fuse(model):
                found = attachments(model) or ("a hook on a parameter's gradient, tied parameters or another dtype",)
                raise ValueError(
                    f"on_record may measure a model and edit its weights, but not attach anything to it while it is "
                    f"trained: found {found[0]}; attach it before training, or take it off before on_record returns"
                )
            for live, stack in zip(live_weights(model), self._weights.views, strict=True):
                stack[member].copy_(live)

    def close(self) -> None:
        """Stop drawing; give the models their weights."""
        for pieces, event in zip(self._turn.to_draw, self._turn.differentiated, strict=True):
            pieces.clear()
            event.set()  # this thread may have been interrupted before its share, and others wait for it
        self._pool.shutdown()
        self.write_back()


def _has_places(task: Task) -> bool:
    """Whether the compiled sampler draws this task's sequences, each of them a function of its place in the stream."""
    return isinstance(task, InContextTask) and task.counts


def _filler(tasks: Sequence[Task], seeds: Sequence[Seed]) -> Filler:
    """`draws` into arrays [member, batch, ...]: in place for an `InContextTask`, copied for any other."""
    ours = [task for task in tasks if isinstance(task, InContextTask)]
    if len(ours) == len(tasks):
        return filler_of(ours, seeds)

    def fill(tokens: np.ndarray, target_probs: np.ndarray, first: int) -> None:
        for member, (task, seed) in enumerate(zip(tasks, seeds, strict=True)):
            batch = checked_draws(task, seed, first, tokens.shape[1])
            torch.from_numpy(tokens[member]).copy_(batch.tokens)
            torch.from_numpy(target_probs[member]).copy_(batch.target_probs)

    return fill


class _Stacks:
    """Every weight of n members, one stack a weight, all in one piece of memory.

    The optimiser works on rows of whole vectors; without the padding an entry's place in the stack would decide whether
    it is updated by a vector instruction or by the scalar rest of the loop, which round differently.

    Attributes:
        whole: all numbers, padding included.
        flat: [n, padded size] of each weight; together they are `whole`.
        views: [n, *shape] of each weight.
    """

    def __init__(self, n: int, shapes: Sequence[torch.Size], whole: Tensor | None = None) -> None:
        sizes = [shape.numel() for shape in shapes]
        padded = [-(-size // 64) * 64 for size in sizes]
        self.shapes, self.whole = shapes, torch.zeros(n * sum(padded), dtype=torch.float32) if whole is None else whole
        pieces = torch.split(self.whole, [n * size for size in padded])
        self.flat = [piece.view(n, -1) for piece in pieces]
        self.views = [
            flat[:, :size].view(n, *shape) for flat, size, shape in zip(self.flat, sizes, shapes, strict=True)
        ]
