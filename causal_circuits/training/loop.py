"""One training loop: tasks, models and configurations in; a TrainingRecord for each out."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from tqdm.auto import tqdm

from causal_circuits import native
from causal_circuits.arguments import check_arguments
from causal_circuits.locks import exclusive_lock
from causal_circuits.models import HookedTransformer, warm_start
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
            return _run(list(models), list(tasks), list(configs), record, progress, on_record, checkpoints, fused=True)
        found = []
        for i, (model, task, config) in enumerate(zip(models, tasks, configs, strict=True)):
            there, own = record, checkpoints
            if len(models) > 1:
                name = f"member_{i:03d}"
                there = replace(record, folder=None if record.folder is None else Path(record.folder) / name)
                own = None if checkpoints is None else replace(checkpoints, folder=Path(checkpoints.folder) / name)
            found += _run([model], [task], [config], there, progress, on_record, own, fused=False)
        return found


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


def _run(
    models: list[HookedTransformer],
    tasks: list[Task],
    configs: list[TrainConfig],
    record: RecordAt,
    progress: bool | None,
    on_record: OnRecord | None,
    checkpoints: Checkpoints | None,
    fused: bool,
) -> list[TrainingRecord]:
    n_steps, hidden = configs[0].steps, None if progress is None else not progress
    recorded = set(record.within(n_steps))
    so_far = Progress(models, tasks, configs, record, checkpoints, FusedRun.path if fused else StructuredRun.path)
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
