"""A task made of a table of sequences: data of one's own can be trained on."""

from collections.abc import Mapping
from typing import Any, NoReturn, final

import networkx as nx
import numpy as np
import torch

from causal_circuits.arguments import Count, Place, check_arguments
from causal_circuits.graphs import validate_graph
from causal_circuits.storage import digest
from causal_circuits.tasks.base import Seed, Task, generator_at
from causal_circuits.tasks.batch import Batch


@check_arguments
@final
class BatchTask(Task):
    """The sequences of a batch, each once an epoch: place k of a seed's stream is in epoch k // len(batch).

    An epoch is a permutation of the rows, from the seed and the epoch's number. `sample(n)` gives `n` different rows
    and refuses more than there are. What needs a prior (edge posterior, exact Bayes, informations, predicted
    gradients) takes an `InContextTask` only.

    Args:
        batch: the table.
        graph: the causal graph behind it, if it is known: needed to score heads and edges, not to train; the task keeps
            a frozen copy.
        has_query: without a graph, whether the last position is a query, the target's only parent.

    Raises:
        ValueError: tokens outside the vocabulary, targets that are no probabilities, or a graph of another length.

    >>> table = cc.InContextTask(cc.chain_graph(6), d_vocab=3).sample(5, seed=0)
    >>> task = BatchTask(table)
    >>> epochs = task.draws(0, 0, 10).tokens.tolist()     # two epochs
    >>> sorted(epochs[:5]) == sorted(epochs[5:]) == sorted(table.tokens.tolist())
    True
    """

    def __init_subclass__(cls) -> NoReturn:
        raise TypeError(f"BatchTask is final, and {cls.__name__} subclasses it: subclass cc.Task and override draws")

    def __init__(self, batch: Batch, graph: nx.DiGraph | None = None, *, has_query: bool = True) -> None:
        self.batch, self.d_vocab = batch, batch.target_probs.shape[-1]
        self.every_position = batch.every_position
        batch.check(self.d_vocab, every_position=None)
        if graph is None:
            self.has_query = bool(has_query)
            return
        validate_graph(graph)
        length = graph.number_of_nodes() - 1
        if length != self.n_ctx:
            raise ValueError(
                f"the graph of a table must have a node for each position and one for the target, {self.n_ctx + 1}: "
                f"got {length + 1}"
            )
        self.graph = nx.freeze(graph.copy())

    @property
    def n_ctx(self) -> int:
        """Length of the sequences."""
        return self.batch.tokens.shape[1]

    @property
    def n_sequences(self) -> int:
        """Rows of the table."""
        return len(self.batch)

    def draws(self, seed: Seed, first: Place, n: Count) -> Batch:
        """Rows of the table, epoch after epoch."""
        size, stop = len(self.batch), first + n
        epochs = range(first // size, -(-stop // size))
        rows = np.concatenate([_permutation(seed, epoch, size) for epoch in epochs])
        start = first - epochs.start * size
        return self.batch[torch.from_numpy(rows[start : start + n]).to(self.batch.tokens.device)]

    def identity(self) -> Mapping[str, Any]:
        """The table's checksum."""
        return {"table": digest({"tokens": self.batch.tokens, "target_probs": self.batch.target_probs})}

    def __repr__(self) -> str:
        return f"BatchTask({self.n_sequences} sequences, n_ctx={self.n_ctx}, d_vocab={self.d_vocab})"


def _permutation(seed: Seed, epoch: int, size: int) -> np.ndarray:
    return generator_at(seed, epoch).permutation(size)
