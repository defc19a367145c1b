"""Training that is interrupted ends bit for bit where an uninterrupted one does; damage and mix-ups are named."""

import errno
import hashlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from assertions import assert_refused, unchecked_types
from scripts import analysis_module

import causal_circuits as cc
from causal_circuits.training.checkpoints import load_state

STAGES = (cc.Stage(12, 0.1, train=("W_Q.0",)), cc.Stage(18, 0.05, optimizer="adamw", schedule="cosine"))
CONFIG = cc.TrainConfig(STAGES, batch_size=16, seed=2)
EVERY_STEP = cc.RecordAt.every(4, 30)


def new_model(dtype: torch.dtype = torch.float32) -> cc.models.HookedTransformer:
    return cc.disentangled_transformer(4, 6, (2, 1), init_scale=0.1, seed=7, dtype=dtype)


def stop_at(step: int):
    """An on_record that fails at a step."""

    def look(at: int, model: object) -> None:
        if at >= step:
            raise RuntimeError("a metric of the user's")

    return look


def assert_same_end(found: cc.TrainingRecord, expected: cc.TrainingRecord) -> None:
    assert found.steps == expected.steps
    for name in ("losses", "recorded_losses", "attention", "score_gradients"):
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None), name
        assert one is None or torch.equal(one, other), name


def assert_same_weights(found: object, expected: object) -> None:
    for (name, one), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other), name


# ---- going on


@pytest.mark.parametrize("path", ["fused", "structured"])
@pytest.mark.parametrize("record", [EVERY_STEP, cc.RecordAt.every(4, 30, layers=(0,)), cc.RecordAt(steps=(30,))])
@pytest.mark.parametrize("every", [1, 5, 12, 7])
def test_a_run_that_failed_half_way_ends_where_an_uninterrupted_one_does(chain_task, tmp_path, path, record, every):
    dtype = {"fused": torch.float32, "structured": torch.float64}[path]
    whole, cut, again = (new_model(dtype) for _ in range(3))
    expected = cc.train(whole, chain_task, CONFIG, record=record)
    assert expected.path == path
    kept = cc.Checkpoints(tmp_path / "kept", every=every)
    with pytest.raises(RuntimeError, match="a metric"):
        cc.train(cut, chain_task, CONFIG, record=record, on_record=stop_at(20), checkpoints=kept)
    found = cc.train(again, chain_task, CONFIG, record=record, checkpoints=kept)
    assert_same_end(found, expected)
    assert_same_weights(again, whole)


def test_an_ensemble_goes_on_together(tmp_path):
    tasks = [cc.InContextTask(g, d_vocab=4) for g in (cc.chain_graph(6), cc.pairs_graph(6), cc.chain_graph(6))]
    configs = [cc.TrainConfig(STAGES, batch_size=16, seed=1), CONFIG, cc.TrainConfig.joint(30, 0.1, batch_size=16)]
    whole, cut, again = ([new_model() for _ in tasks] for _ in range(3))
    expected = cc.train_ensemble(whole, tasks, configs)
    kept = cc.Checkpoints(tmp_path, every=8)
    with pytest.raises(RuntimeError):
        cc.train_ensemble(cut, tasks, configs, on_record=stop_at(20), checkpoints=kept)
    found = cc.train_ensemble(again, tasks, configs, checkpoints=kept)
    for i in range(3):
        assert_same_end(found[i], expected[i])
        assert_same_weights(again[i], whole[i])


def test_members_trained_one_by_one_go_on_one_by_one(chain_task, tmp_path):
    whole, cut, again = ([new_model(torch.float64) for _ in range(2)] for _ in range(3))
    expected = cc.train_ensemble(whole, [chain_task] * 2, [CONFIG] * 2)
    calls = []

    def fail(step: int, model: object) -> None:
        calls.append(step)
        if calls.count(0) == 2 and step > 10:
            raise RuntimeError

    with pytest.raises(RuntimeError):
        cc.train_ensemble(cut, [chain_task] * 2, [CONFIG] * 2, on_record=fail, checkpoints=cc.Checkpoints(tmp_path, 4))
    found = cc.train_ensemble(again, [chain_task] * 2, [CONFIG] * 2, checkpoints=cc.Checkpoints(tmp_path, 4))
    for i in range(2):
        assert_same_end(found[i], expected[i])
        assert_same_weights(again[i], whole[i])


