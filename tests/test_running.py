"""The runner of studies: nothing is measured twice, nothing stale or damaged is used, whatever stops a run."""

import json
import os
import random
import resource
import select
import signal
import sys
import time
from importlib.metadata import version
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
import toy_study
from assertions import assert_refused
from interrupted import DAMAGE, FORK, ended, started
from toy_study import MEASURED, Config

import causal_circuits as cc
from causal_circuits import measuring, running
from causal_circuits.encoding import decode, encode
from causal_circuits.locks import exclusive_lock
from causal_circuits.running import CellError
from causal_circuits.storage import read_checked, write_checked
from causal_circuits.studies.study import Cell, Report


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The cells that a test measures in this process; others are forked, which imports torch no second time."""
    MEASURED.clear()
    monkeypatch.setattr(running, "_warmed", lambda cells: FORK)
    return MEASURED


def run(folder: Path | None, processes: int = 1, **flags: object) -> running.Run:
    return cc.run(Config(**flags), folder, processes=processes, quiet=True)


def results_in(folder: Path) -> dict:
    """results.json without what may differ: times, and the folder."""
    results = json.loads((folder / "results.json").read_text())
    del results["timing"], results["config"]["out"]
    return results


def test_a_run_writes_everything_and_leaves_nothing_behind(tmp_path):
    done = run(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("cells", "config.json", "note.txt", "report.html", "results.json")
    ]
    assert len(list((tmp_path / "cells").iterdir())) == 8
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["total"] == sum(row.total for row in done.rows.values())
    assert results["nothing"] is None
    assert results["config"] == {
        **{"seed": 0, "quick": False, "numbers": [1, 2, 3, 4], "size": 1000, "bad": None, "wait": 0.0},
        **{"deaf": None, "deadly": None, "log": None, "out": str(tmp_path), "quiet": True, "n_cells": 4},
    }
    assert results["versions"]["torch"] == version("torch")
    assert list(results["timing"]["cells"]) == [f"number {n}" for n in (1, 2, 3, 4)]
    assert results["timing"]["wall_s"] >= sum(results["timing"]["cells"].values())
    assert results["command"].startswith("run(Config(")
    assert "the sum is positive" in (tmp_path / "report.html").read_text()
    assert "Sums" in done._repr_html_()


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(None).rows["number 1"].total > 0
    assert list(tmp_path.iterdir()) == []


def test_cells_are_measured_once_and_added_to(tmp_path, measured):
    first = run(tmp_path, numbers=(1, 2))
    again = run(tmp_path, numbers=(2, 5, 1))
    assert measured == ["number 1", "number 2", "number 5"]
    assert list(again.rows) == ["number 2", "number 5", "number 1"]
    assert torch.equal(again.rows["number 1"].draws, first.rows["number 1"].draws)


# ---- what is kept is used only where it is what this run would measure


def test_other_settings_are_measured_again(tmp_path, measured):
    run(tmp_path, numbers=(1,))
    other = run(tmp_path, numbers=(1,), seed=1)
    assert len(measured) == 2
    assert other.rows["number 1"].total == run(None, numbers=(1,), seed=1).rows["number 1"].total


@pytest.mark.parametrize("what", ["fingerprint", "versions", "own_source"])
def test_other_code_is_measured_again(tmp_path, measured, monkeypatch, what):
    """Of this package, of what it stands on, of the study's own module."""
    run(tmp_path, numbers=(1,))
    monkeypatch.setattr(measuring, what, lambda *given: {"torch": "9"} if what == "versions" else "other")
    run(tmp_path, numbers=(1,))
    run(tmp_path, numbers=(1,))
    assert len(measured) == 2


def test_the_fingerprint_is_that_of_every_source_file_and_of_the_core(tmp_path, monkeypatch):
    for name in ("measuring.py", "graphs.py"):
        (tmp_path / name).write_text("1")
    monkeypatch.setattr(measuring, "__file__", str(tmp_path / "measuring.py"))
    of, seen = measuring.fingerprint.__wrapped__, set()
    for text in ("1", "2"):
        (tmp_path / "graphs.py").write_text(text)
        seen.add(of())
    (tmp_path / "graphs.py").rename(tmp_path / "moved.py")
    seen |= {of()}
    core = cc.native.available()
    monkeypatch.setattr(measuring.native, "available", lambda: False)
    seen |= {of()}
    assert len(seen) == 3 + core


