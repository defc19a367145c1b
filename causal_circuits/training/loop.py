"""One training loop: tasks, models and configurations in, a TrainingRecord for each out; `train` for one model."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from causal_circuits import native
from causal_circuits.arguments import check_arguments
from causal_circuits.locks import exclusive_lock
from causal_circuits.models import HookedTransformer, has_layout, layout_of, warm_start
from causal_circuits.models.fused import can_fuse
from causal_circuits.models.layout import note_origin
from causal_circuits.recording import RecordAt, Snapshot, TrainingRecord
from causal_circuits.tasks import Task
from causal_circuits.training.checkpoints import Checkpoints
from causal_circuits.training.checks import check_members
from causal_circuits.training.clamps import clamped_attention
from causal_circuits.training.fused_run import FusedRun
from causal_circuits.training.match_start import start_from_matches
from causal_circuits.training.progress import Progress, parents_found
from causal_circuits.training.recipe import TrainConfig
from causal_circuits.training.steps import MATCH_STREAM
from causal_circuits.training.structured_run import StructuredRun

OnRecord = Callable[[int, HookedTransformer], None]


@check_arguments
def train(
    model: HookedTransformer,
    task: Task,
    config: TrainConfig | None = None,
    *,
    record: RecordAt | None = None,
    progress: bool | None = None,
    on_record: OnRecord | None = None,
    checkpoints: Checkpoints | None = None,
    attention: Mapping[int, Float[Tensor, "... n_ctx n_ctx"]] | None = None,
) -> TrainingRecord:
    """Train a model of ours in place on the sequences that a task draws.

    Args:
        model: disentangled, reduced or ordinary (which has no warm start and no default recipe, and whose stages name
            its parameters as TransformerLens does); moved nowhere, so put it on the device you want.
        task: where batches come from, by `draws`; its d_vocab and n_ctx must be the model's. A `BatchTask` trains on
            data of your own.
        config: stages, batch size, warm start and seed; the default is the recipe of `default_stages`, which writes
            nothing in. For a reduced model it is `TrainConfig.warm`, which writes in A2 as Algorithm 1 does, and for a
            model with several copying heads and a target that is no query's `TrainConfig.matched`, which writes in the
            parents that the gradient of order k favours, each head's match and the read-out (`start_from_matches`);
            both refuse a model whose weights are from a training, a file or `plant_circuit`.
        record: which steps to record; the default is twelve, dense at the start.
        progress: show a bar; None shows it on a terminal only.
        on_record: called with (step, model) at every recorded step, to measure the model or keep its weights; a run
            that goes on from a checkpoint calls it again for the steps since.
        checkpoints: where to keep checkpoints; if some of this very run are there, it goes on from the newest.
        attention: layer -> a pattern that it has while it trains, whatever its weights, which then do not move: rows
            are queries, [n_ctx, n_ctx] or one for each head (`clamped_attention`). The record's config holds it.
            Weights are frozen by leaving them out of a stage's `train`, or blocks of them by `TrainConfig.blocks`.

    Raises:
        ValueError: model and task do not fit, a stage names an unknown parameter, or another process trains in the
            folder of `checkpoints` or `record`.
        CheckpointError: the folder holds checkpoints of another run.
        DivergenceError: the loss or a gradient is non-finite; it names the step and what to try.
        OSError: a checkpoint cannot be written; those that were there are unharmed.

    >>> model = cc.disentangled_transformer(d_vocab=3, n_ctx=6)
    >>> record = cc.train(model, task, cc.TrainConfig.joint(20, batch_size=64), record=cc.RecordAt.every(10, until=20))
    >>> len(record.losses), record.steps
    (20, (0, 10, 20))
    """
    if config is None and not has_layout(model):
        raise ValueError(
            "an ordinary transformer has no default recipe: give a config, TrainConfig.joint(4096, 0.01) for one"
        )
    config = config or _default_config(model, task)
    if attention is not None and config.attention is not None:
        raise ValueError("the config has patterns already: give attention=None, or TrainConfig attention=None")
    if attention is not None:
        config = replace(config, attention={layer: pattern.tolist() for layer, pattern in attention.items()})
    (trained,) = train_ensemble(
        [model], [task], [config], record=record, progress=progress, on_record=on_record, checkpoints=checkpoints
    )
    return trained


@check_arguments
def train_ensemble(
    models: Sequence[HookedTransformer],
    tasks: Sequence[Task],
    configs: Sequence[TrainConfig],
    *,
    record: RecordAt | None = None,
    progress: bool | None = None,
    on_record: OnRecord | None = None,
    checkpoints: Checkpoints | None = None,
) -> list[TrainingRecord]:
    """Train many models in place, side by side: graphs, seeds or hyper-parameters; each as if it were trained alone.

    Each member has parameters, data and optimiser settings of its own; where the fused step applies they advance
    together, so that small batches cost no more than large ones. The result of each equals `train` to rounding.

    Args:
        models: of the same sizes.
        tasks: one for each model.
        configs: one for each model; number of steps and batch size must agree, everything else may differ.
        record, progress, on_record, checkpoints: as in `train`; on_record is called for one member after the other,
            and a checkpoint holds all of them.

    >>> models = [cc.disentangled_transformer(d_vocab=3, n_ctx=4) for _ in range(2)]
    >>> tasks = [cc.InContextTask(cc.chain_graph(4), d_vocab=3)] * 2
    >>> configs = [TrainConfig.joint(3, batch_size=8, seed=seed) for seed in range(2)]
    >>> [len(record.losses) for record in train_ensemble(models, tasks, configs)]
    [3, 3]
    """
    record = record or RecordAt()
    check_members(models, tasks, configs)
    native.warn_if_missing(len(models) * configs[0].steps * configs[0].batch_size)
    with ExitStack() as stack:
        stack.enter_context(_locked_folders(record, checkpoints))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for model, task, config in zip(models, tasks, configs, strict=True):
            if config.warm_start is not None:
                warm_start(model, config.warm_start)
            if config.match_start is not None:
                _start_from_matches(model, task, config.match_start, config.seed)
            given = {layer: torch.tensor(rows, dtype=torch.float64) for layer, rows in (config.attention or {}).items()}
            stack.enter_context(clamped_attention(model, given))
        special = any(task.every_position for task in tasks) or any(c.relative_positions or c.blocks for c in configs)
        if all(can_fuse(model) for model in models) and not special:
            return _run(Progress(models, tasks, configs, record, checkpoints, FusedRun.path), progress, on_record)
        found = []
        for i, (model, task, config) in enumerate(zip(models, tasks, configs, strict=True)):
            there, own = record, checkpoints
            if len(models) > 1:
                name = f"member_{i:03d}"
                there = replace(record, folder=None if record.folder is None else Path(record.folder) / name)
                own = None if checkpoints is None else replace(checkpoints, folder=Path(checkpoints.folder) / name)
            so_far = Progress([model], [task], [config], there, own, StructuredRun.path)
            found += _run(so_far, progress, on_record)
        return found


def _default_config(model: HookedTransformer, task: Task) -> TrainConfig:
    layout = layout_of(model)
    if layout.kind == "reduced":
        return TrainConfig.warm()
    several = layout.n_layers == 2 and layout.n_heads[0] > 1 and not (task.has_query or task.every_position)
    return TrainConfig.matched() if several else TrainConfig()


def _start_from_matches(model: HookedTransformer, task: Task, n_sequences: int, seed: int) -> None:
    batch = task.sample_at_most(n_sequences, seed=(seed, MATCH_STREAM))
    if not start_from_matches(model, batch).target_parents:
        warnings.warn(
            f"no position of {len(batch):,} sequences matches any target's parents, and nothing was written in: heads "
            "that start alike stay alike; give match_start more sequences, or start from small random weights",
            stacklevel=4,
        )


@contextmanager
def _locked_folders(record: RecordAt, checkpoints: Checkpoints | None) -> Iterator[None]:
    """Within, no other process trains in the folders that this run writes to."""
    folders = [record.folder] + ([] if checkpoints is None else [checkpoints.folder])
    given = {Path(folder) for folder in folders if folder is not None}
    with ExitStack() as locked:
        for folder in sorted(given):
            locked.enter_context(exclusive_lock(folder))
        yield


def _run(so_far: Progress, progress: bool | None, on_record: OnRecord | None) -> list[TrainingRecord]:
    models, tasks, configs, record = so_far.models, so_far.tasks, so_far.configs, so_far.record
    n_steps, fused, hidden = configs[0].steps, so_far.path == FusedRun.path, None if progress is None else not progress
    recorded = set(record.within(n_steps))
    if so_far.step == n_steps:  # finished by an earlier call
        return so_far.records(n_steps)

    def keep(snapshots: list[Snapshot]) -> None:
        for states, snapshot, model in zip(so_far.states, snapshots, models, strict=True):
            states.add(snapshot)
            if on_record is not None:
                run.write_back()
                on_record(snapshot.step, model)
                run.read_back()
        if not bar.disable:
            bar.set_description(parents_found(tasks, snapshots, record), refresh=False)

    bar = tqdm(total=n_steps, initial=so_far.step, desc="training", unit="step", disable=hidden)
    with _torch_threads(fused) as n_threads, so_far.stoppable(), bar:
        run = (
            FusedRun(models, tasks, configs, n_threads, so_far.start)
            if fused
            else StructuredRun(models[0], tasks[0], configs[0], so_far.start)
        )
        try:
            for step in range(so_far.step, n_steps):
                so_far.save_or_stop(step, run)
                if step in recorded:
                    keep(run.snapshots(step, record))
                so_far.losses[step] = losses = run.gradients()
                so_far.check(step, run.non_finite_member())
                run.update()
                bar.update()
                if step % 20 == 19:
                    bar.set_postfix(loss=f"{losses.mean():.3f}", refresh=False)
            if n_steps in recorded:
                keep(run.snapshots(n_steps, record))
            so_far.save_or_stop(n_steps, run)
        finally:
            run.close()
            for model in models:
                note_origin(model, "a training")
    return so_far.records(n_steps)


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
