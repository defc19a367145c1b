"""Records whose arrays grow on disk: read back whole, gone on after a kill, and named where they were altered."""

from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import assert_refused
from interrupted import CONFIG, DAMAGE, alter, assert_same_end, assert_same_weights, new_model, stop_at

import causal_circuits as cc

EVERY = cc.RecordAt.every(3, 30)


def streamed(folder: Path, **options: object) -> cc.RecordAt:
    return cc.RecordAt.every(3, 30, folder=folder / "record", **options)


@pytest.fixture
def died(chain_task, tmp_path) -> cc.Checkpoints:
    """A run that died at step 28, after checkpoints of steps 16 and 24, with 6 and 8 recorded states."""
    kept = cc.Checkpoints(tmp_path / "kept", every=8)
    with pytest.raises(RuntimeError):
        cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path), on_record=stop_at(28), checkpoints=kept)
    return kept


def test_a_streamed_record_is_read_back_whole(chain_task, tmp_path):
    expected = cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path, weight_gradients=True))
    found = cc.TrainingRecord.load(tmp_path / "record")
    assert_same_end(found, expected)
    assert torch.equal(found.weight_gradients, expected.weight_gradients)
    assert (found.config, found.path) == (expected.config, expected.path)
    assert 0 < found.seconds <= expected.seconds


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_member_of_an_ensemble_streams_to_a_folder_of_its_own(dtype, tmp_path):
    """The structured path, of models in float64, trains one member after the other."""
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=4)
    configs = [cc.TrainConfig.joint(5, batch_size=16, seed=seed) for seed in (0, 1)]
    ends = []
    for folder in (None, tmp_path):
        models = [cc.disentangled_transformer(4, 6, dtype=dtype) for _ in configs]
        ends.append(cc.train_ensemble(models, [task] * 2, configs, record=cc.RecordAt((0, 5), folder=folder)))
    kept, on_disk = ends
    assert kept[0].path == ("fused" if dtype == torch.float32 else "structured")
    for i, (one, other) in enumerate(zip(kept, on_disk, strict=True)):
        assert_same_end(other, one)
        assert_same_end(cc.TrainingRecord.load(tmp_path / f"member_{i:03d}"), one)


def test_of_a_run_that_died_the_record_up_to_its_last_checkpoint_is_read(chain_task, tmp_path, died):
    expected = cc.train(new_model(), chain_task, CONFIG, record=EVERY)
    found = cc.TrainingRecord.load(tmp_path / "record")
    assert found.steps == (0, 3, 6, 9, 12, 15, 18, 21)
    assert torch.equal(found.losses, expected.losses[:24])
    assert torch.equal(found.score_gradients, expected.score_gradients[:8])


def test_a_new_run_in_a_folder_forgets_the_index_of_the_old_one(chain_task, tmp_path):
    cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path))
    with pytest.raises(RuntimeError):
        cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path), on_record=stop_at(9))
    assert_refused(lambda: cc.TrainingRecord.load(tmp_path / "record"), "record.json")


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", ["attention.npy", "score_gradients.npy", "streamed.json", "streamed.safetensors"])
def test_a_damaged_streamed_record_is_named(chain_task, tmp_path, name, damage):
    cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path))
    path = tmp_path / "record" / name
    DAMAGE[damage](path)
    named = "record.json" if (name, damage) == ("streamed.json", "deleted") else str(path)
    assert_refused(lambda: cc.TrainingRecord.load(tmp_path / "record"), named)


@pytest.mark.parametrize(("row", "goes_on_at"), [(7, 18), (2, 0)])
def test_training_goes_on_before_the_damage(chain_task, tmp_path, died, row, goes_on_at):
    """Row 7 is only in the newer checkpoint, row 2 in both."""
    whole, again, steps = new_model(), new_model(), []
    expected = cc.train(whole, chain_task, CONFIG, record=EVERY)
    array = np.lib.format.open_memmap(tmp_path / "record" / "score_gradients.npy", mode="r+")
    array[row] += 1.0
    array.flush()
    call = {"record": streamed(tmp_path), "checkpoints": died}
    with pytest.warns(UserWarning, match=r"score_gradients.npy is damaged.*the checkpoint before it"):
        found = cc.train(again, chain_task, CONFIG, **call, on_record=lambda step, _: steps.append(step))
    assert steps[0] == goes_on_at
    assert_same_end(found, expected)
    assert_same_end(cc.TrainingRecord.load(tmp_path / "record"), expected)
    assert_same_weights(again, whole)


def test_a_checkpoint_without_states_forgets_those_of_the_damaged_one_after_it(chain_task, tmp_path):
    record, kept = cc.RecordAt((20, 30), folder=tmp_path / "record"), cc.Checkpoints(tmp_path / "kept", every=8)
    with pytest.raises(RuntimeError):
        cc.train(new_model(), chain_task, CONFIG, record=record, on_record=stop_at(28), checkpoints=kept)
    alter(tmp_path / "record" / "score_gradients.npy")
    with pytest.warns(UserWarning, match=r"score_gradients.npy is damaged"):
        found = cc.train(new_model(), chain_task, CONFIG, record=record, checkpoints=kept)
    assert_same_end(cc.TrainingRecord.load(tmp_path / "record"), found)


def test_the_arrays_of_another_run_in_the_same_folder_are_not_taken_for_this_ones(chain_task, tmp_path, died):
    """Run B writes over what run A had recorded; A then starts anew."""
    other = cc.TrainConfig.joint(30, 0.1, batch_size=16, seed=9)
    cc.train(new_model(), chain_task, other, record=streamed(tmp_path))
    with pytest.warns(UserWarning, match=r"attention.npy is damaged"):
        found = cc.train(new_model(), chain_task, CONFIG, record=streamed(tmp_path), checkpoints=died)
    assert_same_end(found, cc.train(new_model(), chain_task, CONFIG, record=EVERY))