def test_the_source_of_a_study_elsewhere_counts_and_that_of_the_package_is_in_its_fingerprint():
    assert measuring.own_source(toy_study.measure) != measuring.own_source(started)
    assert measuring.own_source(cc.chain_graph) == ""


def assert_said_to_be_damaged(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"the cell {path} is damaged")
    assert told.endswith("measured again")


@pytest.mark.parametrize("kind", ["json", "safetensors"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cell_is_named_and_measured_again(tmp_path, measured, capsys, damage, kind):
    whole = run(tmp_path)
    path = tmp_path / "cells" / f"number_2.{kind}"
    DAMAGE[damage](path)
    again = run(tmp_path)
    assert measured[4:] == ["number 2"]
    assert again.results["total"] == whole.results["total"]
    if (damage, kind) == ("deleted", "json"):  # then there is no cell
        assert capsys.readouterr().err == ""
    else:
        assert_said_to_be_damaged(path, capsys)
    run(tmp_path)
    assert len(measured) == 5


@pytest.mark.parametrize(
    "change",
    [
        {"seconds": "x"},
        {"result": {"odd": 1}},
        {"result": {"tensor": "t9"}},
        {"result": {"tuple": 5}},
        {"result": {"dict": [[1]]}},
        {"result": {"class": "builtins:dict", "fields": {}}},
        {"result": {"class": "causal_circuits.storage:os", "fields": {}}},
        {"result": {"class": "causal_circuits.graphs:GraphRecovery", "fields": {"x": 1}}},
    ],
    ids=str,
)
def test_a_forged_cell_is_named_and_measured_again(tmp_path, capsys, change):
    """Under checksums that fit: nothing but results is decoded."""
    whole, path = run(tmp_path, numbers=(1,)), tmp_path / "cells" / "number_1.json"
    head, tensors = read_checked(path, running.FORMAT)
    write_checked(path.parent, "number_1", {**head, **change}, tensors)
    assert run(tmp_path, numbers=(1,)).results["total"] == whole.results["total"]
    assert_said_to_be_damaged(path, capsys)


def test_results_come_back_bit_for_bit(tmp_path):
    graph = nx.DiGraph([(0, 1)], target=1)
    task = cc.InContextTask(cc.chain_graph(5), d_vocab=3)
    model = cc.plant_circuit(task.graph, 3)
    found = cc.extract_graph(model, task, n_sequences=500)
    result = {
        "numbers": [0.1 + 0.2, float("inf"), np.float64(1 / 3), np.int64(7), True, None, -0.0],
        ("a", 1): (torch.rand(3, dtype=torch.float64), {2: torch.tensor([True]), 10: torch.arange(4)[::2]}),
        "array": np.arange(6.0).reshape(2, 3),
        "sum": toy_study.Sum(1.0, torch.rand(2), {"graph": graph}),
        "model": model,
        "found": found,
    }
    tensors: dict[str, torch.Tensor] = {}
    write_checked(tmp_path, "cell", {"format": "x", "result": encode(result, tensors)}, tensors)
    head, read = read_checked(tmp_path / "cell.json", "x")
    back = decode(head["result"], read)
    assert list(back) == list(result)
    assert repr(back["numbers"]) == repr([x.item() if isinstance(x, np.generic) else x for x in result["numbers"]])
    assert torch.equal(back["a", 1][0], result["a", 1][0])
    assert torch.equal(back["a", 1][1][10], torch.tensor([0, 2]))
    assert np.array_equal(back["array"], result["array"])
    assert torch.equal(back["sum"].draws, result["sum"].draws)
    assert nx.utils.graphs_equal(back["sum"].more["graph"], graph)
    tokens = task.sample(4).tokens
    assert torch.equal(back["model"](tokens), model(tokens))
    assert nx.utils.graphs_equal(back["found"], found)
    assert (back["found"].candidates, back["found"].evidence) == (found.candidates, found.evidence)
    assert nx.utils.graphs_equal(back["found"].from_attention, found.from_attention)


def test_what_is_no_result_is_a_failure_of_its_cell():
    with pytest.raises(TypeError, match="a result holds numbers"):
        encode({"task": object()}, {})


# ---- cells that raise


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cell_that_raises_is_named_with_its_settings_and_the_others_are_kept(tmp_path, measured, processes):
    with pytest.raises(CellError) as caught:
        run(tmp_path, processes, bad=2)
    said = str(caught.value)
    assert said.startswith("1 of 4 cells raised: number 2 {'number': 2, 'bad': True, ")
    assert "Unpicklable: 2 is bad: asked for" in said
    assert said.count("\n") == 0
    assert "in measure" in (tmp_path / "cells" / "errors.txt").read_text()
    assert not (tmp_path / "results.json").exists()
    measured.clear()
    run(tmp_path)
    assert measured == ["number 2"]


def test_a_cell_that_kills_its_process_fails_alone(tmp_path, measured):
    with pytest.raises(CellError, match=r"^1 of 5 cells raised: number 2 .* BrokenProcessPool"):
        run(tmp_path, 2, numbers=(1, 2, 3, 4, 5), deadly=2)
    assert len(list((tmp_path / "cells").glob("*.json"))) == 4


def test_a_process_killed_while_cells_are_handed_out_loses_none(tmp_path, monkeypatch):
    submit, handed_out = running.ProcessPoolExecutor.submit, []

    def breaking(pool: running.ProcessPoolExecutor, *given: object, **more: object) -> object:
        handed_out.append(given)
        if len(handed_out) == 3:
            raise running.BrokenProcessPool("a process was killed")
        return submit(pool, *given, **more)

    monkeypatch.setattr(running.ProcessPoolExecutor, "submit", breaking)
    assert run(tmp_path, 2).results["total"] == run(None).results["total"]
    assert len(handed_out) == 5


def test_without_a_folder_the_error_holds_the_traceback():
    with pytest.raises(CellError, match="in measure"):
        run(None, bad=2)


def test_scratch_survives_a_failure_and_goes_when_its_cell_is_done(tmp_path, monkeypatch):
    """A cell finds its own scratch again, never that of other settings."""
    with pytest.raises(CellError):
        run(tmp_path, bad=2, seed=7)
    left = list(tmp_path.glob("cells/*.scratch/begun"))
    assert [path.read_text() for path in left] == ["2 7"]
    run(tmp_path, seed=8)
    assert list(tmp_path.glob("cells/*.scratch")) == []


# ---- whatever stops a run


def run_slowly(folder: Path, processes: int = 1) -> None:
    run(folder, processes, numbers=tuple(range(1, 13)), wait=0.03)


def n_cells(folder: Path) -> int:
    return len(list(folder.glob("cells/*.json")))


def test_killed_at_random_moments_it_ends_where_an_unkilled_run_does(tmp_path):
    """Kill -9 of a forked process, eight times, between cells and in the midst of one."""
    run_slowly(tmp_path / "whole")
    chance, done = random.Random(5), [0]
    for _ in range(8):
        process, more = started(run_slowly, tmp_path / "cut"), chance.randrange(3)
        while process.is_alive() and n_cells(tmp_path / "cut") < min(done[-1] + more, 11):
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.05))
        process.kill()
        assert ended(process) in (-signal.SIGKILL, 0)
        done.append(n_cells(tmp_path / "cut"))
    assert done == sorted(done)
    assert done[-1] > 0
    assert ended(started(run_slowly, tmp_path / "cut")) == 0
    assert results_in(tmp_path / "cut") == results_in(tmp_path / "whole")
    assert list(tmp_path.glob("cut/cells/*.scratch")) == []


