"""Run a study: measure its missing cells, keep each as it is done, and write what they add up to.

A folder of a run holds cells/NAME.json (and .safetensors), results.json, figures/, report.html. A cell is kept with its
settings, the versions of what decides numbers and a fingerprint of this package's files: where any of them differs the
cell is measured again. So a run that was killed goes on by the same command, and no number comes from other code.
"""

import functools
import hashlib
import inspect
import json
import multiprocessing
import os
import platform
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from causal_circuits import native, pages
from causal_circuits.arguments import check_arguments
from causal_circuits.encoding import decode, encode
from causal_circuits.locks import exclusive_lock
from causal_circuits.storage import first_difference, plain_values, read_checked, write_checked, write_files
from causal_circuits.studies.study import Cell, Report, Study

__all__ = ["CellError", "Run", "run"]
FORMAT = "causal_circuits.cell/1"
DECIDING = ("torch", "transformer-lens", "numpy", "networkx", "scipy", "circuitsvis", "matplotlib")


class CellError(RuntimeError):
    """Cells of a study raised, each named with its settings; the others are measured and kept."""


@dataclass(frozen=True)
class _Failure:
    """What a cell raised, as text: not every exception can be sent to another process."""

    said: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> "_Failure":
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return cls(said, "".join(traceback.format_exception(error)))


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


@check_arguments
def run(
    study: Study,
    folder: str | os.PathLike[str] | None = None,
    *,
    processes: int = 1,
    quiet: bool = False,
    command: str | None = None,
) -> Run:
    """Measure the cells of a study and make its report.

    Args:
        study: its flags.
        folder: where cells, results.json, figures/ and report.html go; None: nothing is written.
        processes: cells measured at once, each in a process of its own; 1: in this one, one after another.
        quiet: no progress bar.
        command: what makes these results again, in results.json and on the page; None: this call.

    Raises:
        ValueError: the folder cannot be written to, or another process is at work in it.
        CellError: cells raised; it names each with its settings. The others are kept, and the tracebacks are in
            cells/errors.txt.

    >>> import causal_circuits as cc
    >>> done = cc.run(cc.studies.two_stage.Config.quickly(figure_9=0, steps=(2, 2)), quiet=True)
    >>> done.rows["n_ctx 8, seed 0, variant full, Adam"]["n_ctx"]
    8
    """
    if processes < 1:
        raise ValueError(f"--processes must be at least 1: got {processes}")
    output = {"out": folder, "quiet": quiet, "command": command or f"run({study!r})"}
    if folder is None:
        return _run(study, None, processes, output)
    folder = Path(folder)
    _check_writable(folder)
    with exclusive_lock(folder):
        return _run(study, folder, processes, output)


def _run(study: Study, folder: Path | None, processes: int, output: dict[str, Any]) -> Run:
    cells, began = study.cells(), time.perf_counter()
    _check_names(cells)
    kept = _kept(cells, folder)
    earlier_s = sum(seconds for _, seconds in kept.values())
    missing = [cell for cell in cells if cell.name not in kept]
    failures = dict[str, _Failure]()
    quiet = output["quiet"] or None  # None: a progress bar on a terminal only
    with tqdm(total=len(cells), initial=len(kept), desc=study.program(), unit="cell", disable=quiet) as bar:
        for cell, outcome in _measured(missing, folder, processes, bool(quiet)):
            if isinstance(outcome, _Failure):
                failures[cell.name] = outcome
            else:
                kept[cell.name] = outcome
            bar.update()
    if failures:
        raise CellError(_describe(failures, cells, folder))
    rows = {cell.name: kept[cell.name][0] for cell in cells}
    report = study.report(rows)
    results = _results(study, report, {cell.name: kept[cell.name][1] for cell in cells}, output)
    if folder is not None:
        _write_evidence(study, report, results, folder)
    results["timing"]["wall_s"] = earlier_s + time.perf_counter() - began
    if folder is not None:
        write_files(folder, {"results.json": json.dumps(results, indent=2, allow_nan=False) + "\n"})
    return Run(study, rows, report, results, folder)


