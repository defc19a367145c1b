"""Cells of a study on a Ray cluster: small cells share a task, and the driver keeps each result as it comes.

Ray places the tasks, moves what they return, and repeats those of a worker or node that is lost. Nothing is written
but by the driver; a cell's scratch is used where a worker sees the driver's folder, which it tells by the lock in it.
"""

import faulthandler
import platform
import socket
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from causal_circuits.locks import holder
from causal_circuits.measuring import Failure, Measured, fingerprint, measure, scratch_of, versions
from causal_circuits.storage import first_difference
from causal_circuits.studies.study import Cell

TASK_S = 1.0  # small cells are put together into tasks of about this length: Ray takes some milliseconds a task
LARGEST_PACK = 200  # cells
TASKS_A_SLOT = 2  # one is measured, the next one waits there
RETRIES = 3  # of a task whose worker or node is lost
PATIENCE = 2  # time limits after which a cell that does not react to its own ends with its worker

Outcome = Measured | Failure


def measured(
    cells: Sequence[Cell], folder: Path | None, address: str, limit_s: float | None
) -> Iterator[tuple[Cell, Outcome]]:
    """Each cell with what it returned or raised, in the order in which they are done.

    Raises:
        ValueError: Ray is not installed, no cluster answers, or a worker has other versions than this process.
    """
    ray = _import_ray()
    shared = None if folder is None else (folder.resolve(), holder(folder))
    mine = {"versions": versions(), "fingerprint": fingerprint()}
    with _connected(ray, address):
        _warn_if_too_large(ray, cells)
        waiting, running, size = deque(cells), dict[Any, list[Cell]](), 1
        remote = ray.remote(_measure_pack)

        def start(pack: list[Cell]) -> None:
            task = remote.options(max_retries=RETRIES, **_needs(pack[0]))
            running[task.remote(pack, shared, mine, limit_s)] = pack

        try:
            while waiting or running:
                wanted = TASKS_A_SLOT * _slots(ray, waiting[0]) if waiting else 0
                while waiting and len(running) < wanted:
                    start(_pack(waiting, min(size, 1 + len(waiting) // wanted)))
                for done in _finished(ray, list(running)):
                    pack = running.pop(done)
                    outcomes = _outcomes(ray, done, pack)
                    if outcomes is None:  # each cell alone, to tell by which one the workers died
                        for cell in pack:
                            start([cell])
                        continue
                    yield from zip(pack, outcomes, strict=True)
                    slowest = max((o.seconds for o in outcomes if isinstance(o, Measured)), default=TASK_S)
                    size = min(LARGEST_PACK, max(1, int(TASK_S / max(slowest, 1e-6))))
        finally:
            for task in running:
                ray.cancel(task, force=True)


def _measure_pack(
    pack: list[Cell], shared: tuple[Path, str] | None, drivers: dict[str, Any], limit_s: float | None
) -> list[Outcome] | str:
    """In a worker: every cell of a pack; in words what differs, if versions do."""
    differs = first_difference({"versions": versions(), "fingerprint": fingerprint()}, drivers)
    if differs is not None:
        what, here, there = differs
        what = what.removeprefix("versions.").replace("fingerprint", "other files of causal_circuits: SHA-256")
        return f"the worker on {platform.node()} has {what} {here}, this process {there}: install the same on all nodes"
    seen = shared is not None and holder(shared[0]) == shared[1] != "unknown"
    folder = shared[0] if shared is not None and seen else None
    outcomes = []
    for cell in pack:
        if limit_s is not None:
            faulthandler.dump_traceback_later(PATIENCE * limit_s, exit=True)
        outcomes.append(measure(cell, scratch_of(cell, folder), limit_s=limit_s))
        faulthandler.cancel_dump_traceback_later()
    return outcomes


def _pack(waiting: deque[Cell], size: int) -> list[Cell]:
    """The next cells, which need the same, for one task."""
    pack = [waiting.popleft()]
    while waiting and len(pack) < size and _needs(waiting[0]) == _needs(pack[0]):
        pack.append(waiting.popleft())
    return pack


def _needs(cell: Cell) -> dict[str, Any]:
    """The resources of a cell, as Ray's options of a task."""
    return {"num_cpus": cell.cores, "num_gpus": cell.gpus, "memory": cell.memory}


def _slots(ray: Any, cell: Cell) -> int:
    """How many tasks of a cell's needs the cluster runs at once, by its processor cores."""
    return max(1, int(ray.cluster_resources().get("CPU", 0)) // cell.cores)


def _finished(ray: Any, tasks: list[Any]) -> list[Any]:
    """Waits for one task, and returns all that are done by then."""
    ray.wait(tasks, num_returns=1)
    done: list[Any] = ray.wait(tasks, num_returns=len(tasks), timeout=0)[0]
    return done


def _outcomes(ray: Any, task: Any, pack: list[Cell]) -> list[Outcome] | None:
    """What the cells of a task returned or raised; None if its worker was lost with more than one cell."""
    try:
        outcomes: list[Outcome] | str = ray.get(task)
    except ray.exceptions.RayError as error:
        return [Failure.of(error)] if len(pack) == 1 else None
    if isinstance(outcomes, str):
        raise ValueError(outcomes)
    return outcomes


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise ValueError('--ray needs Ray: pip install "causal-circuits[ray]"') from None
    return ray


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Within, this process is connected: to the cluster it is connected to already, or to the one at the address."""
    if ray.is_initialized():
        yield
        return
    more = {"include_dashboard": False} if address == "local" else {}
    host, _, port = address.rpartition(":")
    try:
        if port.isdigit() and "/" not in host:  # where nobody listens Ray itself waits for minutes
            socket.create_connection((host, int(port)), timeout=30).close()
        ray.init(address, log_to_driver=False, logging_level="error", **more)
    except (OSError, ValueError, RuntimeError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"--ray {address}: no cluster of this version of Ray answers there ({said})") from error
    try:
        yield
    finally:
        ray.shutdown()


def _warn_if_too_large(ray: Any, cells: Sequence[Cell]) -> None:
    """A warning if no node has the cores of a cell: Ray waits for one that has."""
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    cell = max(cells, key=lambda cell: cell.cores)
    if cell.cores > largest:
        said = f"the cell {cell.name!r} needs {cell.cores} cores and the largest node has {largest:g}"
        warnings.warn(f"{said}: it waits until a larger one joins", stacklevel=2)
