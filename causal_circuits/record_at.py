"""At which steps of a training to record, and what; `recording` holds what is recorded."""

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from causal_circuits.arguments import Count, Place, Several, check_arguments


@check_arguments
@dataclass(frozen=True)
class RecordAt:
    """At which steps to record, and what.

    Step s is recorded on the batch of step s, before the update; the number of steps itself stands for the end of
    training, so ``RecordAt(n_log_spaced=12)`` always holds the first and the last state.

    Args:
        steps: the steps; those beyond the end of training are skipped.
        n_log_spaced: where no steps are given: so many, 0 and then geometrically up to the end of training.
        attention: patterns of every layer, averaged over the batch.
        score_gradients: minus the gradients by attention scores, averaged over the batch.
        weight_gradients: minus the gradients by attention weights (the pattern), averaged over the batch.
        layers: of which layers, in the order of their numbers; None takes all. Where the native core trains, all that
            is recorded is a by-product of its step, but for layer 1's pattern of queries before the last. No loss
            depends on these rows, and they take n_ctx times the work of a step: they are averaged over 4 / n_ctx of
            the batch (4 sequences at least). Elsewhere a recorded step takes a pass of its own with hooks.
        folder: where the arrays grow as memory-mapped ``.npy`` files, for records larger than memory; None keeps
            them in memory. At every checkpoint and at the end their checksums are written beside them, and
            `TrainingRecord.load(folder)` reads what was there by then.

    >>> RecordAt.every(100, until=300).steps
    (0, 100, 200, 300)
    >>> RecordAt(steps=(0, 10), score_gradients=False).attention
    True
    """

    steps: tuple[Place, ...] | None = None
    n_log_spaced: Several = 12
    attention: bool = True
    score_gradients: bool = True
    weight_gradients: bool = False
    layers: tuple[Place, ...] | None = None
    folder: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if self.layers is not None and not self.layers:
            raise ValueError("layers must name layers, numbered from 0: got (); None records all of them")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))

    @classmethod
    def every(cls, interval: Count, until: int, **kwargs: Any) -> "RecordAt":
        """Every `interval` steps from 0 on, and `until` itself; `kwargs` say what and where, as in the class.

        >>> RecordAt.every(50, until=120).steps
        (0, 50, 100, 120)
        """
        return cls(steps=(*range(0, until, interval), until), **kwargs)

    def within(self, n_steps: int) -> tuple[int, ...]:
        """The recorded steps of a run of `n_steps`.

        >>> RecordAt(n_log_spaced=5).within(1000)
        (0, 6, 32, 178, 1000)
        """
        if self.steps is not None:
            return tuple(sorted({step for step in self.steps if step <= n_steps}))
        later = np.geomspace(1, max(n_steps, 1), self.n_log_spaced)[1:]
        return (0, *sorted({round(step) for step in later}))
