"""Training recipes side by side: the numbers behind the default (ARCHITECTURE.md, "The recipe").

For each recipe and graph, 1,500 steps of 1,024 sequences: excess over the edge posterior in nats, and the mean and
least attention to a true parent. The chain at (d_vocab 10, n_ctx 20); two forests of the paper's Figure 9 at (3, 20).

    python benchmarks/recipes.py --out recipes.json --seeds 0 1 2
"""

import argparse
import json
from pathlib import Path

import causal_circuits as cc

# Graphs 0 and 13 of Figure 9, re-derived from the seed of the authors' notebook.
FIGURE_9 = {
    "graph 0": [-1, -1, 0, 2, -1, 1, -1, -1, 6, 5, -1, 8, -1, 10, -1, -1, 7, -1, -1],
    "graph 13": [-1, 0, 1, -1, 1, 3, 0, 0, -1, 1, 0, 2, -1, -1, 7, -1, -1, 14, 0],
}


def layer_1(steps: int, learning_rate: float) -> cc.Stage:
    """The first stage: layer 1's attention alone."""
    return cc.Stage(steps, learning_rate, train=("W_Q.0",))


def everything(steps: int, learning_rate: float) -> cc.Stage:
    """The joint stage, with a cosine."""
    return cc.Stage(steps, learning_rate, schedule="cosine")


REST = ("W_Q.1", "W_U")
RECIPES: dict[str, tuple[float, tuple[cc.Stage, ...]]] = {
    "warm 2; .3 x 100 on layer 1; .03 on everything": (2.0, (layer_1(100, 0.3), everything(1400, 0.03))),
    "warm 2; .3 x 100; .1": (2.0, (layer_1(100, 0.3), everything(1400, 0.1))),
    "warm 2; .3 x 100; .2": (2.0, (layer_1(100, 0.3), everything(1400, 0.2))),
    "warm 2; .3 x 100; rest .1 x 1,100; .03 x 300": (
        2.0,
        (layer_1(100, 0.3), cc.Stage(1100, 0.1, train=REST, schedule="cosine"), everything(300, 0.03)),
    ),
    "warm 4; .3 x 100; .1 (the default)": (4.0, (layer_1(100, 0.3), everything(1400, 0.1))),
    "warm 4; .1 on everything from the start": (4.0, (everything(1500, 0.1),)),
}


def measure(graph: object, d_vocab: int, scale: float, stages: tuple[cc.Stage, ...], seed: int) -> dict[str, float]:
    """Train once; excess in nats, mean and least attention to a parent."""
    task = cc.InContextTask(graph, d_vocab=d_vocab, alpha=0.1)
    model = cc.disentangled_transformer(d_vocab, task.n_ctx)
    config = cc.TrainConfig(stages=stages, warm_start=scale, seed=seed)
    cc.train(model, task, config, record=cc.RecordAt(steps=()), progress=False)
    test = task.sample(16_384, seed=(seed, 2))
    attention = cc.mean_attention(model, test.tokens[:4096])[0, 0]
    to_parents = [float(attention[child, parent]) for parent, child in cc.latent_edges(task.graph)]
    return {
        "excess": float(cc.evaluate(model, test).mean()) - task.bayes_loss(test),
        "mean_attention": sum(to_parents) / len(to_parents),
        "least_attention": min(to_parents),
    }


def main() -> None:
    """Print the table; write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    tasks = {"chain": (cc.chain_graph(20), 10)}
    tasks |= {name: (cc.graph_from_parents(parents), 3) for name, parents in FIGURE_9.items()}
    rows = []
    for recipe, (scale, stages) in RECIPES.items():
        for name, (graph, d_vocab) in tasks.items():
            for seed in arguments.seeds:
                row = {"recipe": recipe, "graph": name, "seed": seed, **measure(graph, d_vocab, scale, stages, seed)}
                rows.append(row)
                print(
                    f"{recipe:48s} {name:9s} seed {seed}: excess {row['excess']:+.4f}, attention "
                    f"{row['mean_attention']:.3f}, least {row['least_attention']:.3f}",
                    flush=True,
                )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
