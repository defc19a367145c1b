"""A hundred thousand steps with every step recorded to disk: does memory grow, does a step slow down?

Memory and time are taken every 2,000 steps; the table gives the slopes of straight lines through them, the first tenth
(imports, first touches of memory) left out. `memory` is what the process itself holds; `mapped` also counts the pages
of the files that it writes records to, which the system takes back when it needs them.

    python benchmarks/soak.py
    python benchmarks/soak.py --steps 20000 --out soak.json
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tyro
from measuring import tell

import causal_circuits as cc

EVERY = 2_000


def resident_megabytes() -> tuple[float, float]:
    """Memory that this process holds now: its own, and all with mapped files (Linux)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024, int(status["VmRSS"].split()[0]) / 1024


def soak(steps: int, batch: int) -> dict[str, object]:
    """Train (10, 20) for so many steps, layer 0 recorded at each, and measure on the way."""
    task = cc.InContextTask(cc.chain_graph(20), d_vocab=10, alpha=0.1)
    seen: list[tuple[int, float, float, float]] = []

    def look(step: int, model: object) -> None:
        if step % EVERY == 0:
            seen.append((step, time.perf_counter(), *resident_megabytes()))

    with TemporaryDirectory() as folder:
        what = cc.RecordAt.every(1, until=steps, layers=(0,), folder=Path(folder) / "record")
        kept = cc.Checkpoints(Path(folder) / "checkpoints", every=10_000)
        config = cc.TrainConfig.joint(steps, batch_size=batch)
        model = cc.disentangled_transformer(10, 20)
        record = cc.train(model, task, config, record=what, on_record=look, checkpoints=kept, progress=None)
        recorded = len(record.steps)
    at, clock, memory, mapped = (np.array(column[len(seen) // 10 :]) for column in zip(*seen, strict=True))
    per_step = np.diff(clock) / np.diff(at) * 1e6
    middles = (at[1:] + at[:-1]) / 2
    return {
        "steps": steps,
        "batch": batch,
        "recorded": recorded,
        "memory_mb_first": float(memory[0]),
        "memory_mb_last": float(memory[-1]),
        "memory_mb_per_100k_steps": float(np.polyfit(at, memory, 1)[0] * 1e5),
        "mapped_mb_per_100k_steps": float(np.polyfit(at, mapped, 1)[0] * 1e5),
        "step_us_median": float(np.median(per_step)),
        "step_percent_per_100k_steps": float(np.polyfit(middles, per_step, 1)[0] * 1e5 / np.median(per_step) * 100),
        "loss_last": float(record.losses[-100:].mean()),
    }


def main(steps: int = 100_000, batch: int = 64, out: Path | None = None) -> None:
    """Print the row."""
    if steps < 10 * EVERY:
        raise SystemExit(f"--steps must be at least {10 * EVERY}, to put a line through: got {steps}")
    tell([soak(steps, batch)], out)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
