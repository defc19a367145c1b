"""The command line of the studies: one line and a status for whatever goes wrong, help and listing for the rest."""

import ast
import importlib
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
import toy_study
from assertions import unchecked_types
from interrupted import ended, started
from toy_study import MEASURED

import causal_circuits as cc
from causal_circuits import cli, measuring, studies
from causal_circuits.locks import exclusive_lock

ANALYSES = Path(__file__).resolve().parent.parent / "analyses"
SCRIPTS = sorted(path for path in ANALYSES.glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def toy(monkeypatch) -> None:
    """The study of sums is one of the package's."""
    MEASURED.clear()
    monkeypatch.setitem(sys.modules, "causal_circuits.studies.toy", toy_study)
    monkeypatch.setattr(studies, "NAMES", (*studies.NAMES, "toy"))


def command(*flags: object) -> int:
    """The exit status of `python analyses/toy.py FLAGS --quiet`, with no types checked, as users run it."""
    with unchecked_types():
        return cli.main("toy", [*map(str, flags), "--quiet"])


def assert_one_line(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert printed.err.startswith("toy: ")
    for word in words:
        assert word in printed.err


def test_a_run_prints_the_closing_table_and_names_itself(tmp_path, capsys):
    assert command("--numbers", 1, 2, "--out", tmp_path, "--seed", 3) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert [line.split()[0] for line in printed.out.splitlines()] == ["passed", "total", "time", "look"]
    assert str(tmp_path / "report.html") in printed.out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["command"] == f"python analyses/toy.py --numbers 1 2 --out {tmp_path} --seed 3 --quiet"
    assert results["config"]["numbers"] == [1, 2]


def test_the_first_word_names_the_study_with_either_dash(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(studies, "NAMES", (*studies.NAMES, "toy_too"))
    monkeypatch.setitem(sys.modules, "causal_circuits.studies.toy_too", toy_study)
    for name in ("toy-too", "toy_too"):
        assert cli.main(None, [name, "--quick", "--quiet", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "results.json").read_text())["command"].startswith("python analyses/toy_too.py --q")


def test_a_folder_is_run_again_from_its_own_file(tmp_path, capsys):
    """There: nothing is measured twice; elsewhere: everything, with the same results."""
    first, other = tmp_path / "first", tmp_path / "other"
    assert command("--numbers", 1, 2, "--size", 7, "--out", first) == 0
    for cell in first.glob("cells/number_2.*"):
        cell.unlink()
    MEASURED.clear()
    assert cli.main(None, ["replay", str(first), "--quiet"]) == 0
    assert MEASURED == ["number 2"]
    assert cli.main(None, ["replay", str(first), "--quiet", "--out", str(other)]) == 0
    assert MEASURED == ["number 2", "number 1", "number 2"]
    of_first, of_other = (json.loads((folder / "results.json").read_text()) for folder in (first, other))
    assert (of_other["total"], of_other["command"]) == (of_first["total"], of_first["command"])
    capsys.readouterr()
    assert cli.main(None, ["replay", str(tmp_path), "--quiet"]) == 2
    assert cli.main(None, ["replay", "--quiet"]) == 2
    assert [line.split(":")[1] for line in capsys.readouterr().err.splitlines()] == [" error", " error"]


LONG = "a" * 200 + "/" + "b" * 200
BAD = {
    "an unknown flag": (["--colour"], "Unrecognized", "--colour"),
    "an unknown word": (["blue"], "Unrecognized", "blue"),
    "no number": (["--size", "many"], "--size", "'many'"),
    "no value": (["--size"], "--size"),
    "a value that makes no study": (["--size", "0"], "--size must be at least 1: got 0"),
    "one of several": (["--numbers", "3", "0"], "--numbers must be at least 1: got 0"),
    "a negative seed": (["--seed", "-1"], "--seed must be 0 or more"),
    "no process": (["--processes", "0"], "--processes must be at least 1"),
    "a long path": (["--out", f"/dev/null/{LONG}"], "--out must be a folder", LONG),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags_end_in_one_line_and_status_2(case, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags, *words = BAD[case]
    assert command(*flags) == 2
    assert_one_line(capsys, "error: ", "(see --help)", *words)
    assert MEASURED == []


@pytest.mark.parametrize("flags", [["--quick", "--size", "7"], ["--size", "7", "--quick"]])
def test_quick_shrinks_the_defaults_and_leaves_what_was_asked_for(flags):
    study, _ = cli.parse("toy", flags)
    assert (study.numbers, study.size, study.quick) == ((2, 3), 7, True)


def test_a_study_without_quick_refuses_it(capsys, monkeypatch):
    monkeypatch.setattr(toy_study.Config, "QUICK", {})
    assert command("--quick") == 2
    assert_one_line(capsys, "has no --quick")


def test_a_folder_at_work_is_refused_in_one_line(tmp_path, capsys):
    with exclusive_lock(tmp_path):
        assert command("--out", tmp_path) == 2
    assert_one_line(capsys, f"taken by process {os.getpid()}")


def test_a_cell_that_raises_ends_in_one_line_and_status_1(tmp_path, capsys):
    assert command("--bad", 2, "--out", tmp_path) == 1
    assert_one_line(capsys, "1 of 4 cells raised: number 2 {'number': 2", "errors.txt")
    assert [f"number {n}" for n in (1, 2, 3, 4)] == MEASURED


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on from here"),
        (KeyboardInterrupt("interrupted at step 3"), 130, "interrupted at step 3; the same command"),
        (OSError(28, "No space left on device", "results.json"), 1, "error: [Errno 28] No space left on device"),
        (cc.training.DivergenceError("the loss became nan at step 3", 3, 0, None), 1, "4 of 4 cells raised: number 1"),
    ],
)
def test_faults_of_the_world_end_in_one_line(error, status, words, tmp_path, capsys, monkeypatch):
    def fail(*given: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(*((cc.running, "_keep") if isinstance(error, OSError) else (measuring, "encode")), fail)
    assert command("--out", tmp_path) == status
    assert_one_line(capsys, words)


def test_a_warning_is_one_line_too(tmp_path, capsys, monkeypatch):
    def warn(path: Path) -> None:
        warnings.simplefilter("always")
        warnings.warn("the checkpoint a is damaged:\nskipped", stacklevel=1)

    report = toy_study.Config.report
    monkeypatch.setattr(toy_study.Config, "report", lambda *given: warn(tmp_path) or report(*given))
    assert command("--out", tmp_path) == 0
    assert_one_line(capsys, "toy: the checkpoint a is damaged: skipped\n")


def test_a_defect_of_a_report_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(toy_study.Config, "report", lambda *given: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        command("--out", tmp_path)


@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_ends_all_processes_with_130_and_the_same_command_goes_on(tmp_path, capfd, processes):
    """The cells take twenty seconds each: they are not waited for."""
    flags = ("--numbers", 1, 2, 3, "--out", tmp_path, "--processes", processes)
    process = started(lambda: sys.exit(command(*flags, "--wait", 20)))
    while not list(tmp_path.glob("cells/*.scratch/begun")) and process.is_alive():
        time.sleep(0.05)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGINT)
    assert ended(process) == 130
    assert time.monotonic() - began < 15
    assert capfd.readouterr().err == "toy: interrupted; the same command goes on from here\n"
    assert not (tmp_path / ".lock").exists()
    assert command(*flags[:-2]) == 0


def test_the_list_names_every_study_with_its_claim(capsys):
    assert cli.main(None, []) == 0
    listed = capsys.readouterr().out
    for name in studies.NAMES:
        assert f"  {name.replace('_', '-')} " in listed
    assert "Random numbers have a sum." in listed
    assert cli.main(None, ["--help"]) == 0
    assert capsys.readouterr().out == listed


def test_version_and_unknown_studies(capsys):
    assert cli.main(None, ["--version"]) == 0
    assert capsys.readouterr().out == f"{cc.__version__}\n"
    assert cli.main(None, ["no-thing"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("causal-circuits: error: there is no study 'no-thing': choose one of ")
    assert "causal-graph, circuit-proof, " in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("name", studies.NAMES)
def test_the_help_of_every_study_is_its_claim_and_its_flags(name, capsys):
    config = importlib.import_module(f"causal_circuits.studies.{name}").Config
    with pytest.raises(SystemExit) as stopped:
        cli.main(name, ["--help"])
    assert stopped.value.code == 0
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert " ".join((config.__doc__ or "").split("\n")[0].split()) in said
    assert {"--seed", "--out", "--processes", "--quiet"} <= set(said.split())
    if config.QUICK:
        assert config.quickly().quick


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_is_the_command_line_of_its_study(path):
    """At most 60 lines, which end in `sys.exit(main(NAME))`."""
    text = path.read_text(encoding="utf-8")
    assert ast.unparse(ast.parse(text).body[-1].body[0]) == f"sys.exit(main('{path.stem}'))"
    assert len(text.splitlines()) <= 60
    assert path.stem in studies.NAMES
