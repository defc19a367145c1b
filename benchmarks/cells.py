"""What it costs to hand cells out: cells a second, the driver's memory, and processes beside one ensemble.

    python benchmarks/cells.py tiny --nodes 2 --cells 10000         # cells that take no time: what the driver can take
    python benchmarks/cells.py tiny --nodes 2 --cells 500 --ms 50   # cells that sleep: the overhead
    python benchmarks/cells.py wait                                 # a look at thousands of waiting tasks
    python benchmarks/cells.py ensemble                             # the same trainings as one ensemble, and as cells

Nodes are Ray's on this machine, one core each (`ray.cluster_utils.Cluster`); --nodes 0 measures in this process.
"""

import itertools
import json
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy
import psutil
import torch
import tyro

import causal_circuits as cc
from causal_circuits.pages import Check
from causal_circuits.studies.study import Cell, Report, Study


@dataclass(frozen=True, kw_only=True)
class Tiny(Study):
    """Cells that sleep."""

    n_cells: int
    seconds: float

    def cells(self) -> list[Cell]:
        """A number each."""
        return [Cell(f"cell {k}", sleep, {"k": k, "seconds": self.seconds}, cores=1) for k in range(self.n_cells)]

    def report(self, rows: Mapping[str, Any]) -> Report:
        """How many there are."""
        return Report("Tiny cells", [Check(True, "all are there", str(len(rows)))], {"n": len(rows)})


def sleep(k: int, seconds: float) -> dict[str, float]:
    """A random number, after a while."""
    time.sleep(seconds)
    return {"k": k, "number": float(torch.rand(()))}


def tiny(nodes: int, n_cells: int, milliseconds: float) -> dict[str, Any]:
    """Cells a second, of each tenth of the cells and of all from the first result on."""
    from ray.cluster_utils import Cluster  # here: processes of `ensemble` import this file, and need no Ray

    cluster = None if nodes == 0 else Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1)
    kept: list[float] = []
    keep = cc.running._keep

    def timed(*given: Any) -> Any:
        found = keep(*given)
        kept.append(time.perf_counter())
        return found

    cc.running._keep = timed
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        cc.run(Tiny(n_cells=n_cells, seconds=milliseconds / 1000), folder, ray=cluster and cluster.address, quiet=True)
        sizes = [path.stat().st_size for path in Path(folder).glob("cells/*.json")]
    if cluster is not None:
        cluster.shutdown()
    tenths = [kept[k * (n_cells - 1) // 10] for k in range(11)]
    rate = (n_cells - 1) / (kept[-1] - kept[0])
    return {
        "nodes": nodes,
        "cells": n_cells,
        "first_result_s": round(kept[0] - began, 1),
        "cells_a_second": round(rate),
        "by_tenth": [round(n_cells / 10 / (b - a)) for a, b in itertools.pairwise(tenths)],
        "share_of_slots_at_work": round(rate * milliseconds / 1000 / max(nodes, 1), 3),
        "bytes_a_cell": round(sum(sizes) / len(sizes)),
        "peak_driver_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def wait() -> dict[str, Any]:
    """Milliseconds of this process for one look at so many tasks that wait for room."""
    import ray

    ray.init("local", num_cpus=0, include_dashboard=False, log_to_driver=False, logging_level="error")
    remote, tasks, found = ray.remote(num_cpus=1)(sleep), list[Any](), dict[str, Any]()
    for n in (1000, 4000, 16_000):
        tasks += [remote.remote(0, 0.0) for _ in range(n - len(tasks))]
        began = time.process_time()
        for _ in range(5):
            ray.wait(tasks, num_returns=n, timeout=0)
        found[f"{n} tasks"] = round((time.process_time() - began) / 5 * 1000, 2)
    return found | {"peak_driver_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


@dataclass(frozen=True, kw_only=True)
class Trainings(Study):
    """Cells that train members of equal sizes, and do nothing else."""

    members: int
    a_cell: int
    steps: int = 4500

    def cells(self) -> list[Cell]:
        """Some members each."""
        firsts = range(0, self.members, self.a_cell)
        return [Cell(f"from {k}", train, {"first": k, "n": self.a_cell, "steps": self.steps}, cores=1) for k in firsts]

    def report(self, rows: Mapping[str, Any]) -> Report:
        """Their last losses."""
        return Report("Trainings", [Check(True, "all are there", str(len(rows)))], {"losses": list(rows.values())})


def train(first: int, n: int, steps: int) -> list[float]:
    """The last losses of n members, trained side by side."""
    tasks = [cc.InContextTask(cc.random_forest(16, seed=first + k), d_vocab=3, alpha=0.1) for k in range(n)]
    models = [cc.disentangled_transformer(3, 16) for _ in tasks]
    configs = [cc.TrainConfig(cc.training.default_stages(steps), batch_size=256, seed=first + k) for k in range(n)]
    records = cc.train_ensemble(models, tasks, configs, record=cc.RecordAt(steps=(0,)), progress=False)
    return [float(record.losses[-1]) for record in records]


def ensemble(members: int, a_cell: int, times: int = 3) -> dict[str, Any]:
    """CPU seconds of the same trainings, in turn: one ensemble with two threads; cells in two processes of one.

    The first time the cells pay for the start of the process that theirs are forked from; it stays.
    """
    torch.set_num_threads(2)
    train(0, 1, Trainings.steps)  # imports
    together, apart = list[float](), list[float]()
    for _ in range(times):
        began = cpu_seconds()
        losses = train(0, members, Trainings.steps)
        together.append(cpu_seconds() - began)
        began = cpu_seconds()
        done = cc.run(Trainings(members=members, a_cell=a_cell), processes=2, quiet=True)
        apart.append(cpu_seconds() - began)
        numpy.testing.assert_allclose([loss for row in done.rows.values() for loss in row], losses, atol=1e-3)
    ratios = [one / cells for one, cells in zip(together, apart, strict=True)]
    seconds = {"one_ensemble_cpu_s": together, "cells_cpu_s": apart}
    return seconds | {"ratios": ratios, "members": members, "a_cell": a_cell}


def cpu_seconds() -> float:
    """Of this process and of all below it, those that have ended included."""
    here = psutil.Process()
    return sum(sum(process.cpu_times()[:4]) for process in [here, *here.children(recursive=True)])


def main(
    what: Annotated[Literal["tiny", "wait", "ensemble"], tyro.conf.Positional],
    nodes: int = 2,
    cells: int = 10_000,
    ms: float = 0.0,
    members: int = 48,
    a_cell: int = 4,
) -> None:
    """Print what was measured; --ms: that a cell sleeps; --members: trainings, --a-cell of them in each cell."""
    measures = {
        "tiny": lambda: tiny(nodes, cells, ms),
        "wait": wait,
        "ensemble": lambda: ensemble(members, a_cell),
    }
    print(json.dumps(measures[what]()))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
