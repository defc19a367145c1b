"""The models of `discovery_benchmark`: planted, trained, and two kinds that may predict without the graph.

No model is chosen by its loss, its attention or any effect: whatever a recipe gives is counted.
"""

from dataclasses import dataclass

import networkx as nx

import causal_circuits as cc
from causal_circuits.models import HookedTransformer
from causal_circuits.studies import tables

GRAPHS = (*tables.GRAPHS, "two-parent")
MODELS = ("planted", "trained", "adam", "decoy")
LOW_LOSS = 0.05  # nats above the edge posterior's loss ...
BLIND = 0.5  # ... and this share of their rows' attention on the parents: with less of both a model is a decoy


def make_graph(name: str, n_ctx: int, seed: int) -> nx.DiGraph:
    return tables.make_graph(name, n_ctx, root_probability=0.4, seed=seed + 1)


@dataclass(frozen=True)
class Subject:
    """A model to discover the graph in: how it came about, and what its predictions and its attention are."""

    model: HookedTransformer
    task: cc.InContextTask
    recipe: str
    loss: float
    excess: float
    attention: float

    @classmethod
    def of(cls, model: HookedTransformer, task: cc.InContextTask, recipe: str, seed: int) -> "Subject":
        test = task.sample(8192, seed=(seed, 2))
        loss = float(cc.evaluate(model, test).mean())
        seen = attention_to_parents(model, task, test[:1024])
        return cls(model, task, recipe, loss, loss - task.bayes_loss(test), seen)

    @property
    def is_decoy(self) -> bool:
        """A low loss, and little attention to the parents: told, and nothing is left out by it."""
        return self.excess <= LOW_LOSS and self.attention < BLIND


def make_subject(kind: str, task: cc.InContextTask, steps: int, seed: int) -> Subject:
    """The model of a kind; its recipe is named in the results."""
    k, config = max(task.in_degrees), None
    sizes = (task.d_vocab, task.n_ctx)
    match kind:
        case "planted":
            recipe, model = "planted", cc.plant_circuit(task.graph, task.d_vocab)
        case "trained" if k == 1:  # layer 1's match and the read-out are written in before the first step
            recipe, model = "trained", cc.disentangled_transformer(*sizes)
            config = cc.TrainConfig.warm(steps, seed=seed)
        case "trained":  # a head for each parent, started where the gradient of order k points
            recipe, model = "trained_from_matches", cc.disentangled_transformer(*sizes, (k, 1))
            config = cc.TrainConfig.matched(steps, seed=seed)
        case "adam":  # on everything, from zero weights: some of these models learn the graph, some do not
            recipe, model = "adam_from_zero", cc.disentangled_transformer(*sizes, (k, 1))
            config = cc.TrainConfig.joint(steps, 0.1, warm_start=None, seed=seed)
        case _:  # a decoy: the circuit written one row or more too late, and trained on from there
            scales = {"attention_scale": 10.0, "match_scale": 4.0}
            recipe, model = "displaced", cc.models.plant_decoy(task.graph, task.d_vocab, **scales)
            config = cc.TrainConfig.joint(steps, 0.03, warm_start=None, seed=seed)
    if config is not None:
        cc.train(model, task, config, record=cc.RecordAt(steps=()), progress=False)
    return Subject.of(model, task, recipe, seed)


def attention_to_parents(model: HookedTransformer, task: cc.InContextTask, batch: cc.Batch) -> float:
    """The mean weight of layer 0's attention on the edges of the graph, the largest over heads: no effect enters it."""
    pattern = cc.mean_attention(model, batch.tokens)[0].amax(dim=0)
    return float(cc.graphs.parent_attention(pattern, task.graph).double().mean())
