"""One training loop: a task, a model and a config in; a TrainingRecord out.

The step is behind one function, `gradient_step`: the fused numba pass where it applies (two layers, float32, CPU, no
hook attached), the structured forward with autograd everywhere else. Both give the same gradients.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from tqdm.auto import tqdm

from causal_circuits.models import HookedTransformer, layout_of, log_probs, warm_start
from causal_circuits.models.fused import can_fuse, fused_step
from causal_circuits.recording import RecordAt, Snapshot, TrainingRecord, stack_snapshots, to_plain, watch_attention
from causal_circuits.tasks import Batch, InContextTask


@dataclass(frozen=True)
class Stage:
    """A stretch of training with its own optimiser.

    Args:
        steps: optimiser steps, at least 1.
        learning_rate: at the start of the stage.
        train: the parameters it moves: "W_Q.0" is the paper's A^(1), "W_Q.1" its A^(2), "W_U" the read-out.
            None moves all of them.
        optimizer: "adam", "adamw" or "sgd".
        schedule: "constant", "cosine" (to zero) or "linear" (to zero).
        weight_decay: of Adam(W) and SGD.
    """

    steps: int
    learning_rate: float
    train: tuple[str, ...] | None = None
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"a stage needs at least 1 step: got {self.steps}")
        if self.train is not None and not self.train:
            raise ValueError("a stage's train must name a parameter: got (); None trains all of them")
        if not (0 < self.learning_rate < float("inf")):
            raise ValueError(f"learning_rate must be positive and finite: got {self.learning_rate}")
        if self.optimizer not in _OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(_OPTIMIZERS)}: got {self.optimizer!r}")
        if self.schedule not in _SCHEDULES:
            raise ValueError(f"schedule must be one of {', '.join(_SCHEDULES)}: got {self.schedule!r}")


# Ends the seed of every training batch: a test set drawn with sample(seed=(0, 5)) is not step 5 of a run.
_TRAINING_STREAM = 2402_14735

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
_SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1.0 + float(torch.cos(torch.tensor(torch.pi * progress)))),
    "linear": lambda progress: 1.0 - progress,
}


def default_stages(steps: int = 2000) -> tuple[Stage, ...]:
    """The recipe that recovered the graph on every forest tried (ARCHITECTURE.md has the comparison)."""
    if steps < 2:
        raise ValueError(f"the default recipe has two stages and needs at least 2 steps: got {steps}")
    first = max(1, min(100, steps // 5))
    return (
        Stage(steps=first, learning_rate=0.3, train=("W_Q.0",)),
        Stage(steps=steps - first, learning_rate=0.1, schedule="cosine"),
    )


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        stages: one after the other; the default finds the graph first (layer 1's attention alone, against a warm
            layer 2), then trains everything.
        batch_size: fresh sequences a step.
        warm_start: scale of the identity blocks that layer 2 and W_U are given before the first step (beta0 of
            Algorithm 1). It overwrites those blocks: None leaves the model as it comes, to go on with a trained one.
        seed: of the data: step s draws its batch from (seed, s) and a constant that keeps training apart from whatever
            `InContextTask.sample` is asked for, whatever the path and the number of threads.
    """

    stages: tuple[Stage, ...] = field(default_factory=default_stages)
    batch_size: int = 1024
    warm_start: float | None = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("training needs at least one stage: got none")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1: got {self.batch_size}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more: got {self.seed}")

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    @classmethod
    def joint(cls, steps: int = 1500, learning_rate: float = 0.03, **kwargs: object) -> "TrainConfig":
        """Everything at once; `kwargs` go to the stage (optimizer, schedule, weight_decay) or to the config.

        ``TrainConfig.joint(steps, 1.0, optimizer="sgd", warm_start=None)`` is the paper's own training.
        """
        of_config = {key: kwargs.pop(key) for key in ("batch_size", "warm_start", "seed") if key in kwargs}
        stage = Stage(steps=steps, learning_rate=learning_rate, **{"schedule": "cosine", **kwargs})  # type: ignore[arg-type]
        return cls(stages=(stage,), **of_config)  # type: ignore[arg-type]

    @classmethod
    def two_stage(cls, first: int = 100, second: int = 1400, **kwargs: object) -> "TrainConfig":
        """Algorithm 1: layer 1's attention alone, then layer 2 (and W_U) alone."""
        rest = ("W_Q.1", "W_U")
        stages = (Stage(first, 0.3, train=("W_Q.0",)), Stage(second, 0.03, train=rest, schedule="cosine"))
        return cls(stages=stages, **{"warm_start": 1.0, **kwargs})  # type: ignore[arg-type]


