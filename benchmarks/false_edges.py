"""How often `recover_graph` is wrong: false edges, false roots and undecided positions over many hostile draws.

Every draw is a random forest of its own, with its own d_vocab, alpha, n_ctx and number of sequences; scenarios bend the
data: labels, few query tokens, copied sequences, constant columns, no edges at all, targets of other kernels, one
kernel for everything, roots off the stationary law, a query that continues the chain. A family-wise level of .05 allows
a false edge in one draw of twenty where its assumptions hold.

    python benchmarks/false_edges.py --draws 200 --out false_edges.json
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import tyro
from measuring import tell
from tqdm import tqdm

import causal_circuits as cc

D_VOCABS = (2, 3, 5, 10, 20)
ALPHAS = (0.05, 0.1, 0.3, 1.0, 5.0)
CONTEXTS = (3, 4, 6, 10, 20, 40, 60)
SEQUENCES = (50, 200, 1000, 5000, 20_000, 50_000)


@dataclass(frozen=True)
class Draw:
    """A forest, its tokens and targets (labels have one axis)."""

    task: cc.InContextTask
    tokens: np.ndarray
    targets: np.ndarray
    rng: np.random.Generator


def labels(draw: Draw) -> Draw:
    """One token drawn from each target law."""
    cumulative = draw.targets.cumsum(axis=1)
    drawn = (draw.rng.random((len(cumulative), 1)) * cumulative[:, -1:] > cumulative).sum(axis=1)
    return Draw(draw.task, draw.tokens, np.minimum(drawn, draw.task.d_vocab - 1), draw.rng)


def skewed_query(draw: Draw) -> Draw:
    """Queries of token s are kept with probability 1 / (1 + s)."""
    kept = draw.rng.random(len(draw.tokens)) < 1.0 / (1 + draw.tokens[:, -1])
    return Draw(draw.task, draw.tokens[kept], draw.targets[kept], draw.rng)


def copied(draw: Draw) -> Draw:
    """A tenth of the sequences, each ten times."""
    few = np.repeat(np.arange(-(-len(draw.tokens) // 10)), 10)
    return Draw(draw.task, draw.tokens[few], draw.targets[few], draw.rng)


def constant_column(draw: Draw) -> Draw:
    """A token that is always the same at a position that is nobody's parent or child."""
    graph = draw.task.graph
    free = [i for i in range(draw.task.n_ctx - 1) if graph.degree(i) == 0]
    tokens = draw.tokens.copy()
    if free:
        tokens[:, free[0]] = 0
    return Draw(draw.task, tokens, draw.targets, draw.rng)


def shuffled_targets(draw: Draw) -> Draw:
    """Targets of other sequences: no position tells about them."""
    return Draw(_without_edges(draw.task), draw.tokens, draw.rng.permutation(draw.targets), draw.rng)


def random_tokens(draw: Draw) -> Draw:
    """Uniform tokens beside targets that have nothing to do with them."""
    tokens = draw.rng.integers(draw.task.d_vocab, size=draw.tokens.shape)
    return Draw(_without_edges(draw.task), tokens, draw.targets, draw.rng)


def chained_query(draw: Draw) -> Draw:
    """A Markov chain that runs through the query: the query is not drawn on its own."""
    task, n = draw.task, len(draw.tokens)
    chain = cc.graph_from_parents([[], *([i] for i in range(task.n_ctx))])
    batch = cc.InContextTask(chain, d_vocab=task.d_vocab, alpha=task.alpha).sample(
        n, seed=int(draw.rng.integers(2**31))
    )
    truth = cc.InContextTask(cc.chain_graph(task.n_ctx), d_vocab=task.d_vocab)
    return Draw(truth, batch.tokens.numpy(), batch.target_probs.numpy(), draw.rng)


def _without_edges(task: cc.InContextTask) -> cc.InContextTask:
    return cc.InContextTask(cc.graph_from_parents([None] * (task.n_ctx - 1)), d_vocab=task.d_vocab)


def _same(draw: Draw) -> Draw:
    return draw


