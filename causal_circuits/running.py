"""Run a study: measure its missing cells, keep each as it is done, and write what they add up to.

A folder of a run holds config.json (the study), cells/NAME.json (and .safetensors), results.json, figures/ and
report.html. A cell is kept with its settings, the versions of what decides numbers and a fingerprint of this package's
files: where any of them differs the cell is measured again. So a run that was killed goes on by the same command, and
no number comes from other code. Cells are measured here, in processes of this machine or on a Ray cluster; this process
alone keeps them.
"""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from causal_circuits import pages, ray_cells
from causal_circuits.arguments import check_arguments
from causal_circuits.display import Result
from causal_circuits.encoding import decode, encode
from causal_circuits.gathering import CONFIG, CONFIG_FILE, results, study_of
from causal_circuits.locks import exclusive_lock
from causal_circuits.measuring import FORMAT, Failure, Measured, head, measure, place, scratch_of, versions
from causal_circuits.storage import first_difference, plain_values, read_checked, write_checked, write_files
from causal_circuits.studies.study import Cell, Report, Study

__all__ = ["CellError", "Run", "results", "run", "study_of", "versions"]
LONGEST_LIMIT = 1e9  # seconds, which a timer can still count
KILLED_IN_A_ROW = 3  # processes of single cells, after which no other cell is tried: an unguarded script, say
LINES = {  # of progress where there is no terminal, one in half a minute
    "delay": 30, "mininterval": 30, "bar_format": "{desc}: {n_fmt} of {total_fmt} cells, {elapsed}, {remaining} left\n"
}  # fmt: skip
NAMED = 5  # cells that raised, in a message; all are in cells/errors.txt


class CellError(RuntimeError):
    """Cells of a study raised, each named with its settings; the others are measured and kept."""


@dataclass(frozen=True, repr=False)
class Run(Result):
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
    ray: str | None = None,
    limit_s: int | float | None = None,
    quiet: bool = False,
    command: str | None = None,
) -> Run:
    """Measure the cells of a study and make its report.

    Args:
        study: its flags.
        folder: where cells, config.json, results.json, figures/ and report.html go; None: nothing is written.
        processes: cells measured at once, each in a process of its own; 1: in this one, one after another.
        ray: measure on a Ray cluster instead: its address, "auto" for the one that this machine belongs to, "local"
            for one of this machine alone (docs/CLUSTER.md).
        limit_s: seconds after which a cell is given up, as if it had raised.
        quiet: no progress bar, and off a terminal no line of progress every half a minute.
        command: what makes these results again, in results.json and on the page; None: this call.

    Raises:
        ValueError: the folder cannot be written to, another process is at work in it, or there is no such cluster.
        CellError: cells raised; it names each with its settings. The others are kept, and the tracebacks are in
            cells/errors.txt.

    >>> done = cc.run(cc.studies.two_stage.Config.quickly(figure_9=0, steps=(2, 2)), quiet=True)
    >>> done.rows["n_ctx 8, seed 0, variant full, Adam"]["n_ctx"]
    8
    """
    if processes < 1:
        raise ValueError(f"--processes must be at least 1: got {processes}")
    if ray is not None and processes > 1:
        raise ValueError(f"--ray and --processes exclude each other: got {ray!r} and {processes}")
    if limit_s is not None and not 0 < limit_s <= LONGEST_LIMIT:
        raise ValueError(f"--limit-s must be positive, at most {LONGEST_LIMIT:g}: got {limit_s}; None is no limit")
    output = {"out": folder, "quiet": quiet, "command": command or f"run({study!r})"}
    how = {"processes": processes, "address": ray, "limit_s": limit_s and float(limit_s), "quiet": quiet}
    if folder is None:
        return _run(study, None, how, output)
    folder = Path(folder)
    _check_writable(folder)
    with exclusive_lock(folder):
        config = {"format": CONFIG, "study": encode(study, {}), "command": output["command"], "versions": versions()}
        write_checked(folder, CONFIG_FILE.removesuffix(".json"), config)
        return _run(study, folder, how, output)


def _run(study: Study, folder: Path | None, how: Mapping[str, Any], output: dict[str, Any]) -> Run:
    cells, began = study.cells(), time.perf_counter()
    _check_names(cells)
    kept = _kept(cells, folder)
    earlier_s = sum(seconds for _, seconds in kept.values())
    missing = [cell for cell in cells if cell.name not in kept]
    failures = dict[str, Failure]()
    look: dict[str, Any] = {} if sys.stderr.isatty() else LINES
    with tqdm(cells, study.program(), initial=len(kept), unit="cell", disable=output["quiet"], **look) as bar:
        for cell, outcome in _measured(missing, folder, **how):
            if isinstance(outcome, Failure):
                failures[cell.name] = outcome
            else:
                kept[cell.name] = _keep(cell, outcome, folder)
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
    cells: list[Cell], folder: Path | None, processes: int, address: str | None, limit_s: float | None, quiet: bool
) -> Iterator[tuple[Cell, Measured | Failure]]:
    """Each cell with what it returned, or with what it raised."""
    if address is not None and cells:
        yield from ray_cells.measured(cells, folder, address, limit_s)
        return
    if processes == 1 or len(cells) < 2:
        for cell in cells:
            yield cell, measure(cell, scratch_of(cell, folder), quiet=quiet, limit_s=limit_s)
        return
    yield from _in_processes(cells, folder, min(processes, len(cells)), limit_s)


