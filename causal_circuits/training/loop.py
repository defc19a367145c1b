"""One training loop: tasks, models and configurations in; a TrainingRecord for each out."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from causal_circuits.models import HookedTransformer, layout_of, warm_start
from causal_circuits.models.fused import can_fuse
from causal_circuits.recording import RecordAt, Snapshot, SnapshotStore, TrainingRecord, to_plain
from causal_circuits.tasks import InContextTask
from causal_circuits.training.recipe import TrainConfig
from causal_circuits.training.runs import FusedRun, StructuredRun
from causal_circuits.training.steps import trainable_parameters
from causal_circuits.training.tally import parents_found

OnRecord = Callable[[int, HookedTransformer], None]


def train(
    model: HookedTransformer,
    task: InContextTask,
    config: TrainConfig | None = None,
    *,
    record: RecordAt | None = None,
    progress: bool | None = None,
    on_record: OnRecord | None = None,
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
    configs = [config or TrainConfig()]
    return train_ensemble([model], [task], configs, record=record, progress=progress, on_record=on_record)[0]


def train_ensemble(
    models: Sequence[HookedTransformer],
    tasks: Sequence[InContextTask],
    configs: Sequence[TrainConfig],
    *,
    record: RecordAt | None = None,
    progress: bool | None = None,
    on_record: OnRecord | None = None,
) -> list[TrainingRecord]:
    """Train many models in place, side by side: graphs, seeds or hyper-parameters; each as if it were trained alone.

    Each member has parameters, data and optimiser settings of its own; where the fused step applies they advance
    together, so that small batches cost no more than large ones. The result of each equals `train` to rounding.

    Args:
        models: of the same sizes.
        tasks: one for each model.
        configs: one for each model; number of steps and batch size must agree, everything else may differ.
        record, progress, on_record: as in `train`; on_record is called for one member after the other.

    >>> from causal_circuits import InContextTask, chain_graph, disentangled_transformer
    >>> models = [disentangled_transformer(d_vocab=3, n_ctx=4) for _ in range(2)]
    >>> tasks = [InContextTask(chain_graph(4), d_vocab=3)] * 2
    >>> configs = [TrainConfig.joint(3, batch_size=8, seed=seed) for seed in range(2)]
    >>> [len(record.losses) for record in train_ensemble(models, tasks, configs)]
    [3, 3]
    """
    record = record or RecordAt()
    _check(models, tasks, configs)
    for model, config in zip(models, configs, strict=True):
        if config.warm_start is not None:
            warm_start(model, config.warm_start)
    if all(can_fuse(model) for model in models):
        return _run(list(models), list(tasks), list(configs), record, progress, on_record, fused=True)
    members = zip(models, tasks, configs, strict=True)
    return [_run([m], [t], [c], record, progress, on_record, fused=False)[0] for m, t, c in members]


def _run(
    models: list[HookedTransformer],
    tasks: list[InContextTask],
    configs: list[TrainConfig],
    record: RecordAt,
    progress: bool | None,
    on_record: OnRecord | None,
    fused: bool,
) -> list[TrainingRecord]:
    n_steps, began = configs[0].steps, time.perf_counter()
    recorded, losses = set(record.within(n_steps)), np.empty((n_steps, len(models)))
    stores = _stores(record, len(models), len(recorded))

    def keep(snapshots: list[Snapshot]) -> None:
        for store, snapshot, model in zip(stores, snapshots, models, strict=True):
            store.add(snapshot)
            if on_record is not None:
                run.write_back()
                on_record(snapshot.step, model)
        if not bar.disable:
            bar.set_description(parents_found(tasks, snapshots, record), refresh=False)

    bar = tqdm(total=n_steps, desc="training", unit="step", disable=None if progress is None else not progress)
    with _torch_threads(fused) as n_threads, bar:
        run = FusedRun(models, tasks, configs, n_threads) if fused else StructuredRun(models[0], tasks[0], configs[0])
        try:
            on_the_way = run.records_by_itself(record)
            for step in range(n_steps):
                if step in recorded and not on_the_way:
                    keep(run.snapshots(step, record))
                losses[step] = run.gradients(record if step in recorded else None)
                if step in recorded and isinstance(run, FusedRun) and on_the_way:
                    keep(run.own_snapshots(step, losses[step], record))
                if not np.isfinite(losses[step]).all():
                    _raise_divergence(losses[step], step, configs)
                run.update()
                bar.update()
                if step % 20 == 19:
                    bar.set_postfix(loss=f"{losses[step].mean():.3f}", refresh=False)
            if n_steps in recorded and isinstance(run, FusedRun) and on_the_way:
                keep(run.own_snapshots(n_steps, run.gradients(record), record))
            elif n_steps in recorded:
                keep(run.snapshots(n_steps, record))
        finally:
            run.close()
    seconds = time.perf_counter() - began
    return [
        TrainingRecord(
            losses=torch.from_numpy(losses[:, member].copy()),
            config=to_plain(config),
            seconds=seconds,
            sequences_per_s=n_steps * config.batch_size * len(models) / seconds,
            path=run.path,
            **stores[member].fields(),
        )
        for member, config in enumerate(configs)
    ]


def _stores(record: RecordAt, n_members: int, n_records: int) -> list[SnapshotStore]:
    """Where the snapshots of each member go; members of an ensemble have a subfolder each."""
    if record.folder is None or n_members == 1:
        return [SnapshotStore(n_records, record.folder) for _ in range(n_members)]
    return [SnapshotStore(n_records, Path(record.folder) / f"member_{i:03d}") for i in range(n_members)]


def _raise_divergence(losses: "np.ndarray", step: int, configs: list[TrainConfig]) -> None:
    member = int(np.flatnonzero(~np.isfinite(losses))[0])
    ends = np.cumsum([stage.steps for stage in configs[member].stages])
    stage = configs[member].stages[int(np.searchsorted(ends, step, side="right"))]
    whose = f" of member {member}" if len(configs) > 1 else ""
    raise FloatingPointError(
        f"the loss{whose} became {losses[member]} at step {step}: lower the learning rate (now {stage.learning_rate})"
    )


@contextmanager
def _torch_threads(fused: bool) -> Iterator[int]:
    """The number of threads to train with; on the fused path torch itself, left with tiny updates, gets one.

    (A pool that waits for threads that the sampler keeps busy makes an optimiser step twenty times as long.)
    """
    n_threads = torch.get_num_threads()
    if fused:
        torch.set_num_threads(1)
    try:
        yield n_threads
    finally:
        torch.set_num_threads(n_threads)


def _check(models: Sequence[HookedTransformer], tasks: Sequence[InContextTask], configs: Sequence[TrainConfig]) -> None:
    if not models or not len(models) == len(tasks) == len(configs):
        raise ValueError(
            f"an ensemble needs one task and one config for each model: got {len(models)} models, {len(tasks)} tasks, "
            f"{len(configs)} configs"
        )
    if len({id(model) for model in models}) < len(models):
        raise ValueError("the models of an ensemble must be different objects: one stands there twice; build it anew")
    for what, values in (
        ("sizes", {layout_of(model) for model in models}),
        ("trainable parameters", {tuple(trainable_parameters(model)) for model in models}),
        ("number of steps", {config.steps for config in configs}),
        ("batch size", {config.batch_size for config in configs}),
    ):
        if len(values) > 1:
            raise ValueError(f"the members of an ensemble must have the same {what}: got {sorted(map(str, values))}")
    for model, task, config in zip(models, tasks, configs, strict=True):
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
