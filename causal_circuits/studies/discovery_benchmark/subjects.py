"""The models of `discovery_benchmark`: planted, trained, and two kinds that may predict without the graph.

No model is chosen by its loss, its attention or any effect: whatever a recipe gives is counted.
"""

from collections.abc import Callable
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
    """The graph of a name; two-parent: every position has the two before it as parents."""
    if name == "two-parent":
        return cc.ngram_graph(n_ctx, order=2)
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
    recipes: dict[str, Callable[[cc.InContextTask, int, int], HookedTransformer]] = {
        "planted": planted,
        "trained": trained_from_matches if max(task.in_degrees) > 1 else trained,
        "adam": adam_from_zero,
        "decoy": displaced,
    }
    recipe = recipes[kind]
    return Subject.of(recipe(task, steps, seed), task, recipe.__name__, seed)


def planted(task: cc.InContextTask, steps: int, seed: int) -> HookedTransformer:
    return cc.plant_circuit(task.graph, task.d_vocab)


def trained(task: cc.InContextTask, steps: int, seed: int) -> HookedTransformer:
    """From a warm start: layer 1's match and the read-out are written in before the first step."""
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx)
    return fit(model, task, cc.TrainConfig.warm(steps, seed=seed))


def trained_from_matches(task: cc.InContextTask, steps: int, seed: int) -> HookedTransformer:
    """A head for each parent, started where the gradient of order k points."""
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, (max(task.in_degrees), 1))
    return fit(model, task, cc.TrainConfig.matched(steps, seed=seed))


def adam_from_zero(task: cc.InContextTask, steps: int, seed: int) -> HookedTransformer:
    """Adam at 0.1 on everything, from zero weights: some of these models learn the graph, some do not."""
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, (max(task.in_degrees), 1))
    return fit(model, task, cc.TrainConfig.joint(steps, 0.1, warm_start=None, seed=seed))


def displaced(task: cc.InContextTask, steps: int, seed: int) -> HookedTransformer:
    """The circuit written one row or more too late (`plant_decoy`), and trained on from there."""
    model = cc.models.plant_decoy(task.graph, task.d_vocab, attention_scale=10.0, match_scale=4.0)
    return fit(model, task, cc.TrainConfig.joint(steps, 0.03, warm_start=None, seed=seed))


def fit(model: HookedTransformer, task: cc.InContextTask, config: cc.TrainConfig) -> HookedTransformer:
    """The model, trained; nothing is recorded."""
    cc.train(model, task, config, record=cc.RecordAt(steps=()), progress=False)
    return model


def attention_to_parents(model: HookedTransformer, task: cc.InContextTask, batch: cc.Batch) -> float:
    """The mean weight of layer 0's attention on the edges of the graph, the largest over heads: no effect enters it."""
    pattern = cc.mean_attention(model, batch.tokens)[0].amax(dim=0)
    return float(cc.graphs.parent_attention(pattern, task.graph).double().mean())