def _in_processes(
    cells: list[Cell], folder: Path | None, processes: int, limit_s: float | None
) -> Iterator[tuple[Cell, Measured | Failure]]:
    """Each cell as it is done. A killed process ends its pool: the cells left get a second one, then a process each."""
    left: list[Cell] = cells
    for _ in range(2):
        lost = []
        for cell, outcome in _in_pool(left, folder, processes, limit_s):
            if isinstance(outcome, BrokenProcessPool):
                lost.append(cell)
            else:
                yield cell, outcome
        left = lost
    killed = list[BrokenProcessPool]()  # in a row
    for cell in left:
        if len(killed) < KILLED_IN_A_ROW:
            ((_, outcome),) = _in_pool([cell], folder, 1, limit_s)
            if not isinstance(outcome, BrokenProcessPool):
                killed.clear()
                yield cell, outcome
                continue
            killed.append(outcome)
        yield cell, Failure.of(killed[-1])


def _in_pool(
    cells: list[Cell], folder: Path | None, processes: int, limit_s: float | None
) -> Iterator[tuple[Cell, Measured | Failure | BrokenProcessPool]]:
    """Each cell as it is done; a BrokenProcessPool for those that were not when a process was killed."""
    others = multiprocessing.active_children()
    with ProcessPoolExecutor(processes, _warmed(cells), _begin_process) as pool:
        running, late = dict[Future[Measured | Failure], Cell](), list[Cell]()
        for cell in cells:
            try:
                running[pool.submit(measure, cell, scratch_of(cell, folder), limit_s=limit_s)] = cell
            except BrokenProcessPool:  # a process was killed before all were handed out
                late.append(cell)
        try:
            for done in as_completed(running):
                error, cell = done.exception(), running.pop(done)
                if isinstance(error, BrokenProcessPool):
                    yield cell, error
                else:
                    yield cell, done.result() if error is None else Failure.of(error)
            for cell in late:
                yield cell, BrokenProcessPool("a process was killed")
        except BaseException:  # Ctrl-C: the cells that are being measured are not waited for
            for process in set(multiprocessing.active_children()) - set(others):
                process.terminate()
            raise


def _warmed(cells: Sequence[Cell]) -> BaseContext:
    """Processes are forked from one that has imported the package, which takes seconds, and has measured nothing.

    A module of the user's is imported by each process: it may have changed since that one was started.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # on Windows
        return multiprocessing.get_context("spawn")
    needed = {measure.__module__, *(cell.measure.__module__ for cell in cells)}
    own = sorted(name for name in needed if name.startswith(f"{__package__}."))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["causal_circuits.models.hooked", *own])
    try:
        multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]  # loaded by the line above
    except ChildProcessError:  # it belongs to the process that this one was forked from
        return multiprocessing.get_context("spawn")
    return context


def _begin_process() -> None:
    """In a process of the pool: Ctrl-C is for the one that started it, and when that one is killed this one ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _keep(cell: Cell, outcome: Measured, folder: Path | None) -> tuple[Any, float]:
    """The result of a cell and its seconds, written to its file."""
    if folder is not None:
        kept, content = place(cell, folder), {"seconds": outcome.seconds, "result": outcome.values}
        write_checked(kept.parent, kept.name, head(cell) | content, outcome.tensors or None)
        _remove_scratch(cell, folder)
    return decode(outcome.values, outcome.tensors), outcome.seconds


def _kept(cells: Sequence[Cell], folder: Path | None) -> dict[str, tuple[Any, float]]:
    """The results of earlier runs that hold here too; a damaged one is named on stderr."""
    found: dict[str, tuple[Any, float]] = {}
    if folder is None:
        return found
    for cell in cells:
        path = folder / "cells" / f"{place(cell, folder).name}.json"
        if not path.is_file():
            continue
        try:
            earlier = _read(path, head(cell))
        except (ValueError, OSError) as error:
            sys.stderr.write(f"{error}: measured again\n")
            continue
        if earlier is not None:
            found[cell.name] = earlier
            _remove_scratch(cell, folder)  # of a run that was killed just before it did so
    return found


def _read(path: Path, expected: Mapping[str, Any]) -> tuple[Any, float] | None:
    """The result of a cell and its seconds; None where anything that decides its numbers is another."""
    values, tensors = read_checked(path, FORMAT, "cell")
    if first_difference({name: values.get(name) for name in expected}, expected) is not None:
        return None
    try:
        return decode(values["result"], tensors), float(values["seconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the cell {path} is damaged ({error})") from error


def _remove_scratch(cell: Cell, folder: Path) -> None:
    kept = place(cell, folder)
    for left in kept.parent.glob(f"{kept.name}.*.scratch") if cell.scratch else ():
        shutil.rmtree(left, ignore_errors=True)


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
        name = place(cell, Path()).name
        if name in seen:
            raise ValueError(f"cells need names that differ in letters and digits: {seen[name]!r} and {cell.name!r}")
        seen[name] = cell.name


def _describe(failures: Mapping[str, Failure], cells: Sequence[Cell], folder: Path | None) -> str:
    """Which cells raised what, and where the others and the tracebacks are."""
    settings = {cell.name: dict(cell.settings) for cell in cells}
    named = [f"{name} {settings[name]}: {failure.said}" for name, failure in failures.items()]
    said = "; ".join(named[:NAMED]) + (f"; and {len(named) - NAMED} more" if len(named) > NAMED else "")
    tracebacks = "\n".join(f"{name}\n{failure.traceback}" for name, failure in failures.items())
    where = "\n" + tracebacks
    if folder is not None:
        write_files(folder / "cells", {"errors.txt": tracebacks})
        where = f"; the others are kept in {folder / 'cells'}, the tracebacks in {folder / 'cells' / 'errors.txt'}"
    return f"{len(failures)} of {len(cells)} cells raised: {said}{where}"