def test_turns_go_on_in_the_turn_that_was_cut(tmp_path):
    task = cc.InContextTask(cc.ngram_graph(8, order=2), d_vocab=3)
    config = cc.TurnConfig(steps=40, settle=10, batch_size=32, n_sequences=512)
    whole, again = cc.disentangled_transformer(3, 8, (2, 1)), cc.disentangled_transformer(3, 8, (2, 1))
    expected, turns = cc.train_in_turns(whole, task, config)
    for calls in (1, 1, 1, 0):
        kept = cc.Checkpoints(tmp_path, 3, 1e-9 if calls else None)  # a step a call
        with pytest.raises(cc.TrainingPaused) if calls else nullcontext():
            found, same_turns = cc.train_in_turns(again, task, config, checkpoints=kept)
        for _ in range(8 * calls):
            with pytest.raises(cc.TrainingPaused):
                cc.train_in_turns(again, task, config, checkpoints=kept)
    assert_same_end(found, expected)
    assert_same_weights(again, whole)
    assert [turn.last_key for turn in same_turns] == [turn.last_key for turn in turns]


@pytest.mark.parametrize("task", ["kernels", "small alpha"])
def test_tasks_whose_sequences_are_not_counted_go_on_too(tmp_path, task):
    more = {"kernels": torch.full((4, 4), 0.25)} if task == "kernels" else {"alpha": 0.01}
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=4, **more)
    whole, cut, again = new_model(), new_model(), new_model()
    expected = cc.train(whole, task, CONFIG)
    kept = cc.Checkpoints(tmp_path, every=7)
    with pytest.raises(RuntimeError):
        cc.train(cut, task, CONFIG, on_record=stop_at(20), checkpoints=kept)
    assert_same_end(cc.train(again, task, CONFIG, checkpoints=kept), expected)
    assert_same_weights(again, whole)


def test_a_record_on_disk_goes_on(chain_task, tmp_path):
    whole, cut, again = new_model(), new_model(), new_model()
    on_disk = cc.RecordAt.every(3, 30, folder=tmp_path / "record")
    expected = cc.train(whole, chain_task, CONFIG, record=cc.RecordAt.every(3, 30))
    kept = cc.Checkpoints(tmp_path / "kept", every=4)
    with pytest.raises(RuntimeError):
        cc.train(cut, chain_task, CONFIG, record=on_disk, on_record=stop_at(20), checkpoints=kept)
    assert_same_end(cc.train(again, chain_task, CONFIG, record=on_disk, checkpoints=kept), expected)
    assert_same_weights(again, whole)


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
    assert cc.restore_checkpoint(third, tmp_path) == 30
    assert_same_weights(third, one)


def test_a_run_that_ran_out_of_time_says_how_far_it_came_and_goes_on(chain_task, tmp_path):
    whole, cut = new_model(), new_model()
    expected = cc.train(whole, chain_task, CONFIG)
    with pytest.raises(
        cc.TrainingPaused, match=r"paused at step \d+ of 30, saved in .*: the same call goes on"
    ) as paused:
        cc.train(cut, chain_task, CONFIG, checkpoints=cc.Checkpoints(tmp_path, minutes=1e-9))
    done = paused.value.step
    assert torch.equal(paused.value.records[0].losses, expected.losses[:done])
    again = new_model()
    assert_same_end(cc.train(again, chain_task, CONFIG, checkpoints=cc.Checkpoints(tmp_path)), expected)
    assert_same_weights(again, whole)


# ---- kill -9 and Ctrl-C, in processes of their own (forked: no second import of torch)

