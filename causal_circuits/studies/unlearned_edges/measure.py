"""What `unlearned_edges` trains: graphs in which one thing about an edge is changed, and new forests."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import networkx as nx
import torch

import causal_circuits as cc
from causal_circuits.studies.reproduce_paper.measuring import block_attention, parent_weights, train_measured
from causal_circuits.studies.tables import figure_9_parents

Row = dict[str, Any]
# (graph, parent, child): block attention at most one half at the end of `reproduce_paper.py --figure 9 --faithful` with
# each of --seed 0, 1 and 2.
TARGETS = ((9, 0, 11), (12, 0, 18), (13, 0, 10), (13, 0, 18), (15, 0, 15), (18, 2, 18), (19, 1, 18))
D_VOCAB, ALPHA, N_CTX = 3, 0.1, 20
Variant = tuple[list[int], Literal["uniform"] | None, int]  # parents, law of the roots, the child watched


def train_all(
    steps: int, batch_size: int, targets: int, forests: int, seed: int, quick: bool, scratch: Path | None
) -> dict[str, list[Row]]:
    """A row for each variant of each target, and one for each edge of the new forests."""
    changed, new = changed_tasks(targets), new_tasks(forests, seed)
    tasks = [*(task for _, task in changed), *new]
    models = [cc.disentangled_transformer(D_VOCAB, task.n_ctx) for task in tasks]

    def measure() -> dict[str, float]:
        return {
            str(i): float(block_attention(model)[row["child"], row["parent"]])
            for i, (model, (row, _)) in enumerate(zip(models, changed, strict=False))
        }

    stage = cc.Stage(steps, 1.0, optimizer="sgd", schedule="constant")
    config = cc.TrainConfig((stage,), batch_size=batch_size, seed=seed)
    _, run = train_measured(models, tasks, config, every=256, measure=measure, scratch=scratch, progress=None)
    rows = []
    for i, (model, (row, task)) in enumerate(zip(models, changed, strict=False)):
        curve = [[entry["step"], entry[str(i)]] for entry in run["history"]]
        crossed = next((int(step) for step, weight in curve if weight > 0.5), None)
        rows.append({**row, "block_attention": curve[-1][1], "above_half_at": crossed, "curve": curve})
        if row["variant"] == "as it is":
            batch = task.sample(1024 if quick else 16_384, seed=(seed, 7))
            rows[-1] |= sibling_gradients(model, task.graph, batch, row["parent"], row["child"])
    edges = [
        {"forest": k, "parent": p, "child": c, "block_attention": weight, "unlearned": weight <= 0.5}
        for k, (model, task) in enumerate(zip(models[len(changed) :], new, strict=True))
        for (p, c), weight in parent_weights(block_attention(model), task.graph).items()
    ]
    return {"rows": rows, "edges": with_causes(edges, [task.graph for task in new])}


def sibling_gradients(
    model: cc.models.HookedTransformer, graph: nx.DiGraph, batch: cc.Batch, parent: int, child: int
) -> dict[str, float]:
    """Minus the gradient of the slow edge's score: as trained, and with some attention rows made uniform."""
    parents = [next(iter(graph.predecessors(position)), -1) for position in range(batch.tokens.shape[1] - 1)]
    rows: dict[str, list[int]] = {
        "as_trained": [],
        "sibling_uniform": earlier_siblings(parents, parent, child),
        "stranger_uniform": strangers(parents, parent, child),
    }
    found = {}
    for name, positions in rows.items():
        with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", partial(make_uniform, positions=positions))]):
            gradients = cc.training.take_snapshot(model, batch).score_gradients
        found[f"gradient_{name}"] = float(gradients[0, 0, child, parent])  # type: ignore[index]
    return found


def make_uniform(pattern: torch.Tensor, hook: object, positions: Sequence[int]) -> torch.Tensor:
    pattern = pattern.clone()
    for position in positions:
        pattern[:, :, position, : position + 1] = 1.0 / (position + 1)
    return pattern