def train(
    model: HookedTransformer,
    task: InContextTask,
    config: TrainConfig | None = None,
    *,
    record: RecordAt | None = None,
    progress: bool | None = None,
    on_record: Callable[[int, HookedTransformer], None] | None = None,
) -> TrainingRecord:
    """Train a model of ours in place on fresh sequences of a task.

    Args:
        model: disentangled or reduced; moved nowhere, so put it on the device you want.
        task: where batches come from; its d_vocab and n_ctx must be the model's.
        config: stages, batch size, warm start and seed; the default is the recipe of `default_stages`.
        record: which steps to record; the default is twelve, dense at the start.
        progress: show a bar; None shows it on a terminal only.
        on_record: called with (step, model) at every recorded step, to measure the model or keep its weights.

    Raises:
        ValueError: model and task do not fit, or a stage names an unknown parameter.
        FloatingPointError: the loss is no longer a number; the message names the step and what to try.
    """
    config, record = config or TrainConfig(), record or RecordAt()
    _check_fit(model, task, config)
    if config.warm_start is not None:
        warm_start(model, config.warm_start)
    recorded = set(record.within(config.steps))
    losses, snapshots = [], []
    path = "fused" if can_fuse(model) else "structured"
    began = time.perf_counter()
    with (
        _torch_threads(for_path=path) as n_threads,
        _Batches(task, config, model.W_U.device, model.W_U.dtype) as batches,
        tqdm(
            total=config.steps, desc="training", unit="step", disable=None if progress is None else not progress
        ) as bar,
    ):
        step = 0
        for stage in config.stages:
            for optimizer in _updates(model, stage):
                batch = next(batches)
                if step in recorded:
                    snapshots.append(take_snapshot(model, batch, step, record))
                    if on_record is not None:
                        on_record(step, model)
                losses.append(gradient_step(model, batch, n_threads))
                if losses[-1] != losses[-1] or losses[-1] == float("inf"):
                    raise FloatingPointError(
                        f"the loss became {losses[-1]} at step {step}: lower the learning rate "
                        f"(now {stage.learning_rate})"
                    )
                optimizer.step()
                step += 1
                bar.update()
                if step % 20 == 0:
                    bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
        if config.steps in recorded:
            snapshots.append(take_snapshot(model, next(batches), step, record))
            if on_record is not None:
                on_record(step, model)
    seconds = time.perf_counter() - began
    model.zero_grad(set_to_none=True)
    return TrainingRecord(
        losses=torch.tensor(losses, dtype=torch.float64),
        config=to_plain(config),
        seconds=seconds,
        sequences_per_s=config.steps * config.batch_size / seconds,
        path=path,
        **stack_snapshots(snapshots),  # type: ignore[arg-type]
    )


def gradient_step(model: HookedTransformer, batch: Batch, n_threads: int | None = None) -> float:
    """Set the gradient of the mean loss on a batch, by the fastest path that honours every hook; return the loss.

    `n_threads` is for the fused path (None: as many as torch uses).
    """
    if can_fuse(model):
        return fused_step(model, batch.tokens, batch.target_probs, n_threads).loss
    model.zero_grad(set_to_none=True)
    loss = mean_loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return float(loss.detach())


def mean_loss(model: HookedTransformer, batch: Batch) -> Tensor:
    """Mean soft-label cross-entropy at the last position, nats; a scalar that can be differentiated."""
    return -(batch.target_probs * log_probs(model, batch.tokens)).sum(dim=-1).mean()


