"""Run a study: measure its missing cells, keep each as it is done, and write what they add up to.

A folder of a run holds cells/NAME.json (and .safetensors), results.json, figures/, report.html. A cell is kept with its
settings, the versions of what decides numbers and a fingerprint of this package's files: where any of them differs the
cell is measured again. So a run that was killed goes on by the same command, and no number comes from other code.
"""

import functools
import hashlib
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor
from tqdm.auto import tqdm

from causal_circuits import figures
from causal_circuits.encoding import decode, encode
from causal_circuits.storage import first_difference, read_checked, write_checked, write_files
from causal_circuits.studies.study import Cell, Report, Study

FORMAT = "causal_circuits.cell/1"
DECIDING = ("torch", "transformer-lens", "numpy", "networkx", "scipy", "circuitsvis", "matplotlib")


class CellError(RuntimeError):
    """Cells of a study raised; the others are measured and kept."""


@dataclass(frozen=True)
class Run:
    """A study that has been run.

    Attributes:
        study: the flags.
        rows: what each cell measured, by its name.
        report: what they add up to.
        results: the content of results.json.
        folder: where everything was written; None if nothing was.
    """

    study: Study
    rows: Mapping[str, Any]
    report: Report
    results: Mapping[str, Any]
    folder: Path | None

    def _repr_html_(self) -> str:
        return self.report._repr_html_()


def run(study: Study, folder: str | os.PathLike[str] | None = None, *, processes: int = 1, quiet: bool = False) -> Run:
    """Measure the cells of a study and make its report.

    Args:
        study: its flags.
        folder: where cells, results.json, figures/ and report.html go; None: nothing is written.
        processes: cells measured at once, each in a process of its own; 1: in this one, one after another.
        quiet: no progress bar.

    Raises:
        ValueError: the folder cannot be written to, or another process is at work in it.
        CellError: cells raised; it names each with its settings. The others are kept.

    >>> import causal_circuits as cc
    >>> done = cc.run(cc.studies.two_stage.Config.quickly(figure_9=0, steps=(2, 2)), quiet=True)
    >>> done.rows["length 8 seed 0 full, Adam"]["n_ctx"]
    8
    """
    if folder is None:
        return _run(study, None, processes, quiet)
    folder = Path(folder)
    _check_writable(folder)
    lock = FileLock(folder / ".lock")
    try:
        with lock.acquire(blocking=False):
            return _run(study, folder, processes, quiet)
    except Timeout as error:
        raise ValueError(
            f"another process is at work in {folder}: wait for its end, or choose another --out"
        ) from error


def _run(study: Study, folder: Path | None, processes: int, quiet: bool) -> Run:
    cells = study.cells()
    kept = _kept(cells, folder)
    rows, seconds = ({name: pair[k] for name, pair in kept.items()} for k in (0, 1))
    errors: list[tuple[Cell, BaseException]] = []
    with tqdm(total=len(cells), initial=len(kept), desc=study.program(), unit="cell", disable=quiet or None) as bar:
        for cell, outcome in _measured([cell for cell in cells if cell.name not in kept], folder, processes, quiet):
            if isinstance(outcome, BaseException):
                errors.append((cell, outcome))
            else:
                rows[cell.name], seconds[cell.name] = outcome
            bar.update()
    if errors:
        raise CellError(_said(errors, len(cells), folder)) from errors[0][1]
    began = time.perf_counter()
    report = study.report({cell.name: rows[cell.name] for cell in cells})
    timing = {"wall_s": sum(seconds.values()) + time.perf_counter() - began, "cells": seconds}
    results = _results(study, report, timing, {"out": folder, "quiet": quiet})
    if folder is not None:
        _write(study, report, results, folder)
    return Run(study, rows, report, results, folder)


def _measured(
    cells: list[Cell], folder: Path | None, processes: int, quiet: bool
) -> Iterator[tuple[Cell, tuple[Any, float] | BaseException]]:
    """Each cell with its result and seconds, or with what it raised."""
    measure = functools.partial(_measure, folder=folder)
    if processes == 1 or len(cells) < 2:
        for cell in cells:
            yield cell, measure(cell)
        return
    with ProcessPoolExecutor(min(processes, len(cells)), mp_context=get_context("spawn")) as pool:
        running = {pool.submit(measure, cell): cell for cell in cells}
        for done in as_completed(running):
            yield running[done], done.exception() or done.result()


