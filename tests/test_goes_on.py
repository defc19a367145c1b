"""Long work goes on where it was killed; what is altered on disk meanwhile is named and made again, never used."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import assert_refused
from interrupted import CONFIG, assert_same_end, assert_same_weights, new_model, stop_at
from scripts import analysis_module, run_analysis

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
    head, tensors = cc.storage.read_checked(folder / "streamed.json", "causal_circuits.streamed/1")
    long = json.loads(json.dumps(head)) | {"steps": list(range(99))}
    cc.storage.write_checked(folder, "streamed", long, tensors)
    assert_refused(lambda: cc.TrainingRecord.load(folder), "11 rows", "99 recorded steps")


# ---- scripts: a unit fails half way, as a crash would, and the same command goes on


class Killed(Exception):
    """Raised in place of a unit."""


def die_at_unit(patch: pytest.MonkeyPatch, number: int | None) -> list[str]:
    """Makes the unit of this number (from 0) die; the names of the units made, as they come."""
    going_on, made = analysis_module("going_on", patch), []
    of_units = going_on.Units.made

    def counted(self: object, name: str, make: object) -> object:
        def make_or_die() -> object:
            if len(made) == number:
                raise Killed
            made.append(name)
            return make()

        return of_units(self, name, make_or_die)

    patch.setattr(going_on.Units, "made", counted)
    return made


def draw_nothing(patch: pytest.MonkeyPatch) -> None:
    """Figures and pages are looked at in other tests."""
    for name in dir(cc.figures):
        if name.startswith(("plot_", "save_", "write_")):
            patch.setattr(cc.figures, name, lambda *args, **kwargs: None)
    patch.setattr(cc.figures, "figure_html", lambda *args, **kwargs: "")


def made_by(script: str, flags: list, out: Path, die_at: int | None = None) -> list[str]:
    """Runs a script until the unit that dies, or to its end; the units that were made."""
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        for module, name, small in SMALLER:
            patch.setattr(analysis_module(module, patch), name, small)
        made = die_at_unit(patch, die_at)
        flags = [*flags, "--quiet", "--out", out]
        if die_at is None:
            assert run_analysis(script, flags, patch) == 0
        else:
            with pytest.raises(Killed):
                run_analysis(script, flags, patch)
    return made


def numbers(values: object) -> object:
    """results.json without what may differ: times, and the folder in the command."""
    if isinstance(values, dict):
        times = ("seconds", "timing", "command", "seconds_a_graph", "wall_s", "frontier_s")
        return {name: numbers(value) for name, value in values.items() if name not in (*times, "out")}
    return [numbers(value) for value in values] if isinstance(values, list) else values


def results(out: Path) -> object:
    return numbers(json.loads((out / "results.json").read_text()))


SMALLER = [("prove_one", "RECORDED", 3), ("agreement", "FOREST_SEQUENCES", 2000), ("agreement", "KERNEL_BUDGET", 1e5)]
SCRIPTS = {
    "two_stage": ["--lengths", 6, 8, "--seeds", 1, "--steps", 6, 6, "--batch-size", 32, "--test", 64, "--figure-9", 1],
    "circuit_proof": [
        *["--graph", "chain", "--n-ctx", 6, "--steps", 20, "--sequences", 64, "--formation-seeds", 2],
    ],
    "gradient_information": [
        *["--graph", "forest", "--d-vocab", 3, "--alpha", 1, "--n-ctx", 6, 8],
        *["--sequences", 200, "--forests", 1, "--quick"],
    ],
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_died_half_way_ends_as_one_that_did_not(script, tmp_path, capsys):
    flags, whole, cut = SCRIPTS[script], tmp_path / "whole", tmp_path / "cut"
    names = made_by(script, flags, whole)
    assert len(names) == len(set(names)) >= 3
    half = len(names) // 2
    assert made_by(script, flags, cut, half) == names[:half]
    assert not (cut / "results.json").exists()
    first = sorted((cut / "unfinished").glob("unit_*.json"))[0]
    alter(first)
    capsys.readouterr()
    again = made_by(script, flags, cut)
    assert len(again) == len(names) - half + 1  # and the altered one
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"the unit {first} is damaged" in told
    assert results(cut) == results(whole)
    assert not (cut / "unfinished").exists()
