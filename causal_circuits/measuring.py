"""Measure one cell of a study: the same bytes in this process, in another, or on another machine.

What decides a result is written down with it (`head`): settings, versions, instructions of the processor, a fingerprint
of this package's files. Threads are those that the cell declares, and random numbers without a seed follow its name.
"""

import functools
import hashlib
import inspect
import json
import platform
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from causal_circuits import native
from causal_circuits.encoding import encode
from causal_circuits.studies.study import Cell

FORMAT = "causal_circuits.cell/1"
DECIDING = ("torch", "transformer-lens", "numpy", "networkx", "scipy", "circuitsvis", "matplotlib")


@dataclass(frozen=True)
class Measured:
    """What a cell returned, encoded, and the seconds that it took."""

    values: Any
    tensors: dict[str, Tensor]
    seconds: float


@dataclass(frozen=True)
class Failure:
    """What a cell raised, as text: not every exception can be sent to another process."""

    said: str
    traceback: str

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """An exception as text."""
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return cls(said, "".join(traceback.format_exception(error)))


def measure(
    cell: Cell, scratch: Path | None = None, *, quiet: bool = True, limit_s: float | None = None
) -> Measured | Failure:
    """Measure a cell, which has `limit_s` seconds for it."""
    began, tensors = time.perf_counter(), dict[str, Tensor]()
    more: dict[str, Any] = {"progress": False if quiet else None} if cell.progress else {}
    if cell.scratch:
        more["scratch"] = scratch
    try:
        with _as_declared(cell), _time_limit(limit_s):
            values = encode(cell.measure(**cell.settings, **more), tensors)
    except Exception as error:  # the other cells go on; `run` raises it at the end
        return Failure.of(error)
    return Measured(values, tensors, time.perf_counter() - began)


@contextmanager
def _as_declared(cell: Cell) -> Iterator[None]:
    """Within, torch has the threads that the cell declares, and a random state that follows from its name."""
    threads = torch.get_num_threads()
    torch.set_num_threads(cell.cores)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(zlib.crc32(cell.name.encode()))
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    """Within, a TimeoutError is raised after so many seconds."""
    if seconds is None:
        yield
        return

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not done within --limit-s {seconds:g}")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- what decides a result


def head(cell: Cell) -> dict[str, Any]:
    """What decides the numbers of a cell, as JSON values."""
    values = {
        "format": FORMAT,
        "name": cell.name,
        "measure": f"{cell.measure.__module__}:{cell.measure.__qualname__}",
        "settings": dict(cell.settings),
        "cores": cell.cores,
        "versions": versions(),
        "fingerprint": fingerprint(),
        "source": own_source(cell.measure),
    }
    as_read: dict[str, Any] = json.loads(json.dumps(values))
    return as_read


@functools.cache
def versions() -> dict[str, str]:
    """Versions of everything that decides a number, and the instructions that torch and the compiled core use."""
    found = {"python": platform.python_version()}
    for package in ("causal-circuits", *DECIDING):
        try:
            found[package.replace("causal-circuits", "causal_circuits")] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    core = native.core().instruction_set() if native.available() else "no core"
    return found | {"instructions": f"{core}, torch {torch.backends.cpu.get_cpu_capability()}"}


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
def own_source(measure: Callable[..., Any]) -> str:
    """SHA-256 of the module of a function that is not of this package; of the function alone in a notebook."""
    if measure.__module__.startswith(f"{__package__}."):
        return ""
    source = ""
    for part in (measure, sys.modules.get(measure.__module__)):
        with suppress(OSError, TypeError):
            source = inspect.getsource(part) if part else source  # the module's, where it has a file
    return hashlib.sha256(source.encode()).hexdigest()


# ---- where it is kept


def place(cell: Cell, folder: Path) -> Path:
    """Where a cell is kept, without an ending."""
    safe = "".join(letter if letter.isalnum() or letter in ".-" else "_" for letter in cell.name)
    return folder / "cells" / safe


def scratch_of(cell: Cell, folder: Path | None) -> Path | None:
    """Where a cell keeps checkpoints: those of other settings are in another folder."""
    if folder is None or not cell.scratch:
        return None
    kept, mark = place(cell, folder), hashlib.sha256(json.dumps(head(cell)).encode()).hexdigest()[:12]
    return kept.with_name(f"{kept.name}.{mark}.scratch")
