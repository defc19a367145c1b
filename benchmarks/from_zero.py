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

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import networkx as nx
import tyro
from measuring import NO_RECORD, tell

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


def main(
    seeds: tuple[int, ...] = (0,),
    names: Annotated[tuple[str, ...], tyro.conf.arg(name="recipes")] = ("from zero", "warm", "SGD 1", "Adam .1"),
    quick: bool = False,
    out: Path | None = None,
) -> None:
    """Print a row a training; --quick: two small tasks, a fiftieth of the steps."""
    scale, rows = 0.02 if quick else 1.0, list[dict[str, object]]()
    for seed in seeds:
        for graph, d_vocab, n_ctx, alpha in QUICK if quick else SETTINGS:
            task = cc.InContextTask(GRAPHS[graph](n_ctx, seed), d_vocab=d_vocab, alpha=alpha)
            setting = {"graph": graph, "d_vocab": d_vocab, "n_ctx": n_ctx, "alpha": alpha, "seed": seed}
            for name in names:
                rows.append(setting | {"recipe": name} | measure(task, recipes(seed, scale)[name], seed))
                tell(rows, out)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
