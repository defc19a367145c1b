"""Many models trained in the native core, which draws batches, computes gradients and moves weights.

Draws the same sequences as `structured_run` for the same configuration, step by step.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from math import isfinite
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from causal_circuits.models import HookedTransformer, attachments, layout_of
from causal_circuits.models.fused import TRAINED, can_fuse, live_weights, new_trainer, score_gradients, sizes_of
from causal_circuits.models.structured import structured_forward
from causal_circuits.recording import MATRICES, RecordAt, Snapshot, recorded_layers, watch_attention
from causal_circuits.tasks import InContextTask, Task
from causal_circuits.tasks.base import checked_draws, seed_sequence
from causal_circuits.tasks.draws import key_of
from causal_circuits.training.checkpoints import CheckpointError, State
from causal_circuits.training.recipe import Stage, TrainConfig
from causal_circuits.training.steps import stage_at, trainable_parameters, training_seed


class FusedRun:
    """Models of the same sizes in the native core, which computes gradients while it draws the next batch."""

    path: Literal["fused"] = "fused"

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
        draws_itself = None not in samplers
        keys = [key_of(seed_sequence(training_seed(config))) for config in self._configs]
        self._core = new_trainer(models[0], len(models), self._batch, n_threads, samplers if draws_itself else (), keys)
        self._names = TRAINED[: len(live_weights(models[0]))]
        self._weights = [self._views(self._core.weights(which), which) for which in range(len(self._names))]
        self._gradients = [self._views(self._core.gradients_of(which), which) for which in range(len(self._names))]
        self._groups = list(self._equal_stages())
        if start is not None:
            self._restore(start)
        for member, model in enumerate(self._models):
            for stack, weight in zip(self._weights, live_weights(model), strict=True):
                stack[member] = weight
        self._total = 0.0
        self._state = "to do"  # of the gradients of this step: "done", or "stale" if weights were changed since
        self._pool = None if draws_itself else ThreadPoolExecutor(1)
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
            numbers = {name: which for which, name in enumerate(self._names) if name in trained}
            yield _Group(members[0], members[-1] + 1, self._configs[members[0]].stages, numbers)

    def _draw(self, step: int) -> None:
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

    def non_finite_member(self) -> int | None:
        """Which member has a non-finite gradient, if one has."""
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
                for which, name in enumerate(self._names) for what in ("mean", "square")}  # fmt: skip

    def _moments(self, what: str, which: int) -> Tensor:
        return self._views(self._core.means(which) if what == "mean" else self._core.squares(which), which)

    def _restore(self, start: State) -> None:
        for which, name in enumerate(self._names):
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
        (n_ctx, _, m1, m2), n = sizes_of(self._models[0]), len(self._models)
        uniform = np.tri(n_ctx, dtype=np.float32) / np.arange(1, n_ctx + 1, dtype=np.float32)[:, None]
        dead = uniform if name == "attention" else 0.0
        if layer == 0 and name == "score_gradients":
            return self._all_heads(-score_gradients(self._models[0], self._gradients[0]).numpy(), dead)
        patterns, rows = np.split(self._core.watched, [2 * m1 * n_ctx**2], axis=1)
        if layer == 0:
            pattern, gradient = patterns.reshape(n, 2, m1, n_ctx, n_ctx).swapaxes(0, 1)
            return self._all_heads(pattern if name == "attention" else -gradient, dead)
        last, d_last, d_scores = rows.reshape(n, 3, m2, n_ctx).swapaxes(0, 1)
        whole = self._layer_1_patterns() if name == "attention" else np.zeros((n, m2, n_ctx, n_ctx), np.float32)
        whole[:, :, -1] = {"attention": last, "score_gradients": -d_scores, "weight_gradients": -d_last}[name]
        return self._all_heads(whole, dead)

    @torch.no_grad()
    def _layer_1_patterns(self) -> np.ndarray:
        """Layer 1's pattern by the structured forward, [member, head, query, key], a mean over a part of the batch."""
        self.write_back()
        means, n = [], n_for_other_queries(self._batch, self._models[0].cfg.n_ctx)
        for model, tokens in zip(self._models, self._core.tokens, strict=True):
            with watch_attention(model, layers=(1,)) as watched:
                structured_forward(model, torch.from_numpy(tokens[:n].astype(np.int64)))
            means.append(watched.attention()[0, : layout_of(model).n_heads[1]].numpy())
        return np.stack(means)

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
    """Members first, ..., end - 1 of a run, whose stages are equal: they are updated together."""

    first: int
    end: int
    stages: tuple[Stage, ...]
    numbers: dict[str, int]  # the core's number of every weight that can be trained, by name

    def update(self, core: Any, step: int) -> None:
        """The optimiser's step number `step` of the whole run; a stage begins with an optimiser of its own."""
        stage, done, rate = stage_at(self.stages, step)
        for name in stage.train or self.numbers:
            which = self.numbers[name]
            if stage.optimizer == "sgd":
                core.sgd(which, self.first, self.end, rate, stage.weight_decay)
                continue
            if done == 0:
                for moments in (core.means(which), core.squares(which)):
                    moments[self.first : self.end] = 0.0
            decoupled = stage.optimizer == "adamw"
            decay, decoupled_decay = (0.0, stage.weight_decay) if decoupled else (stage.weight_decay, 0.0)
            core.adam(which, self.first, self.end, rate, decay, decoupled_decay, done + 1)


def n_for_other_queries(batch_size: int, n_ctx: int) -> int:
    """How many sequences of a batch a recording averages layer 1's pattern over, for queries but the last.

    No loss depends on these rows, and they take n_ctx times the work of a step: a part of the batch that falls with
    n_ctx keeps the default dozen of snapshots below 15% of a training of 300 steps (benchmarks/recording.py).
    """
    return min(batch_size, max(4, 4 * batch_size // n_ctx))


def _sampler(task: Task) -> Any:
    return task.native_sampler() if isinstance(task, InContextTask) and task.is_counter_based else None
