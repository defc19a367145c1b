"""What every task is: one function, `draws`, from which training, tests and tools get their sequences.

When there were two, a study that overrode `sample` trained on fresh sequences of the true graph and said that it
trained on a table.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, final

import networkx as nx
import numpy as np
from torch import Tensor

from causal_circuits.arguments import Count, check_arguments
from causal_circuits.graphs import has_query, n_ctx_of, parents_of
from causal_circuits.tasks.batch import Batch, check_tokens

Seed = int | Sequence[int] | np.random.SeedSequence


@check_arguments
class Task(ABC):
    """Where sequences come from: a subclass sets `graph` and `d_vocab` and overrides `draws`, and can be trained on.

    Training, `sample` and every tool call `draws` and nothing else. To be trained with checkpoints a task also needs
    `identity`.

    Attributes:
        graph: the causal graph behind the sequences, or None if it is not known; then `n_ctx` has to be overridden.
        d_vocab: number of tokens.
        every_position: whether `draws` gives targets after every position, over which the loss is averaged; False:
            after the last alone.

    >>> class SecondToLast(cc.Task):
    ...     n_ctx, d_vocab = 4, 3
    ...     def draws(self, seed, first, n):
    ...         tokens = np.random.default_rng([seed, first]).integers(3, size=(n, 4))
    ...         return cc.Batch(tokens, tokens[:, -2], d_vocab=3)
    >>> batch = SecondToLast().sample(5, seed=0)
    >>> batch.target_probs.argmax(1).equal(batch.tokens[:, 2])
    True
    """

    graph: nx.DiGraph | None = None
    every_position: bool = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "sample" in cls.__dict__:
            raise TypeError(
                f"sequences come from draws alone: {cls.__name__} overrides sample, which training never calls; "
                "override draws"
            )
        draws = cls.__dict__.get("draws")
        if inspect.isfunction(draws):
            signature = inspect.signature(draws)
            try:
                signature.bind("self", "seed", "first", "n")
            except TypeError:
                raise TypeError(
                    f"{cls.__name__}.draws must take (self, seed, first, n), in this order: got draws{signature}"
                ) from None

    @abstractmethod
    def draws(self, seed: Seed, first: int, n: int) -> Batch:
        """`n` sequences of a seed's stream, from its place `first` on.

        The same arguments must give the same sequences, at any time and in any thread (a training that goes on from a
        checkpoint asks for the places it has not seen): keep no generator between calls, make one from seed and first,
        as in ``np.random.default_rng([seed, first])``. The seed is an integer or, in training, a tuple of integers.
        """

    def identity(self) -> Mapping[str, Any]:
        """What decides this task's sequences, as JSON values: a checkpoint of a training on another task is refused."""
        raise ValueError(
            f"a training on {type(self).__name__} can have no checkpoints: it does not say what decides its sequences; "
            "define identity(), returning JSON values, or train without checkpoints"
        )

    @property
    def n_sequences(self) -> int | None:
        """How many different sequences there are; None if new ones can be drawn without end."""
        return None

    @cached_property
    def d_vocab(self) -> int:
        """Number of tokens."""
        raise ValueError(f"a task must say how many tokens there are: {type(self).__name__} has no d_vocab; set it")

    @property
    def n_ctx(self) -> int:
        """Length of the context, query included, target not."""
        if self.graph is None:
            raise ValueError(
                f"a task must say how long its sequences are: {type(self).__name__} has neither graph nor n_ctx; "
                "set n_ctx, or graph if it is known"
            )
        return n_ctx_of(self.graph)

    @cached_property
    def has_query(self) -> bool:
        """Whether the last context position is a query, the target's only parent; taken for granted without a graph."""
        return self.graph is None or has_query(self.graph)

    @cached_property
    def target_parents(self) -> tuple[int, ...]:
        """The positions whose tokens decide the target's law."""
        if self.graph is None and self.has_query:
            return (self.n_ctx - 1,)
        return parents_of(graph_of(self), self.n_ctx)

    @final
    def sample(self, n: Count, seed: Seed = 0) -> Batch:
        """Draw `n` sequences: places 0 to n - 1 of a seed's stream.

        Args:
            n: number of sequences, at least 1 and at most `n_sequences`.
            seed: an integer or a sequence of integers (such as ``(run_seed, step)``).
        """
        if self.n_sequences is not None and n > self.n_sequences:
            raise ValueError(
                f"{type(self).__name__} has {self.n_sequences:,} sequences, and copies would make p-values false: "
                f"got n={n:,}; ask for at most {self.n_sequences:,}"
            )
        return checked_draws(self, seed, 0, n)

    def sample_at_most(self, n: int, seed: Seed = 0) -> Batch:
        """`n` sequences, or all there are if they are fewer."""
        return self.sample(n if self.n_sequences is None else min(n, self.n_sequences), seed)

    def check_tokens(self, tokens: Tensor) -> None:
        """Raise a ValueError unless `tokens` are integers [batch, n_ctx] within the vocabulary."""
        check_tokens(tokens, self.d_vocab, self.n_ctx)


def checked_draws(task: Task, seed: Seed, first: int, n: int) -> Batch:
    """`task.draws(seed, first, n)`, refused by name if it is not `n` sequences of the task's sizes."""
    batch = task.draws(seed, first, n)
    what = f"{type(task).__name__}.draws must return a Batch of n={n} sequences"
    if not isinstance(batch, Batch):
        raise ValueError(f"{what}: got {type(batch).__name__}; return Batch(tokens, target_probs)")
    if len(batch) != n:
        raise ValueError(f"{what}: got {len(batch)}")
    try:
        batch.check(task.d_vocab, task.n_ctx, every_position=task.every_position)
    except ValueError as error:
        raise ValueError(f"{what}, d_vocab {task.d_vocab}, n_ctx {task.n_ctx}: {error}") from error
    return batch


def graph_of(task: Task) -> nx.DiGraph:
    """The task's graph, or a ValueError that says that it has none."""
    if task.graph is None:
        raise ValueError(
            f"this needs the causal graph of the task, and {type(task).__name__} has none: give it its graph, as in "
            "BatchTask(batch, graph=graph)"
        )
    return task.graph


def seed_sequence(seed: Seed) -> np.random.SeedSequence:
    """The seed as numpy has it, or a ValueError."""
    try:
        return seed if isinstance(seed, np.random.SeedSequence) else np.random.SeedSequence(seed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"seed must be a non-negative integer or a sequence of them: got {seed!r}") from error


def generator_at(seed: Seed, place: int) -> np.random.Generator:
    """A generator of its own for a place in a seed's stream."""
    return np.random.default_rng(child_sequence(seed, place))


def child_sequence(seed: Seed, place: int) -> np.random.SeedSequence:
    """The seed of a place in a seed's stream."""
    parent = seed_sequence(seed)
    return np.random.SeedSequence(parent.entropy, spawn_key=(*parent.spawn_key, place))