def test_a_killed_run_leaves_no_process(tmp_path):
    read, write = os.pipe()  # whose writing end all of them hold
    process = started(run_slowly, tmp_path, 2)
    os.close(write)
    while n_cells(tmp_path) < 2:
        time.sleep(0.01)
    process.kill()
    assert select.select([read], [], [], 20)[0], "a process lives on"
    os.close(read)


def test_several_processes_give_the_results_of_one(tmp_path, measured, monkeypatch):
    monkeypatch.undo()  # as they are for users: not forked from this one
    run(tmp_path / "one")
    measured.clear()
    run(tmp_path / "two", 2)
    assert measured == []  # not in this process
    assert results_in(tmp_path / "two") == results_in(tmp_path / "one")
    run(tmp_path / "two")
    assert measured == []  # what the others kept is found
    forked = started(run, tmp_path / "three", 2)  # the process that theirs were forked from is no child of this one
    assert ended(forked) == 0
    assert results_in(tmp_path / "three") == results_in(tmp_path / "one")


def test_a_cell_finds_the_threads_and_random_state_that_it_declares(monkeypatch):
    """Whatever was measured before it, in whichever process; both are given back."""
    cells = [Cell(name, toy_study.measure_surroundings, cores=2) for name in ("a", "b", "c")]
    monkeypatch.setattr(Config, "cells", lambda self: [cells[n - 1] for n in self.numbers])
    monkeypatch.setattr(Config, "report", lambda self, rows: Report("", [], {"rows": rows}))
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    rows = run(None, numbers=(1, 2, 3)).rows
    assert rows == run(None, numbers=(3, 2, 1)).rows == run(None, 2, numbers=(1, 2, 3)).rows
    assert {row["threads"] for row in rows.values()} == {2}
    assert len({row["number"] for row in rows.values()}) == 3
    assert (torch.get_num_threads(), torch.equal(torch.get_rng_state(), state)) == (threads, True)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_cell_that_takes_too_long_is_given_up(tmp_path, processes):
    with pytest.raises(CellError, match=r"2 of 2 cells raised: .*TimeoutError: not done within --limit-s 0\.3"):
        cc.run(Config(numbers=(1, 2), wait=9.0), tmp_path, processes=processes, limit_s=0.3, quiet=True)


