"""All 182 parents of the paper's Figure-9 graphs from one pass over sequences of each, and how few are enough.

python benchmarks/figure9_recovery.py                          # 20,000 sequences a graph, ten seeds
python benchmarks/figure9_recovery.py --sequences 500 2000     # fewer
"""

import argparse
import json
import time
from pathlib import Path

import torch

import causal_circuits as cc

GRAPHS = Path(__file__).resolve().parent.parent / "causal_circuits" / "studies" / "figure9_graphs.json"


def recover_all(parents: list[list[int]], n: int, seed: int, labels: bool) -> dict[str, float]:
    """Edges found, false edges, false roots and undecided positions over all graphs, and the seconds it took."""
    began, counts = time.perf_counter(), dict.fromkeys(("edges", "found", "false_edges", "false_roots", "undecided"), 0)
    for index, graph in enumerate(parents):
        task = cc.InContextTask(cc.graph_from_parents(graph), d_vocab=3, alpha=0.1)
        batch = task.sample(n, seed=(seed, index))
        targets = batch.target_probs
        if labels:
            generator = torch.Generator().manual_seed(seed)
            targets = torch.multinomial(targets, 1, generator=generator)[:, 0]
        found = cc.recover_graph(batch.tokens, targets)
        recovery = cc.compare_graphs(task.graph, found.graph)
        edges = sum(parent >= 0 for parent in graph)
        counts["edges"] += edges
        counts["found"] += edges - len(recovery.missing)
        counts["false_edges"] += len(recovery.false)
        counts["undecided"] += len(found.undecided)
        verdicts = zip(found.positions, graph, strict=True)
        counts["false_roots"] += sum(p.verdict == "root" and true >= 0 for p, true in verdicts)
    return {**counts, "seconds": time.perf_counter() - began}


def main() -> None:
    """Print a line for every number of sequences and kind of target, summed over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, nargs="+", default=[20_000], help="a graph, default 20000")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0, default 10")
    parser.add_argument("--out", type=Path, help="write every row as JSON")
    arguments = parser.parse_args()
    parents = [graph["parents"] for graph in json.loads(GRAPHS.read_text())["graphs"]]
    rows: list[dict[str, float]] = []
    print("targets        sequences  seeds   found / edges  false edges  false roots  undecided  slowest seed")
    for labels in (False, True):
        for n in arguments.sequences:
            runs = [recover_all(parents, n, seed, labels) for seed in range(arguments.seeds)]
            rows += [{"labels": labels, "sequences": n, "seed": seed, **run} for seed, run in enumerate(runs)]
            total = {key: sum(int(run[key]) for run in runs) for key in runs[0] if key != "seconds"}
            print(
                f"{'labels' if labels else 'probabilities':14s} {n:9,d} {len(runs):6d} {total['found']:7d} / "
                f"{total['edges']:<6d} {total['false_edges']:10d} {total['false_roots']:12d} {total['undecided']:10d} "
                f"{max(run['seconds'] for run in runs):10.1f} s",
                flush=True,
            )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
