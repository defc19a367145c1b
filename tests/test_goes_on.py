"""Long work goes on where it was killed; what is altered on disk meanwhile is named and made again, never used."""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from assertions import assert_refused
from interrupted import CONFIG, assert_same_end, assert_same_weights, ended, new_model, started, stop_at
from scripts import analysis_module, assert_refused_in_one_line, run_analysis

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
        differing = ("timing", "command", "seconds_a_graph", "out")
        kept = {name: value for name, value in values.items() if name not in differing}
        return {name: numbers(value) for name, value in kept.items() if not name.endswith("seconds")}
    return [numbers(value) for value in values] if isinstance(values, list) else values


def results(out: Path) -> object:
    return numbers(json.loads((out / "results.json").read_text()))


SMALLER = [
    ("prove_one", "RECORDED", 3),
    ("agreement", "FOREST_SEQUENCES", 2000),
    ("agreement", "KERNEL_BUDGET", 1e5),
    ("agreement", "TRAINING_STEPS", 20),
]
SCRIPTS = {
    "two_stage": ["--lengths", 6, 8, "--seeds", 1, "--steps", 6, 6, "--batch-size", 32, "--test", 64, "--figure-9", 1],
    "circuit_proof": ["--graph", "chain", "--n-ctx", 5, "--steps", 20, "--sequences", 64, "--formation-seeds", 2],
    "gradient_information": [
        *["--graph", "forest", "--d-vocab", 3, "--alpha", 1, "--n-ctx", 6, 8],
        *["--sequences", 200, "--forests", 1],
    ],
    "structure_learning": ["--sizes", 50, 100, "--graphs", 3, "--steps", 4, "--pc-graphs", 0],
    "generalization": [
        *["--lengths", 5, 6, "--seeds", 1, "--full-up-to", 5, "--steps", 4, 4],
        *["--kernels", 16, "--test", 16, "--starts", 1, "--rounds", 0],
    ],
    "discovery_benchmark": [
        *["--graphs", "chain", "--models", "planted", "trained", "--methods", "exact", "--steps", 4],
        *["--n-ctx", 5, "--sequences", 16, "--frontier-sequences", 8, "--seeds", 2],
    ],
}
FOLDERS = {"discovery_benchmark": "units"}  # whose units stay


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_that_died_half_way_ends_as_one_that_did_not(script, tmp_path, capsys):
    flags, whole, cut = SCRIPTS[script], tmp_path / "whole", tmp_path / "cut"
    names = made_by(script, flags, whole)
    assert len(names) == len(set(names)) >= 3
    half = len(names) // 2
    assert made_by(script, flags, cut, half) == names[:half]
    assert not (cut / "results.json").exists()
    folder = cut / FOLDERS.get(script, "unfinished")
    first = sorted(folder.glob("unit_*.json"))[0]
    alter(first)
    with pytest.MonkeyPatch.context() as patch:
        more = [*flags, "--seed" if script != "discovery_benchmark" else "--steps", 9, "--quiet", "--out", cut]
        capsys.readouterr()
        assert_refused_in_one_line(script, more, "holds another run: ", capsys, patch)
    again = made_by(script, flags, cut)
    assert len(again) == len(names) - half + 1  # and the altered one
    told = [line for line in capsys.readouterr().err.splitlines() if "unit" in line]
    assert len(told) == 1
    assert f"the unit {first} is damaged" in told[0]
    assert results(cut) == results(whole)
    assert folder.exists() == (script in FOLDERS)


def test_ctrl_c_in_a_unit_ends_with_130_and_one_line(tmp_path, capsys, monkeypatch):
    going_on, script = analysis_module("going_on", monkeypatch), analysis_module("structure_learning", monkeypatch)

    def press(self: object, name: str, make: object) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(going_on.Units, "made", press)
    flags = [*SCRIPTS["structure_learning"], "--quiet", "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", ["structure_learning.py", *map(str, flags)])
    assert script.exit_status(script.main) == 130
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "structure_learning.py: interrupted; give the same command again to go on"


