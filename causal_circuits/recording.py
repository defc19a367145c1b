"""What is measured during training and when, and the record that is left.

Patterns and gradients are taken by hooks on ``blocks.l.attn.hook_pattern``, which TransformerLens 3 and 4 have; the
gradient of the scores goes through the softmax Jacobian, dS = P * (dP - sum(dP * P)). All gradients of attention that
this package gives have one sign: *minus* the gradient of the mean loss, so that an edge that is being learned has a
positive one. Recorded are nats per unit of attention score or weight; `predicted_gradient`, `finite_context_gradient`,
`estimate_gradient` and `measured_gradient`, which are about the reduced model for beta0 -> 0, take
beta0 / (d_vocab n_ctx) of these as their unit.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import Count, Place, Several, check_arguments
from causal_circuits.display import Frame, Result, frame
from causal_circuits.models import HookedTransformer
from causal_circuits.storage import read_checked, read_json, read_rows, read_tensors, tensor_bytes, write_files

# Of a snapshot, [layer, head_index, query_pos, key_pos].
MATRICES = ("attention", "score_gradients", "weight_gradients")
# Format 2 has minus the gradients, and names its layers; before, record.json named no format.
RECORD_FORMAT = "causal_circuits.record/2"
# The index of a folder with streamed arrays: what a record holds besides them, and the checksums of their rows.
INDEX, INDEX_FORMAT = "streamed", "causal_circuits.streamed/3"


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


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class Snapshot(Result):
    """One state of a model, measured on one batch.

    Attributes:
        step: optimiser steps taken before.
        loss: mean cross-entropy of the batch, nats.
        attention: [layer, head_index, query_pos, key_pos], averaged over the batch.
        score_gradients: the same shape; the mean over sequences of -d(loss) / d(scores), nats. NaN in a layer that the
            backward pass did not reach: a hook replaced its pattern, or cut the graph behind it.
        weight_gradients: the same of -d(loss) / d(attention weights).
        layers: the numbers of the layers, in order; by default from 0 on.

    >>> snapshot = cc.training.take_snapshot(model, batch)
    >>> tuple(snapshot.attention.shape), snapshot.score_gradients.shape == snapshot.attention.shape
    ((2, 1, 6, 6), True)
    """

    step: int
    loss: float
    attention: Float[Tensor, "layer head_index query_pos key_pos"] | None
    score_gradients: Float[Tensor, "layer head_index query_pos key_pos"] | None
    weight_gradients: Float[Tensor, "layer head_index query_pos key_pos"] | None = None
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", self.layers or _all_layers(self, axis=0))


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class TrainingRecord(Result):
    """What a training run left behind.

    Attributes:
        losses: float64 [steps]; the training loss of every step, nats.
        steps: recorded steps.
        attention: [record, layer, head_index, query_pos, key_pos], or None if not asked for; `of_layer` finds a layer.
        score_gradients, weight_gradients: the same shape, or None; minus the gradients, as in `Snapshot`.
        recorded_losses: float64 [record]; loss of each recorded state on its batch.
        config: everything that was asked for, as plain values.
        seconds: wall time of training, recording included.
        sequences_per_s: sequences drawn and trained on in a second, recording included.
        path: "fused" or "structured", the way most steps were computed.
        layers: the numbers of the recorded layers, in order; by default from 0 on.

    >>> model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(4, batch_size=512)
    >>> record = cc.train(model, task, config, record=cc.RecordAt(steps=(0, 4)))
    >>> len(record.losses), record.steps, record.attention.shape == (2, 2, 1, 6, 6)
    (4, (0, 4), True)
    """

    losses: Float[Tensor, " step"]
    steps: tuple[int, ...]
    recorded_losses: Float[Tensor, " record"]
    attention: Float[Tensor, "record layer head_index query_pos key_pos"] | None
    score_gradients: Float[Tensor, "record layer head_index query_pos key_pos"] | None
    config: dict[str, object] = field(default_factory=dict)
    seconds: float = 0.0
    sequences_per_s: float = 0.0
    path: Literal["fused", "structured", ""] = ""
    weight_gradients: Float[Tensor, "record layer head_index query_pos key_pos"] | None = None
    layers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", self.layers or _all_layers(self, axis=1))
        sizes = (len(self.steps), len(self.layers))
        for name in ("recorded_losses", *MATRICES):
            value = getattr(self, name)
            if value is not None and tuple(value.shape[:2]) != sizes[: min(value.ndim, 2)]:
                raise ValueError(
                    f"a record's {name} must have a row for each of its {sizes[0]} steps, and in it those of layers "
                    f"{self.layers}: got {list(value.shape)}"
                )

    def of_layer(self, quantity: str, layer: int) -> Float[Tensor, "record head_index query_pos key_pos"]:
        """What was recorded of a layer, by its number in the model.

        Args:
            quantity: "attention", "score_gradients" or "weight_gradients".
            layer: its number, whichever layers were recorded.

        Raises:
            ValueError: it was not recorded, or holds NaN.

        >>> seen = torch.rand(2, 1, 1, 6, 6)                   # two states of one layer
        >>> record = TrainingRecord(torch.rand(9), (0, 9), torch.rand(2), seen, None, layers=(1,))
        >>> bool((record.of_layer("attention", 1) == seen[:, 0]).all())
        True
        """
        if quantity not in MATRICES:
            raise ValueError(f"quantity must be one of {MATRICES}: got {quantity!r}")
        recorded = getattr(self, quantity)
        if recorded is None or not len(recorded):
            raise ValueError(f"this record has no {quantity}: train with RecordAt({quantity}=True)")
        if layer not in self.layers:
            raise ValueError(
                f"the record has the layers {self.layers}: got layer {layer}; train with RecordAt(layers=None)"
            )
        chosen: Tensor = recorded[:, self.layers.index(layer)]
        if bool(chosen.isnan().any()):
            raise ValueError(
                f"the record's {quantity} of layer {layer} are NaN: the backward pass did not reach this layer, whose "
                "pattern a hook replaced, or the training had diverged"
            )
        return chosen

    def __repr__(self) -> str:
        recorded = [
            f"{name.replace('_', ' ')} {list(value.shape)}"
            for name in ("attention", "score_gradients")
            if (value := getattr(self, name)) is not None
        ]
        losses, pace = self.losses, f", {self.path} path" if self.path else ""
        loss = f", loss {float(losses[0]):.3f} -> {float(losses[-1]):.3f} nats" if len(losses) else ""
        states = "; ".join([f"{len(self.steps)} states recorded", *recorded])
        return f"TrainingRecord({len(losses):,} steps{loss}, {self.seconds:.1f} s{pace}; {states})"

    def to_frame(self) -> Frame:
        """A row for each recorded state: its step and its loss in nats."""
        return frame({"step": self.steps, "loss": self.recorded_losses.tolist()})

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `record.safetensors` and `record.json` to a folder (made if missing)."""
        tensors = {name: value for name, value in self._tensors().items() if value is not None}
        plain = {name: value for name, value in self.__dict__.items() if name not in self._tensors()}
        plain = {"format": RECORD_FORMAT, **plain}
        text = json.dumps(plain, indent=2) + "\n"
        return write_files(folder, {"record.safetensors": tensor_bytes(tensors), "record.json": text})

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "TrainingRecord":
        """Read what `save` wrote, or what a training streamed to `RecordAt(folder=...)` up to its last checkpoint.

        Streamed arrays are checked whole, then memory-mapped: a record larger than memory can be read.

        Raises:
            ValueError: a file is missing, or it is damaged or of another version; it names the file.
        """
        folder = Path(folder)
        is_streamed = (folder / f"{INDEX}.json").is_file() and not (folder / "record.json").exists()
        try:
            fields = _read_streamed(folder) if is_streamed else _read_saved(folder)
            return cls(**{"attention": None, "score_gradients": None, **fields, "steps": tuple(fields["steps"])})
        except (FileNotFoundError, NotADirectoryError) as error:
            raise ValueError(f"a saved record is a folder with record.json and record.safetensors: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{folder} does not hold a record that can be read: {error}") from error

    def _tensors(self) -> dict[str, Tensor | None]:
        return {name: getattr(self, name) for name in ("losses", "recorded_losses", *MATRICES)}


