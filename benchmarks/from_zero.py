"""The default recipe on graphs that it was not chosen on; beside it the warm start, and the paper's SGD and Adam.

For each setting, seed and recipe one model is trained. A row says how many true parents have the largest entry of their
child's row (real attention, averaged over 4,096 sequences), the mean attention to a parent, the excess over the edge
posterior in nats (16,384 sequences, with its standard error) and the seconds of the training. Seed s has a forest, data
and test sequences of its own.

The recipes: *from zero*, the default; *warm*, `TrainConfig.warm()`, which begins with layer 1's match and the read-out
at 4 times the identity; *SGD 1*, the paper's rate with a cosine, and *Adam .1*, the same, both from zero and for as
many steps as the default (the paper's own runs are 4 to 29 times as long).

`why_sgd_first.py` looks for the cause.

    python benchmarks/from_zero.py --quick
    python benchmarks/from_zero.py --out from_zero.json --seeds 0 1
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import networkx as nx
from measuring import NO_RECORD, write

import causal_circuits as cc
from causal_circuits.models import HookedTransformer
from causal_circuits.tasks.predictors import cross_entropy


def forest(n_ctx: int, seed: int) -> nx.DiGraph:
    """A forest of its own for each seed, none of those that the recipe was chosen on."""
    return cc.random_forest(n_ctx, seed=(9001 + seed))


def star(n_ctx: int, seed: int) -> nx.DiGraph:
    """Every position is a child of position 0: known to end without the graph."""
    return cc.graph_from_parents([None] + [0] * (n_ctx - 2))


GRAPHS: dict[str, Callable[[int, int], nx.DiGraph]] = {
    "forest": forest,
    "chain": lambda n_ctx, seed: cc.chain_graph(n_ctx),
    "pairs": lambda n_ctx, seed: cc.pairs_graph(n_ctx),
    "star": star,
}
SETTINGS = [  # graph, d_vocab, n_ctx, alpha
    ("forest", 3, 10, 0.1),
    ("forest", 3, 20, 0.1),
    ("forest", 10, 20, 0.1),
    ("forest", 3, 20, 1.0),
    ("pairs", 10, 20, 0.1),
    ("chain", 10, 20, 0.1),
    ("forest", 10, 20, 1.0),
    ("forest", 2, 20, 0.1),
    ("star", 3, 20, 0.1),
    ("forest", 5, 40, 0.1),
    ("chain", 3, 20, 1.0),
    ("forest", 20, 20, 0.1),
    ("forest", 2, 10, 1.0),
    ("forest", 3, 100, 0.1),
    ("forest", 10, 100, 0.1),
    ("forest", 3, 100, 1.0),
    ("forest", 20, 20, 1.0),
]
QUICK = [("forest", 3, 10, 0.1), ("chain", 3, 10, 1.0)]


def recipes(seed: int, scale: float) -> dict[str, cc.TrainConfig]:
    """Every recipe, `scale` times as long as it should be."""
    steps = round(4500 * scale)
    return {
        "from zero": cc.TrainConfig(cc.training.default_stages(steps), seed=seed),
        "warm": cc.TrainConfig.warm(round(2000 * scale), seed=seed),
        "SGD 1": cc.TrainConfig.joint(steps, 1.0, optimizer="sgd", seed=seed),
        "Adam .1": cc.TrainConfig.joint(steps, 0.1, seed=seed),
    }


def look_inside(model: HookedTransformer, task: cc.InContextTask, seed: int) -> dict[str, float]:
    """Parents first, mean attention to a parent and excess of a trained model, on sequences of the seed's own."""
    test = task.sample(16_384, seed=(seed, 2))
    attention = cc.mean_attention(model, test.tokens[:4096])[0, 0]
    edges = [(parent, child) for parent, child in cc.latent_edges(task.graph) if child < task.n_ctx]
    posterior = cross_entropy(cc.tasks.edge_posterior(task, test.tokens), test.target_probs)
    excess = (cc.evaluate(model, test) - posterior).double()
    return {
        "parents": len(edges),
        "first": sum(int(attention[child, : child + 1].argmax()) == parent for parent, child in edges),
        "mean_attention": sum(float(attention[child, parent]) for parent, child in edges) / len(edges),
        "excess": float(excess.mean()),
        "standard_error": float(excess.std() / len(excess) ** 0.5),
    }


def measure(task: cc.InContextTask, config: cc.TrainConfig, seed: int) -> dict[str, float]:
    """Train one model and look inside."""
    model, began = cc.disentangled_transformer(task.d_vocab, task.n_ctx), time.perf_counter()
    cc.train(model, task, config, record=NO_RECORD, progress=False)
    seconds = time.perf_counter() - began
    return look_inside(model, task, seed) | {"seconds": seconds}


def main() -> None:
    """Print the tables; write them if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--recipes", nargs="+", default=["from zero", "warm", "SGD 1", "Adam .1"], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="two small tasks, a fiftieth of the steps: seconds")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    scale, rows = 0.02 if arguments.quick else 1.0, []
    for seed in arguments.seeds:
        for graph, d_vocab, n_ctx, alpha in QUICK if arguments.quick else SETTINGS:
            task = cc.InContextTask(GRAPHS[graph](n_ctx, seed), d_vocab=d_vocab, alpha=alpha)
            for name in arguments.recipes:
                found = measure(task, recipes(seed, scale)[name], seed)
                setting = {"graph": graph, "d_vocab": d_vocab, "n_ctx": n_ctx, "alpha": alpha, "seed": seed}
                rows.append(setting | {"recipe": name} | found)
                print(
                    f"{graph:6s} ({d_vocab}, {n_ctx}), alpha {alpha:g}, seed {seed}, {name:9s}: {found['first']:2d}/"
                    f"{found['parents']:2d} parents first, attention {found['mean_attention']:.3f}, "
                    f"excess {found['excess']:+.4f} (error {found['standard_error']:.4f}), {found['seconds']:.0f} s",
                    flush=True,
                )
                write(arguments.out, rows)


if __name__ == "__main__":
    main()