def _measure(cell: Cell, folder: Path | None) -> tuple[Any, float] | Exception:
    """Measure one cell, and keep it."""
    scratch = None if folder is None or not cell.scratch else _place(cell, folder).with_suffix(".scratch")
    more = {"scratch": scratch} if cell.scratch else {}
    began, tensors = time.perf_counter(), dict[str, Tensor]()
    try:
        values = encode(cell.measure(**cell.settings, **more), tensors)
    except Exception as error:  # the other cells go on; `run` raises it at the end
        return error
    seconds = time.perf_counter() - began
    if folder is not None:
        place = _place(cell, folder)
        write_checked(place.parent, place.name, _head(cell) | {"seconds": seconds, "result": values}, tensors or None)
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return decode(values, tensors), seconds


def _kept(cells: Sequence[Cell], folder: Path | None) -> dict[str, tuple[Any, float]]:
    """The results of earlier runs that hold here too; a damaged one is named on stderr."""
    found: dict[str, tuple[Any, float]] = {}
    if folder is None:
        return found
    for cell in cells:
        path = _place(cell, folder).with_name(_place(cell, folder).name + ".json")
        if not path.is_file():
            continue
        try:
            head, tensors = read_checked(path, FORMAT, "cell")
            expected = _head(cell)
            if first_difference({name: head.get(name) for name in expected}, expected) is None:
                found[cell.name] = decode(head["result"], tensors), float(head["seconds"])
        except (ValueError, OSError, KeyError) as error:
            sys.stderr.write(f"{error}: measured again\n")
    return found


def _place(cell: Cell, folder: Path) -> Path:
    safe = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in cell.name)
    return folder / "cells" / safe


def _head(cell: Cell) -> dict[str, Any]:
    """What decides the numbers of a cell."""
    return json.loads(
        json.dumps(
            {
                "format": FORMAT,
                "name": cell.name,
                "measure": f"{cell.measure.__module__}:{cell.measure.__qualname__}",
                "settings": dict(cell.settings),
                "versions": versions(),
                "fingerprint": fingerprint(),
            }
        )
    )


@functools.cache
def versions() -> dict[str, str]:
    """Versions of everything that decides a number."""
    found = {"python": platform.python_version()}
    for package in ("causal-circuits", *DECIDING):
        try:
            found[package.replace("causal-circuits", "causal_circuits")] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def fingerprint() -> str:
    """SHA-256 of the package's source files and its compiled core, in the order of their names."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted([*package.rglob("*.py"), *package.glob("_native*")]):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def command_of(study: Study) -> str:
    """The command that makes these results again."""
    if Path(sys.argv[0]).stem == study.program() or "causal-circuits" in Path(sys.argv[0]).name:
        return shlex.join(["python", f"analyses/{study.program()}.py", *sys.argv[1:]]).strip()
    return f"run({study!r})"


def _results(study: Study, report: Report, timing: dict[str, Any], output: dict[str, Any]) -> dict[str, Any]:
    """The content of results.json."""
    more = dict(report.results)
    config = {**asdict(study), **output, **more.pop("config", {})}
    timing = {**timing, **more.pop("timing", {})}
    header = {"command": command_of(study), "config": config, "versions": versions()}
    return json_values({**header, **more, "timing": timing})


def _write(study: Study, report: Report, results: dict[str, Any], folder: Path) -> None:
    """Everything that a run leaves, results.json last."""
    for name, write in report.saved.items():
        write(folder / name)
    about = {"command": results["command"], "seed": str(study.seed), "time": f"{results['timing']['wall_s']:.1f} s"}
    figures.write_report(
        folder / "report.html",
        title=report.title,
        verdict=report.checks,
        sections=report.sections,
        meta={**about, **report.about, **results["versions"]},
    )
    write_files(folder, {"results.json": json.dumps(results, indent=2, allow_nan=False) + "\n"})


def json_values(value: Any) -> Any:
    """JSON's values: NaN and infinities as null, paths as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not -float("inf") < value < float("inf"):
        return None
    return value


def _check_writable(folder: Path) -> None:
    """Make the folder if it is missing; a ValueError if what a run leaves cannot be written there."""
    try:
        (folder / "cells").mkdir(parents=True, exist_ok=True)
        probe = folder / "cells" / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out must be a folder that can be written to: {folder}: {error.strerror}") from error
    for name, in_the_way in (("results.json", Path.is_dir), ("report.html", Path.is_dir), ("figures", Path.is_file)):
        if in_the_way(folder / name):
            raise ValueError(f"--out must have room for {name}: {folder / name} is in the way")


def _said(errors: list[tuple[Cell, BaseException]], n_cells: int, folder: Path | None) -> str:
    """Which cells raised what, and where the others are."""
    said = "; ".join(f"{cell.name} {dict(cell.settings)}: {type(e).__name__}: {e}" for cell, e in errors)
    others = "" if folder is None else f"; the others are kept in {folder / 'cells'}"
    return f"{len(errors)} of {n_cells} cells raised: {said}{others}"
