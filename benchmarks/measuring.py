"""What the benchmarks share: medians, the machine in words, the fused step on all cores, rows. Not a benchmark."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import networkx as nx
import numpy as np
import torch

import causal_circuits as cc
from causal_circuits import native
from causal_circuits.display import format_value
from causal_circuits.models import fused

NO_RECORD = cc.RecordAt(steps=())


def median_seconds(run: Callable[[], object], repeats: int) -> float:
    """Median wall time of `run`, after two runs that are not counted."""
    run(), run()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def machine() -> dict[str, object]:
    """Processor, cores, threads and versions."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "instructions": native.core().instruction_set() if native.available() else "none: pure Python",
        "torch_threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "numpy", "causal-circuits")},
    }


def tell(rows: Sequence[Mapping[str, object]], path: Path | None = None, **more: object) -> None:
    """Print the last row, and write all rows and the machine as JSON if a file was asked for."""
    print(", ".join(f"{name} {format_value(value)}" for name, value in rows[-1].items()), flush=True)
    write(path, rows, **more)


def write(path: Path | None, rows: object, **more: object) -> None:
    """The rows and the machine as JSON, if a file was asked for."""
    if path is not None:
        path.write_text(json.dumps({"rows": rows, "machine": machine(), **more}, indent=2) + "\n")


def random_parents(generator: np.random.Generator, n_ctx: int, k: int, roots: float = 0.3) -> nx.DiGraph:
    """A graph whose positions have k parents, or are roots with this probability; the target has k."""
    parents: list[list[int]] = []
    for i in range(n_ctx):
        root = i < k or generator.random() < roots
        parents.append([] if root else sorted(generator.choice(i, k, replace=False).tolist()))
    return cc.graph_from_parents([*parents, sorted(generator.choice(n_ctx, k, replace=False).tolist())])


def gradient_on_all_cores(model: object, batch: cc.Batch) -> Callable[[], object]:
    """A function that computes the fused gradient of a batch on torch's number of threads."""
    core = native.core().Trainer(fused.sizes_of(model), 1, len(batch), torch.get_num_threads(), [], [])
    for which, weight in enumerate(fused.live_weights(model)):
        core.weights(which)[0] = weight.flatten().numpy()
    core.next_tokens[0], core.next_targets[0] = batch.tokens.numpy(), batch.target_probs.numpy()
    core.gradients(0, False)
    return core.gradients_again


def rates_in_turn(
    timed: Mapping[str, tuple[Callable[[], object], int]], rates: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Sequences a second, round by round: every function once a round, in turn, after a round that is not counted.

    Args:
        timed: by name, what is timed and how many sequences it deals with. What is quick is run several times.
        rates: by name, what says its own rate.
        rounds: how many.
    """
    found: dict[str, list[float]] = {name: [] for name in (*timed, *rates)}
    for count in range(rounds + 1):
        now = {name: n / _seconds(run) for name, (run, n) in timed.items()}
        now |= {name: rate() for name, rate in rates.items()}
        for name in now if count else ():
            found[name].append(now[name])
    return found


def _seconds(run: Callable[[], object], at_least: float = 0.1) -> float:
    """Median wall time of a call, over calls that take so many seconds together."""
    times: list[float] = []
    while not times or sum(times) < at_least:
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def end_to_end(task: cc.InContextTask, heads: tuple[int, int], batch_size: int, steps: int) -> float:
    """Sequences a second of a whole training: sampling, step, Adam, and the loop around them."""
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, heads)
    config = cc.TrainConfig.joint(steps, batch_size=batch_size)
    return cc.train(model, task, config, record=NO_RECORD, progress=False).sequences_per_s
