"""Where edges and what is none lie, over random graphs: the numbers behind the rule of `discovery.several_heads`.

Each graph is a random DAG (d_vocab 2-5, n_ctx 8-32, in-degrees 0-3, a target with 2 or 3 parents). Its heads are
planted as a hard case: a row of the target's in-degree attends to its parents, and every other row - a root's, or that
of another kernel's child - where it tells most about its token. `judge_heads` then decides on fresh sequences.

* *missed*: edges of the target's kernel that no head is found to carry.
* *false*: found, and no edge. Rows of the target's parents are counted apart ("T").
* *share*: what `row_shares` decides by: least among children, largest among others.
* *further*: with one head taken away, whether its t is named, a wrong one is, or with no head taken away any.

The constants were chosen on graphs 5000-5031; every other seed is a fresh sample.

    python benchmarks/head_rules.py --graphs 120 --out head_rules.json
"""

import argparse
import json
from pathlib import Path

import networkx as nx
import numpy as np
import torch

import causal_circuits as cc
from causal_circuits.discovery import several_heads as rules

LEVEL, MIN_WEIGHT = 0.01, 0.5


def random_graph(generator: np.random.Generator) -> nx.DiGraph:
    """In-degrees 0 to 3, the target's (2 or 3) more often than the others."""
    n_ctx, k = int(generator.integers(8, 33)), int(generator.integers(2, 4))
    degrees = [min(int(generator.choice([0, 1, 2, 3, k, k])), i) for i in range(n_ctx)]
    parents = [sorted(generator.choice(i, d, replace=False).tolist()) for i, d in enumerate(degrees)]
    return cc.graph_from_parents([*parents, sorted(generator.choice(n_ctx, k, replace=False).tolist())])


def hard_attention(task: cc.InContextTask, batch: cc.Batch) -> torch.Tensor:
    """[head_index, query_pos, key_pos]: true parents where there are any to show, elsewhere the most telling key."""
    n_ctx, target = task.n_ctx, task.target_parents
    keys = [[-1] * n_ctx for _ in target]
    full = [i for i in range(n_ctx - 1) if task.graph.in_degree(i) == len(target)]
    for row in full:
        for number, parent in enumerate(cc.graphs.parents_of(task.graph, row)):
            keys[number][row] = parent
    slots = [cc.information.HeadKeys(t, tuple(own)) for t, own in zip(target, keys, strict=True)]
    attention = torch.zeros(len(target), n_ctx, n_ctx)
    for number, t in enumerate(target):
        others = [slot for slot in slots if slot.last_key != t]
        lift = cc.information.conditional_information(batch.tokens, batch.target_probs, others).value[:, :, t]
        for row in range(n_ctx - 1):
            attention[number, row, keys[number][row] if row in full else int(lift[row].argmax())] = 1.0
        attention[number, -1, t] = 1.0
    return attention


def judge(task: cc.InContextTask, seed: int) -> dict[str, float | int]:
    """Missed and false edges of one graph, and the shares that the rule is set from."""
    attention = hard_attention(task, task.sample(rules.N_SEQUENCES, seed=(seed, 0)))
    batch = task.sample(rules.N_SEQUENCES, seed=(seed, 1))
    heads = range(len(task.target_parents))
    found, _, further = rules.judge_heads(attention, batch.tokens, batch.target_probs, heads, MIN_WEIGHT, LEVEL)
    accepted = {(c.parent, c.child) for c in found if c.accepted}
    children = [i for i in range(task.n_ctx - 1) if task.graph.in_degree(i) == len(heads)]
    edges = {(parent, child) for child in children for parent in cc.graphs.parents_of(task.graph, child)}
    false = {(parent, child) for parent, child in accepted if not task.graph.has_edge(parent, child)}
    within = [c for c in found if 0 < c.child < task.n_ctx - 1 and c.information_share == c.information_share]
    _, _, without = rules.judge_heads(attention[:-1], batch.tokens, batch.target_probs, heads[:-1], MIN_WEIGHT, LEVEL)
    return {
        "edges": len(edges),
        "missed": len(edges - accepted),
        "others": task.n_ctx - 2 - len(children),
        "false": sum(child not in task.target_parents for _, child in false),
        "false_in_target_rows": sum(child in task.target_parents for _, child in false),
        "least_child_share": min((c.information_share for c in within if c.child in children), default=1.0),
        "largest_other_share": max((c.information_share for c in within if c.child not in children), default=0.0),
        "further_when_none": len(further),
        "further_found": int(any(f.last_key == task.target_parents[-1] for f in without)),
        "further_wrong": int(any(f.last_key not in task.target_parents for f in without)),
    }


def main() -> None:
    """Print the table; write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=120)
    parser.add_argument("--first", type=int, default=1000, help="seed of the first graph, default 1000")
    parser.add_argument("--alpha", type=float, default=0.1)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()
    rows = []
    for number in range(arguments.graphs):
        seed, d_vocab = arguments.first + number, 2 + number % 4
        task = cc.InContextTask(random_graph(np.random.default_rng(seed)), d_vocab=d_vocab, alpha=arguments.alpha)
        if any(task.graph.in_degree(i) == len(task.target_parents) for i in range(task.n_ctx - 1)):
            rows.append({"seed": seed, "d_vocab": d_vocab, "n_ctx": task.n_ctx, **judge(task, seed)})
    for d_vocab in range(2, 6):
        some = [row for row in rows if row["d_vocab"] == d_vocab]
        total = {key: sum(row[key] for row in some) for key in some[0]}
        print(
            f"d_vocab {d_vocab}, {len(some)} graphs: missed {total['missed']} of {total['edges']} edges, false "
            f"{total['false']} + {total['false_in_target_rows']} (T) in {total['others']} rows; least share of a child "
            f"{min(row['least_child_share'] for row in some):.2f}, largest of another row "
            f"{max(row['largest_other_share'] for row in some):.2f}; one head taken away: its t found in "
            f"{total['further_found']}, a wrong one in {total['further_wrong']}; none taken away: "
            f"{total['further_when_none']} said"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
