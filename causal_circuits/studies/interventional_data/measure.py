"""One forest: its tables at every share, and what each score says of the directions of its edges."""

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
import torch
from torch import Tensor

import causal_circuits as cc
from causal_circuits.statistics import auroc
from causal_circuits.studies.tables import make_graph

Row = dict[str, Any]
Edge = tuple[int, int]
Array = np.ndarray
Scores = tuple[Array, Array]  # of each edge: from parent to child, the other way
SCORES = ("mutual information", "gradient", "attention", "knock-out")
CONTRAST = "gradient, told where"
METHODS = {
    "both orders": [f"{name}, both orders" for name in SCORES[1:]],  # mutual information has none
    "fading": [*(f"{name}, fading" for name in SCORES), CONTRAST],
}
BATCH, CUT = 256, 4096  # sequences of a step of training; those on which entries are cut


def measure_forest(
    graph: str, d_vocab: int, seed: int, shares: Sequence[float], n_ctx: int, alpha: float, sequences: int, steps: int
) -> Row:
    """The share of open directions that every method has right, and what is left of scores, at each share."""
    generator = np.random.default_rng((seed, 13))
    parents, edges, set_at = open_forest(make_graph(graph, n_ctx, root_probability=0.2, seed=seed), generator)
    task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=d_vocab, alpha=alpha)
    twin = cc.tasks.InterventionTask(task, dict.fromkeys(set_at, "random"))
    order, observed = torch.from_numpy(generator.permutation(n_ctx - 1)), task.sample(sequences, seed=(seed, 1))
    before, points = scores_of(observed, order, edges, steps), []
    into = np.array([child in set_at for _, child in edges])
    for share in shares:
        n = round(share * sequences)
        there = twin.sample(n, seed=(seed, 2)) if n else None
        elsewhere = task.sample(sequences - n, seed=(seed, 3)) if n < sequences else None
        after = scores_of(joined(there, elsewhere), order, edges, steps)
        point: Row = {"graph": graph, "d_vocab": d_vocab, "seed": seed, "share": share}
        for name, (forward, backward) in after.items():
            now, then = forward + backward, before[name][0] + before[name][1]
            point[f"{name}, both orders"] = float((np.sign(forward - backward) / 2 + 0.5).mean())
            point[f"{name}, fading"] = oriented(now < (1 - share / 2) * then, into, share)
            point[f"{name}, AUROC"] = auroc(then - now, into)
            point |= {f"{name} {way}": ratio(now[of], then[of]) for way, of in (("into", into), ("out of", ~into))}
        where, whole = (np.sum(both_ways(gradient(part or observed), edges), axis=0) for part in (there, elsewhere))
        point[CONTRAST] = oriented(where < whole / 2, into, share)
        points.append(point)
    return {"graph": graph, "d_vocab": d_vocab, "seed": seed, "edges": edges, "set": set_at, "points": points}


def open_forest(graph: nx.DiGraph, generator: np.random.Generator) -> tuple[list[int | None], list[Edge], list[int]]:
    """The skeleton of a graph, directed anew: parents, the edges whose direction is open, and positions to be set.

    Of each tree one end of a longest path becomes the root, by a coin: as in the tree rooted at the other end, all
    edges but those of this path point away from it. Set is one class of a 2-colouring of each tree, by a coin too.
    """
    skeleton = nx.Graph(cc.latent_edges(graph))
    skeleton.add_nodes_from(range(len(graph) - 2))
    directed, open_edges, colour = nx.DiGraph(), list[Edge](), nx.bipartite.color(skeleton)
    chosen = []
    for tree in sorted(nx.connected_components(skeleton), key=min):
        end = farthest(skeleton, min(tree))
        root, other = generator.permutation([end, farthest(skeleton, end)]).tolist()
        directed.add_node(root)
        directed.add_edges_from(nx.bfs_edges(skeleton, root))
        open_edges += nx.utils.pairwise(nx.shortest_path(skeleton, root, other))
        which = generator.integers(2)
        chosen += [node for node in tree if colour[node] == which]
    if not open_edges:
        raise ValueError("a forest without edges has no directions to find: take another --seed, or a larger --n-ctx")
    place = {node: position for position, node in enumerate(nx.topological_sort(directed))}
    parents = {place[child]: place[parent] for parent, child in directed.edges}
    edges = [(place[parent], place[child]) for parent, child in open_edges]
    return [parents.get(position) for position in range(len(place))], edges, sorted(place[node] for node in chosen)


def farthest(tree: nx.Graph, node: int) -> int:
    """A node as far from another as there is."""
    distance = nx.single_source_shortest_path_length(tree, node)
    return max(sorted(distance), key=distance.__getitem__)


def scores_of(table: cc.Batch, order: Tensor, edges: Sequence[Edge], steps: int) -> dict[str, Scores]:
    """What every score says of each edge, from parent to child and the other way."""
    d_vocab = table.target_probs.shape[1]
    first, second = (from_model(table, order, steps) for order in (order, order.flip(0)))
    matrices = {
        "mutual information": cc.classical.pooled_mutual_information(table.tokens[:, :-1], d_vocab),
        "gradient": gradient(table),
        "attention": first[0] + second[0],
        "knock-out": first[1] + second[1],
    }
    return {name: both_ways(matrix, edges) for name, matrix in matrices.items()}


def from_model(table: cc.Batch, order: Tensor, steps: int) -> tuple[Array, ...]:
    """Attention and effects of knock-outs, [query, key], of a model trained on the table in an order of positions."""
    n_ctx, d_vocab = table.tokens.shape[1], table.target_probs.shape[1]
    shown = cc.Batch(torch.cat([table.tokens[:, order], table.tokens[:, -1:]], dim=1), table.target_probs)
    model = cc.disentangled_transformer(d_vocab, n_ctx)
    stages = (cc.Stage(steps, 3.0, optimizer="sgd", schedule="constant"), cc.Stage(steps // 2, 0.03))
    cc.train(model, cc.BatchTask(shown), cc.TrainConfig(stages=stages, batch_size=BATCH), progress=False)
    cuts, place = cc.knock_out_edges(model, shown[:CUT]), order.argsort().numpy()
    return tuple(matrix[0].nan_to_num().numpy()[np.ix_(place, place)] for matrix in (cuts.attention, cuts.effect))


def gradient(table: cc.Batch) -> Array:
    """The first gradient of every pair of context positions, [child, parent]: also where the child comes first."""
    turned = torch.cat([table.tokens[:, :-1].flip(1), table.tokens[:, -1:]], dim=1)
    ahead, back = (
        cc.information.estimate_gradient(tokens, table.target_probs).value[:-1, :-1]
        for tokens in (table.tokens, turned)
    )
    return (ahead + back.flip(0, 1)).numpy()


def both_ways(matrix: Array, edges: Sequence[Edge]) -> Scores:
    """Of each edge the entries (child, parent) and (parent, child)."""
    parents, children = np.array(edges).T
    return matrix[children, parents], matrix[parents, children]


def joined(*parts: cc.Batch | None) -> cc.Batch:
    tokens, targets = zip(*((part.tokens, part.target_probs) for part in parts if part is not None), strict=True)
    return cc.Batch(torch.cat(tokens), torch.cat(targets))


def oriented(fades: Array, into: Array, share: float) -> float:
    """The share of edges that fade where they point into a set position and stay elsewhere; a guess if none is set."""
    return float((fades == into).mean()) if share else 0.5


def ratio(now: Array, then: Array) -> float:
    return float(now.sum() / then.sum()) if len(then) else float("nan")