@torch.no_grad()
def evaluate(model: HookedTransformer, batch: Batch, chunk: int = 2048) -> Tensor:
    """The loss of every sequence of a batch, float64 [batch], nats; `chunk` sequences at a time."""
    batch = batch.to(model.W_U.device, model.W_U.dtype)
    pieces = [batch[start : start + chunk] for start in range(0, len(batch), chunk)]
    return torch.cat(
        [-(piece.target_probs * log_probs(model, piece.tokens)).sum(dim=-1).double() for piece in pieces]
    ).cpu()


def take_snapshot(model: HookedTransformer, batch: Batch, step: int = 0, record: RecordAt | None = None) -> Snapshot:
    """Attention and score gradients of one batch by hooks; a pass of its own, so it does not touch the training."""
    record = record or RecordAt()
    frozen = [block.attn.W_Q for block in model.blocks if not block.attn.W_Q.requires_grad]
    try:
        for parameter in frozen:  # a frozen layer's scores have gradients too
            parameter.requires_grad_(True)
        with watch_attention(model) as watched:
            loss = mean_loss(model, batch)
            if record.score_gradients:
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    model.zero_grad(set_to_none=True)
    return Snapshot(
        step=step,
        loss=float(loss.detach()),
        attention=watched.attention().cpu() if record.attention else None,
        score_gradients=watched.score_gradients().cpu() if record.score_gradients else None,
    )


@contextmanager
def _torch_threads(for_path: str) -> Iterator[int]:
    """The number of threads to train with; on the fused path torch itself, left with tiny updates, gets one.

    (A pool that waits for threads that the sampler keeps busy makes an optimiser step twenty times as long.)
    """
    n_threads = torch.get_num_threads()
    if for_path == "fused":
        torch.set_num_threads(1)
    try:
        yield n_threads
    finally:
        torch.set_num_threads(n_threads)


def _updates(model: HookedTransformer, stage: Stage) -> Iterator[torch.optim.Optimizer]:
    """The stage's optimiser once a step, its learning rate set."""
    parameters = trainable_parameters(model)
    chosen = [parameters[name] for name in stage.train or parameters]
    optimizer = _OPTIMIZERS[stage.optimizer](chosen, lr=stage.learning_rate, weight_decay=stage.weight_decay)  # type: ignore[call-arg]
    for step in range(stage.steps):
        rate = stage.learning_rate * _SCHEDULES[stage.schedule](step / stage.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        yield optimizer


def trainable_parameters(model: HookedTransformer) -> dict[str, torch.nn.Parameter]:
    """What can be trained, under the names that a Stage uses: "W_Q.0", "W_Q.1", ..., "W_U"."""
    named = {f"W_Q.{layer}": block.attn.W_Q for layer, block in enumerate(model.blocks)}
    named["W_U"] = model.unembed.W_U
    return {name: parameter for name, parameter in named.items() if parameter.requires_grad}


def _check_fit(model: HookedTransformer, task: InContextTask, config: TrainConfig) -> None:
    layout = layout_of(model)
    if (layout.d_vocab, layout.n_ctx) != (task.d_vocab, task.n_ctx):
        raise ValueError(
            f"model and task must have the same (d_vocab, n_ctx): model {(layout.d_vocab, layout.n_ctx)}, "
            f"task {(task.d_vocab, task.n_ctx)}"
        )
    known = trainable_parameters(model)
    for stage in config.stages:
        unknown = [name for name in stage.train or () if name not in known]
        if unknown:
            raise ValueError(f"a stage trains {unknown[0]!r}, which the model has not: it has {', '.join(known)}")


class _Batches:
    """The batches of a run, drawn one step ahead in a thread of their own; step s depends on (seed, s) alone."""

    def __init__(self, task: InContextTask, config: TrainConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._draw = lambda step: task.sample(
            config.batch_size, seed=(config.seed, step, _TRAINING_STREAM), n_threads=1
        ).to(device, dtype)
        self._pool = ThreadPoolExecutor(1)
        self._step = 0
        self._ahead = [self._pool.submit(self._draw, step) for step in range(2)]

    def __enter__(self) -> "_Batches":
        return self

    def __next__(self) -> Batch:
        self._ahead.append(self._pool.submit(self._draw, self._step + len(self._ahead)))
        self._step += 1
        return self._ahead.pop(0).result()

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)