@dataclass
class WatchedAttention:
    """What `watch_attention` saw, [batch, head_index, query_pos, key_pos] by layer."""

    patterns: dict[int, Tensor] = field(default_factory=dict)
    pattern_gradients: dict[int, Tensor] = field(default_factory=dict)

    def attention(self) -> Tensor:
        """Patterns averaged over the batch, [layer, head_index, query_pos, key_pos]."""
        return torch.stack([self.patterns[layer].mean(dim=0) for layer in sorted(self.patterns)])

    def score_gradients(self) -> Tensor:
        """Minus the gradients by scores, summed over the batch, through the softmax Jacobian."""
        summed = []
        for pattern, gradient in self._watched():
            inner = (gradient * pattern).sum(dim=-1, keepdim=True)
            summed.append((pattern * (inner - gradient)).sum(dim=0))
        return torch.stack(summed)

    def weight_gradients(self) -> Tensor:
        """Minus the gradients by attention weights, summed over the batch; zero where a query cannot look."""
        return torch.stack([-gradient.sum(dim=0).tril() for _, gradient in self._watched()])

    def _watched(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Each layer's pattern and its gradient: NaN where the backward pass did not reach it."""
        for layer, pattern in sorted(self.patterns.items()):
            gradient = self.pattern_gradients.get(layer)
            yield pattern, torch.full_like(pattern, torch.nan) if gradient is None else gradient


def recorded_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    """The layers that are asked for (None: all) of a model of so many, or a ValueError that names one it has not."""
    chosen = tuple(range(n_layers)) if layers is None else tuple(layers)
    if beyond := [layer for layer in chosen if not 0 <= layer < n_layers]:
        raise ValueError(f"layers must be among the model's 0 .. {n_layers - 1}: got {beyond[0]}")
    return chosen


@check_arguments
@contextmanager
def watch_attention(model: HookedTransformer, layers: Sequence[int] | None = None) -> Iterator[WatchedAttention]:
    """Within the context, forward and backward passes leave layers' patterns and their gradients behind (None: all).

    Works with the plain and the structured forward. The hooks are gone afterwards, also after an exception; hooks
    that were there before stay.

    >>> model = cc.disentangled_transformer(d_vocab=3, n_ctx=4)
    >>> with watch_attention(model) as watched:
    ...     cc.models.logits(model, torch.tensor([[0, 1, 2, 0]])).sum().backward()
    >>> watched.score_gradients().shape
    torch.Size([2, 1, 4, 4])
    """
    watched, numbers = WatchedAttention(), recorded_layers(layers, model.cfg.n_layers)
    names = {layer: f"blocks.{layer}.attn.hook_pattern" for layer in numbers}
    forward_hooks = [(name, _keep_in(watched.patterns, layer)) for layer, name in names.items()]
    backward_hooks = [(name, _keep_in(watched.pattern_gradients, layer)) for layer, name in names.items()]
    with model.hooks(fwd_hooks=forward_hooks, bwd_hooks=backward_hooks):
        yield watched


def _keep_in(kept: dict[int, Tensor], layer: int) -> Callable[[Tensor, object], None]:
    def keep(value: Tensor, hook: object) -> None:
        kept[layer] = value.detach()

    return keep


def _read_saved(folder: Path) -> dict[str, Any]:
    plain, tensors = read_json(folder / "record.json"), read_tensors(folder / "record.safetensors")
    if not isinstance(plain, dict):
        raise ValueError(f"{folder / 'record.json'} holds no record: got {type(plain).__name__}")
    if plain.pop("format", None) != RECORD_FORMAT:
        raise ValueError(f"record.json is of another version of causal_circuits, not {RECORD_FORMAT}: train again")
    return {**plain, **tensors}


def _read_streamed(folder: Path) -> dict[str, Any]:
    head, fields = read_checked(folder / f"{INDEX}.json", INDEX_FORMAT, "index of streamed arrays")
    for name, checksums in head["checksums"].items():
        fields[name] = torch.from_numpy(read_rows(folder / f"{name}.npy", checksums)[: len(checksums)])
    return {**head["about"], **fields, "steps": head["steps"]}


def _all_layers(states: Snapshot | TrainingRecord, axis: int) -> tuple[int, ...]:
    matrices = [value for name in MATRICES if (value := getattr(states, name)) is not None]
    return tuple(range(matrices[0].shape[axis])) if matrices else ()