@pytest.mark.parametrize("script", [*SCRIPTS, "induction_head", "causal_graph", "unlearned_edges"])
def test_help_says_that_it_goes_on(script, capsys, monkeypatch):
    with pytest.raises(SystemExit):
        run_analysis(script, ["--help"], monkeypatch)
    assert "goes on where it" in " ".join(capsys.readouterr().out.split())


# ---- units themselves


@pytest.fixture
def going_on(monkeypatch):
    return analysis_module("going_on", monkeypatch)


RUN = {"program": "a.py", "seed": 1, "lengths": [1, 2]}


def test_a_unit_is_made_once_and_comes_back_bit_for_bit(going_on, tmp_path):
    measured, error = torch.rand(5, 5), torch.full((5, 5), 0.1)
    comparison = cc.compare_gradient(measured, torch.rand(5, 5), cc.chain_graph(5), standard_error=error)
    result = {
        "numbers": [0.1 + 0.2, float("inf"), np.float64(1 / 3), np.int64(7), True, None, -0.0],
        ("a", 1): (torch.rand(3, dtype=torch.float64), {2: torch.tensor([True]), 10: torch.arange(4)[::2]}),
        "comparison": comparison,
    }
    for make in (lambda: result, lambda: pytest.fail("it is made twice")):
        found = going_on.Units(tmp_path, RUN).made("a b/c 0.1", make)
        assert list(found) == list(result)
        assert found["comparison"] == comparison
        assert found["numbers"] == result["numbers"]
        assert torch.equal(found["a", 1][0], result["a", 1][0])
        assert torch.equal(found["a", 1][1][10], torch.tensor([0, 2]))
    assert (tmp_path / "unit_a_b_c_0.1.json").is_file()


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_unit_is_named_and_made_again(going_on, tmp_path, capsys, damage, kind):
    for value in (1.0, 2.0):
        going_on.Units(tmp_path, RUN).made("u", lambda value=value: torch.tensor(value))
    path = tmp_path / f"unit_u.{kind}"
    DAMAGE[damage](path)
    assert capsys.readouterr().err == ""
    units = going_on.Units(tmp_path, RUN)
    assert units.made("u", lambda: torch.tensor(3.0)) == 3.0
    told = capsys.readouterr().err
    if (damage, kind) == ("deleted", "json"):  # then there is no unit
        assert told == ""
    else:
        assert str(path) in told
        assert "damaged" in told
        assert told.endswith("made again\n")
        assert told.count("\n") == 1
    assert units.made("u", lambda: pytest.fail("it was not kept")) == 3.0


def test_every_altered_byte_of_a_unit_is_noticed(going_on, tmp_path):
    """Spaces and line ends may change, nothing that is read."""
    going_on.Units(tmp_path, RUN).made("u", lambda: {"loss": [0.25, 0.5], "name": "x"})
    path = tmp_path / "unit_u.json"
    content = path.read_bytes()
    for place in range(len(content)):
        altered = bytearray(content)
        altered[place] ^= 2
        path.write_bytes(altered)
        if not is_same_json(bytes(altered), content):
            assert_refused(lambda: cc.storage.read_checked(path, going_on.UNIT, "unit"), f"the unit {path} is damaged")


