"""The two ways to run a training: step by step through a model's own forward, or many models in the native core.

A run holds the weights while it lasts. Both kinds draw the same sequences for the same configuration, step by step.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor

from causal_circuits.models import HookedTransformer, attachments
from causal_circuits.models.fused import TRAINED, can_fuse, live_weights, sizes_of
from causal_circuits.models.structured import choose_forward
from causal_circuits.native import core
from causal_circuits.recording import MATRICES, RecordAt, Snapshot, recorded_layers
from causal_circuits.tasks import Batch, InContextTask, Task
from causal_circuits.tasks.base import Seed, checked_draws, seed_sequence
from causal_circuits.tasks.draws import key_of
from causal_circuits.training.checkpoints import CheckpointError, State
from causal_circuits.training.recipe import SCHEDULES, Stage, TrainConfig
from causal_circuits.training.steps import autograd_step, take_snapshot, trainable_parameters
from causal_circuits.training.updates import Updates

# Ends the seed of every training stream: a test set drawn with sample(seed=0) is not the first batch of a run.
TRAINING_STREAM = 2402_14735


class StructuredRun:
    """One model, any depth, device, precision and hooks: the structured or the plain forward, and autograd."""

    path = "structured"

    def __init__(self, model: HookedTransformer, task: Task, config: TrainConfig, start: State | None = None) -> None:
        self._model, self._task, self._config = model, task, config
        self._pool = ThreadPoolExecutor(1)
        self._step = start.step if start else 0
        self._forward = choose_forward(model)
        self._updates = Updates(trainable_parameters(model), config.stages, start=start)
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


class FusedRun:
    """One or many models of the same sizes in the native core, which holds their weights, batches and moments.

    Its threads compute a batch's gradients while they draw the next batch; members whose stages are equal are
    updated together.
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
        order = sorted(range(len(models)), key=lambda i: (str(configs[i].stages), i))  # equal stages side by side
        self._models, self._configs = [models[i] for i in order], [configs[i] for i in order]
        self._tasks, self._place = [tasks[i] for i in order], np.argsort(order)
        self._trained = [set(trainable_parameters(model)) for model in self._models]
        self._batch, self._step = configs[0].batch_size, start.step if start else 0
        samplers = [_sampler(task) for task in self._tasks]
        self._draws_itself = None not in samplers
        keys = [key_of(seed_sequence(training_seed(config))) for config in self._configs]
        sizes, n = sizes_of(models[0]), len(models)
        self._core = core().Trainer(sizes, n, self._batch, n_threads, samplers if self._draws_itself else [], keys)
        self._weights = [self._views(self._core.weights(which), which) for which in range(len(TRAINED))]
        self._gradients = [self._views(self._core.gradients_of(which), which) for which in range(len(TRAINED))]
        self._groups = list(self._equal_stages())
        if start is not None:
            self._restore(start)
        for member, model in enumerate(self._models):
            for stack, weight in zip(self._weights, live_weights(model), strict=True):
                stack[member] = weight
        self._uniform = np.tri(sizes[0], dtype=np.float32) / np.arange(1, sizes[0] + 1, dtype=np.float32)[:, None]
        self._total = 0.0
        self._state = "to do"  # of the gradients of this step: "done", or "stale" if weights were changed since
        self._pool = None if self._draws_itself else ThreadPoolExecutor(1)
        self._filled: Future[None] | None = None
        self._draw(self._step)

    def _views(self, stack: np.ndarray, which: int) -> Tensor:
        """A stack [member, number] of the core as a tensor [member, *shape of this weight]."""
        shape = live_weights(self._models[0])[which].shape
        return torch.from_numpy(stack).view(len(stack), *shape)

    def _equal_stages(self) -> Iterator["_Group"]:
        for _, group in groupby(range(len(self._models)), key=lambda member: self._configs[member].stages):
            members = list(group)
            trained = trainable_parameters(self._models[members[0]])
            numbers = {name: which for which, name in enumerate(TRAINED) if name in trained}
            yield _Group(members[0], members[-1] + 1, self._configs[members[0]].stages, numbers)

    def _draw(self, step: int) -> None:
        """Start drawing the batch of a step."""
        if self._pool is None:
            self._core.draw(step * self._batch)
        else:
            self._filled = self._pool.submit(self._fill, self._core.next_tokens, self._core.next_targets, step)

    def _fill(self, tokens: np.ndarray, target_probs: np.ndarray, step: int) -> None:
        """The batch of a step from tasks that the core cannot draw from."""
        for member, (task, config) in enumerate(zip(self._tasks, self._configs, strict=True)):
            batch = checked_draws(task, training_seed(config), step * self._batch, self._batch)
            tokens[member], target_probs[member] = batch.tokens.cpu().numpy(), batch.target_probs.cpu().numpy()

    def gradients(self) -> np.ndarray:
        """The gradients of this step in the stacks; the loss of every member, [member]."""
        if self._state == "stale":
            self._total = self._core.gradients_again()
        elif self._state == "to do":
            self._differentiate(watch=False)
        self._state = "to do"
        return self._core.losses[self._place]

    def _differentiate(self, watch: bool) -> None:
        """Take the next batch and its gradients; start drawing the one after it."""
        if self._filled is not None:
            self._filled.result()  # raises what went wrong in drawing
        self._step += 1
        self._total = self._core.gradients(self._step * self._batch, watch)
        if self._pool is not None:
            self._draw(self._step)

    def without_gradient(self) -> int | None:
        """Which member has a gradient that is no number, if there is one."""
        if isfinite(self._total):
            return None
        by_weight = torch.stack([gradient.abs().flatten(1).sum(dim=1) for gradient in self._gradients])
        sums = by_weight.sum(dim=0).numpy()[self._place]
        return int(np.flatnonzero(~np.isfinite(sums))[0] if not np.isfinite(sums).all() else sums.argmax())

    def update(self) -> None:
        """One step of every member's optimiser."""
        for group in self._groups:
            group.update(self._core, self._step - 1)

    def optimizer_state(self) -> dict[str, Tensor]:
        """The moments of Adam, for a checkpoint: optimizer.NAME.mean and .square, [member, *shape]."""
        return {f"optimizer.{name}.{what}": self._moments(what, which).clone()
                for which, name in enumerate(TRAINED) for what in ("mean", "square")}  # fmt: skip

    def _moments(self, what: str, which: int) -> Tensor:
        return self._views(self._core.means(which) if what == "mean" else self._core.squares(which), which)

    def _restore(self, start: State) -> None:
        for which, name in enumerate(TRAINED):
            for what in ("mean", "square"):
                kept, here = start.part(f"optimizer.{name}").get(what), self._moments(what, which)
                if kept is None or (kept.shape, kept.dtype) != (here.shape, here.dtype):
                    raise CheckpointError(
                        f"the checkpoint's optimiser is another run's: its {what} of {name} does not fit"
                    )
                here.copy_(kept)

    def snapshots(self, step: int, record: RecordAt) -> list[Snapshot]:
        """The state of every member, measured on its batch of this step, whose gradients `gradients` then gives."""
        layers = recorded_layers(record.layers, n_layers=2)
        self._differentiate(watch=record.attention or record.weight_gradients or 1 in layers)
        self._state = "done"
        asked = [name for name in MATRICES if getattr(record, name)]
        measured = {name: [self._measured(name, layer) for layer in layers] for name in asked}
        recorded = {name: torch.from_numpy(np.stack(matrices, axis=1)) for name, matrices in measured.items()}
        nothing = dict.fromkeys(MATRICES)
        return [
            Snapshot(
                step=step,
                loss=float(self._core.losses[member]),
                layers=layers,
                **{**nothing, **{name: matrices[member] for name, matrices in recorded.items()}},
            )
            for member in self._place.tolist()
        ]

    def _measured(self, name: str, layer: int) -> np.ndarray:
        """A quantity of a layer as the core has it after a step, [member, head, query, key]."""
        n_ctx, n_tok, m1, m2 = sizes_of(self._models[0])
        n, dead = len(self._models), self._uniform if name == "attention" else 0.0
        if layer == 0 and name == "score_gradients":
            return self._all_heads(-self._gradients[0].numpy()[:, :, n_tok:, n_tok:], dead)
        patterns, rows = np.split(self._core.watched, [2 * m1 * n_ctx**2], axis=1)
        if layer == 0:
            pattern, gradient = patterns.reshape(n, 2, m1, n_ctx, n_ctx).swapaxes(0, 1)
            return self._all_heads(pattern if name == "attention" else -gradient, dead)
        last, d_last, d_scores = rows.reshape(n, 3, m2, n_ctx).swapaxes(0, 1)
        whole = np.zeros((n, m2, n_ctx, n_ctx), np.float32)
        if name == "attention":
            self._core.layer_1_patterns(n_for_other_queries(self._batch, n_ctx), whole)
        whole[:, :, -1] = {"attention": last, "score_gradients": -d_scores, "weight_gradients": -d_last}[name]
        return self._all_heads(whole, dead)

    def _all_heads(self, live: np.ndarray, dead: np.ndarray | float) -> np.ndarray:
        """Matrices of a layer's live heads [member, head, query, key], and the dead ones', which attend uniformly."""
        n, n_live, n_ctx, _ = live.shape
        whole = np.empty((n, self._models[0].cfg.n_heads, n_ctx, n_ctx), np.float32)
        whole[:, :n_live], whole[:, n_live:] = live, dead
        return whole

    def write_back(self) -> None:
        """Give the models the weights as they are now."""
        for member, model in enumerate(self._models):
            for live, stack in zip(live_weights(model), self._weights, strict=True):
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
            for live, stack in zip(live_weights(model), self._weights, strict=True):
                if self._state == "done" and not torch.equal(stack[member], live):
                    self._state = "stale"
                stack[member].copy_(live)

    def close(self) -> None:
        """Stop drawing; give the models their weights."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self.write_back()
        self._core.close()


@dataclass(frozen=True)
class _Group:
    """Members of a run whose stages are equal: they are updated together.

    Attributes:
        first, end: its members are first, ..., end - 1.
        numbers: the core's number of every weight that can be trained, by name.
    """

    first: int
    end: int
    stages: tuple[Stage, ...]
    numbers: dict[str, int]

    def update(self, core: Any, step: int) -> None:
        """The optimiser's step number `step` of the whole run; a stage begins with an optimiser of its own."""
        for stage in self.stages:
            if step < stage.steps:
                break
            step -= stage.steps
        rate = stage.learning_rate * SCHEDULES[stage.schedule](step / stage.steps)
        for name in stage.train or self.numbers:
            which = self.numbers[name]
            if stage.optimizer == "sgd":
                core.sgd(which, self.first, self.end, rate, stage.weight_decay)
                continue
            if step == 0:
                for moments in (core.means(which), core.squares(which)):
                    moments[self.first : self.end] = 0.0
            decoupled = stage.optimizer == "adamw"
            decay, decoupled_decay = (0.0, stage.weight_decay) if decoupled else (stage.weight_decay, 0.0)
            core.adam(which, self.first, self.end, rate, decay, decoupled_decay, step + 1)


def n_for_other_queries(batch_size: int, n_ctx: int) -> int:
    """How many sequences of a batch a recording averages layer 1's pattern over, for queries but the last.

    No loss depends on these rows, and they take n_ctx times the work of a step: all at n_ctx 16, a part in longer ones.
    """
    return min(batch_size, max(8, 16 * batch_size // n_ctx))


def training_seed(config: TrainConfig) -> Seed:
    """The seed of a run's stream of sequences."""
    return config.seed, TRAINING_STREAM


def _sampler(task: Task) -> Any:
    """The task in the native core, if the core can draw its sequences."""
    return task.native_sampler() if isinstance(task, InContextTask) and task.counts else None
