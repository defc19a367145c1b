"""Sequences that change in the middle: another transition matrix, or another graph, from some position on."""

from collections.abc import Mapping
from typing import Any, final

import networkx as nx
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.tasks.base import Seed, Task, child_sequence
from causal_circuits.tasks.batch import Batch
from causal_circuits.tasks.posterior import posterior
from causal_circuits.tasks.task import InContextTask


@check_arguments
@final
class ExchangeTask(Task):
    """Sequences of one task up to a position, and of another from there on, target included.

    The second task draws a transition matrix of its own and continues what it finds: a later position's token follows
    its parents in the second task's graph, also where these came before. With ``after`` the same as ``before`` the
    matrix is exchanged in mid-sequence; with an edge moved, the graph is too. The same seed and place give the same
    first tokens as in `before`.

    Args:
        before: draws the positions before `at`.
        after: draws the others and the target; of the same n_ctx and d_vocab.
        at: the first position that `after` draws, 1 .. n_ctx - 1.

    Attributes:
        graph: the edges of `before` into positions before `at`, and those of `after` into the others.

    Raises:
        ValueError: tasks of other sizes, or a position that is none of 1 .. n_ctx - 1.

    >>> both = ExchangeTask(task, task, at=3)
    >>> tokens, others = both.sample(500, seed=0).tokens, task.sample(500, seed=0).tokens
    >>> [bool((tokens[:, i] == others[:, i]).all()) for i in range(6)]
    [True, True, True, False, False, False]
    """

    def __init__(self, before: InContextTask, after: InContextTask, at: int) -> None:
        for name in ("n_ctx", "d_vocab"):
            if getattr(before, name) != getattr(after, name):
                raise ValueError(
                    f"both tasks must have the same {name}: got {getattr(before, name)} and {getattr(after, name)}"
                )
        if not 1 <= at < after.n_ctx:
            raise ValueError(f"at must lie in 1 .. n_ctx - 1 = {after.n_ctx - 1}: got {at}; give the tasks themselves")
        self.before, self.after, self.at, self.d_vocab = before, after, at, after.d_vocab
        early = [edge for edge in before.graph.edges if edge[1] < at]
        self._late = nx.DiGraph(after.graph)
        self._late.remove_edges_from([edge for edge in after.graph.edges if edge[1] < at])
        graph = self._late.copy()
        graph.add_edges_from(early)
        self.graph = nx.freeze(graph)

    def __repr__(self) -> str:
        return f"ExchangeTask({self.before}, {self.after}, at={self.at})"

    def draws(self, seed: Seed, first: int, n: int) -> Batch:
        """`n` sequences of a seed's stream: those of `before` as far as they go, continued by `after`."""
        early, seed = self.before.draws(seed, first, n).tokens, child_sequence(seed, 0)
        return self.after.intervened_draws(dict.fromkeys(range(self.at), "given"), seed, first, n, early)

    def identity(self) -> Mapping[str, Any]:
        """Those of both tasks, and where one follows the other."""
        return {"before": self.before.identity(), "after": self.after.identity(), "at": self.at}

    def bayes_predictor(self, tokens: Int[Tensor, "batch n_ctx"]) -> Float[Tensor, "batch d_vocab"]:
        """The edge posterior: only what `after` drew tells its matrix, with parents on either side."""
        return posterior(self.after, tokens, self._late)
