"""The weights of a model cut into blocks, one for each pair of slots that they connect."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from causal_circuits.circuits.graph import Edge, Granularity, readable_slots, readers, sender_of
from causal_circuits.models import HookedTransformer, layout_of


@dataclass(frozen=True)
class Weights:
    """The blocks of the weights between slots.

    Attributes:
        attention: head -> slot of the query -> its rows of W_Q W_K^T.
        columns: slot -> its columns there.
        copies: the slots that heads write.
        readout: slot -> its rows of W_U.
        bias: of the read-out.
        reads: reader -> (slot, index of the edge) of everything it may read.
    """

    attention: dict[str, dict[str, Tensor]]
    columns: dict[str, slice]
    copies: frozenset[str]
    readout: dict[str, Tensor]
    bias: Tensor
    reads: dict[str, list[tuple[str, int]]]

    @classmethod
    def of(cls, model: HookedTransformer, edges: Sequence[Edge], granularity: Granularity) -> "Weights":
        """The blocks of a model's weights, detached."""
        layout, index = layout_of(model), {edge: place for place, edge in enumerate(edges)}
        named = {name: slot.slice for name, slot in layout.slots().items()}
        attention = {}
        for layer, n_heads in enumerate(layout.n_heads):
            for head in range(n_heads):
                attn = model.blocks[layer].attn
                product = (attn.W_Q[head] @ attn.W_K[head].mT).detach()
                attention[f"L{layer}H{head}"] = {slot: product[where] for slot, where in named.items()}
        return cls(
            attention=attention,
            columns=named,
            copies=frozenset(slot for slot in named if "." in slot),
            readout={slot: model.W_U.detach()[where] for slot, where in named.items()},
            bias=model.b_U.detach(),
            reads={
                reader: [(slot, index[sender_of(slot, granularity), reader]) for slot in readable_slots(layout, layer)]
                for reader, layer in readers(layout).items()
            },
        )
