"""Training that is interrupted ends bit for bit where an uninterrupted one does.

Kills and Ctrl-C reach processes of their own, forked: no second import of torch.
"""

import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from interrupted import (
    CONFIG,
    EVERY_STEP,
    STAGES,
    TASK,
    assert_same_end,
    assert_same_weights,
    ended,
    new_model,
    started,
    stop_at,
    uninterrupted,
)

import causal_circuits as cc

DTYPES = {"fused": torch.float32, "structured": torch.float64}
RECORDS = ((EVERY_STEP, 7), (cc.RecordAt.every(4, 30, layers=(0,)), 1), (cc.RecordAt(steps=(30,)), 7))


def assert_goes_on(
    task: cc.InContextTask,
    kept: cc.Checkpoints,
    record: cc.RecordAt = EVERY_STEP,
    of_whole: cc.RecordAt | None = None,
    path: str = "fused",
    config: cc.TrainConfig = CONFIG,
    make: Callable[[torch.dtype], cc.models.HookedTransformer] = new_model,
) -> None:
    """A run that fails at step 20 and goes on ends as one that does not; `of_whole` is what that one records."""
    whole, cut, again = (make(DTYPES[path]) for _ in range(3))
    expected = cc.train(whole, task, config, record=of_whole or record)
    with pytest.raises(RuntimeError, match="a metric"):
        cc.train(cut, task, config, record=record, on_record=stop_at(20), checkpoints=kept)
    found = cc.train(again, task, config, record=record, checkpoints=kept)
    assert found.path == expected.path == path
    assert_same_end(found, expected)
    assert_same_weights(again, whole)


@pytest.mark.parametrize(("record", "every"), RECORDS, ids=range(3))
@pytest.mark.parametrize("path", DTYPES)
def test_a_run_that_failed_half_way_ends_where_an_uninterrupted_one_does(chain_task, tmp_path, path, record, every):
    assert_goes_on(chain_task, cc.Checkpoints(tmp_path / "kept", every=every), record, path=path)


@pytest.mark.parametrize(
    "more", [{"transition_matrices": torch.full((4, 4), 0.25)}, {"alpha": 0.01}], ids=["fixed", "small alpha"]
)
def test_tasks_that_numpy_draws_or_that_need_logs_go_on_too(tmp_path, more):
    assert_goes_on(cc.InContextTask(cc.chain_graph(6), d_vocab=4, **more), cc.Checkpoints(tmp_path, every=7))


def test_a_record_on_disk_goes_on(chain_task, tmp_path):
    on_disk, in_memory = (cc.RecordAt.every(3, 30, folder=folder) for folder in (tmp_path / "record", None))
    assert_goes_on(chain_task, cc.Checkpoints(tmp_path / "kept", every=4), on_disk, in_memory)


@pytest.mark.parametrize("path", DTYPES)
def test_the_members_of_an_ensemble_go_on_together_or_one_by_one(tmp_path, path):
    tasks = [cc.InContextTask(g, d_vocab=4) for g in (cc.chain_graph(6), cc.pairs_graph(6), cc.chain_graph(6))]
    configs = [cc.TrainConfig(STAGES, batch_size=16, seed=1), CONFIG, cc.TrainConfig.joint(30, 0.1, batch_size=16)]
    whole, cut, again = ([new_model(DTYPES[path]) for _ in tasks] for _ in range(3))

    def fail(step: int, model: object) -> None:
        if model is cut[1] and step > 10:
            raise RuntimeError

    expected = cc.train_ensemble(whole, tasks, configs)
    kept = cc.Checkpoints(tmp_path, every=4)
    with pytest.raises(RuntimeError):
        cc.train_ensemble(cut, tasks, configs, on_record=fail, checkpoints=kept)
    found = cc.train_ensemble(again, tasks, configs, checkpoints=kept)
    for i in range(3):
        assert_same_end(found[i], expected[i])
        assert_same_weights(again[i], whole[i])


