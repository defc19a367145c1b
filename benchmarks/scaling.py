"""How the cost of a training step grows: with n_ctx, d_vocab, heads, batch, and with the members of an ensemble.

Medians in one process, the sizes of a sweep in turn, so that a drifting machine favours none; peak memory is that of a
process of its own for each size. `order` is the exponent between a row and the one before it in the same sweep, median
over the rounds: 2 in n_ctx means that cost grows with the square.

    python benchmarks/scaling.py --out scaling.json
"""

import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import tyro
from measuring import NO_RECORD, gradient_on_all_cores, median_seconds, tell
from tqdm import tqdm

import causal_circuits as cc

# Seconds that a size is timed for in each round.
ROUND = 0.1

SWEEPS: dict[str, list[tuple[int, int, tuple[int, int], int]]] = {
    "n_ctx": [(10, n_ctx, (1, 1), 128) for n_ctx in (20, 50, 100, 200, 500, 1000)],
    "d_vocab": [(d_vocab, 20, (1, 1), 512) for d_vocab in (3, 10, 16, 30, 100)],
    "heads": [(5, 32, heads, 256) for heads in ((1, 1), (2, 1), (2, 2), (4, 1))],
    "batch": [(10, 20, (1, 1), batch) for batch in (1, 16, 64, 256, 1024, 4096)],
}
PEAK = """
import sys
import causal_circuits as cc
d_vocab, n_ctx, first, second, batch = map(int, sys.argv[1:])
task = cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=d_vocab, alpha=0.1)
model = cc.disentangled_transformer(d_vocab, n_ctx, (first, second))
cc.train(model, task, cc.TrainConfig.joint(3, batch_size=batch), record=cc.RecordAt(steps=()), progress=False)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss remembers the parent's
print(int(peak.split()[1]) / 1024)
"""


def seconds_in_turn(sizes: list[tuple[int, int, tuple[int, int], int]], repeats: int) -> list[list[float]]:
    """For each size, seconds per sequence of a batch's gradient on all cores, round by round."""
    gradients = []
    for d_vocab, n_ctx, heads, batch in sizes:
        task = cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=d_vocab, alpha=0.1)
        model = cc.models.warm_start(cc.disentangled_transformer(d_vocab, n_ctx, heads))
        gradients.append(gradient_on_all_cores(model, task.sample(batch)))
    once = [median_seconds(gradient, 1) for gradient in gradients]
    seconds: list[list[float]] = [[] for _ in sizes]
    for _ in range(repeats):
        for i, gradient in enumerate(gradients):
            times = max(1, int(ROUND / once[i]))
            gradient()  # the caches were another size's
            began = time.perf_counter()
            for _ in range(times):
                gradient()
            seconds[i].append((time.perf_counter() - began) / times / sizes[i][3])
    return seconds


def peak_megabytes(d_vocab: int, n_ctx: int, heads: tuple[int, int], batch: int) -> float:
    """Peak resident memory of a process that trains three steps, torch and TransformerLens included."""
    sizes = [str(value) for value in (d_vocab, n_ctx, *heads, batch)]
    done = subprocess.run([sys.executable, "-c", PEAK, *sizes], capture_output=True, text=True, check=True)
    return float(done.stdout)


def sweep(repeats: int) -> list[dict[str, object]]:
    """Every row of every sweep."""
    rows: list[dict[str, object]] = []
    bar = tqdm(total=sum(map(len, SWEEPS.values())), desc="sizes", disable=None)
    for what, sizes in SWEEPS.items():
        measured = seconds_in_turn(sizes, repeats)
        before: tuple[float, list[float]] | None = None
        for (d_vocab, n_ctx, heads, batch), seconds in zip(sizes, measured, strict=True):
            order, value = None, {"n_ctx": n_ctx, "d_vocab": d_vocab}.get(what)
            if before is not None:
                rounds = zip(before[1], seconds, strict=True)
                order = statistics.median(math.log(after / at) / math.log(value / before[0]) for at, after in rounds)
            before = None if value is None else (value, seconds)
            memory = peak_megabytes(d_vocab, n_ctx, heads, batch) if what == "n_ctx" else None
            rows.append(
                {
                    "sweep": what,
                    "d_vocab": d_vocab,
                    "n_ctx": n_ctx,
                    "heads": list(heads),
                    "batch": batch,
                    "train_per_s": 1 / statistics.median(seconds),
                    "order": order,
                    "peak_mb": memory,
                }
            )
            bar.update()
    return rows


def ensembles(repeats: int) -> list[dict[str, object]]:
    """Members at once against one alone, in trained sequences a second: large batches and small ones."""
    rows: list[dict[str, object]] = []
    task = cc.InContextTask(cc.chain_graph(20), d_vocab=10, alpha=0.1)
    for batch, steps in ((1024, 40), (64, 300)):
        rates: dict[int, list[float]] = {1: [], 20: []}
        for _ in range(repeats):
            for n in rates:  # in turn, so that a drifting machine does not favour one
                models = [cc.disentangled_transformer(10, 20) for _ in range(n)]
                configs = [cc.TrainConfig.joint(steps, batch_size=batch, seed=i) for i in range(n)]
                record = cc.train_ensemble(models, [task] * n, configs, record=NO_RECORD, progress=False)[0]
                rates[n].append(record.sequences_per_s)
        single, many = (sorted(rates[n])[repeats // 2] for n in rates)
        measured = {"single_per_s": single, "ensemble_of_20_per_s": many, "ratio": many / single}
        rows.append({"batch": batch, **measured})
    return rows


def main(repeats: int = 7, out: Path | None = None) -> None:
    """Print a row a size, then ensembles."""
    rows = list[dict[str, object]]()
    for row in [*sweep(repeats), *ensembles(max(5, repeats))]:
        rows.append(row)
        tell(rows, out)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
