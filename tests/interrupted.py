"""What the tests of interrupted training share: small runs, ways to stop them, and when two ends are equal."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

import causal_circuits as cc

STAGES = (
    cc.Stage(12, 0.1, train=("W_Q.0",), optimizer="sgd"),
    cc.Stage(18, 0.05, optimizer="adamw", schedule="cosine"),
)
CONFIG = cc.TrainConfig(STAGES, batch_size=16, seed=2)
EVERY_STEP = cc.RecordAt.every(4, 30)
TASK = cc.InContextTask(cc.chain_graph(6), d_vocab=4, alpha=0.3)


def new_model(dtype: torch.dtype = torch.float32) -> cc.models.HookedTransformer:
    return cc.disentangled_transformer(4, 6, (2, 1), init_scale=0.1, seed=7, dtype=dtype)


@cache
def uninterrupted() -> tuple[cc.models.HookedTransformer, cc.TrainingRecord]:
    """The model and the record of a whole run on TASK."""
    model = new_model()
    return model, cc.train(model, TASK, CONFIG, record=EVERY_STEP)


def stop_at(step: int):
    """An on_record that fails at a step."""

    def look(at: int, model: object) -> None:
        if at >= step:
            raise RuntimeError("a metric of the user's")

    return look


def cut_short(folder: object, every: int) -> None:
    """Leave the checkpoints of a run that failed at step 28 of 30."""
    kept = cc.Checkpoints(folder, every=every)
    with pytest.raises(RuntimeError):
        cc.train(new_model(), TASK, CONFIG, record=EVERY_STEP, on_record=stop_at(28), checkpoints=kept)


def assert_same_end(found: cc.TrainingRecord, expected: cc.TrainingRecord) -> None:
    assert found.steps == expected.steps
    for name in ("losses", "recorded_losses", "attention", "score_gradients"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name


def assert_same_weights(found: object, expected: object) -> None:
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other), name


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def alter(path: Path) -> None:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {"truncated": truncate, "altered": alter, "deleted": Path.unlink}
FORK = multiprocessing.get_context("fork")  # no second import of torch


def started(job: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=_with_ctrl_c, args=(job, *arguments))
    process.start()
    return process


def _with_ctrl_c(job: Callable[..., None], *arguments: object) -> None:
    """Tests in a shell's background inherit that Ctrl-C is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    job(*arguments)


def ended(process: multiprocessing.process.BaseProcess) -> int | None:
    process.join(timeout=600)
    return process.exitcode