def is_same_json(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_a_unit_of_another_run_is_named_and_made_again(going_on, tmp_path, capsys):
    for folder, seed in (("a", 1), ("b", 2)):
        going_on.Units(tmp_path / folder, RUN | {"seed": seed}).made("u", lambda seed=seed: seed)
    foreign = tmp_path / "a" / "unit_u.json"
    foreign.write_bytes((tmp_path / "b" / "unit_u.json").read_bytes())
    assert going_on.Units(tmp_path / "a", RUN).made("u", lambda: 1) == 1
    assert f"the unit {foreign} is of another run: seed is 2 there, 1 here: made again" in capsys.readouterr().err
    going_on.Units(tmp_path / "a", RUN).made("v", lambda: 5)
    foreign.write_bytes((tmp_path / "a" / "unit_v.json").read_bytes())  # of this run, under another name
    assert going_on.Units(tmp_path / "a", RUN).made("u", lambda: 1) == 1
    assert "name is 'v' there, 'u' here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 2}, ("seed is 1 there, 2 here",)),
        ({"lengths": [1, 3]}, ("lengths[1] is 2 there, 3 here",)),
        ({"program": "b.py"}, ("program is 'a.py' there, 'b.py' here",)),
    ],
)
def test_another_run_in_the_same_folder_is_refused_and_loses_nothing(going_on, tmp_path, change, words):
    going_on.Units(tmp_path, RUN).made("u", lambda: torch.tensor(1.0))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert_refused(lambda: going_on.Units(tmp_path, RUN | change), str(tmp_path), "delete that one", *words)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    for path in tmp_path.glob("unit_*"):
        path.unlink()
    with cc.locks.exclusive_lock(going_on.Units(tmp_path, RUN).training("heads") / "turn_0"):
        pass  # killed before the first checkpoint
    going_on.Units(tmp_path, RUN | change)  # nothing was done: nothing can be lost


def test_a_damaged_description_of_the_run_leaves_its_units_of_use(going_on, tmp_path, capsys):
    going_on.Units(tmp_path, RUN).made("u", lambda: 1)
    truncate(tmp_path / "run.json")
    units = going_on.Units(tmp_path, RUN)
    assert "run.json is damaged" in capsys.readouterr().err
    assert units.made("u", lambda: pytest.fail("it was kept")) == 1
    truncate(tmp_path / "run.json")
    assert going_on.Units(tmp_path, RUN | {"seed": 2}).made("u", lambda: 2) == 2
    assert "of another run: seed is 1 there, 2 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "result", [{"class": "pathlib:Path", "fields": {}}, {"class": "builtins:dict", "fields": {}}, {"odd": 1}]
)
def test_nothing_but_results_is_put_together(going_on, tmp_path, capsys, result):
    units = going_on.Units(tmp_path, RUN)
    units.made("u", lambda: 1)
    head, _ = cc.storage.read_checked(tmp_path / "unit_u.json", going_on.UNIT)
    cc.storage.write_checked(tmp_path, "unit_u", {**head, "result": result})
    assert units.made("u", lambda: 2) == 2
    assert "made again" in capsys.readouterr().err


# ---- kill -9, in processes of their own (forked: no second import of torch)


def make_twelve_units(folder: Path) -> None:
    """Tensors of a few hundred kilobytes, each in 20 ms; what all of them are is written at the end."""
    import going_on

    units, whole = going_on.Units(folder / "units", RUN), []
    for number in range(12):

        def make(number: int = number) -> torch.Tensor:
            time.sleep(0.02)
            return torch.rand(300, 300, generator=torch.Generator().manual_seed(number))

        whole.append(units.made(f"unit {number}", make))
    cc.storage.write_checked(folder, "end", {"format": "end/1"}, {"all": torch.stack(whole)})


def units_in(folder: Path) -> int:
    return len(list(folder.glob("units/unit_*.json")))


def test_killed_at_random_moments_it_ends_where_an_unkilled_run_does(going_on, tmp_path):
    assert ended(started(make_twelve_units, tmp_path / "whole")) == 0
    chance, done = random.Random(5), [0]
    for _ in range(8):
        process, more = started(make_twelve_units, tmp_path / "cut"), chance.randrange(3)
        while process.is_alive() and units_in(tmp_path / "cut") < min(done[-1] + more, 11):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        assert ended(process) in (-signal.SIGKILL, 0)
        done.append(units_in(tmp_path / "cut"))
    assert done == sorted(done)
    assert done[-1] > 0
    assert ended(started(make_twelve_units, tmp_path / "cut")) == 0
    for name in ("end.json", "end.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_warning_is_one_line_too(monkeypatch, capsys):
    command_line = analysis_module("command_line", monkeypatch)

    def main() -> int:
        warnings.simplefilter("always")
        warnings.warn("the checkpoint a is damaged:\npassed over", stacklevel=1)
        return 0

    assert command_line.exit_status(main) == 0
    assert capsys.readouterr().err.endswith(": the checkpoint a is damaged: passed over\n")
