"""Training from matches on graphs with several parents: the edges that heads attend to, the excess, the time.

The paper's two-parent graph, 3-grams, random pairs, and random graphs with roots (k 2 and 3, n_ctx 12 to 28, d_vocab 3
to 5): `cc.train(model, task)` as it is. *Telling* edges are those of the target's parents and of positions with as many
parents, but for a parent that is the target's own of that number, whose match always holds. Attention alone, at .5 or
more: false edges in rows of children and, apart, in rows of roots, which are under no pressure. *Draws*: positions with
the target's own parents, whose tokens are draws from its law and need no graph. The last columns: the excess where so
many positions match the target's parents. `--planted` starts from the circuit of the true graph instead, with the same
scores, match and read-out.

    python benchmarks/several_heads.py --graphs 100 130
    python benchmarks/several_heads.py --graphs 100 130 --readers 1
    python benchmarks/several_heads.py --graphs 200 203 --planted
"""

import time

import numpy as np
import pandas as pd
import tyro
from measuring import random_parents, tell

import causal_circuits as cc
from causal_circuits.studies.tables import two_parents_graph
from causal_circuits.tasks.posterior import following_counts


def named_graphs() -> dict[str, cc.InContextTask]:
    """By name."""
    generator = np.random.default_rng(0)
    pairs = [[] if i < 2 else sorted(generator.choice(i, 2, replace=False).tolist()) for i in range(33)]
    graphs = {"paper": two_parents_graph(32), "3-gram": cc.ngram_graph(32, 2), "pairs": cc.graph_from_parents(pairs)}
    return {name: cc.InContextTask(graph, d_vocab=5, alpha=0.1) for name, graph in graphs.items()}


def random_task(seed: int) -> cc.InContextTask:
    """K 2 or 3, three tenths of the positions roots."""
    generator = np.random.default_rng(seed)
    k = int(generator.integers(2, 4))
    n_ctx, d_vocab = int(generator.integers(12, 29 if k == 2 else 21)), int(generator.integers(3, 6 if k == 2 else 5))
    return cc.InContextTask(random_parents(generator, n_ctx, k), d_vocab=d_vocab, alpha=0.1)


def edges_of(task: cc.InContextTask) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """(query, key) of all edges that attention can show, and of the telling ones."""
    target, last = task.target_parents, task.n_ctx - 1
    above = {i: cc.graphs.parents_of(task.graph, i) for i in range(last)}
    full = {i: parents for i, parents in above.items() if len(parents) == len(target)}
    of_target = {(last, t) for t in target}
    telling = {(i, p) for i, parents in full.items() for t, p in zip(target, parents, strict=True) if p != t}
    return {(i, p) for i, parents in full.items() for p in parents} | of_target, telling | of_target


def trained(task: cc.InContextTask, steps: int, readers: int, planted: bool) -> cc.models.HookedTransformer:
    """From matches, or from the true parents."""
    config, n_heads = cc.TrainConfig.matched(steps), (len(task.target_parents), readers)
    if planted:
        scales = {"attention_scale": 6.0, "match_scale": 3.0, "readout_scale": 3.0}
        model = cc.plant_circuit(task.graph, task.d_vocab, n_heads=n_heads, **scales)
        config = cc.TrainConfig(config.stages)
    else:
        model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, n_heads)
    cc.train(model, task, config, record=cc.RecordAt(steps=()), progress=False)
    return model


def measure(name: str, task: cc.InContextTask, steps: int, readers: int, planted: bool) -> dict[str, object]:
    """Train once and look at the attention."""
    k, n_ctx, began = len(task.target_parents), task.n_ctx, time.process_time()
    model = trained(task, steps, readers, planted)
    seconds, test = time.process_time() - began, task.sample(16_384, seed=(0, 2))
    excess = cc.evaluate(model, test) - cc.tasks.cross_entropy(task.bayes_predictor(test.tokens), test.target_probs)
    matches = following_counts(task, test.tokens, range(k), task.graph).sum(dim=1).clamp(max=4)
    attention = cc.mean_attention(model, test.tokens[:2048])[0, :k]
    clear = {(i, int(head[i].argmax())) for head in attention for i in range(1, n_ctx) if float(head[i].max()) >= 0.5}
    edges, telling = edges_of(task)
    false = {entry for entry in clear - edges if entry[0] != entry[1]}  # no position is its own parent
    children = {i for i, _ in edges}
    return {
        "graph": name,
        "k": k,
        "n_ctx": n_ctx,
        "d_vocab": task.d_vocab,
        "excess": float(excess.mean()),
        "telling": len(telling),
        "attended": len(telling & clear),
        "false": sum(i in children for i, _ in false),
        "in roots": sum(i not in children for i, _ in false),
        "draws": sum(cc.graphs.parents_of(task.graph, i) == task.target_parents for i in range(n_ctx)),
        "CPU s": seconds,
        **{f"{m} match" + "+" * (m == 4): float(excess[matches == m].mean()) for m in range(5)},
    }


def main(
    graphs: tuple[int, int] = (100, 130),
    named: bool = True,
    steps: int = 9000,
    readers: int = 2,
    planted: bool = False,
) -> None:
    """Print a row a graph, and the totals.

    --graphs: first and last + 1 seed; --readers: heads of layer 1; --planted: start at the true parents.
    """
    tasks = (named_graphs() if named else {}) | {str(seed): random_task(seed) for seed in range(*graphs)}
    rows = list[dict[str, object]]()
    for name, task in tasks.items():
        rows.append(measure(name, task, steps, readers, planted))
        tell(rows)
    table = pd.DataFrame(rows)
    print(table[["telling", "attended", "false", "in roots"]].sum().to_dict(), table["excess"].describe().to_dict())


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
