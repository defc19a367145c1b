"""Where edges and what is none lie, over random graphs: the numbers behind the rule of `discovery.several_heads`.

Each graph is a random DAG (d_vocab 2-5, n_ctx 8-32, in-degrees 0-3, a target with 2 or 3 parents). Its heads are
planted as a hard case: a row of the target's in-degree attends to its parents, and every other row - a root's, or that
of another kernel's child - where it tells most about its token. `judge_heads` then decides on fresh sequences.

* *missed*: edges of the target's kernel that are rejected, among those that can be seen (not the last row; not a parent
  that is the target's own parent of that number, whose match always holds).
* *false*: accepted, and no edge. Rows of the target's parents are counted apart ("T").
* *further*: the total lift of a t that no head has, over the largest of a head:
  with one head taken away, and with none.

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
        for number, parent in enumerate(cc.parents_of(task.graph, row)):
            keys[number][row] = parent
    slots = [cc.Matches(t, tuple(own)) for t, own in zip(target, keys, strict=True)]
    attention = torch.zeros(len(target), n_ctx, n_ctx)
    for number, t in enumerate(target):
        others = [slot for slot in slots if slot.last_key != t]
        lift = cc.conditional_information(batch.tokens, batch.target_probs, others).value[:, :, t]
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
    counts = dict.fromkeys(("edges", "missed", "missed_by_share", "others", "false", "false_in_target_rows"), 0)
    edge_shares, other_shares, target_row_shares = [], [0.0], [0.0]
    for c in found:
        if c.child >= task.n_ctx - 1:
            continue
        above = cc.parents_of(task.graph, c.child)
        in_target = c.child in task.target_parents
        if len(above) == len(heads):
            if c.parent == task.target_parents[c.head]:
                continue
            counts["edges"] += 1
            counts["missed"] += not c.accepted
            counts["missed_by_share"] += not c.accepted and "usual" in c.reason
            edge_shares.append(c.information_share)
        elif c.parent not in above:
            counts["others"] += 1
            counts["false_in_target_rows" if in_target else "false"] += c.accepted
            if c.accepted or "usual" in c.reason:
                (target_row_shares if in_target else other_shares).append(c.information_share)
    _, _, without = rules.judge_heads(attention[:-1], batch.tokens, batch.target_probs, heads[:-1], MIN_WEIGHT, LEVEL)
    return {
        **counts,
        "least_edge_share": min(edge_shares, default=float("nan")),
        "largest_other_share": max(other_shares),
        "largest_target_row_share": max(target_row_shares),
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
            f"d_vocab {d_vocab}, {len(some)} graphs: missed {total['missed']} of {total['edges']} edges "
            f"({total['missed_by_share']} by share), false {total['false']} + {total['false_in_target_rows']} (T) of "
            f"{total['others']} rows; largest other share {max(row['largest_other_share'] for row in some):.2f}, "
            f"T {max(row['largest_target_row_share'] for row in some):.2f}; one head taken away: its t found in "
            f"{total['further_found']}, a wrong one in {total['further_wrong']}; none taken away: "
            f"{total['further_when_none']} said"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
