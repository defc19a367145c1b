"""Ways to break the symmetry between heads, side by side: the ablation behind `train_in_turns`.

For each recipe and graph, the same number of steps of 1,024 sequences: excess over the edge posterior in nats, and how
many of the edges that attention can show are some head's favourite, with how many false ones.

* *small weights*: normal weights of layer 0, nothing else (the authors' start).
* *warm layer 1*: every head's match and the read-out on from the start, at scales 3, 4 and 6; small weights decide.
* *one by one*: as before, but the match of each head is switched on after the one before has settled.
* *turns, no settling*: rows and last row along the mixed second derivative, all heads before any training.
* *turns* (the default).

    python benchmarks/head_recipes.py --steps 1000 --seeds 0 1 --out head_recipes.json
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import networkx as nx
import numpy as np
import torch

import causal_circuits as cc
from causal_circuits.models import match_blocks, warm_readout

ATTENTION = ("W_Q.0",)


def graphs() -> dict[str, tuple[nx.DiGraph, int]]:
    """Name -> graph and number of tokens."""
    paper = cc.graph_from_parents([[], [], *([(i - 1) // 2, i - 1] for i in range(2, 33))])
    generator = np.random.default_rng(0)
    two = [[] if i < 2 else sorted(generator.choice(i, 2, replace=False).tolist()) for i in range(33)]
    return {
        "paper": (paper, 5),
        "3-gram": (cc.ngram_graph(32, 2), 5),
        "random pairs": (cc.graph_from_parents(two), 5),
        "4-gram": (cc.ngram_graph(32, 3), 3),
    }


def joint(model: object, task: cc.InContextTask, steps: int, seed: int) -> None:
    """Everything at once, from the weights as they are."""
    stages = (cc.Stage(steps, 0.05, schedule="cosine"),)
    config = cc.TrainConfig(stages=stages, warm_start=None, seed=seed)
    cc.train(model, task, config, record=cc.RecordAt(steps=()), progress=False)


def small_weights(model: object, task: cc.InContextTask, steps: int, seed: int) -> None:
    """Normal weights of scale 0.01 in layer 0."""
    _small(model, seed)
    joint(model, task, steps, seed)


def warm(scale: float) -> Callable[[object, cc.InContextTask, int, int], None]:
    """All matches on from the start, small weights in layer 0."""

    def recipe(model: object, task: cc.InContextTask, steps: int, seed: int) -> None:
        _small(model, seed)
        cc.models.warm_start(model, scale)
        joint(model, task, steps, seed)

    return recipe


def one_by_one(model: object, task: cc.InContextTask, steps: int, seed: int) -> None:
    """HeadKeys switched on head by head, 80 steps of layer 0 at 0.3 after each."""
    n_heads = cc.models.layout_of(model).n_heads[0]
    warm_readout(model, 4.0)
    for head in range(n_heads):
        for block in match_blocks(model, head, by_copy=True):
            block.copy_(4.0 * torch.eye(task.d_vocab))
        stages = (cc.Stage(80, 0.3, train=ATTENTION),)
        config = cc.TrainConfig(stages=stages, warm_start=None, seed=seed + 1000 * (1 + head))
        cc.train(model, task, config, record=cc.RecordAt(steps=()), progress=False)
    joint(model, task, max(steps - 80 * n_heads, 1), seed)


def turns(settle: int) -> Callable[[object, cc.InContextTask, int, int], None]:
    """Heads take turns, with so many steps of layer 0 after each."""

    def recipe(model: object, task: cc.InContextTask, steps: int, seed: int) -> None:
        config = cc.training.TurnConfig(steps=steps, settle=settle, seed=seed)
        cc.training.train_in_turns(model, task, config, record=cc.RecordAt(steps=()), progress=False)

    return recipe


RECIPES: dict[str, Callable[[object, cc.InContextTask, int, int], None]] = {
    "small weights": small_weights,
    "warm layer 1, scale 3": warm(3.0),
    "warm layer 1, scale 4": warm(4.0),
    "warm layer 1, scale 6": warm(6.0),
    "one by one": one_by_one,
    "turns, settling 1 step": turns(1),
    "turns (the default)": turns(60),
}


def _small(model: object, seed: int) -> None:
    weights = model.blocks[0].attn.W_Q.data
    weights.copy_(0.01 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(seed)))


def measure(recipe: Callable[..., None], graph: nx.DiGraph, d_vocab: int, steps: int, seed: int) -> dict[str, float]:
    """Train once; excess in nats, edges that are some head's favourite, and favourites that are no edges."""
    task = cc.InContextTask(graph, d_vocab=d_vocab)
    n_heads = len(task.target_parents)
    model = cc.disentangled_transformer(d_vocab, task.n_ctx, (n_heads, 1))
    recipe(model, task, steps, seed)
    test = task.sample(16_384, seed=(seed, 2))
    attention = cc.mean_attention(model, test.tokens[:2048])[0, :n_heads]
    edges = {(min(child, task.n_ctx - 1), parent) for parent, child in graph.edges if child != task.n_ctx - 1}
    rows = {child for child, _ in edges}
    chosen = {
        (row, int(pattern[row].argmax())) for pattern in attention for row in rows if float(pattern[row].max()) >= 0.5
    }
    return {
        "excess": float(cc.evaluate(model, test).mean()) - task.bayes_loss(test),
        "edges": len(edges),
        "found": len(chosen & edges),
        "false": len(chosen - edges),
    }


def main() -> None:
    """Print the table; write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--only", choices=RECIPES, nargs="+", default=list(RECIPES), metavar="RECIPE", help="some of them"
    )
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    rows = []
    for name, recipe in ((name, RECIPES[name]) for name in arguments.only):
        for graph_name, (graph, d_vocab) in graphs().items():
            for seed in arguments.seeds:
                row = measure(recipe, graph, d_vocab, arguments.steps, seed)
                rows.append({"recipe": name, "graph": graph_name, "seed": seed, "steps": arguments.steps, **row})
                print(
                    f"{name:24s} {graph_name:13s} seed {seed}: excess {row['excess']:+.4f}, "
                    f"{row['found']} of {row['edges']} edges, {row['false']} false",
                    flush=True,
                )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