FORK = multiprocessing.get_context("fork")
LONG = (cc.Stage(100, 0.1, train=("W_Q.0",)), cc.Stage(300, 0.05, optimizer="adamw", schedule="cosine"))


def train_and_save(folder: Path, path: str, every: int) -> None:
    """A run of 400 steps whose model and record are written at the end."""
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=4, alpha=0.3)
    model = new_model(torch.float32 if path == "fused" else torch.float64)
    record, config = cc.RecordAt.every(50, 400), cc.TrainConfig(LONG, batch_size=24)
    kept = cc.Checkpoints(folder / "kept", every=every)
    cc.train(model, task, config, checkpoints=kept, record=record, progress=False).save(folder / "record")
    cc.save_model(model, folder / "model")


def started(job: Callable[..., None], *arguments: object) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=job, args=arguments)
    process.start()
    return process


def ended(process: multiprocessing.process.BaseProcess) -> int | None:
    process.join(timeout=600)
    return process.exitcode


def saved(folder: Path) -> bytes:
    """The weights, and the record's arrays."""
    return (folder / "model" / "model.safetensors").read_bytes() + (
        folder / "record" / "record.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(("path", "every"), [("fused", 20), ("fused", 1), ("structured", 3)])
def test_killed_at_random_moments_it_ends_bit_for_bit_where_an_unkilled_run_does(tmp_path, path, every):
    began = time.monotonic()
    assert ended(started(train_and_save, tmp_path / "whole", path, every)) == 0
    seconds, chance, reached = time.monotonic() - began, random.Random(every), []
    for _ in range(5):
        process = started(train_and_save, tmp_path / "cut", path, every)
        time.sleep(chance.uniform(0.05, 0.3) * seconds)
        process.kill()
        assert ended(process) in (-signal.SIGKILL, 0)
        reached.append(max((path.name for path in (tmp_path / "cut" / "kept").glob("*.json")), default=""))
    assert reached == sorted(reached)
    assert reached[-1] > ""
    assert ended(started(train_and_save, tmp_path / "cut", path, every)) == 0
    assert saved(tmp_path / "cut") == saved(tmp_path / "whole")
    assert not list(tmp_path.glob("cut/*/*.part"))


def interrupt_yourself(folder: Path) -> None:
    """Ctrl-C at step 20 of 30; exits with 7 if the loop says so in a KeyboardInterrupt."""

    def press(step: int, model: object) -> None:
        if step == 20:
            signal.raise_signal(signal.SIGINT)

    task = cc.InContextTask(cc.chain_graph(6), d_vocab=4, alpha=0.3)
    try:
        cc.train(new_model(), task, CONFIG, record=EVERY_STEP, on_record=press, checkpoints=cc.Checkpoints(folder))
    except KeyboardInterrupt as stopped:
        said = str(stopped) == f"interrupted at step 21 of 30, saved in {folder}"
        sys.exit(7 if said else 8)


def test_ctrl_c_finishes_the_step_saves_and_says_how_to_go_on(chain_task, tmp_path):
    assert ended(started(interrupt_yourself, tmp_path)) == 7
    assert [path.name for path in tmp_path.glob("*.json")] == ["step_000000021.json"]
    whole, again = new_model(), new_model()
    expected = cc.train(whole, chain_task, CONFIG, record=EVERY_STEP)
    assert_same_end(
        cc.train(again, chain_task, CONFIG, record=EVERY_STEP, checkpoints=cc.Checkpoints(tmp_path)), expected
    )
    assert_same_weights(again, whole)


def test_the_handler_of_ctrl_c_is_put_back(chain_task, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(RuntimeError):
        cc.train(new_model(), chain_task, CONFIG, on_record=stop_at(3), checkpoints=cc.Checkpoints(tmp_path))
    assert signal.getsignal(signal.SIGINT) is before


# ---- scripts


def run_script(folder: Path, interrupted: bool = False) -> None:
    """The main job at toy size, as the command line runs it; Ctrl-C comes at the first recorded step from 10 on."""

    def train(*given: object, **options: object) -> cc.TrainingRecord:
        def press(step: int, model: object) -> None:
            if interrupted and step >= 10:
                signal.raise_signal(signal.SIGINT)

        return cc.training.train(*given, **options, on_record=press)

    flags = ["--d-vocab", 3, "--n-ctx", 6, "--steps", 60, "--seed", 4, "--quiet", "--out", folder]
    with pytest.MonkeyPatch.context() as patch:
        job = analysis_module("induction_head", patch)
        patch.setattr(sys, "argv", ["induction_head.py", *map(str, flags)])
        patch.setattr(cc, "train", train)
        with unchecked_types():
            sys.exit(job.exit_status(job.main))


def numbers_of(folder: Path) -> dict:
    """results.json without what may differ: times, and the folder in the command."""
    found = json.loads((folder / "results.json").read_text())
    return {name: value for name, value in found.items() if name not in ("timing", "command", "config")}


def test_a_script_stopped_by_ctrl_c_exits_with_130_and_the_same_command_gives_the_same_numbers(tmp_path, capfd):
    assert ended(started(run_script, tmp_path / "whole")) == 0
    assert ended(started(run_script, tmp_path / "cut", True)) == 130
    error = capfd.readouterr().err
    assert error.startswith("induction_head.py: interrupted at step ")
    assert error.endswith("give the same command again to go on\n")
    assert error.count("\n") == 1
    assert not (tmp_path / "cut" / "results.json").exists()
    assert ended(started(run_script, tmp_path / "cut")) == 0
    assert numbers_of(tmp_path / "cut") == numbers_of(tmp_path / "whole")
    assert not (tmp_path / "cut" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (KeyboardInterrupt(), 130),
        (OSError(28, "No space left on device", "results.json"), 1),
        (cc.DivergenceError("the loss became nan at step 3", 3, 0, None), 1),
        (cc.CheckpointError("of another run"), 2),
    ],
)
def test_faults_of_the_world_end_a_script_in_one_line(error, status, monkeypatch, capsys):
    command_line = analysis_module("command_line", monkeypatch)

    def main() -> int:
        raise error

    assert command_line.exit_status(main) == status
    assert capsys.readouterr().err.count("\n") == 1


def test_a_defect_keeps_its_traceback(monkeypatch):
    command_line = analysis_module("command_line", monkeypatch)
    with pytest.raises(ZeroDivisionError):
        command_line.exit_status(lambda: 1 // 0)


# ---- damage and mix-ups


@pytest.fixture
def kept(chain_task, tmp_path) -> Path:
    """Checkpoints of steps 16 and 24 of a run that failed later."""
    with pytest.raises(RuntimeError):
        cc.train(
            new_model(),
            chain_task,
            CONFIG,
            record=EVERY_STEP,
            on_record=stop_at(28),
            checkpoints=cc.Checkpoints(tmp_path, every=8),
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"step_{step:09d}.{kind}" for step in (16, 24) for kind in ("json", "safetensors")
    ]
    return tmp_path


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {"truncated": truncate, "emptied": empty, "altered": flip, "deleted": Path.unlink}


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(chain_task, kept, damage, kind):
    whole, again, steps = new_model(), new_model(), []
    expected = cc.train(whole, chain_task, CONFIG, record=EVERY_STEP)
    newest = kept / f"step_000000024.{kind}"
    DAMAGE[damage](newest)
    quiet = damage == "deleted" and kind == "json"  # a checkpoint is there when its JSON is
    with nullcontext() if quiet else pytest.warns(UserWarning, match=rf"{newest} is damaged.*the checkpoint before it"):
        found = cc.train(
            again,
            chain_task,
            CONFIG,
            record=EVERY_STEP,
            checkpoints=cc.Checkpoints(kept, every=8),
            on_record=lambda step, _: steps.append(step),
        )
    assert steps[0] == 16
    assert_same_end(found, expected)
    assert_same_weights(again, whole)


def test_every_single_altered_byte_is_noticed(kept):
    """Of the newest checkpoint's JSON: spaces and line ends may change, nothing that is read."""
    path = kept / "step_000000024.json"
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        altered = bytearray(content)
        altered[place] ^= 2
        path.write_bytes(altered)
        if load_whole(bytes(altered)) != load_whole(content):
            with pytest.warns(UserWarning, match="is damaged"):
                assert load_state(kept, None).step == 16


def load_whole(content: bytes) -> object:
    try:
        return json.loads(content)
    except ValueError:
        return None


def test_with_every_checkpoint_damaged_training_starts_anew_and_says_so(chain_task, kept):
    for path in kept.glob("*.safetensors"):
        flip(path)
    steps = []
    with pytest.warns(UserWarning, match="is damaged"):
        cc.train(
            new_model(),
            chain_task,
            CONFIG,
            record=EVERY_STEP,
            checkpoints=cc.Checkpoints(kept, every=8),
            on_record=lambda step, _: steps.append(step),
        )
    assert steps[0] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"task": cc.InContextTask(cc.chain_graph(6), d_vocab=4, alpha=0.2)},
            ("members[0].task.alpha.1", "0.3", "0.2"),
        ),
        ({"task": cc.InContextTask(cc.pairs_graph(6), d_vocab=4, alpha=0.3)}, ("members[0].task.edges",)),
        ({"config": cc.TrainConfig(STAGES, batch_size=16, seed=3)}, ("members[0].config.seed is 2 there, 3 here",)),
        ({"config": cc.TrainConfig(STAGES[1:], batch_size=16, seed=2)}, ("members[0].config.stages",)),
        ({"record": cc.RecordAt(steps=(1,))}, ("record.steps",)),
        ({"model": cc.disentangled_transformer(4, 6, (2, 1), seed=8, init_scale=0.1)}, ("members[0].initial weights",)),
        ({"model": cc.disentangled_transformer(4, 6)}, ("members[0].initial weights",)),
        ({"model": new_model(torch.float64)}, ("path is fused there, structured here",)),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(chain_task, kept, change, words):
    call = {"model": new_model(), "task": chain_task, "config": CONFIG, "record": EVERY_STEP} | change
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert_refused(
        lambda: cc.train(**call, checkpoints=cc.Checkpoints(kept)), "of another run", "name another folder", *words
    )
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def test_a_checkpoint_of_another_format_is_named(kept):
    path = kept / "step_000000024.json"
    head = json.loads(path.read_text())
    del head["own sha256"]
    head["format"] = "causal_circuits.checkpoint/99"
    path.write_text(json.dumps(head | {"own sha256": digest(head)}))
    with pytest.warns(UserWarning, match="has the format 'causal_circuits.checkpoint/99'"):
        assert load_state(kept, None).step == 16


