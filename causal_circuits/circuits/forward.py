"""A model's forward pass with a say in what every edge brings; of a disentangled model slot by slot, from its weights.

Any number of circuits is computed at once, and they share most of their work. What a head attends to depends on the
edges into its queries and keys and on those before them; so a batch of circuits is computed node by node, each node
once for each *different* choice of the edges it depends on (`_distinct`), and the results are handed out by index.
Enumerating all 2^19 circuits of a two-layer model computes 16 patterns in layer 0, not half a million.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby

import numpy as np
import torch
from einops import pack, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from causal_circuits.circuits.graph import LOGITS, Edge, Granularity, depth_of, readers, sender_of
from causal_circuits.interventions import Cost
from causal_circuits.models import PROBABILITY_FLOOR, HookedTransformer, Layout, layout_of, live_heads
from causal_circuits.models.structured import apply_causal_mask

Masks = Bool[Tensor, "circuit edge"]
Slots = dict[str, Float[Tensor, "_sequence pos _width"]]
NEGLIGIBLE = 1e-18  # less attention than this is none: its products are denormal numbers, a hundred times slower


@dataclass(frozen=True)
class Variants:
    """A slot's value in several circuits: the different values, and which of them each circuit has."""

    values: Float[Tensor, "variant batch pos width"]
    index: Int[Tensor, " circuit"]

    def of(self, circuits: Int[Tensor, " some"]) -> Float[Tensor, "some batch pos width"]:
        """The value in each of some circuits."""
        return self.values[self.index[circuits]]


Read = Callable[[str, int, Variants, Int[Tensor, " some"]], Float[Tensor, "some batch pos width"]]
Attend = Callable[[str, Float[Tensor, "some batch query_pos key_pos"]], Float[Tensor, "some batch query_pos key_pos"]]


def read_everything(slot: str, edge: int, value: Variants, circuits: Int[Tensor, " some"]) -> Tensor:
    """Reading in the uncut model: every sender's own value."""
    return value.of(circuits)


@dataclass(frozen=True)
class Gradients:
    """Derivatives of the mean cost of the whole model at some inputs."""

    edges: Float[Tensor, " edge"]  # [edge]; along the nudge of each edge's sender, at the edge's reader
    attention: dict[str, Tensor]  # head -> [batch, query_pos, key_pos]; by each head's pattern


class Forward(ABC):
    """A model's forward pass: every reader gets what `read` says of each slot (or sender) and edge.

    Attributes:
        reads: reader -> (slot, index of the edge) of everything it may read.
        copies: circuits times sequences that are evaluated at once.
    """

    reads: dict[str, list[tuple[str, int]]]
    copies: int = 2**19

    @property
    def uncut(self) -> Masks:
        """The circuit that has every edge."""
        n_edges = 1 + max(edge for readings in self.reads.values() for _, edge in readings)
        return torch.ones(1, n_edges, dtype=torch.bool)

    @abstractmethod
    def embed(self, tokens: Int[Tensor, "batch n_ctx"]) -> Slots:
        """The embeddings of a run."""

    @abstractmethod
    def log_probs(
        self, masks: Masks, inputs: Slots, read: Read, attend: Attend | None = None
    ) -> Float[Tensor, "circuit batch d_vocab"]:
        """The prediction where `read(slot, edge, value, circuits)` says what arrives along an edge.

        `attend(head, pattern)` may look at each head's pattern or put another in its place.
        """

    @abstractmethod
    def values(self, inputs: Slots) -> Slots:
        """Every slot's value in an uncut run on some inputs; of the last layer's, the last row at every position."""

    @abstractmethod
    def writes(self, reader: str, slot: str) -> list[str]:
        """The slots that depend on what a reader finds in a slot."""

    @abstractmethod
    def has_weight(self, reader: str, slot: str) -> bool:
        """Whether the block of the weights that a reader has on a slot may be other than zero."""

    @torch.no_grad()
    def patterns(self, inputs: Slots) -> dict[str, Float[Tensor, "batch query_pos key_pos"]]:
        """Every head's pattern in an uncut run on some inputs."""
        found: dict[str, Tensor] = {}

        def look(head: str, pattern: Tensor) -> Tensor:
            found[head] = pattern[0].expand(len(inputs["token"]), -1, -1)
            return pattern

        self.log_probs(self.uncut, inputs, read_everything, look)
        return found

    @torch.inference_mode(False)
    def gradients(
        self,
        cost: Cost,
        inputs: Slots,
        nudges: Slots,
        patterns: Mapping[str, Float[Tensor, "batch query_pos key_pos"]] | None = None,
    ) -> Gradients:
        """Backpropagate once: every edge carries its sender's value plus an infinitesimal share of the slot's nudge.

        `patterns` are put in place of the heads' own.
        """
        shares = torch.zeros(self.uncut.shape[1], dtype=inputs["token"].dtype, requires_grad=True)
        attended: dict[str, Tensor] = {}

        def read(slot: str, edge: int, value: Variants, circuits: Tensor) -> Tensor:
            own = value.of(circuits)
            nudge = nudges[slot][:, -own.shape[2] :].clone()  # which is not of inference mode
            return own + shares[edge] * nudge

        def attend(head: str, pattern: Tensor) -> Tensor:
            if patterns and head in patterns:
                pattern = patterns[head].detach().clone()[None].requires_grad_(True)
            attended[head] = pattern
            return pattern

        with torch.enable_grad():
            mean_cost = cost(self.log_probs(~self.uncut, inputs, read, attend)).mean()  # asks along every edge
        if not mean_cost.requires_grad:
            raise ValueError(
                f"the metric {cost.name!r} has no gradient, which this method needs: use 'loss' or 'logit_difference'"
            )
        edges, *attention = torch.autograd.grad(mean_cost, [shares, *attended.values()], materialize_grads=True)
        return Gradients(edges, {head: found[0] for head, found in zip(attended, attention, strict=True)})