def measure_figure_9() -> list[Row]:
    """Every edge of Figure 9: whether all three seeds of the paper's training leave it unlearned, and its causes."""
    edges = [
        {"forest": graph, "parent": parent, "child": child, "unlearned": (graph, parent, child) in TARGETS}
        for graph, parents in enumerate(figure_9_parents())
        for child, parent in enumerate(parents)
        if parent != -1
    ]
    return with_causes(edges, [cc.graph_from_parents(parents) for parents in figure_9_parents()])


def with_causes(edges: Sequence[Row], graphs: Sequence[nx.DiGraph]) -> list[Row]:
    """Each edge with what each explanation makes of it: larger means rather unlearned."""
    tasks = [cc.InContextTask(graph, d_vocab=D_VOCAB, alpha=ALPHA) for graph in graphs]
    pulls = [
        cc.information.through_softmax(cc.information.finite_context_gradient(task, n_matrices=128).value)
        for task in tasks
    ]
    found = []
    for edge in edges:
        graph, parent, child = graphs[edge["forest"]], edge["parent"], edge["child"]
        siblings, root = sum(other < child for other in graph.successors(parent)), graph.in_degree(parent) == 0
        causes = {
            "later child of a root": float(root and siblings > 0),
            "earlier siblings": float(siblings),
            "late: the child's position": float(child),
            "distance to the parent": float(child - parent),
            "earlier siblings x distance": float(siblings * (child - parent)),
            "weak pull: minus the first gradient of its score": -float(pulls[edge["forest"]][child, parent]),
        }
        found.append({**edge, "causes": causes})
    return found


def changed_tasks(n_targets: int) -> list[tuple[dict[str, Any], cc.InContextTask]]:
    """(what it is, its task) for each variant of each target."""
    named = []
    for graph, parent, child in TARGETS[:n_targets]:
        for name, (parents, law, watched) in variants(figure_9_parents()[graph], parent, child).items():
            task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=D_VOCAB, alpha=ALPHA, roots=law)
            row = {"graph": graph, "parent": parent, "child": watched, "of_child": child, "variant": name}
            named.append((row, task))
    return named


def new_tasks(n_forests: int, seed: int) -> list[cc.InContextTask]:
    graphs = [cc.random_forest(N_CTX, seed=1000 + n_forests * seed + forest) for forest in range(n_forests)]
    return [cc.InContextTask(graph, d_vocab=D_VOCAB, alpha=ALPHA) for graph in graphs]


def earlier_siblings(parents: Sequence[int], parent: int, child: int) -> list[int]:
    """The children of `parent` before `child`."""
    return [other for other in range(child) if parents[other] == parent]


def strangers(parents: Sequence[int], parent: int, child: int) -> list[int]:
    """As many children of others before `child` as it has earlier siblings (all there are, if fewer)."""
    others = [i for i in range(child) if parents[i] not in (-1, parent)]
    return others[: len(earlier_siblings(parents, parent, child))]


def variants(parents: Sequence[int], parent: int, child: int) -> dict[str, Variant]:
    """Name -> (parents, law of the roots, the child watched); what a graph does not allow is left out."""
    siblings, others = earlier_siblings(parents, parent, child), strangers(parents, parent, child)

    def changed(new: dict[int, int]) -> list[int]:
        return [new.get(position, old) for position, old in enumerate(parents)]

    without = dict.fromkeys(siblings, -1)
    made: dict[str, Variant] = {
        "as it is": (list(parents), None, child),
        "earlier siblings made roots": (changed(without), None, child),
        "roots uniform": (list(parents), "uniform", child),
        "as many strangers made roots": (changed(dict.fromkeys(others, -1)), None, child),
    }
    behind = [position for position in range(child + 1, len(parents)) if parents[position] == -1][: len(siblings)]
    if len(behind) == len(siblings):
        made["siblings moved behind"] = (changed(without | dict.fromkeys(behind, parent)), None, child)
    if parent > 0 and parents[parent] == -1:
        made["parent given a parent"] = (changed({parent: parent - 1}), None, child)
    between = [i for i in range(max(siblings, default=parent) + 1, child) if parents[i] == -1 and i not in parents]
    if between:
        made["child moved forward"] = (changed({child: -1, between[0]: parent}), None, between[0])
    return made