def digest(head: dict) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def test_a_file_of_absurd_size_is_not_read(kept):
    newest = kept / "step_000000024.json"
    with newest.open("r+b") as file:
        file.truncate(2**40)  # sparse: takes no room on the disk
    with pytest.warns(UserWarning, match="longer than any of ours"):
        assert load_state(kept, None).step == 16


# ---- numbers and disks that go wrong


@pytest.mark.parametrize("path", ["fused", "structured"])
def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(chain_task, tmp_path, path):
    model = new_model(torch.float32 if path == "fused" else torch.float64)
    if path == "structured":
        model = model.float()
        model.add_hook("blocks.0.attn.hook_pattern", lambda pattern, hook: None)
    config = cc.TrainConfig((cc.Stage(6, 0.01), cc.Stage(9, 3e38, optimizer="sgd")), batch_size=32)
    with pytest.raises(
        cc.DivergenceError, match=r"at step \d+: lower the learning rate \(now 3e\+38\); the last good"
    ) as e:
        cc.train(model, chain_task, config, checkpoints=cc.Checkpoints(tmp_path, every=2))
    assert 6 <= e.value.step < 12
    assert e.value.checkpoint in (4, 6, 8)
    good = cc.disentangled_transformer(4, 6, (2, 1))
    assert cc.restore_checkpoint(good, tmp_path) == e.value.checkpoint
    assert torch.isfinite(cc.evaluate(good, chain_task.sample(10))).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_stops_the_run_before_the_weights_move(chain_task, value):
    model = new_model(torch.float64)
    model.W_U.requires_grad_(True)
    calls = []

    def poison(gradient: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return gradient * value if len(calls) == 4 else gradient

    model.unembed.W_U.register_hook(poison)
    with pytest.raises(cc.DivergenceError, match="a gradient became no number at step 3") as stopped:
        cc.train(model, chain_task, CONFIG, record=cc.RecordAt(steps=()))
    assert (stopped.value.step, stopped.value.checkpoint) == (3, None)
    assert torch.isfinite(model.W_U).all()


def fill_the_disk(folder: Path) -> None:
    """From step 20 on no file may grow beyond fifty bytes; exits with 7 if training says so."""

    def fill(step: int, model: object) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))

    task = cc.InContextTask(cc.chain_graph(6), d_vocab=4, alpha=0.3)
    kept = cc.Checkpoints(folder, every=8)
    try:
        cc.train(new_model(), task, CONFIG, record=cc.RecordAt(steps=(20,)), on_record=fill, checkpoints=kept)
    except OSError as error:
        sys.exit(7 if error.errno == errno.EFBIG else 8)


