"""Long work goes on where it was killed; what is altered on disk meanwhile is named and made again, never used."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import assert_refused
from interrupted import CONFIG, assert_same_end, assert_same_weights, new_model, stop_at

import causal_circuits as cc
import causal_circuits.figures

# ---- damage


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {"truncated": truncate, "altered": alter, "deleted": Path.unlink}

# ---- records that are streamed to disk


def streamed(folder: Path, **options: object) -> cc.RecordAt:
    return cc.RecordAt.every(3, 30, folder=folder / "record", **options)


def test_a_streamed_record_is_read_back_whole(chain_task, tmp_path):
    expected = cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path, weight_gradients=True))
    found = cc.TrainingRecord.load(tmp_path / "record")
    assert_same_end(found, expected)
    assert torch.equal(found.weight_gradients, expected.weight_gradients)
    assert (found.config, found.path) == (expected.config, expected.path)
    assert 0 < found.seconds <= expected.seconds


def test_of_a_run_that_died_the_record_up_to_its_last_checkpoint_is_read(chain_task, tmp_path):
    expected = cc.train(new_model(), chain_task, CONFIG, record=cc.RecordAt.every(3, 30))
    kept = cc.Checkpoints(tmp_path / "kept", every=8)
    with pytest.raises(RuntimeError):
        cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path), on_record=stop_at(28), checkpoints=kept)
    found = cc.TrainingRecord.load(tmp_path / "record")
    assert found.steps == (0, 3, 6, 9, 12, 15, 18, 21)
    assert torch.equal(found.losses, expected.losses[:24])
    assert torch.equal(found.score_gradients, expected.score_gradients[:8])


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["attention.npy", "score_gradients.npy", "streamed.json", "streamed.safetensors"])
def test_a_damaged_streamed_record_is_named(chain_task, tmp_path, name, damage):
    cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path))
    path = tmp_path / "record" / name
    DAMAGE[damage](path)
    named = "record.json" if (name, damage) == ("streamed.json", "deleted") else str(path)
    assert_refused(lambda: cc.TrainingRecord.load(tmp_path / "record"), named)


def test_every_sealed_byte_of_a_streamed_array_counts(chain_task, tmp_path):
    """Its header too; the rows after the last checkpoint do not."""
    kept = cc.Checkpoints(tmp_path / "kept", every=8)
    with pytest.raises(RuntimeError):
        cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path), on_record=stop_at(28), checkpoints=kept)
    path = tmp_path / "record" / "attention.npy"
    content, row = path.read_bytes(), 2 * 2 * 6 * 6 * 4
    sealed = len(content) - 3 * row  # 11 recorded steps, 8 of them by step 24
    for place in [*range(0, sealed, 97), sealed - 1, sealed, len(content) - 1]:
        altered = bytearray(content)
        altered[place] ^= 4
        path.write_bytes(altered)
        if place < sealed:
            assert_refused(lambda: cc.TrainingRecord.load(tmp_path / "record"), str(path), "checksum")
        else:
            assert len(cc.TrainingRecord.load(tmp_path / "record").attention) == 8


@pytest.mark.parametrize(("row", "goes_on_at"), [(7, 16), (2, 0)])
def test_training_goes_on_before_the_damage(chain_task, tmp_path, row, goes_on_at):
    """Checkpoints of steps 16 and 24 hold 6 and 8 rows: row 7 is only in the newer one, row 2 in both."""
    whole, again, steps = new_model(), new_model(), []
    expected = cc.train(whole, chain_task, CONFIG, record=cc.RecordAt.every(3, 30))
    kept = cc.Checkpoints(tmp_path / "kept", every=8)
    with pytest.raises(RuntimeError):
        cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path), on_record=stop_at(28), checkpoints=kept)
    array = np.lib.format.open_memmap(tmp_path / "record" / "score_gradients.npy", mode="r+")
    array[row] += 1.0
    array.flush()
    with pytest.warns(UserWarning, match=r"score_gradients.npy is damaged.*the checkpoint before it"):
        found = cc.train(
            again,
            chain_task,
            CONFIG,
            record=streamed(tmp_path),
            checkpoints=kept,
            on_record=lambda step, _: steps.append(step),
        )
    assert steps[0] == next(step for step in range(0, 31, 3) if step >= goes_on_at)
    assert_same_end(found, expected)
    assert_same_end(cc.TrainingRecord.load(tmp_path / "record"), expected)
    assert_same_weights(again, whole)


def test_a_new_run_in_a_folder_forgets_the_index_of_the_old_one(chain_task, tmp_path):
    cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path))
    with pytest.raises(RuntimeError):
        cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path), on_record=stop_at(9))
    assert_refused(lambda: cc.TrainingRecord.load(tmp_path / "record"), "record.json")


def test_an_index_that_lies_about_its_steps_is_refused(chain_task, tmp_path):
    cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path))
    folder = tmp_path / "record"
    head, tensors = cc.storage.read_checked(folder / "streamed.json", "causal_circuits.streamed/2")
    long = json.loads(json.dumps(head)) | {"steps": list(range(99))}
    cc.storage.write_checked(folder, "streamed", long, tensors)
    assert_refused(lambda: cc.TrainingRecord.load(folder), "11 rows", "99 recorded steps")