def test_a_start_from_matches_goes_on(tmp_path):
    task, config = cc.InContextTask(cc.ngram_graph(8, order=2), d_vocab=3), cc.TrainConfig.matched(30, batch_size=8)
    kept = cc.Checkpoints(tmp_path, every=3)
    assert_goes_on(task, kept, config=config, make=lambda dtype: cc.disentangled_transformer(3, 8, (2, 1)))


def test_a_finished_run_is_read_back_and_trains_no_more(chain_task, tmp_path):
    one, other, steps = new_model(), new_model(), []
    first = cc.train(one, chain_task, CONFIG, checkpoints=cc.Checkpoints(tmp_path))
    again = cc.train(
        other, chain_task, CONFIG, checkpoints=cc.Checkpoints(tmp_path), on_record=lambda step, _: steps.append(step)
    )
    assert steps == []
    assert_same_end(again, first)
    assert_same_weights(other, one)
    third = new_model()
    assert cc.training.restore_checkpoint(third, tmp_path) == 30
    assert_same_weights(third, one)


LONG = (cc.Stage(30, 0.1, train=("W_Q.0",)), cc.Stage(90, 0.05, optimizer="adamw", schedule="cosine"))


def train_and_save(folder: Path, path: str, every: int) -> None:
    """A run of 120 steps whose model and record are written at the end."""
    model = new_model(DTYPES[path])
    record, config = cc.RecordAt.every(25, 120), cc.TrainConfig(LONG, batch_size=24)
    kept = cc.Checkpoints(folder / "kept", every=every)
    cc.train(model, TASK, config, checkpoints=kept, record=record, progress=False).save(folder / "record")
    cc.save_model(model, folder / "model")


def saved(folder: Path) -> bytes:
    """The weights, and the record's arrays."""
    return b"".join((folder / name / f"{name}.safetensors").read_bytes() for name in ("model", "record"))


@pytest.mark.parametrize(("path", "every"), [("fused", 1), ("structured", 3)])
def test_killed_at_random_moments_it_ends_bit_for_bit_where_an_unkilled_run_does(tmp_path, path, every):
    began = time.monotonic()
    assert ended(started(train_and_save, tmp_path / "whole", path, every)) == 0
    seconds, chance, reached = time.monotonic() - began, random.Random(every), []
    while len(reached) < 3 or reached[-1] == "":  # on a busy machine all may come before the first checkpoint
        process = started(train_and_save, tmp_path / "cut", path, every)
        time.sleep(chance.uniform(0.05, 0.5) * seconds * 1.2 ** len(reached))
        process.kill()
        assert ended(process) in (-signal.SIGKILL, 0)
        reached.append(max((path.name for path in (tmp_path / "cut" / "kept").glob("*.json")), default=""))
    assert reached == sorted(reached)
    assert ended(started(train_and_save, tmp_path / "cut", path, every)) == 0
    assert saved(tmp_path / "cut") == saved(tmp_path / "whole")
    assert not list(tmp_path.glob("cut/*/*.part"))


def interrupt_yourself(folder: Path) -> None:
    """Ctrl-C at step 20 of 30; exits with 7 if the loop says so in a KeyboardInterrupt."""

    def press(step: int, model: object) -> None:
        if step == 20:
            signal.raise_signal(signal.SIGINT)

    try:
        cc.train(new_model(), TASK, CONFIG, record=EVERY_STEP, on_record=press, checkpoints=cc.Checkpoints(folder))
    except KeyboardInterrupt as stopped:
        said = str(stopped) == f"interrupted at step 21 of 30, saved in {folder}"
        sys.exit(7 if said else 8)


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(tmp_path):
    assert ended(started(interrupt_yourself, tmp_path)) == 7
    assert [path.name for path in tmp_path.glob("*.json")] == ["step_000000021.json"]
    (whole, expected), again = uninterrupted(), new_model()
    assert_same_end(cc.train(again, TASK, CONFIG, record=EVERY_STEP, checkpoints=cc.Checkpoints(tmp_path)), expected)
    assert_same_weights(again, whole)


def test_the_handler_of_ctrl_c_is_put_back(chain_task, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError):
        cc.train(new_model(), chain_task, CONFIG, on_record=stop_at(3), checkpoints=cc.Checkpoints(tmp_path))
    assert signal.getsignal(signal.SIGINT) is before
