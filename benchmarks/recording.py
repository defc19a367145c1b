"""What recording costs: the same training with nothing recorded, with layer 0 at every step, and with hooks.

Runs alternate in one process; overheads are medians of paired ratios.

    python benchmarks/recording.py --out recording.json
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from measuring import write

import causal_circuits as cc

STEPS = 60
RECORDS = {
    "nothing": cc.RecordAt(steps=()),
    "score gradients of layer 0, every step": cc.RecordAt.every(1, until=STEPS, layers=(0,), attention=False),
    "and its attention": cc.RecordAt.every(1, until=STEPS, layers=(0,)),
    "both streamed to disk, with checksums": cc.RecordAt.every(1, until=STEPS, layers=(0,), folder="a temporary one"),
    "and the gradients of its weights": cc.RecordAt.every(1, until=STEPS, layers=(0,), weight_gradients=True),
    "both layers by hooks, every tenth step": cc.RecordAt.every(10, until=STEPS),
}


def rate(record: cc.RecordAt) -> float:
    """Sequences a second of one short training at (10, 20), batch 1,024."""
    task = cc.InContextTask(cc.chain_graph(20), d_vocab=10, alpha=0.1)
    model, config = cc.disentangled_transformer(10, 20), cc.TrainConfig.joint(STEPS)
    with TemporaryDirectory() as folder:
        there = replace(record, folder=None if record.folder is None else folder)
        return cc.train(model, task, config, record=there, progress=False).sequences_per_s


def main() -> None:
    """Print the table; write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="runs of each, default 9")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    rate(RECORDS["nothing"])  # compiles
    rates: dict[str, list[float]] = {name: [] for name in RECORDS}
    for _ in range(arguments.repeats):
        for name, record in RECORDS.items():
            rates[name].append(rate(record))
    rows = []
    for name, values in rates.items():
        ratios = [nothing / value for nothing, value in zip(rates["nothing"], values, strict=True)]
        rows.append({"record": name, "per_s": statistics.median(values), "overhead": statistics.median(ratios) - 1})
        print(f"{name:42s} {rows[-1]['per_s']:10,.0f}/s  {rows[-1]['overhead']:+.1%}")
    write(arguments.out, rows)


if __name__ == "__main__":
    main()
