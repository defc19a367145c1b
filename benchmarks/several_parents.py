"""Graphs of several parents from sequences: edges found and missed, false edges over tables that have none.

*Graphs.* The paper's two-parent graph, 3- and 4-grams, and random graphs: k (1 to 3) parents, n_ctx 12 to 40, d_vocab 2
to 6, alpha .1 to 1, 0 to 40% roots; `recover_graph(batch, max_parents=max(k, 2))`. An edge is *identifiable* if its
child has as many parents as the target (no other transition matrix shows in the target), and if two such children have
different parents (one set of parents in all children can change places with the target's: the law is the same). All
identifiable edges count, those of graphs whose target's parents stay undecided as missed.

*Nulls.* No edges (uniform tokens, Dirichlet targets), targets shuffled over sequences, and in-degrees larger than
allowed: every edge found in the first two is false, in the third (three parents, two allowed) if it is none of the
graph's. *small* graphs of two parents and extreme alpha (.03 to 1), where nearly equal tokens abound: edges not true.

*Broken.* What contradicts the assumptions: roots that follow the stationary law or one law a sequence, skewed tokens of
roots, one transition matrix behind all sequences, rows from a prior that prefers a token, two graphs mixed, children of
one and of two parents. Edges not true are false.

Each graph and table is kept in --out as it is done: a run that was stopped goes on, and ranges may be run in pieces.

    python benchmarks/several_parents.py --graphs 1000 1100 --nulls 1000 2000 --out several_parents
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import tyro
from measuring import random_parents

import causal_circuits as cc
from causal_circuits.discovery import RecoveredGraph
from causal_circuits.pages import Check, Section
from causal_circuits.studies.study import Cell, Report, Study

Row = dict[str, Any]
NULLS = ("no edges", "shuffled targets", "too many parents", "small")
BROKEN = ("stationary roots", "shared roots", "skewed roots", "one matrix", "preferred token", "two graphs", "degrees")
NAMED = {
    "the paper's two-parent graph": (2, 5, [[], *(sorted({(i - 1) // 2, i - 1}) for i in range(1, 33))]),
    "3-gram": (2, 3, cc.graphs.graph_parents(cc.ngram_graph(20, 2))),
    "4-gram": (3, 3, cc.graphs.graph_parents(cc.ngram_graph(20, 3))),
}


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """`recover_graph` with several parents finds 99% of the identifiable edges, and false ones in few tables."""

    graphs: tuple[int, int] = (0, 0)
    """seeds of random graphs, from the first to before the second"""
    nulls: tuple[int, int] = (0, 0)
    """of tables without edges"""
    broken: tuple[int, int] = (0, 0)
    """of tables that contradict the assumptions"""
    sequences: int = 20_000
    """of each graph (2,000 to 20,000 of each other table)"""
    labels: bool = False
    """labels in place of target laws"""

    def cells(self) -> list[Cell]:
        """A graph or a table each."""
        same = {"n": self.sequences, "labels": self.labels}
        cells = {name: (recover_named, {"name": name, **same}) for name in (NAMED if self.graphs[1] else ())}
        cells |= {f"graph {seed}": (recover_random, {"seed": seed, **same}) for seed in range(*self.graphs)}
        cells |= {f"null {seed}": (measure_null, {"seed": seed}) for seed in range(*self.nulls)}
        cells |= {f"broken {seed}": (measure_broken, {"seed": seed}) for seed in range(*self.broken)}
        return [Cell(name, measure, settings, cores=1) for name, (measure, settings) in cells.items()]

    def report(self, rows: Mapping[str, Row]) -> Report:
        """Edges found, and tables with a false one."""
        graphs = [row for row in rows.values() if "edges" in row]
        parts = [graphs_found(pd.DataFrame(graphs))] if graphs else []
        for name in ("null", "broken"):
            tables = [row for cell, row in rows.items() if cell.startswith(name)]
            parts += [tables_with_false_edges(pd.DataFrame(tables), name)] if tables else []
        summary = [(str(check.state), f"{check.claim}: {check.evidence}") for checks, _ in parts for check in checks]
        summary += [("", line) for _, section in parts for line in section.table.to_string().splitlines()]
        checks = [check for of_part, _ in parts for check in of_part]
        sections = [section for _, section in parts]
        return Report("Graphs of several parents", checks, {"rows": list(rows.values())}, sections, summary)


def graphs_found(graphs: pd.DataFrame) -> tuple[list[Check], Section]:
    """The share of edges found, and the false ones."""
    counts = ("edges", "found", "false", "roots", "declared", "false_roots")
    by_kind = graphs.groupby("kind", sort=False).agg(
        graphs=("seed", "size"),
        targets=("target", "sum"),
        **{name: (name, "sum") for name in counts},
        most_seconds=("seconds", "max"),
    )
    enough = bool(graphs.found.sum() >= 0.99 * graphs.edges.sum())
    said = f"{graphs.found.sum()} of {graphs.edges.sum()} in {len(graphs)} graphs, {graphs.false.sum()} false"
    return [Check(enough and not graphs.false.any(), "99% of the identifiable edges are found, none is false", said)], (
        Section("Graphs", "By kind.", table=by_kind.reset_index())
    )


def tables_with_false_edges(tables: pd.DataFrame, name: str) -> tuple[list[Check], Section]:
    """How many tables show an edge that is not true."""
    false = tables.false > 0
    by_kind = tables.assign(with_false=false).groupby(["kind", "targets"])
    table = by_kind.agg(tables=("seed", "size"), with_false_edges=("with_false", "sum"), edges_found=("found", "sum"))
    claim = f"{name}: fewer than 5% of the tables show a false edge"
    check = Check(bool(false.mean() < 0.05), claim, f"{false.sum()} of {len(tables)} tables")
    return [check], Section(f"Tables: {name}", "By kind.", table=table.reset_index())


def random_task(
    generator: np.random.Generator, k: int, n_ctx: tuple[int, int] = (12, 40), alpha: tuple[float, float] = (0.1, 1.0)
) -> cc.InContextTask:
    """Positions are roots with a probability of 0 to .4, else have k parents, as has the target."""
    n, roots = int(generator.integers(n_ctx[0], n_ctx[1] + 1)), generator.uniform(0, 0.4)
    graph = random_parents(generator, n, k, roots)
    chosen = float(np.exp(generator.uniform(*np.log(alpha))))
    return cc.InContextTask(graph, d_vocab=int(generator.integers(2, 7)), alpha=chosen, roots="uniform")


def labels_of(batch: cc.Batch, seed: int) -> torch.Tensor:
    """One draw from every target law."""
    return torch.multinomial(batch.target_probs, 1, generator=torch.Generator().manual_seed(seed))[:, 0]


def true_edges(task: cc.InContextTask) -> set[tuple[int, int]]:
    """Identifiable edges: into positions with as many parents as the target, if these have not all the same ones."""
    k = len(task.target_parents)
    parents = {i: cc.graphs.parents_of(task.graph, i) for i in range(task.n_ctx)}
    children = {i: own for i, own in parents.items() if len(own) == k}
    return {(parent, i) for i, own in children.items() for parent in own} if len({*children.values()}) > 1 else set()


def found_edges(found: RecoveredGraph) -> set[tuple[int, int]]:
    """Edges between positions of the context."""
    n_ctx = len(found.weights)
    return {(parent, child) for parent, child in found.graph.edges if child < n_ctx}


def recover_named(name: str, n: int, labels: bool) -> Row:
    """A graph that has a name."""
    k, d_vocab, parents = NAMED[name]
    task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=d_vocab, alpha=0.1, roots="uniform")
    return recovered(task, k, n, labels, seed=0) | {"kind": name}


def recover_random(seed: int, n: int, labels: bool) -> Row:
    """A random graph."""
    k = 1 + seed % 3
    return recovered(random_task(np.random.default_rng((seed, 0)), k), k, n, labels, seed) | {"kind": f"{k} parents"}


def recovered(task: cc.InContextTask, k: int, n: int, labels: bool, seed: int) -> Row:
    """What is found of one graph."""
    batch = task.sample(n, seed=(seed, 1))
    targets = labels_of(batch, seed) if labels else batch.target_probs
    began = time.perf_counter()
    found = cc.recover_graph(batch.tokens, targets, d_vocab=task.d_vocab, max_parents=max(k, 2))
    seconds = time.perf_counter() - began
    true, edges = true_edges(task), found_edges(found)
    roots = {i for i in range(task.n_ctx) if task.graph.in_degree(i) == 0}
    declared = {p.position for p in found.positions if p.verdict == "root"}
    return {
        "seed": seed,
        "n_ctx": task.n_ctx,
        "d_vocab": task.d_vocab,
        "alpha": round(float(task.alpha), 2),
        "target": found.target_parents == task.target_parents,
        "edges": len(true),
        "found": len(true & edges),
        "false": len(edges - true),
        "roots": len(roots),
        "declared": len(roots & declared),
        "false_roots": len(declared - roots),
        "seconds": round(seconds, 1),
        "undecided": {str(i): found.positions[i].reason for i in found.undecided},
    }


def measure_null(seed: int) -> Row:
    """One table in which no edge, or none of so few parents, can be found."""
    generator, kind = np.random.default_rng((seed, 2)), NULLS[seed % len(NULLS)]
    n = (2000, 5000, 20_000)[seed // 8 % 3]
    k = {"too many parents": 3, "small": 2}.get(kind, 1 + seed // len(NULLS) % 3)
    task = random_task(generator, k, n_ctx=(8, 14), alpha=(0.03, 1.0))
    batch = task.sample(n, seed=(seed, 3))
    tokens, laws = batch.tokens, batch.target_probs
    if kind == "no edges":
        tokens = torch.from_numpy(generator.integers(task.d_vocab, size=tuple(tokens.shape)))
    if kind == "shuffled targets":
        laws = laws[torch.from_numpy(generator.permutation(n))]
    true = true_edges(task) if kind in ("too many parents", "small") else set()
    return counted(cc.Batch(tokens, laws), seed, seed // len(NULLS) % 2 == 1, true) | {"kind": kind}


def measure_broken(seed: int) -> Row:
    """One table that contradicts an assumption."""
    kind, n = BROKEN[seed % len(BROKEN)], (5000, 20_000)[seed // (2 * len(BROKEN)) % 2]
    batch, true = broken_table(kind, np.random.default_rng((seed, 4)), n, seed)
    return counted(batch, seed, seed // len(BROKEN) % 2 == 1, true) | {"kind": kind}


def broken_table(kind: str, generator: np.random.Generator, n: int, seed: int) -> tuple[cc.Batch, set[tuple[int, int]]]:
    """The sequences, and the edges that are true of them."""
    task = random_task(generator, 1 if kind == "stationary roots" else 2, n_ctx=(8, 14), alpha=(0.03, 1.0))
    graph, d_vocab, alpha = task.graph, task.d_vocab, float(task.alpha)
    true, more = true_edges(task), dict[str, Any]()
    if kind in ("stationary roots", "shared roots"):
        more = {"roots": kind.split()[0]}
    if kind in ("one matrix", "preferred token"):
        preference = np.where(np.arange(d_vocab) == 0, 3.0, 1.0) if kind == "preferred token" else np.ones(d_vocab)
        shape = (d_vocab, d_vocab) if kind == "one matrix" else (n, d_vocab, d_vocab)
        more = {"transition_matrices": {2: generator.dirichlet(alpha * preference, size=shape)}, "roots": "uniform"}
    if kind == "degrees":
        parents = [own[:1] if generator.random() < 0.4 else own for own in cc.graphs.graph_parents(graph)[:-1]]
        graph = cc.graph_from_parents([*parents, list(task.target_parents)])
        true = cc.latent_edges(graph)
    task = cc.InContextTask(graph, d_vocab, alpha=alpha, **{"roots": "uniform", **more})
    batch = task.sample(n, seed=(seed, 5))
    if kind == "skewed roots":  # sequences are kept by the tokens of their roots
        roots = [i for i in range(task.n_ctx) if graph.in_degree(i) == 0]
        batch = batch[torch.from_numpy(generator.random(n)) < (1 + batch.tokens[:, roots]).prod(dim=1) ** -0.5]
    if kind == "two graphs":
        other = random_task(generator, 2, n_ctx=(task.n_ctx, task.n_ctx))
        other = cc.InContextTask(other.graph, d_vocab, alpha=alpha, roots="uniform")
        second = other.sample(n // 2, seed=(seed, 6))
        true |= true_edges(other)
        batch = cc.Batch(
            torch.cat([batch.tokens[: n // 2], second.tokens]),
            torch.cat([batch.target_probs[: n // 2], second.target_probs]),
        )
    return batch, true


def counted(batch: cc.Batch, seed: int, by_label: bool, true: set[tuple[int, int]]) -> Row:
    """Edges found that are not true."""
    targets, d_vocab = batch.target_probs, batch.target_probs.shape[1]
    found = cc.recover_graph(
        batch.tokens, labels_of(batch, seed) if by_label else targets, d_vocab=d_vocab, max_parents=2
    )
    edges = found_edges(found)
    return {
        "seed": seed,
        "targets": "labels" if by_label else "laws",
        "found": len(edges),
        "false": len(edges - true),
        "target_told": found.target_parents is not None,
    }


def main(study: Config, out: Path | None = None) -> None:
    """Measure and print; --out: folder of the cells, results.json and a page."""
    print(cc.run(study, out).report.table())


if __name__ == "__main__":
    flat = (tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff)
    tyro.cli(main, description=__doc__, config=flat)
