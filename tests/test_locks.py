"""One process at a time in a folder: trainings with checkpoints, studies; after kill -9 the next gets in."""

import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from assertions import assert_refused
from interrupted import FORK, assert_same_weights, ended, new_model, started

import causal_circuits as cc
from causal_circuits import locks


def stay(folder: Path, ends: Connection) -> None:
    with locks.exclusive_lock(folder):
        ends.send("inside")
        ends.poll(60)


@pytest.fixture
def other(tmp_path) -> Iterator[tuple[object, Callable[[], None]]]:
    """A process that holds the lock of `tmp_path`, and what makes it leave."""
    ours, theirs = FORK.Pipe()
    process = started(stay, tmp_path, theirs)
    assert ours.poll(60)
    yield process, lambda: ours.send("leave")
    process.kill()
    ended(process)


def test_a_second_process_is_refused_until_the_first_has_left(tmp_path, other):
    process, leave = other

    def enter() -> None:
        with locks.exclusive_lock(tmp_path):
            pass

    assert_refused(enter, f"{tmp_path} is taken by process {process.pid} on ", "wait for its end")
    with locks.exclusive_lock(tmp_path / "sub"):  # is another folder
        pass
    leave()
    assert ended(process) == 0
    enter()
    assert os.listdir(tmp_path) == ["sub"]


def test_kill_9_leaves_the_folder_to_the_next(tmp_path, other):
    process, _ = other
    process.kill()
    assert ended(process) == -signal.SIGKILL
    assert (tmp_path / ".lock").is_file()
    with locks.exclusive_lock(tmp_path):
        assert (tmp_path / ".lock").read_text().startswith(f"{os.getpid()} on ")
    assert os.listdir(tmp_path) == []


def count_up(folder: Path, times: int) -> None:
    while times:
        with suppress(ValueError), locks.exclusive_lock(folder):
            file, times = folder / "count", times - 1
            number = int(file.read_text())
            time.sleep(0.0005)
            file.write_text(str(number + 1))


def test_never_two_at_once(tmp_path):
    """The file of the lock goes and comes all the time: a lock on one that is gone must not count."""
    (tmp_path / "count").write_text("0")
    counting = [started(count_up, tmp_path, 60) for _ in range(4)]
    assert [ended(process) for process in counting] == [0] * 4
    assert (tmp_path / "count").read_text() == "240"
    assert os.listdir(tmp_path) == ["count"]


@pytest.mark.parametrize("lacking", ["file system", "permission"])
def test_where_nothing_can_be_locked_no_process_is_kept_out(tmp_path, monkeypatch, lacking):
    if lacking == "file system":

        def no_locks(*given: object) -> None:
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(fcntl, "flock", no_locks)
    else:
        (tmp_path / ".lock").mkdir()  # cannot be opened; a mode would not stop root
    with locks.exclusive_lock(tmp_path), locks.exclusive_lock(tmp_path):
        pass


@pytest.mark.parametrize("taken", ["checkpoints", "record"])
def test_a_training_in_a_taken_folder_is_refused_and_the_model_left_as_it_was(chain_task, tmp_path, taken):
    config = cc.TrainConfig.joint(5, batch_size=8, warm_start=2.0)
    model, untouched = new_model(), new_model()
    options = {"checkpoints": cc.Checkpoints(tmp_path / "checkpoints")}
    options |= {"record": cc.RecordAt(folder=tmp_path / "record")}
    with locks.exclusive_lock(tmp_path / taken):
        assert_refused(lambda: cc.train(model, chain_task, config, **options), str(tmp_path / taken), "is taken by")
    assert_same_weights(model, untouched)
    assert not list(tmp_path.rglob("*.json"))
    cc.train(model, chain_task, config, **options)
