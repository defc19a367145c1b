"""Interventions on data: sequences in which some tokens are set, whatever their parents are (Pearl's do)."""

import reprlib
from collections.abc import Mapping
from typing import Any, Literal, final

import networkx as nx
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.tasks.base import Seed, Task
from causal_circuits.tasks.batch import Batch
from causal_circuits.tasks.posterior import posterior
from causal_circuits.tasks.task import InContextTask


@check_arguments
@final
class InterventionTask(Task):
    """An `InContextTask` in every sequence of which some positions are set by hand.

    The same seed and place give the same transition matrix and the same noise as in the task itself: a sequence and its
    intervened twin differ in the positions that are set and in what descends from them, nowhere else.

    Args:
        task: what the other tokens are drawn from.
        do: position -> token, or "random" for a token that is uniform in each sequence.

    Attributes:
        graph: the task's, without the edges into positions that are set.

    Raises:
        ValueError: no position is set, or a position or token that the task has not.

    >>> twin = InterventionTask(task, do={2: 0})
    >>> tokens, twins = task.sample(500, seed=0).tokens, twin.sample(500, seed=0).tokens
    >>> [bool((tokens[:, i] == twins[:, i]).all()) for i in range(6)], twins[:, 2].unique().tolist()
    ([True, True, False, False, False, True], [0])
    """

    def __init__(self, task: InContextTask, do: Mapping[int, int | Literal["random"]]) -> None:
        if not do:
            raise ValueError("an intervention sets at least one position: got none; use the task itself")
        for position, token in do.items():
            if not 0 <= position < task.n_ctx:
                raise ValueError(f"positions lie in 0 .. {task.n_ctx - 1}: got do[{position}]")
            if token != "random" and not 0 <= token < task.d_vocab:
                raise ValueError(f"tokens lie in 0 .. {task.d_vocab - 1}: got do[{position}] = {token}")
        self.task, self.do = task, dict(do)
        graph = nx.DiGraph(task.graph)
        graph.remove_edges_from([edge for edge in task.graph.edges if edge[1] in do])
        self.graph, self.d_vocab = nx.freeze(graph), task.d_vocab

    def __repr__(self) -> str:
        return f"InterventionTask({self.task}, do={reprlib.repr(self.do)})"

    def draws(self, seed: Seed, first: int, n: int) -> Batch:
        """`n` sequences of a seed's stream, twins of the task's own."""
        return self.task.intervened_draws(self.do, seed, first, n)

    def identity(self) -> Mapping[str, Any]:
        """That of the task, and what is set."""
        return {**self.task.identity(), "do": {str(position): token for position, token in sorted(self.do.items())}}

    def bayes_predictor(self, tokens: Int[Tensor, "batch n_ctx"]) -> Float[Tensor, "batch d_vocab"]:
        """The edge posterior: a token that was set tells nothing about the row of its parents."""
        return posterior(self.task, tokens, self.graph)
