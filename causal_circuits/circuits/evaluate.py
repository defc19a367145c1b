"""What a model predicts when it may use a circuit only: any number of circuits at once, exactly.

A reader gets every sender's value as it is *in this circuit* where the circuit has the edge, and the sender's
counterfactual value where it has not. So the full circuit is the clean run, and the empty one the fully corrupted run.

Circuits share most of their work. What a head attends to depends on the edges into its queries and keys and on those
before them; so a batch of circuits is computed node by node, each node once for each *different* choice of the edges
it depends on (`_distinct`), and the results are handed out by index. Enumerating all 2^19 circuits of a two-layer
model computes 16 patterns in layer 0, not half a million.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

import networkx as nx
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.counterfactuals import Slots
from causal_circuits.circuits.graph import LOGITS, Circuit, Edge, Granularity, circuit_mask
from causal_circuits.circuits.weights import Weights
from causal_circuits.interventions import Cost
from causal_circuits.models import PROBABILITY_FLOOR, Layout
from causal_circuits.tasks import Batch

Masks = Bool[Tensor, "circuit edge"]
COPIES = 2**19  # circuits times sequences that are evaluated at once
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


@check_arguments
@dataclass(frozen=True)
class CircuitModel:
    """A model as a function of its circuit, on a fixed batch; made by `circuit_model`.

    Attributes:
        graph: of everything the model could use; `edges` are those a circuit may have.
        edges: the axis of every mask.
        counterfactual: what stands in for a sender that is cut off.
        granularity: "head" or "slot".
        batch: the sequences.
        cost: the metric, lower being better.
        inputs: the embeddings of the clean run.
        clean: every slot's value in the clean run (of the last layer's slots, that of the last row).
        corrupted: every slot's counterfactual value.
        pairs: every slot's value in a run on other tokens, for the methods that compare pairs of runs.

    >>> import causal_circuits as cc
    >>> from causal_circuits import circuits
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> whole = circuits.circuit_model(model, task.sample(64, seed=0))
    >>> whole.edges[:2], len(whole)
    ((('token', 'L0H0.q'), ('position', 'L0H0.q')), 19)
    >>> bool(whole.costs(whole.full[None]).mean() < whole.costs(whole.empty[None]).mean())
    True
    """

    graph: nx.DiGraph
    edges: tuple[Edge, ...]
    counterfactual: str
    granularity: Granularity
    batch: Batch
    cost: Cost
    layout: Layout
    inputs: Slots = field(repr=False)
    clean: Slots = field(repr=False)
    corrupted: Slots = field(repr=False)
    pairs: Slots = field(repr=False)
    weights: Weights = field(repr=False)

    def __len__(self) -> int:
        return len(self.edges)

    def mask(self, circuit: Circuit) -> Bool[Tensor, " edge"]:
        """A circuit (a DiGraph, a list of edges, or a mask already) as a mask; refused if it is another model's."""
        return circuit_mask(self.edges, circuit)

    @property
    def full(self) -> Bool[Tensor, " edge"]:
        """The circuit that has every edge."""
        return torch.ones(len(self.edges), dtype=torch.bool)

    @property
    def empty(self) -> Bool[Tensor, " edge"]:
        """The circuit that has none."""
        return ~self.full

    @torch.no_grad()
    def log_probs(self, masks: Masks) -> Float[Tensor, "circuit batch d_vocab"]:
        """The prediction at the last position with each circuit."""
        masks = self._checked(masks)
        return torch.cat([self.predict(piece, self.inputs, self._reader(piece)) for piece in self._pieces(masks)])

    @torch.no_grad()
    def costs(self, masks: Masks) -> Float[Tensor, "circuit batch"]:
        """The cost of each circuit on each sequence, float64."""
        masks = self._checked(masks)
        pieces = (self.predict(piece, self.inputs, self._reader(piece)) for piece in self._pieces(masks))
        return torch.cat([self.cost(piece) for piece in pieces])

    def mean_cost(self, circuit: Circuit) -> float:
        """The mean cost of one circuit."""
        return float(self.costs(self.mask(circuit)[None]).mean())

    def effects(self) -> Float[Tensor, " edge"]:
        """By how much the mean cost rises when one edge is cut from the whole model, float64."""
        one_less = ~torch.eye(len(self.edges), dtype=torch.bool)
        costs = self.costs(torch.cat([self.full[None], one_less])).mean(dim=-1)
        return costs[1:] - costs[0]

    def attention(self) -> Float[Tensor, " edge"]:
        """How far from uniform the heads at each edge's ends attend (`methods.attention_weight`)."""
        from causal_circuits.circuits.gradients import edge_attention  # gradients are of this class, so they come later

        return edge_attention(self)

    def gradient_times_attention(self) -> Float[Tensor, " edge"]:
        """How much the attention of the heads at each edge's ends matters (`methods.gradient_times_attention`)."""
        from causal_circuits.circuits.gradients import edge_gradient_times_attention

        return edge_gradient_times_attention(self)

    def attributions(self, points: tuple[float, ...], difference: str) -> Float[Tensor, " edge"]:
        """First-order effects of every edge (`methods.edge_attribution_patching`)."""
        from causal_circuits.circuits.gradients import edge_attributions

        return edge_attributions(self, points, difference)

    def predict(
        self, masks: Masks, inputs: Slots, read: Read, attend: Attend | None = None
    ) -> Float[Tensor, "circuit batch d_vocab"]:
        """A forward pass in which `read(slot, edge, value, circuits)` says what arrives along an edge.

        `attend(head, pattern)` may look at each head's pattern or put another in its place.
        """
        values = self.run(masks, inputs, read, attend)
        logits: Tensor = self.weights.bias.expand(len(masks), len(self.batch), -1)
        for edge, heard in groupby(self._reads(LOGITS), key=lambda reading: reading[1]):
            last = {slot: Variants(values[slot].values[:, :, -1:], values[slot].index) for slot, _ in heard}
            which, inverse = _distinct(masks[:, [edge]], *(value.index for value in last.values()))
            reached = [
                read(slot, edge, value, which)[:, :, -1] @ self.weights.readout[slot] for slot, value in last.items()
            ]
            logits = logits + torch.stack(reached).sum(dim=0)[inverse]
        if self.layout.kind == "reduced":
            return (logits + PROBABILITY_FLOOR).log()
        return logits.log_softmax(dim=-1)

    def run(self, masks: Masks, inputs: Slots, read: Read, attend: Attend | None = None) -> dict[str, Variants]:
        """Every slot's value in each circuit, layer by layer."""
        everyone = torch.zeros(len(masks), dtype=torch.long)
        values = {slot: Variants(value[None], everyone) for slot, value in inputs.items()}
        for layer, n_heads in enumerate(self.layout.n_heads):
            written: dict[str, Variants] = {}
            for head in range(n_heads):
                written |= self._head(f"L{layer}H{head}", layer, masks, values, read, attend)
            values |= written
        return values

    def _head(
        self,
        head: str,
        layer: int,
        masks: Masks,
        values: dict[str, Variants],
        read: Read,
        attend: Attend | None,
    ) -> dict[str, Variants]:
        """What one head writes, slot by slot."""
        asked, answered = self._reads(f"{head}.q"), self._reads(f"{head}.k")
        which, attends = _distinct(
            masks[:, [edge for _, edge in asked + answered]], *(values[slot].index for slot, _ in asked)
        )
        rows = slice(-1, None) if layer == self.layout.n_layers - 1 else slice(None)  # nobody reads the others
        query = sum(
            read(slot, edge, values[slot], which)[:, :, rows] @ self.weights.attention[head][slot]
            for slot, edge in asked
        )
        assert isinstance(query, Tensor)
        scores: Tensor | float = 0.0
        for slot, edge in answered:
            scores = scores + query[..., self.weights.columns[slot]] @ read(slot, edge, values[slot], which).mT
        assert isinstance(scores, Tensor)
        if scores.shape[-2] > 1:
            future = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(future, -torch.inf)
        pattern = torch.nn.functional.threshold(scores.softmax(dim=-1), NEGLIGIBLE, 0.0)
        pattern = pattern if attend is None else attend(head, pattern)
        written = {}
        for slot, edge in self._reads(f"{head}.v"):
            copy = f"{head}.{slot}"
            if copy in self.weights.copies:
                which, index = _distinct(masks[:, [edge]], attends, values[slot].index)
                written[copy] = Variants(pattern[attends[which]] @ read(slot, edge, values[slot], which), index)
        return written

    def _reads(self, reader: str) -> list[tuple[str, int]]:
        """(slot, index of its edge) of everything a reader may read."""
        return self.weights.reads[reader]

    def _reader(self, masks: Masks) -> Read:
        """Reading in a circuit: the value if the circuit has the edge, its counterfactual if not."""

        def read(slot: str, edge: int, value: Variants, circuits: Tensor) -> Tensor:
            keeps, corrupted = masks[circuits, edge], self.corrupted[slot]
            if bool(keeps.all()):
                return value.of(circuits)
            corrupted = corrupted[:, -value.values.shape[2] :]  # one row, where the value has only the last
            if not bool(keeps.any()):
                return corrupted.expand(len(circuits), len(self.batch), -1, -1)
            return torch.where(keeps[:, None, None, None], value.of(circuits), corrupted)

        return read

    def _pieces(self, masks: Masks) -> Iterator[Masks]:
        return iter(masks.split(max(1, COPIES // len(self.batch))))  # type: ignore[no-untyped-call]  # torch leaves it so

    def _checked(self, masks: Tensor) -> Masks:
        if masks.dtype != torch.bool or masks.ndim != 2 or masks.shape[1] != len(self.edges) or not len(masks):
            raise ValueError(
                f"masks must be Boolean [circuit, edge={len(self.edges)}], one circuit or more: "
                f"got {masks.dtype} {list(masks.shape)}"
            )
        return masks


def _distinct(
    masks: Bool[Tensor, "circuit edge"], *indices: Int[Tensor, " circuit"]
) -> tuple[Int[Tensor, " different"], Int[Tensor, " circuit"]]:
    """One circuit for each different combination of edges and indices, and which of them each circuit is like."""
    columns = [masks.numpy().astype(np.int32), *(index.numpy().astype(np.int32)[:, None] for index in indices)]
    together = np.ascontiguousarray(np.concatenate(columns, axis=1))
    rows = together.view(np.dtype((np.void, together.dtype.itemsize * together.shape[1])))[:, 0]
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    return torch.from_numpy(first), torch.from_numpy(inverse)