@dataclass(frozen=True)
class SlotForward(Forward):
    """A disentangled model's weights, cut into blocks between slots, and the forward pass through them."""

    layout: Layout  # of the model
    attention: dict[str, dict[str, Tensor]]  # head -> slot of the query -> its rows of W_Q W_K^T
    columns: dict[str, slice]  # slot -> its columns there
    readout: dict[str, Tensor]  # slot -> its rows of W_U
    bias: Tensor  # of the read-out
    reads: dict[str, list[tuple[str, int]]]  # reader -> (slot, index of the edge) of everything it may read

    @classmethod
    def of(cls, model: HookedTransformer, edges: Sequence[Edge], granularity: Granularity) -> "SlotForward":
        """The blocks of a model's weights, detached."""
        layout, index = layout_of(model), {edge: place for place, edge in enumerate(edges)}
        columns = {name: slot.slice for name, slot in layout.slots().items()}
        attention = {}
        for layer, head in live_heads(model):
            attn = model.blocks[layer].attn
            product = (attn.W_Q[head] @ attn.W_K[head].mT).detach()
            attention[f"L{layer}H{head}"] = {slot: product[where] for slot, where in columns.items()}
        return cls(
            layout=layout,
            attention=attention,
            columns=columns,
            readout={slot: model.W_U.detach()[where] for slot, where in columns.items()},
            bias=model.b_U.detach(),
            reads={
                reader: [
                    (slot, index[sender_of(slot, granularity), reader]) for slot in columns if depth_of(slot) < depth
                ]
                for reader, depth in readers(model).items()
            },
        )

    def embed(self, tokens: Int[Tensor, "batch n_ctx"]) -> Slots:
        """One-hot tokens, and every position's own name."""
        dtype = self.bias.dtype
        names = torch.eye(tokens.shape[1], dtype=dtype, device=tokens.device)
        tokens = torch.nn.functional.one_hot(tokens, self.layout.d_vocab).to(dtype)
        return {"token": tokens, "position": repeat(names, "pos width -> batch pos width", batch=len(tokens))}

    def log_probs(
        self, masks: Masks, inputs: Slots, read: Read, attend: Attend | None = None
    ) -> Float[Tensor, "circuit batch d_vocab"]:
        """Node by node, each once for every different choice of the edges that it depends on."""
        values = self.slots(masks, inputs, read, attend)
        logits: Tensor = self.bias.expand(len(masks), len(inputs["token"]), -1)
        for edge, arriving in groupby(self.reads[LOGITS], key=lambda reading: reading[1]):
            last = {slot: Variants(values[slot].values[:, :, -1:], values[slot].index) for slot, _ in arriving}
            which, inverse = _distinct(masks[:, [edge]], *(value.index for value in last.values()))
            reached = (read(slot, edge, value, which)[:, :, -1] @ self.readout[slot] for slot, value in last.items())
            logits = logits + reduce(torch.add, reached)[inverse]
        if self.layout.kind == "reduced":
            return (logits + PROBABILITY_FLOOR).log()
        return logits.log_softmax(dim=-1)

    def slots(self, masks: Masks, inputs: Slots, read: Read, attend: Attend | None = None) -> dict[str, Variants]:
        """Every slot's value in each circuit, layer by layer; of the last layer's, the last row alone."""
        first = torch.zeros(len(masks), dtype=torch.long)
        values = {slot: Variants(value[None], first) for slot, value in inputs.items()}
        for layer, n_heads in enumerate(self.layout.n_heads):
            written: dict[str, Variants] = {}
            for head in range(n_heads):
                pattern, attends = self._pattern(f"L{layer}H{head}", layer, masks, values, read)
                pattern = pattern if attend is None else attend(f"L{layer}H{head}", pattern)
                written |= self._copied(f"L{layer}H{head}", pattern, attends, masks, values, read)
            values |= written
        return values

    def values(self, inputs: Slots) -> Slots:
        """Every slot's value in an uncut run on some inputs; of the last layer's, the last row at every position."""
        found = self.slots(self.uncut, inputs, read_everything)
        return {slot: value.values[0].expand(-1, self.layout.n_ctx, -1) for slot, value in found.items()}

    def writes(self, reader: str, slot: str) -> list[str]:
        """A query or key bears on all that its head writes, a value on its copy alone."""
        head, _, name = reader.partition(".")
        written = [found for found in self.columns if found.startswith(f"{head}.")]
        return [found for found in written if name != "v" or found == f"{head}.{slot}"]

    def has_weight(self, reader: str, slot: str) -> bool:
        """Whether the block of W_Q W_K^T, or of the read-out, is other than zero."""
        head, _, name = reader.partition(".")
        if reader == LOGITS:
            return bool(self.readout[slot].any())
        if name == "q":
            return bool(self.attention[head][slot].any())
        return name == "v" or any(bool(block[:, self.columns[slot]].any()) for block in self.attention[head].values())

    def _pattern(
        self, head: str, layer: int, masks: Masks, values: dict[str, Variants], read: Read
    ) -> tuple[Float[Tensor, "some batch query_pos key_pos"], Int[Tensor, " circuit"]]:
        """A head's different patterns, and which of them each circuit has."""
        queries, keys = self.reads[f"{head}.q"], self.reads[f"{head}.k"]
        which, attends = _distinct(
            masks[:, [edge for _, edge in queries + keys]], *(values[slot].index for slot, _ in queries)
        )
        rows = slice(-1, None) if layer == self.layout.n_layers - 1 else slice(None)  # the others are never read
        query = reduce(
            torch.add,
            (read(slot, edge, values[slot], which)[:, :, rows] @ self.attention[head][slot] for slot, edge in queries),
        )
        scores = reduce(
            torch.add,
            (query[..., self.columns[slot]] @ read(slot, edge, values[slot], which).mT for slot, edge in keys),
        )
        pattern = apply_causal_mask(scores).softmax(dim=-1)
        return torch.nn.functional.threshold(pattern, NEGLIGIBLE, 0.0), attends

    def _copied(
        self, head: str, pattern: Tensor, attends: Tensor, masks: Masks, values: dict[str, Variants], read: Read
    ) -> dict[str, Variants]:
        written = {}
        for slot, edge in self.reads[f"{head}.v"]:
            if f"{head}.{slot}" in self.columns:
                which, index = _distinct(masks[:, [edge]], attends, values[slot].index)
                copied = pattern[attends[which]] @ read(slot, edge, values[slot], which)
                written[f"{head}.{slot}"] = Variants(copied, index)
        return written


def _distinct(
    masks: Bool[Tensor, "circuit edge"], *indices: Int[Tensor, " circuit"]
) -> tuple[Int[Tensor, " different"], Int[Tensor, " circuit"]]:
    """One circuit for each different combination of edges and indices, and which of them each circuit is like."""
    together, _ = pack([masks.numpy().astype(np.int32), *(index.numpy().astype(np.int32) for index in indices)], "c *")
    rows = np.ascontiguousarray(together).view(np.dtype((np.void, together.dtype.itemsize * together.shape[1])))[:, 0]
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return torch.from_numpy(first), torch.from_numpy(inverse)
