"""Graphs of several parents from sequences: edges found and missed, false edges over tables that have none.

*Graphs.* Random graphs: k (1 to 3) parents, n_ctx 12 to 40, d_vocab 2 to 6, alpha .1 to 1, 0 to 40% roots, 20,000
sequences, `recover_graph(batch, max_parents=max(k, 2))`; with --labels, labels in place of laws. An edge of a position
that has as many parents as the target is to be found; a graph whose target's parents stay undecided counts with all its
edges as missed.

*Nulls.* No edges (uniform tokens, Dirichlet targets), targets shuffled over sequences, and in-degrees larger than
allowed: every edge found in the first two is false, in the third (three parents, two allowed) if it is none of the
graph's. *small* graphs of two parents and extreme alpha (.03 to 1), where nearly equal tokens abound: edges not true.

    python benchmarks/several_parents.py --graphs 100 --nulls 300
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from measuring import write

import causal_circuits as cc
from causal_circuits.discovery import RecoveredGraph

NULLS = ("no edges", "shuffled targets", "too many parents", "small")


def random_task(
    generator: np.random.Generator, k: int, n_ctx: tuple[int, int] = (12, 40), alpha: tuple[float, float] = (0.1, 1.0)
) -> cc.InContextTask:
    """Positions are roots with a probability of 0 to .4, else have k parents, as has the target."""
    n, roots = int(generator.integers(n_ctx[0], n_ctx[1] + 1)), generator.uniform(0, 0.4)
    parents: list[list[int]] = []
    for i in range(n):
        root = i < k or generator.random() < roots
        parents.append([] if root else sorted(generator.choice(i, k, replace=False).tolist()))
    target = sorted(generator.choice(n, k, replace=False).tolist())
    chosen = float(np.exp(generator.uniform(*np.log(alpha))))
    graph = cc.graph_from_parents([*parents, target])
    return cc.InContextTask(graph, d_vocab=int(generator.integers(2, 7)), alpha=chosen, roots="uniform")


def labels_of(batch: cc.Batch, seed: int) -> torch.Tensor:
    """One draw from every target law."""
    return torch.multinomial(batch.target_probs, 1, generator=torch.Generator().manual_seed(seed))[:, 0]


def true_edges(task: cc.InContextTask) -> set[tuple[int, int]]:
    """Edges into positions with as many parents as the target."""
    k = len(task.target_parents)
    parents = {i: cc.graphs.parents_of(task.graph, i) for i in range(task.n_ctx)}
    return {(parent, i) for i, own in parents.items() if len(own) == k for parent in own}


def found_edges(found: RecoveredGraph) -> set[tuple[int, int]]:
    """Edges between positions of the context."""
    n_ctx = len(found.weights)
    return {(parent, child) for parent, child in found.graph.edges if child < n_ctx}


def recovered(seed: int, n: int, labels: bool) -> dict[str, object]:
    """One random graph."""
    generator = np.random.default_rng((seed, 0))
    k = 1 + seed % 3
    task = random_task(generator, k)
    batch = task.sample(n, seed=(seed, 1))
    targets = labels_of(batch, seed) if labels else batch.target_probs
    began = time.perf_counter()
    found = cc.recover_graph(batch.tokens, targets, d_vocab=task.d_vocab, max_parents=max(k, 2))
    seconds = time.perf_counter() - began
    true, edges = true_edges(task), found_edges(found)
    roots = [i for i in range(task.n_ctx) if task.graph.in_degree(i) == 0]
    declared = [p.position for p in found.positions if p.verdict == "root"]
    return {
        "seed": seed,
        "k": k,
        "n_ctx": task.n_ctx,
        "d_vocab": task.d_vocab,
        "alpha": round(float(task.alpha), 2),
        "target": found.target_parents == task.target_parents,
        "edges": len(true),
        "found": len(true & edges),
        "false": len(edges - true),
        "roots": len(roots),
        "declared": len(set(roots) & set(declared)),
        "false_roots": len(set(declared) - set(roots)),
        "seconds": round(seconds, 1),
    }


def null(seed: int, n: int) -> dict[str, object]:
    """One table in which no edge, or none of so few parents, can be found."""
    generator, kind = np.random.default_rng((seed, 2)), NULLS[seed % len(NULLS)]
    k = {"too many parents": 3, "small": 2}.get(kind, 1 + seed // len(NULLS) % 3)
    task = random_task(generator, k, n_ctx=(8, 14), alpha=(0.03, 1.0))
    batch = task.sample(n, seed=(seed, 3))
    tokens, laws, by_label = batch.tokens, batch.target_probs, seed // len(NULLS) % 2 == 1
    if kind == "no edges":
        tokens = torch.from_numpy(generator.integers(task.d_vocab, size=tuple(tokens.shape)))
    if kind == "shuffled targets":
        laws = laws[torch.from_numpy(generator.permutation(n))]
    targets = labels_of(cc.Batch(tokens, laws), seed) if by_label else laws
    found = cc.recover_graph(tokens, targets, d_vocab=task.d_vocab, max_parents=2)
    true = true_edges(task) if kind in ("too many parents", "small") else set()
    return {
        "seed": seed,
        "kind": kind,
        "targets": "labels" if by_label else "laws",
        "false": len(found_edges(found) - true),
        "any": bool(found_edges(found) - true),
        "target_told": found.target_parents is not None,
    }


def progress(rows: Iterator[dict[str, object]]) -> list[dict[str, object]]:
    """The rows, each printed as it comes if something in it is missing or false."""
    kept = []
    for row in rows:
        kept.append(row)
        if row["false"] or row.get("found") != row.get("edges"):
            print(row, flush=True)
    return kept


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=30, help="random graphs")
    parser.add_argument("--nulls", type=int, default=60, help="tables without edges")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--sequences", type=int, default=20_000, help="of each graph (2,000 to 20,000 of each null)")
    parser.add_argument("--labels", action="store_true", help="labels in place of target laws")
    parser.add_argument("--out", type=Path, help="JSON")
    flags = parser.parse_args()
    seeds = range(flags.first, flags.first + flags.graphs)
    graphs = pd.DataFrame(progress(recovered(seed, flags.sequences, flags.labels) for seed in seeds))
    if len(graphs):
        columns = ["edges", "found", "false", "roots", "declared", "false_roots"]
        table = graphs.groupby("k").agg(
            {"seed": "size", "target": "sum", **dict.fromkeys(columns, "sum"), "seconds": "max"}
        )
        print(table.rename(columns={"seed": "graphs", "seconds": "most_seconds"}).to_string())
        print(f"found {graphs.found.sum()} of {graphs.edges.sum()} edges, {graphs.false.sum()} false")
    seeds = range(flags.first, flags.first + flags.nulls)
    sizes = (2000, 5000, 20_000)
    nulls = pd.DataFrame(progress(null(seed, sizes[seed // 8 % 3]) for seed in seeds))
    if len(nulls):
        print(nulls.groupby(["kind", "targets"])["any"].agg(["size", "sum", "mean"]).to_string())
    write(flags.out, graphs.to_dict("records"), nulls=nulls.to_dict("records"))


if __name__ == "__main__":
    main()