Change = Callable[[Draw], Draw]
# name: (what is done to the data, roots, kernels, probability of a root)
SCENARIOS: dict[str, tuple[Change, str | None, str, float]] = {
    "probabilities": (_same, None, "dirichlet", 0.5),
    "labels": (labels, None, "dirichlet", 0.5),
    "no edges": (_same, None, "dirichlet", 1.0),
    "no edges, labels": (labels, None, "dirichlet", 1.0),
    "no edges, random tokens": (random_tokens, None, "dirichlet", 0.5),
    "shuffled targets": (shuffled_targets, None, "dirichlet", 0.5),
    "skewed query": (skewed_query, None, "dirichlet", 0.5),
    "copied sequences": (copied, None, "dirichlet", 0.5),
    "constant column": (constant_column, None, "dirichlet", 0.7),
    "one kernel for all": (_same, None, "one", 0.5),
    "sticky kernels": (_same, None, "sticky", 0.5),
    "cyclic kernels": (_same, None, "cyclic", 0.5),
    "uniform roots": (_same, "uniform", "dirichlet", 0.5),
    "shared root law": (_same, "shared", "dirichlet", 0.5),
    "query in the chain": (chained_query, None, "dirichlet", 0.5),
}


def kernels(kind: str, d_vocab: int, alpha: float, rng: np.random.Generator) -> np.ndarray | None:
    """Kernels of the user's own: None leaves them to the Dirichlet prior."""
    if kind == "dirichlet":
        return None
    drawn = rng.dirichlet(np.full(d_vocab, alpha), size=(1 if kind == "one" else 500, d_vocab))
    drawn = (drawn + 1e-3) / (1 + 1e-3 * d_vocab)
    towards = {"sticky": np.eye(d_vocab), "cyclic": np.roll(np.eye(d_vocab), 1, axis=1)}.get(kind, drawn)
    return 0.3 * drawn + 0.7 * towards


def draw_one(name: str, seed: int) -> tuple[Draw, int]:
    """A draw of a scenario, and its number of sequences before the scenario changed it."""
    change, roots, kind, root_probability = SCENARIOS[name]
    rng = np.random.default_rng((seed, list(SCENARIOS).index(name)))
    d_vocab, alpha, n_ctx, n = (rng.choice(options) for options in (D_VOCABS, ALPHAS, CONTEXTS, SEQUENCES))
    graph = cc.random_forest(int(n_ctx), root_probability, seed=rng)
    own = kernels(kind, int(d_vocab), float(alpha), rng)
    task = cc.InContextTask(graph, d_vocab=int(d_vocab), alpha=float(alpha), transition_matrices=own, roots=roots)
    batch = task.sample(int(n), seed=int(rng.integers(2**31)))
    return change(Draw(task, batch.tokens.numpy(), batch.target_probs.numpy(), rng)), int(n)


def judge(draw: Draw) -> dict[str, object]:
    """Recover the graph of one draw and compare it with the truth, position by position."""
    task = draw.task
    found = cc.recover_graph(draw.tokens, draw.targets, d_vocab=task.d_vocab)
    truth = [next(iter(cc.graphs.parents_of(task.graph, i)), None) for i in range(task.n_ctx - 1)]
    verdicts = [(p.verdict, p.parent, true) for p, true in zip(found.positions, truth, strict=True)]
    return {
        "d_vocab": task.d_vocab,
        "alpha": float(task.alpha),
        "n_ctx": task.n_ctx,
        "edges": sum(true is not None for true in truth),
        "found": sum(verdict == "child" and parent == true for verdict, parent, true in verdicts),
        "false_edges": sum(verdict == "child" and parent != true for verdict, parent, true in verdicts),
        "false_roots": sum(verdict == "root" and true is not None for verdict, _, true in verdicts),
        "undecided": len(found.undecided),
        "positions": len(truth),
    }


def main(draws: int = 200, seed: int = 0, scenario: str | None = None, out: Path | None = None) -> None:
    """Print the totals of every scenario, or of one, over so many draws."""
    torch.set_num_threads(1)
    everything, totals = list[dict[str, Any]](), list[dict[str, Any]]()
    for name in [scenario] if scenario else SCENARIOS:
        rows = []
        for k in tqdm(range(draws), name, disable=None, leave=False):
            draw, n = draw_one(name, seed + k)
            rows.append({"scenario": name, "draw": k, "sequences": n, **judge(draw)})
        everything += rows
        table = pd.DataFrame(rows)
        wrong = {f"draws with {key}": int((table[key] > 0).sum()) for key in ("false_edges", "false_roots")}
        counts = table[["edges", "found", "undecided", "positions"]].sum().to_dict()
        totals.append({"scenario": name, "draws": draws, **wrong, **counts})
        tell(totals, out, draws=everything)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
