"""All 182 parents of the paper's Figure-9 graphs from one pass over sequences of each, and how few are enough.

python benchmarks/figure9_recovery.py                          # 20,000 sequences a graph, ten seeds
python benchmarks/figure9_recovery.py --sequences 500 2000     # fewer
"""

import time
from pathlib import Path

import pandas as pd
import torch
import tyro
from measuring import tell

import causal_circuits as cc
from causal_circuits.studies.tables import figure_9_parents


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


def main(sequences: tuple[int, ...] = (20_000,), seeds: int = 10, out: Path | None = None) -> None:
    """Print a row for every number of sequences and kind of target, summed over seeds; seconds are of the slowest."""
    rows: list[dict[str, object]] = []
    for labels in (False, True):
        for n in sequences:
            runs = pd.DataFrame([recover_all(figure_9_parents(), n, seed, labels) for seed in range(seeds)])
            slowest = float(runs.pop("seconds").max())
            rows.append({"labels": labels, "sequences": n, "seeds": seeds, **runs.sum().to_dict(), "seconds": slowest})
            tell(rows, out)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
