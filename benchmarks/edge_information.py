"""How far apart edges and roots lie in estimated information: the numbers behind `discovery.MIN_INFORMATION_SHARE`.

For each forest, the estimated gradient g from 20,000 sequences; at true edges and, in every root's row, at the largest
entry; both as a share of the largest true edge. A threshold between the two columns tells every root from every child.

    python benchmarks/edge_information.py --out edge_information.json
    python benchmarks/edge_information.py --drawn 60     # forests that the threshold was not chosen on
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import networkx as nx
import numpy as np
import pandas as pd
import tyro
from measuring import tell

import causal_circuits as cc


def forests() -> Iterator[tuple[str, nx.DiGraph, int, float]]:
    """(name, graph, d_vocab, alpha) of every forest measured."""
    for d_vocab in (2, 3, 5, 10, 20):
        for alpha in (0.1, 1.0):
            yield "pairs", cc.pairs_graph(20), d_vocab, alpha
            yield "chain", cc.chain_graph(20), d_vocab, alpha
            for probability in (0.2, 0.5, 0.8):
                graph = cc.random_forest(20, probability, seed=int(100 * probability) + d_vocab)
                yield f"forest, roots {probability}", graph, d_vocab, alpha
    for n_ctx in (6, 8, 12, 30, 60):
        for seed in range(3):
            yield f"forest over {n_ctx}", cc.random_forest(n_ctx, 0.3, seed=seed), 2 + 2 * seed, 0.3
    yield "star", cc.graph_from_parents([None] + [0] * 18), 5, 0.1
    yield "star and chain", cc.graph_from_parents([None] + [0] * 8 + list(range(8, 18))), 5, 0.1


def drawn(n: int) -> Iterator[tuple[str, nx.DiGraph, int, float]]:
    """The same of forests with random sizes."""
    generator = np.random.default_rng(42)
    sizes = ((5, 8, 12, 20, 30, 50), (2, 3, 4, 7, 10, 15, 20), (0.05, 0.1, 0.3, 1.0, 3.0), (0.1, 0.3, 0.5, 0.7, 0.9))
    for k in range(n):
        n_ctx, d_vocab, alpha, probability = (generator.choice(of) for of in sizes)
        graph = cc.random_forest(int(n_ctx), float(probability), seed=5000 + k)
        yield f"forest over {n_ctx}", graph, int(d_vocab), float(alpha)


def measure(graph: nx.DiGraph, d_vocab: int, alpha: float, n_sequences: int, seed: int) -> dict[str, float]:
    """The least share at a true edge, the largest in a root's row, and how many parents are not their row's maximum."""
    task = cc.InContextTask(graph, d_vocab=d_vocab, alpha=alpha)
    batch = task.sample(n_sequences, seed=seed)
    gradient = cc.information.estimate_gradient(batch.tokens, batch.target_probs).value
    edges = [float(gradient[child, parent]) for parent, child in cc.latent_edges(graph)]
    roots = [float(gradient[root, :root].max()) for root in task.root_positions if root > 0]
    wrong = sum(int(gradient[child, :child].argmax()) != parent for parent, child in cc.latent_edges(graph))
    return {
        "least_edge_share": min(edges) / max(edges) if edges else float("nan"),
        "largest_root_share": max(roots, default=0.0) / max(edges) if edges else float("nan"),
        "edges": len(edges),
        "parents_not_maximal": wrong,
    }


def main(
    sequences: int = 20_000,
    seed: int = 5,
    drawn_forests: Annotated[int, tyro.conf.arg(name="drawn")] = 0,
    out: Path | None = None,
) -> None:
    """Print a row a forest, and the extremes; --drawn N: N forests of random sizes in place of the 67."""
    rows: list[dict[str, Any]] = []
    for name, graph, d_vocab, alpha in drawn(drawn_forests) if drawn_forests else forests():
        shares = measure(graph, d_vocab, alpha, sequences, seed)
        rows.append({"forest": name, "d_vocab": d_vocab, "alpha": alpha, **shares})
        tell(rows, out)
    measured = pd.DataFrame([row for row in rows if row["edges"]])
    print(
        f"{len(measured)} forests: edges at least {measured.least_edge_share.min():.2f}, roots at most "
        f"{measured.largest_root_share.max():.2f}, {measured.parents_not_maximal.sum()} of {measured.edges.sum()} "
        "parents are not their row's maximum"
    )


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