def test_a_full_disk_leaves_the_cells_that_are_kept_whole(tmp_path):
    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(OSError, match="File too large"):
            run(tmp_path, numbers=(1, 2), size=10_000)

    run(tmp_path, numbers=(1,))
    before = results_in(tmp_path)
    assert ended(started(fill)) == 0
    assert list(tmp_path.rglob("*.part")) == []
    assert run(tmp_path, numbers=(1,)).results["total"] == before["total"]


# ---- what is refused before any work


def test_a_second_process_in_a_folder_is_refused(tmp_path, measured):
    with exclusive_lock(tmp_path):
        assert_refused(lambda: run(tmp_path), str(tmp_path), f"taken by process {os.getpid()}")
    assert measured == []
    run(tmp_path, numbers=(1,))
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("name", ["results.json", "report.html", "figures"])
def test_what_is_in_the_way_is_said_beforehand(tmp_path, measured, name):
    (tmp_path / name).touch() if name == "figures" else (tmp_path / name).mkdir()
    assert_refused(lambda: run(tmp_path), name, "in the way")
    assert measured == []


def test_a_folder_that_cannot_be_made_is_named(tmp_path, measured):
    (tmp_path / "file").write_text("in the way")
    assert_refused(lambda: run(tmp_path / "file" / "out"), "--out must be a folder that can be written to")
    assert_refused(lambda: run(tmp_path, 0), "--processes must be at least 1")
    assert measured == []


def test_ray_is_named_where_it_is_missing_and_excludes_processes(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert_refused(lambda: cc.run(Config(), tmp_path, ray="local"), "--ray needs Ray: pip install", "[ray]")
    assert_refused(lambda: cc.run(Config(), tmp_path, ray="local", processes=2), "exclude each other")
    for limit in (0, float("nan"), float("inf")):
        assert_refused(lambda limit=limit: cc.run(Config(), tmp_path, limit_s=limit), "--limit-s must be positive")


def test_cells_that_would_share_a_file_are_refused(monkeypatch):
    monkeypatch.setattr(Config, "cells", lambda self: [Cell("a b", toy_study.measure), Cell("a_b", toy_study.measure)])
    assert_refused(lambda: run(None), "'a b' and 'a_b'")


# ---- what runs left, read back


def test_cells_of_many_runs_are_one_table(tmp_path):
    for seed in (0, 1):
        run(tmp_path / f"seed {seed}", numbers=(1, 2), seed=seed)
    (tmp_path / "seed 1" / "cells" / "number_2.json").write_text("{}")
    with pytest.warns(UserWarning, match="number_2.json is damaged .* left out"):
        table = cc.results(tmp_path)
    assert table[["run", "cell", "number", "seed"]].values.tolist() == [
        ["seed 0", "number 1", 1, 0],
        ["seed 0", "number 2", 2, 0],
        ["seed 1", "number 1", 1, 1],
    ]
    assert table.total.tolist()[2] == run(tmp_path / "seed 1", numbers=(1,), seed=1).rows["number 1"].total
    assert "draws" not in table


def test_a_folder_without_cells_is_refused(tmp_path):
    assert_refused(lambda: cc.results(tmp_path), str(tmp_path), "no run has kept a cell")
