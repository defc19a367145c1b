"""Where things lie in a disentangled residual stream.

The residual stream of a disentangled transformer is a concatenation: each head appends a copy of everything
it read. A *block* is one copy of [token one-hot | position one-hot], d0 = d_vocab + n_ctx wide; a *slot* is
the token half or the position half of a block. With (m1, m2) heads there are (1 + m1)(1 + m2) blocks:

    L0 input:  [token | position]
    L1 input:  [token | position | L0H0.token | L0H0.position | L0H1.token | ... ]
    output:    [ the L1 input     | L1H0.( the L1 input )     | L1H1.( the L1 input ) | ... ]
"""

from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Literal

from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.models.annotation import HookedTransformer

Kind = Literal["disentangled", "reduced"]


@check_arguments
@dataclass(frozen=True)
class Slot:
    """A named range of residual coordinates.

    Attributes:
        name: ``"token"``, ``"position"``, ``"L0H1.token"``, ``"L1H0.L0H1.token"``, ...
        start, stop: the half-open range of coordinates.

    >>> cc.models.slots(cc.disentangled_transformer(3, 6))["position"].stop
    9
    """

    name: str
    start: int
    stop: int

    @property
    def slice(self) -> "slice":
        """For indexing: ``W_U[slot.slice]``."""
        return slice(self.start, self.stop)


@check_arguments
@dataclass(frozen=True)
class Layout:
    """The sizes that fix a model of ours: everything in its config follows from them.

    Attributes:
        kind: "disentangled" (the paper's section 2) or "reduced" (section 4: A1 over positions, A2 over tokens,
            and an output that is a probability vector rather than logits).
        d_vocab, n_ctx: vocabulary and context length.
        n_heads: heads of each layer.

    >>> Layout("disentangled", d_vocab=10, n_ctx=20, n_heads=(1, 1)).width(2)  # 30, doubled by the head of each layer
    120
    """

    kind: Kind
    d_vocab: int
    n_ctx: int
    n_heads: tuple[int, ...]

    @property
    def d_block(self) -> int:
        """Width d0 of one [token | position] block."""
        return self.d_vocab + self.n_ctx

    def width(self, layer: int) -> int:
        """Width of the residual stream that layer `layer` reads; `width(len(n_heads))` is d_model."""
        if self.kind == "reduced":
            return (2 + self.n_heads[0]) * self.d_vocab + self.n_ctx
        return self.d_block * prod(1 + heads for heads in self.n_heads[:layer])

    @property
    def d_head(self) -> int:
        """Width of a head: of what the last layer reads; in a reduced model, of all copied tokens or of positions."""
        if self.kind == "reduced":
            return max(self.d_vocab * self.n_heads[0], self.n_ctx)
        return self.width(self.n_layers - 1)

    @property
    def n_layers(self) -> int:
        """Number of attention layers."""
        return len(self.n_heads)

    def slots(self) -> dict[str, Slot]:
        """Every slot of the final residual stream by name, in order."""
        if self.kind == "reduced":
            return self._reduced_slots()
        blocks = [""]
        for layer, heads in enumerate(self.n_heads):
            blocks += [f"L{layer}H{head}.{block}" for head in range(heads) for block in blocks]
        slots: dict[str, Slot] = {}
        for index, block in enumerate(blocks):
            start = index * self.d_block
            for half, begin, end in (("token", 0, self.d_vocab), ("position", self.d_vocab, self.d_block)):
                slots[block + half] = Slot(block + half, start + begin, start + end)
        return slots

    def _reduced_slots(self) -> dict[str, Slot]:
        copies = [f"L0H{head}.token" for head in range(self.n_heads[0])] + ["L1H0.token"]
        sizes = {"token": self.d_vocab, "position": self.n_ctx, **dict.fromkeys(copies, self.d_vocab)}
        slots, start = {}, 0
        for name, size in sizes.items():
            slots[name] = Slot(name, start, start + size)
            start += size
        return slots


Block = tuple[int | slice, ...]


