"""Which edges of Figure 9 the paper's training leaves unlearned, what frees them, what predicts them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import networkx as nx
import torch

import causal_circuits as cc
from causal_circuits.studies.reproduce_paper.measuring import block_attention, parent_weights, train_measured
from causal_circuits.studies.study import Cell, Report, Study, at_least
from causal_circuits.studies.tables import figure_9_parents
from causal_circuits.studies.unlearned_edges.report import make_report
from causal_circuits.studies.unlearned_edges.variants import (
    ALPHA,
    D_VOCAB,
    TARGETS,
    changed_tasks,
    earlier_siblings,
    new_tasks,
    strangers,
)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Which edges the paper's training leaves unlearned in Figure 9, what frees them, and what predicts them.

    Asked of the edges that are at or below one half (block attention) at the end of the paper's training with each
    of three seeds: joint gradient descent from zero, rate 1, 2^14 steps. Two parts, both trained here in that way:

    Changed graphs, each change being what one explanation says should free the edge, beside a control:

        redundancy   earlier siblings copy the same token, so all match the query in the same sequences, and another
                     sample of the same row adds little: take the siblings away, or move them behind the edge
        root         a root's token has no cause: give the parent a parent, an earlier position
        root law     roots follow the stationary law, so frequent tokens have many witnesses: draw them uniformly
        late         a late row begins with little attention on each position: move the child to the first free position
                     after its siblings
        control      nothing of the kind: take away the edges of as many children that are no siblings

    Prediction: each explanation as a number of an edge, known before training, is asked which edges stay unlearned,
    in Figure 9, where the explanations were thought of, and in forests of the same law that nobody had looked at.

    And in the trained models: the gradient of the slow edge, with its earlier siblings' attention rows made uniform
    by a hook, against the same done to as many strangers' rows.

        python analyses/unlearned_edges.py                 # some five minutes of processor time
    """

    QUICK: ClassVar = {"steps": 20, "batch_size": 64, "targets": 1, "forests": 2}

    steps: int = 2**14  #: of gradient descent (the paper's: 16384)
    batch_size: int = 256  #: sequences a step (the paper's: 1024)
    targets: int = len(TARGETS)  #: edges to change
    forests: int = 40  #: new forests to predict

    def check(self) -> None:
        at_least(1, steps=self.steps, batch_size=self.batch_size, targets=self.targets)
        at_least(2, forests=self.forests)

    def cells(self) -> list[Cell]:
        """One training of all models side by side, and what each explanation makes of the edges of Figure 9."""
        return [Cell("training", train_all, asdict(self), scratch=True), Cell("figure 9", measure_figure_9)]

    def report(self, rows: Mapping[str, Any]) -> Report:
        return make_report(**rows["training"], known=rows["figure 9"], study=self)


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
    """A hook that makes some rows of a pattern uniform."""
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