def test_a_full_disk_leaves_the_earlier_checkpoints_whole(tmp_path):
    assert ended(started(fill_the_disk, tmp_path)) == 7
    assert load_state(tmp_path, None).step == 16
    assert not list(tmp_path.glob("*.part"))


def test_a_folder_that_cannot_be_is_refused_before_the_first_step(chain_task, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="file"):
        cc.train(new_model(), chain_task, CONFIG, checkpoints=cc.Checkpoints(tmp_path / "file" / "kept"))


def test_bad_checkpoints_are_refused(tmp_path):
    assert_refused(lambda: cc.Checkpoints(tmp_path, every=0), "at least 1 step", "0")
    assert_refused(lambda: cc.Checkpoints(tmp_path, minutes=0.0), "positive", "0.0")
    assert_refused(lambda: cc.Checkpoints(tmp_path, minutes=float("nan")), "positive", "nan")
    assert_refused(lambda: cc.restore_checkpoint(new_model(), tmp_path), "no whole checkpoint")


def test_weights_of_another_model_are_refused(kept):
    other = cc.disentangled_transformer(4, 6)
    assert_refused(lambda: cc.restore_checkpoint(other, kept), "another model's", "blocks.0.attn.W_Q", "there", "here")


# ---- what became of a training


def losses(curve: torch.Tensor) -> cc.TrainingRecord:
    noise = 0.02 * torch.randn(len(curve), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return cc.TrainingRecord(curve.double() + noise, (), torch.empty(0, dtype=torch.float64), None, None)


@pytest.mark.parametrize(
    ("curve", "verdict", "advice"),
    [
        (torch.linspace(2.3, 1.8, 400), "falls", ""),
        (torch.full((400,), 2.3), "plateau", "raise the learning rate"),
        (torch.linspace(2.3, 2.9, 400), "diverges", "lower the learning rate"),
        (torch.cat([torch.linspace(2.3, 1.8, 200), torch.linspace(1.8, 2.1, 200)]), "rises", "fell and rose again"),
        (torch.full((39,), 2.3), "too short", ""),
    ],
)
def test_a_curve_is_told_for_what_it_is(curve, verdict, advice):
    health = cc.training_health(losses(curve))
    assert health.verdict == verdict
    assert advice in health.advice
    assert (health.advice == "") == (verdict in ("falls", "too short"))


@pytest.mark.parametrize("n", [0, 1, 40, 41, 399])
def test_any_length_has_a_verdict(n):
    assert cc.training_health(losses(torch.full((n,), 2.0))).verdict in ("plateau", "too short")
