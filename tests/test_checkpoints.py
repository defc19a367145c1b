"""Checkpoints: damage is noticed and named, those of another run are refused."""

import os
from contextlib import nullcontext
from pathlib import Path

import interrupted
import pytest
import torch
from assertions import assert_refused
from interrupted import (
    CONFIG,
    EVERY_STEP,
    STAGES,
    TASK,
    alter,
    assert_same_end,
    assert_same_weights,
    cut_short,
    new_model,
    truncate,
    uninterrupted,
)

import causal_circuits as cc
from causal_circuits.storage import read_checked, write_checked
from causal_circuits.training.checkpoints import FORMAT, State, load_state, save_state


@pytest.fixture
def kept(tmp_path) -> Path:
    """Checkpoints of steps 16 and 24 of a run that failed later."""
    cut_short(tmp_path, every=8)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step_{step:09d}.{kind}" for step in (16, 24) for kind in ("json", "safetensors")
    ]
    return tmp_path


DAMAGE = interrupted.DAMAGE | {"emptied": lambda path: os.truncate(path, 0)}


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(kept, damage, kind):
    (whole, expected), again, steps = uninterrupted(), new_model(), []
    newest = kept / f"step_000000024.{kind}"
    DAMAGE[damage](newest)
    quiet = damage == "deleted" and kind == "json"  # a checkpoint is there when its JSON is
    with nullcontext() if quiet else pytest.warns(UserWarning, match=rf"{newest} is damaged.*the checkpoint before it"):
        call = {"record": EVERY_STEP, "checkpoints": cc.Checkpoints(kept, every=8)}
        found = cc.train(again, TASK, CONFIG, **call, on_record=lambda step, _: steps.append(step))
    assert steps[0] == 16
    assert_same_end(found, expected)
    assert_same_weights(again, whole)


def test_with_every_checkpoint_damaged_training_starts_anew_and_says_so(kept):
    for path in kept.glob("*.safetensors"):
        alter(path)
    call, steps = {"record": EVERY_STEP, "checkpoints": cc.Checkpoints(kept, every=8)}, []
    with pytest.warns(UserWarning, match="is damaged"):
        cc.train(new_model(), TASK, CONFIG, **call, on_record=lambda step, _: steps.append(step))
    assert steps[0] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": cc.InContextTask(cc.chain_graph(6), 4, alpha=0.2)}, ("members[0].task.alpha.1", "0.3", "0.2")),
        ({"task": cc.InContextTask(cc.pairs_graph(6), d_vocab=4, alpha=0.3)}, ("members[0].task.edges",)),
        ({"config": cc.TrainConfig(STAGES, batch_size=16, seed=3)}, ("members[0].config.seed is 2 there, 3 here",)),
        ({"config": cc.TrainConfig(STAGES[1:], batch_size=16, seed=2)}, ("members[0].config.stages",)),
        ({"record": cc.RecordAt(steps=(1,))}, ("record.steps",)),
        ({"model": cc.disentangled_transformer(4, 6, (2, 1), seed=8, init_scale=0.1)}, ("members[0].initial weights",)),
        ({"model": cc.disentangled_transformer(4, 6)}, ("members[0].initial weights",)),
        ({"model": new_model(torch.float64)}, ("path is fused there, structured here",)),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(kept, change, words):
    call = {"model": new_model(), "task": TASK, "config": CONFIG, "record": EVERY_STEP} | change
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert_refused(
        lambda: cc.train(**call, checkpoints=cc.Checkpoints(kept)), "of another run", "name another folder", *words
    )
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def rewritten(kept: Path, **changes: object) -> None:
    """The newest checkpoint with other content, under checksums that fit."""
    path = kept / "step_000000024.json"
    head, tensors = read_checked(path, FORMAT)
    head = {key: value for key, value in head.items() if key not in ("size", "sha256")}
    named = {name: value for name, value in changes.items() if isinstance(value, torch.Tensor)}
    write_checked(kept, path.stem, head | {k: v for k, v in changes.items() if k not in named}, tensors | named)


def test_a_checkpoint_of_another_format_is_named(kept):
    rewritten(kept, format="causal_circuits.checkpoint/99")
    with pytest.warns(UserWarning, match="has the format 'causal_circuits.checkpoint/99'"):
        assert load_state(kept, None).step == 16


@pytest.mark.parametrize("moment", [torch.zeros(3), torch.zeros(1, 2, 20, 20, dtype=torch.int64)], ids=str)
def test_moments_of_other_sizes_are_refused(kept, moment):
    rewritten(kept, **{"optimizer.W_Q.0.mean": moment})
    call = {"record": EVERY_STEP, "checkpoints": cc.Checkpoints(kept)}
    assert_refused(lambda: cc.train(new_model(), TASK, CONFIG, **call), "optimiser", "mean", "does not fit")


def test_a_checkpoint_that_was_skipped_takes_no_place_of_a_whole_one(tmp_path):
    """It lay at a later step: of the two that are kept, it was one, and the other the only whole one."""

    def save(*steps: int) -> None:
        for step in steps:
            save_state(tmp_path, {"members": []}, State(step, 1.0, {"x": torch.tensor(step)}))

    save(4, 8)
    truncate(tmp_path / "step_000000008.json")
    save(5, 6)
    assert sorted(path.name for path in tmp_path.glob("*.json")) == ["step_000000005.json", "step_000000006.json"]
    truncate(tmp_path / "step_000000006.safetensors")
    with pytest.warns(UserWarning, match="step_000000006"):
        assert load_state(tmp_path, None).step == 5


def test_no_weights_and_those_of_another_model_are_refused(kept):
    assert_refused(lambda: cc.training.restore_checkpoint(new_model(), kept / "nothing"), "no whole checkpoint")
    other = cc.disentangled_transformer(4, 6)
    assert_refused(lambda: cc.training.restore_checkpoint(other, kept), "another model's", "blocks.0.attn.W_Q", "there")