@cache
def frozen_identities(layout: Layout) -> dict[str, list[Block]]:
    """Where the frozen weights of a layout hold identity blocks, parameter by parameter; all else in them is zero."""
    d_vocab, n_ctx = layout.d_vocab, layout.n_ctx
    everything = slice(None)
    frozen: dict[str, list[Block]] = {
        "embed.W_E": [(everything, slice(0, d_vocab))],
        "pos_embed.W_pos": [(everything, slice(d_vocab, d_vocab + n_ctx))],
        "unembed.b_U": [],
    }
    for layer in range(layout.n_layers):
        for name in ("W_K", "W_V", "W_O", "b_Q", "b_K", "b_V", "b_O"):
            frozen[f"blocks.{layer}.attn.{name}"] = []
    if layout.kind == "disentangled":
        for layer, n_heads in enumerate(layout.n_heads):
            width = layout.width(layer)
            own = slice(0, width)
            for head in range(n_heads):
                written = slice(width * (1 + head), width * (2 + head))
                for name, columns in (("W_K", own), ("W_V", own), ("W_O", written)):
                    frozen[f"blocks.{layer}.attn.{name}"].append((head, own, columns))
        return frozen
    named = layout.slots()
    token, tokens = named["token"].slice, slice(0, d_vocab)
    for head in range(layout.n_heads[0]):
        copied = named[f"L0H{head}.token"].slice
        frozen["blocks.0.attn.W_K"].append((head, named["position"].slice, slice(0, n_ctx)))
        frozen["blocks.0.attn.W_V"].append((head, token, tokens))
        frozen["blocks.0.attn.W_O"].append((head, tokens, copied))
        frozen["blocks.1.attn.W_K"].append((0, copied, slice(head * d_vocab, (head + 1) * d_vocab)))
    frozen["blocks.1.attn.W_V"].append((0, token, tokens))
    frozen["blocks.1.attn.W_O"].append((0, tokens, named["L1H0.token"].slice))
    frozen["unembed.W_U"] = [(named["L1H0.token"].slice, everything)]
    return frozen


@check_arguments
def layout_of(model: HookedTransformer) -> Layout:
    """The layout that a model of ours was built with.

    Raises:
        ValueError: the model was not built by `causal_circuits`.

    >>> layout_of(cc.disentangled_transformer(3, 6, n_heads=(2, 1))).n_heads
    (2, 1)
    """
    layout = getattr(model, "causal_circuits_layout", None)
    if not isinstance(layout, Layout):
        raise ValueError(
            "this model has no disentangled residual stream: disentangle makes an equal model that has "
            "one (attention-only, no LayerNorm), disentangled_transformer, plant_circuit and load_model build one; any "
            "model is taken by ablate_heads, knock_out_edges, patch_activations, circuit_model and extract_graph"
        )
    return layout


def head_of(name: str) -> tuple[int, int]:
    """(layer, head) of "L1H0", and of what is named after it: "L1H0.k", "L1H0.token"."""
    layer, _, head = name.split(".")[0].removeprefix("L").partition("H")
    return int(layer), int(head)


@check_arguments
def has_layout(model: HookedTransformer) -> bool:
    """Whether the model was built by `causal_circuits`.

    >>> has_layout(cc.disentangled_transformer(3, 6))
    True
    """
    return isinstance(getattr(model, "causal_circuits_layout", None), Layout)


_ORIGIN = "causal_circuits_weights_from"


def note_origin(model: HookedTransformer, origin: str) -> None:
    """Note on a model where its weights are from, so that nothing overwrites them unasked."""
    setattr(model, _ORIGIN, origin)


def weights_from(model: HookedTransformer) -> str | None:
    """Where a model's weights are from: a training, a file, `plant_circuit`, ...; None as it was built."""
    return getattr(model, _ORIGIN, None)


@check_arguments
def slots(model: HookedTransformer) -> dict[str, Slot]:
    """The named slots of a model's residual stream.

    >>> slots(cc.disentangled_transformer(d_vocab=10, n_ctx=20))["L0H0.token"]
    Slot(name='L0H0.token', start=30, stop=40)
    """
    return layout_of(model).slots()


def masked(gradient: Tensor, mask: Tensor) -> Tensor:
    """The gradient of a reduced model's W_Q, zero but for A1 or A2; a hook on the parameter."""
    return gradient * mask.to(gradient)