def _measured(
    cells: list[Cell], folder: Path | None, processes: int, quiet: bool
) -> Iterator[tuple[Cell, tuple[Any, float] | _Failure]]:
    """Each cell with its result and seconds, or with what it raised."""
    if processes == 1 or len(cells) < 2:
        for cell in cells:
            yield cell, _measure(cell, _head(cell), folder, quiet)
        return
    context, others = multiprocessing.get_context("spawn"), multiprocessing.active_children()
    with ProcessPoolExecutor(
        min(processes, len(cells)), context, signal.signal, (signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        running = {pool.submit(_measure, cell, _head(cell), folder, quiet=True): cell for cell in cells}
        try:
            for done in as_completed(running):
                error = done.exception()
                yield running[done], done.result() if error is None else _Failure.of(error)
        except BaseException:  # Ctrl-C: the cells that are being measured are not waited for
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise


def _measure(cell: Cell, head: dict[str, Any], folder: Path | None, quiet: bool) -> tuple[Any, float] | _Failure:
    """Measure one cell, and keep it."""
    began, tensors = time.perf_counter(), dict[str, Tensor]()
    more: dict[str, Any] = {"progress": False if quiet else None} if cell.progress else {}
    scratch = None if folder is None or not cell.scratch else _scratch(cell, head, folder)
    if cell.scratch:
        more["scratch"] = scratch
    try:
        values = encode(cell.measure(**cell.settings, **more), tensors)
        result, seconds = decode(values, tensors), time.perf_counter() - began
    except Exception as error:  # the other cells go on; `run` raises it at the end
        return _Failure.of(error)
    if folder is not None:
        place = _place(cell, folder)
        write_checked(place.parent, place.name, head | {"seconds": seconds, "result": values}, tensors or None)
        _remove_scratch(cell, folder)
    return result, seconds


def _kept(cells: Sequence[Cell], folder: Path | None) -> dict[str, tuple[Any, float]]:
    """The results of earlier runs that hold here too; a damaged one is named on stderr."""
    found: dict[str, tuple[Any, float]] = {}
    if folder is None:
        return found
    for cell in cells:
        path = folder / "cells" / f"{_place(cell, folder).name}.json"
        if not path.is_file():
            continue
        try:
            earlier = _read(path, _head(cell))
        except (ValueError, OSError) as error:
            sys.stderr.write(f"{error}: measured again\n")
            continue
        if earlier is not None:
            found[cell.name] = earlier
            _remove_scratch(cell, folder)  # of a run that was killed just before it did so
    return found


def _read(path: Path, expected: Mapping[str, Any]) -> tuple[Any, float] | None:
    """The result of a cell and its seconds; None where anything that decides its numbers is another."""
    head, tensors = read_checked(path, FORMAT, "cell")
    if first_difference({name: head.get(name) for name in expected}, expected) is not None:
        return None
    try:
        return decode(head["result"], tensors), float(head["seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the cell {path} is damaged ({error})") from error


def _place(cell: Cell, folder: Path) -> Path:
    """Where a cell is kept, without an ending."""
    safe = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in cell.name)
    return folder / "cells" / safe


def _scratch(cell: Cell, head: Mapping[str, Any], folder: Path) -> Path:
    """Where a cell keeps checkpoints: those of other settings are in another folder."""
    place, mark = _place(cell, folder), hashlib.sha256(json.dumps(head).encode()).hexdigest()[:12]
    return place.with_name(f"{place.name}.{mark}.scratch")


def _remove_scratch(cell: Cell, folder: Path) -> None:
    place = _place(cell, folder)
    for left in place.parent.glob(f"{place.name}.*.scratch") if cell.scratch else ():
        shutil.rmtree(left, ignore_errors=True)


def _head(cell: Cell) -> dict[str, Any]:
    """What decides the numbers of a cell, as JSON values."""
    head = {
        "format": FORMAT,
        "name": cell.name,
        "measure": f"{cell.measure.__module__}:{cell.measure.__qualname__}",
        "settings": dict(cell.settings),
        "versions": versions(),
        "fingerprint": fingerprint(),
        "source": _own_source(cell.measure),
    }
    as_read: dict[str, Any] = json.loads(json.dumps(head))
    return as_read


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
    """SHA-256 of the package's source files, in the order of their names, and of its compiled core, if there is one."""
    package, digest = Path(__file__).parent, hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    if native.available():
        digest.update(Path(str(native.core().__file__)).read_bytes())
    return digest.hexdigest()


@functools.cache
def _own_source(measure: Callable[..., Any]) -> str:
    """SHA-256 of the module of a function that is not of this package; of the function alone in a notebook."""
    if measure.__module__.startswith(f"{__package__}."):
        return ""
    source = ""
    for part in (measure, sys.modules.get(measure.__module__)):
        with suppress(OSError, TypeError):
            source = inspect.getsource(part) if part else source  # the module's, where it has a file
    return hashlib.sha256(source.encode()).hexdigest()


def _results(study: Study, report: Report, seconds: Mapping[str, float], output: Mapping[str, Any]) -> dict[str, Any]:
    """The content of results.json, but for the wall time."""
    more, given = dict(report.results), dict(output)
    header = {
        "command": given.pop("command"),
        "config": {**asdict(study), **given, **more.pop("config", {})},
        "versions": versions(),
    }
    timing = {"wall_s": None, **more.pop("timing", {}), "cells": seconds}
    values: dict[str, Any] = plain_values({**header, **more, "timing": timing})
    return values


def _write_evidence(study: Study, report: Report, results: dict[str, Any], folder: Path) -> None:
    """Everything that a run leaves but results.json."""
    for name, write in report.saved.items():
        write(folder / name)
    measured_s = sum(results["timing"]["cells"].values())
    about = {"seed": str(study.seed), "measured in": f"{measured_s:.1f} s"}
    pages.write_report(
        folder / "report.html",
        title=report.title,
        verdict=report.checks,
        sections=report.sections,
        meta={**about, **report.about, **results["versions"]},
        command=results["command"],
        quick=study.quick,
    )


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


def _check_names(cells: Sequence[Cell]) -> None:
    """A ValueError for two cells that would be kept in one file."""
    seen: dict[str, str] = {}
    for cell in cells:
        name = _place(cell, Path()).name
        if name in seen:
            raise ValueError(f"cells need names that differ in letters and digits: {seen[name]!r} and {cell.name!r}")
        seen[name] = cell.name


def _describe(failures: Mapping[str, _Failure], cells: Sequence[Cell], folder: Path | None) -> str:
    """Which cells raised what, and where the others and the tracebacks are."""
    settings = {cell.name: dict(cell.settings) for cell in cells}
    said = "; ".join(f"{name} {settings[name]}: {failure.said}" for name, failure in failures.items())
    tracebacks = "\n".join(f"{name}\n{failure.traceback}" for name, failure in failures.items())
    where = "\n" + tracebacks
    if folder is not None:
        write_files(folder / "cells", {"errors.txt": tracebacks})
        where = f"; the others are kept in {folder / 'cells'}, the tracebacks in {folder / 'cells' / 'errors.txt'}"
    return f"{len(failures)} of {len(cells)} cells raised: {said}{where}"
