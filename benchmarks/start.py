"""How long from the start of a process until all parents of the chain (10, 20) have over .9 of layer 0's attention.

Each run is a process of its own: it imports, builds, trains from a warm start, and notes the first step at which
the least attention to a parent, looked at every fifth step, is above .9. In turn with them, processes that import torch
and TransformerLens and do nothing.

    python benchmarks/start.py --repeats 5 --out start.json
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import tyro
from measuring import tell

RUN = """
import json, time
import causal_circuits as cc

class Found(Exception):
    pass

task = cc.InContextTask(cc.chain_graph(20), d_vocab=10, alpha=0.1)
model = cc.disentangled_transformer(d_vocab=10, n_ctx=20)
imported = time.time()  # with the first model everything is
batch = task.sample(256, seed=1)

def look(step, model):
    attention = cc.mean_attention(model, batch.tokens)[0, 0]
    least = min(float(attention[child, parent]) for parent, child in task.graph.edges if child < 19)
    if least > 0.9:
        print(json.dumps({"imported": imported, "found": time.time(), "step": step, "least": least}))
        raise Found

try:
    record = cc.RecordAt(steps=range(0, 2000, 5), layers=(0,))
    cc.train(model, task, cc.TrainConfig.warm(), record=record, progress=False, on_record=look)
except Found:
    pass
"""


def run() -> dict[str, float]:
    """One process: seconds from its start, and the step."""
    began = time.time()
    done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, check=True)
    seen = json.loads(done.stdout.splitlines()[-1])
    return {
        "import_s": seen["imported"] - began,
        "until_found_s": seen["found"] - began,
        "step": seen["step"],
        "least_attention": seen["least"],
    }


def alone() -> float:
    """Seconds of a process that only imports what this package stands on."""
    began = time.time()
    subprocess.run([sys.executable, "-c", "import torch, transformer_lens"], capture_output=True, check=True)
    return time.time() - began


def main(repeats: int = 5, out: Path | None = None) -> None:
    """Print a row a process, and the medians."""
    rows = list[dict[str, float]]()
    for _ in range(repeats):
        rows.append({"alone_s": alone(), **run()})
        tell(rows, out)
    print("median: ", end="")
    tell([{name: statistics.median(row[name] for row in rows) for name in rows[0]}])


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
