"""What recording costs: the same training with one recorded state, with the default dozen, with layer 0 at every step.

Runs alternate in one process, in processor time of all threads, which other work on the machine disturbs less than the
clock; overheads are medians of paired ratios.

    python benchmarks/recording.py --out recording.json
"""

import statistics
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import tyro
from measuring import tell

import causal_circuits as cc

STEPS = 300
SIZES = [(10, 20, 1024), (10, 100, 256), (10, 200, 128)]
ONE = "one state"
RECORDS = {
    ONE: cc.RecordAt(steps=(STEPS,)),
    "the default, a dozen": cc.RecordAt(),
    "layer 0 at every step": cc.RecordAt.every(1, until=STEPS, layers=(0,)),
    "the same, streamed to disk": cc.RecordAt.every(1, until=STEPS, layers=(0,), folder="a temporary one"),
    "and the gradients of its weights": cc.RecordAt.every(1, until=STEPS, layers=(0,), weight_gradients=True),
}


def seconds(d_vocab: int, n_ctx: int, batch_size: int, record: cc.RecordAt) -> float:
    """Processor time of one short training."""
    task = cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=d_vocab, alpha=0.1)
    model, config = cc.disentangled_transformer(d_vocab, n_ctx), cc.TrainConfig.joint(STEPS, batch_size=batch_size)
    with TemporaryDirectory() as folder:
        there = replace(record, folder=None if record.folder is None else folder)
        began = time.process_time()
        cc.train(model, task, config, record=there, progress=False)
        return time.process_time() - began


def main(repeats: int = 7, out: Path | None = None) -> None:
    """Print a row for each size and kind of record."""
    rows = list[dict[str, object]]()
    for size in SIZES:
        taken: dict[str, list[float]] = {name: [] for name in RECORDS}
        for _ in range(repeats):
            for name, record in RECORDS.items():
                taken[name].append(seconds(*size, record))
        for name, values in taken.items():
            overhead = statistics.median(value / one for value, one in zip(values, taken[ONE], strict=True)) - 1
            rows.append({"size": size, "record": name, "s": statistics.median(values), "overhead": overhead})
            tell(rows, out)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
