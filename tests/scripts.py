"""Analyses run inside the test's own process: no new interpreter, no second import of torch."""

import importlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from assertions import unchecked_types

ANALYSES = Path(__file__).resolve().parent.parent / "analyses"


def analysis_module(name: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """A script, or a module that scripts share."""
    monkeypatch.syspath_prepend(str(ANALYSES))
    return importlib.import_module(name)


def run_analysis(name: str, flags: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of `python analyses/name.py flags`; run as users run it, with no types checked."""
    module = analysis_module(name, monkeypatch)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, flags)])
    with unchecked_types(), analysis_module("command_line", monkeypatch).CLAIMED:
        return module.main()


def run_without_torch(name: str, *flags: object) -> subprocess.CompletedProcess:
    """`python analyses/name.py flags` in an interpreter in which importing torch fails."""
    code = "import runpy, sys; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; sys.path.insert(0, {!r}); "
    code = code.format(str(ANALYSES)) + "runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", code, str(ANALYSES / f"{name}.py"), *map(str, flags)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def assert_refused_in_one_line(
    name: str,
    flags: Sequence[object],
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The script ends with status 2 and one line on stderr that holds the reason."""
    with pytest.raises(SystemExit) as stopped:
        run_analysis(name, flags, monkeypatch)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert reason in error
    assert error.count("\n") == 1
