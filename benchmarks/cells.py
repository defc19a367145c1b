"""What it costs to hand cells out: cells a second, the driver's memory, and processes beside one ensemble.

    python benchmarks/cells.py tiny --nodes 2 --cells 10000         # cells that take no time: what the driver can take
    python benchmarks/cells.py tiny --nodes 2 --cells 500 --ms 50   # cells that sleep: the overhead
    python benchmarks/cells.py wait                                 # a look at thousands of waiting tasks
    python benchmarks/cells.py ensemble                             # sequences a CPU second, two processes beside one

Nodes are Ray's on this machine, one core each (`ray.cluster_utils.Cluster`); --nodes 0 measures in this process.
"""

import argparse
import itertools
import json
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray.cluster_utils import Cluster

import causal_circuits as cc
from causal_circuits.pages import Check
from causal_circuits.studies.learnability import Config as Learnability
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
    ray.init("local", num_cpus=0, include_dashboard=False, log_to_driver=False, logging_level="error")
    remote, tasks, found = ray.remote(num_cpus=1)(sleep), list[Any](), dict[str, Any]()
    for n in (1000, 4000, 16_000):
        tasks += [remote.remote(0, 0.0) for _ in range(n - len(tasks))]
        began = time.process_time()
        for _ in range(5):
            ray.wait(tasks, num_returns=n, timeout=0)
        found[f"{n} tasks"] = round((time.process_time() - began) / 5 * 1000, 2)
    return found | {"peak_driver_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def ensemble(members: int = 24) -> dict[str, Any]:
    """Sequences a CPU second of one ensemble with two threads, and of the study's cells in two processes of one."""
    same = {"graph": ("chain", "forest"), "d_vocab": (3,), "n_ctx": (16,), "alpha": (0.1, 1.0)}
    study = Learnability(**same, seeds=members // 4)
    tasks = [cc.InContextTask(cc.random_forest(16, seed=k), d_vocab=3, alpha=0.1) for k in range(members)]
    models = [cc.disentangled_transformer(3, 16) for _ in tasks]
    config = cc.TrainConfig(cc.training.default_stages(study.steps), batch_size=study.batch_size)
    sequences = members * study.steps * study.batch_size
    torch.set_num_threads(2)
    began = cpu_seconds(resource.RUSAGE_SELF)
    cc.train_ensemble(models, tasks, [config] * members, record=cc.RecordAt(steps=(0,)), progress=False)
    together = cpu_seconds(resource.RUSAGE_SELF) - began
    done = cc.run(study, processes=2, quiet=True)
    apart = cpu_seconds(resource.RUSAGE_CHILDREN)
    inside = sum(done.results["timing"]["cells"].values())
    rates = {"one_ensemble": round(sequences / together), "two_processes": round(sequences / apart)}
    return rates | {"ratio": round(together / apart, 3), "seconds_in_cells": round(inside, 1), "members": members}


def cpu_seconds(whose: int) -> float:
    """Of this process, or of its children that have ended."""
    used = resource.getrusage(whose)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tiny", "wait", "ensemble"))
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--ms", type=float, default=0.0, help="that a cell sleeps")
    given = parser.parse_args()
    others = {"wait": wait, "ensemble": ensemble}
    print(json.dumps(others[given.what]() if given.what in others else tiny(given.nodes, given.cells, given.ms)))
