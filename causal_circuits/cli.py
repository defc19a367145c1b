"""The command line of every study: `causal-circuits NAME --flags`, or `python analyses/NAME.py --flags`.

Flags are the fields of the study, --help its docstring. Bad input ends in one line and exit status 2, Ctrl-C in 130, an
error while measuring in 1.
"""

import ast
import contextlib
import importlib
import importlib.util
import io
import os
import re
import shlex
import sys
import warnings
import webbrowser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

import causal_circuits as cc  # nothing is loaded before its first use: the list of studies does without torch
from causal_circuits import studies

if TYPE_CHECKING:
    from causal_circuits.studies.study import Study


@dataclass(frozen=True)
class Output:
    """Where results go, and how."""

    out: Path | None = None  #: folder of cells, results.json, figures/ and report.html; None: out/NAME
    processes: int = 1  #: cells measured at once, each in a process of its own
    ray: str | None = None
    """measure on a Ray cluster: ADDRESS, auto (that of this machine) or local (this machine alone)"""
    limit_s: float | None = None  #: seconds after which a cell is given up, as if it had raised; None: no limit
    quiet: bool = False  #: no progress, only the closing table
    open: bool = False  #: show report.html in the browser


def main(name: str | None = None, arguments: Sequence[str] | None = None) -> int:
    """Run the study of a name; without one the first argument names it, and no argument lists all."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's idle threads leave the cores to other processes
    given, program = list(sys.argv[1:] if arguments is None else arguments), f"{name}.py"
    if sys.stdout.errors == "strict":  # a path may hold what this terminal's encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if name is None:
        if not given or given[0] in ("-h", "--help", "--version"):
            print(cc.__version__ if given[:1] == ["--version"] else listing())
            return 0
        shown = given.pop(0)
        name, program = shown.replace("-", "_"), f"causal-circuits {shown}"
        if name not in (*studies.NAMES, "replay"):
            known = [study.replace("_", "-") for study in sorted(studies.NAMES)]
            _tell("causal-circuits", f"error: there is no study {shown!r}: choose one of {', '.join(known)}")
            return 2
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *where, **more: _tell(name, str(message))
            return _run(name, given, program)
    except KeyboardInterrupt as stopped:
        _tell(name, f"{str(stopped) or 'interrupted'}; the same command goes on from here")
        return 130
    except BrokenPipeError:  # whoever read the output has gone
        return 1
    except ValueError as error:
        _tell(name, f"error: {error} (see --help)")
        return 2
    except (cc.running.CellError, OSError) as error:
        _tell(name, f"error: {error}")
        return 1


def _run(name: str, given: Sequence[str], program: str) -> int:
    if name == "replay":
        return _replay(given)
    study, output = parse(name, given, program)
    command = shlex.join(["python", f"analyses/{name}.py", *given])
    return _write(study, output, output.out or Path("out") / name, command)


def _replay(given: Sequence[str]) -> int:
    """Run the study of a folder again, there (what is missing or made by other code) or in another folder."""
    folder, *flags = given if given and not given[0].startswith("-") else ("", *given)
    output = _parsed(Output, "causal-circuits replay FOLDER", flags)
    if not folder:
        raise ValueError("replay needs the folder of a run: causal-circuits replay FOLDER [--out OTHER] [--ray ...]")
    study, command = cc.running.study_of(folder)
    return _write(study, output, output.out or Path(folder), command)


def _write(study: "Study", output: Output, folder: Path, command: str) -> int:
    how: dict[str, Any] = {"processes": output.processes, "ray": output.ray, "limit_s": output.limit_s}
    done = cc.run(study, folder, **how, quiet=output.quiet, command=command)
    page = folder / "report.html"
    print(done.report.table(quick=study.quick))
    print(f"{'time':11s} {done.results['timing']['wall_s']:.1f} s\n{'look at':11s} {page}")
    if output.open:
        webbrowser.open(page.resolve().as_uri())
    return 0


def parse(name: str, arguments: Sequence[str], program: str | None = None) -> "tuple[Study, Output]":
    """The study and the output flags (`program`: what --help calls itself); a ValueError in one line for bad ones."""
    config: type[Study] = importlib.import_module(f"causal_circuits.studies.{name}").Config
    if not config.QUICK and {"-h", "--help"} & set(arguments):
        config.__annotations__["quick"] = tyro.conf.Suppress[bool]
    quick = bool(config.QUICK) and "--quick" in arguments
    study: tuple[Any, ...] = ("study", config, field(default=config.quickly())) if quick else ("study", config)
    command: Any = make_dataclass("Command", [study, ("output", Output, field(default=Output()))])
    flags = [argument for argument in arguments if not (quick and argument == "--quick")]
    given = _parsed(command, program or f"{name}.py", flags)
    return given.study, given.output


def _parsed(kind: Any, program: str, arguments: Sequence[str]) -> Any:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), _wide(not {"-h", "--help"} & set(arguments)):
            flat = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
            return tyro.cli(kind, prog=program, description="", args=list(arguments), config=flat)
    except SystemExit as stopped:
        if stopped.code in (0, None):  # --help
            raise
        raise ValueError(_one_line(said.getvalue())) from None


@contextlib.contextmanager
def _wide(wanted: bool) -> Iterator[None]:
    """A terminal in which tyro breaks no line of an error."""
    before = os.environ.get("COLUMNS")
    if wanted:
        os.environ["COLUMNS"] = "10000"
    try:
        yield
    finally:
        os.environ.pop("COLUMNS", None)
        if before is not None:
            os.environ["COLUMNS"] = before


def listing() -> str:
    """Every study and the first line of its claim."""
    lines = [
        "causal-circuits NAME --flags runs a study; causal-circuits NAME --help explains it;",
        "causal-circuits replay FOLDER runs the study of a folder again.",
        "",
    ]
    for name in sorted(studies.NAMES):
        lines.append(f"  {name.replace('_', '-'):22s} {_claim(name).splitlines()[0]}")
    return "\n".join(lines)


def _claim(name: str) -> str:
    """The docstring of a Config, read and not imported: that would take seconds."""
    module = importlib.util.find_spec(f"causal_circuits.studies.{name}")
    assert module
    assert module.origin
    body = ast.parse(Path(module.origin).read_text(encoding="utf-8")).body
    config = next(node for node in body if isinstance(node, ast.ClassDef) and node.name == "Config")
    return ast.get_docstring(config) or ""


def _one_line(box: str) -> str:
    """What a framed message of tyro says, without frame and help."""
    body = re.split(r"─{20,} │|\n│ ─", box.replace("╮", "╮\n"))[0]
    words = " ".join(line.strip("│ ") for line in body.splitlines() if line.startswith("│"))
    prefix = r"^Error parsing (study|output): |(?<=argument ')(study|output)\."
    return re.sub(prefix, "", " ".join((words or box).split()))


def _tell(name: str, text: str) -> None:
    sys.stderr.write(f"{name}: {' '.join(text.split())}\n")
