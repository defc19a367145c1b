"""A model as a graph of who reads whom: the graph whose subgraphs are circuits.

In a disentangled residual stream every sender has slots of its own, so "reader r uses what sender s wrote" is a block
of a weight matrix, and cutting it is exact. Nodes, in the order in which a forward pass visits them:

* **senders**: ``token`` and ``position`` (the two embeddings), and each head's output, ``L0H0`` - or, at the finer
  granularity, each slot of it: ``L0H0.token`` (the tokens it copied), ``L0H0.position``;
* **readers**: each head's three inputs, ``L0H0.q``, ``L0H0.k``, ``L0H0.v``, and ``logits``.

An edge sender -> reader is there or cut. The edges reader -> sender inside a head are no choice: their attribute
``kind`` is "inside", the others' is "read", and `circuit_edges` lists those.
"""

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import networkx as nx
import torch
from jaxtyping import Bool
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Row, table_html, table_text
from causal_circuits.models import HookedTransformer, Layout, layout_of

Granularity = Literal["head", "slot"]
Edge = tuple[str, str]
Circuit: TypeAlias = nx.DiGraph | Iterable[Edge] | Bool[Tensor, " edge"]
INPUTS = ("q", "k", "v")
LOGITS = "logits"


@check_arguments
class CircuitGraph(nx.DiGraph):  # type: ignore[misc]  # networkx is untyped here
    """A `networkx.DiGraph` of senders and readers that shows itself as a table: who reads whom.

    >>> graph = cc.circuits.circuit_graph(cc.disentangled_transformer(3, 6))
    >>> sorted(graph.predecessors("L0H0.q"))
    ['position', 'token']
    """

    def rows(self) -> list[Row]:
        """One row a reader, in the order of a forward pass."""
        read: dict[str, list[str]] = {}
        for sender, reader in circuit_edges(self):
            read.setdefault(reader, []).append(sender)
        return [{"reader": reader, "reads": ", ".join(senders)} for reader, senders in read.items()]

    def __repr__(self) -> str:
        return f"{len(circuit_edges(self))} edges\n{table_text(self.rows())}"

    def _repr_html_(self) -> str:
        return table_html(self.rows(), f"Circuit of {len(circuit_edges(self))} edges: who reads whom")


@check_arguments
def circuit_graph(model: HookedTransformer, granularity: Granularity = "head") -> CircuitGraph:
    """The graph of everything that a model of ours could use: with one head in each of two layers, 19 edges.

    Args:
        model: any model of ours.
        granularity: "head" (a head's output is one sender) or "slot" (each slot of it is one).

    >>> model = cc.disentangled_transformer(d_vocab=3, n_ctx=4, n_heads=(1, 1))
    >>> len(circuit_edges(circuit_graph(model))), len(circuit_edges(circuit_graph(model, "slot")))
    (19, 26)
    >>> [sender for sender, reader in circuit_edges(circuit_graph(model)) if reader == "L1H0.k"]
    ['token', 'position', 'L0H0']
    """
    layout = layout_of(model)
    graph = CircuitGraph(granularity=granularity, heads=" ".join(map(str, layout.n_heads)), kind=layout.kind)
    for reader, layer in readers(layout).items():
        graph.add_node(reader, kind="reader", layer=layer)
    for reader, layer in readers(layout).items():
        for slot in readable_slots(layout, layer):
            sender = sender_of(slot, granularity)
            graph.add_node(sender, kind="sender", layer=written_in(slot))
            graph.add_edge(sender, reader, kind="read")
    for sender in [node for node, kind in graph.nodes(data="kind") if kind == "sender" and node.startswith("L")]:
        for name in INPUTS:
            graph.add_edge(f"{sender.split('.')[0]}.{name}", sender, kind="inside")
    return graph


@check_arguments
def circuit_edges(graph: nx.DiGraph) -> list[Edge]:
    """The edges that a circuit may have or not, reader by reader in the order of a forward pass.

    >>> edges = circuit_edges(cc.circuits.circuit_graph(cc.disentangled_transformer(3, 6)))
    >>> edges[0], len(edges)
    (('token', 'L0H0.q'), 19)
    """
    order = {node: place for place, node in enumerate(graph)}
    edges = [(sender, reader) for sender, reader, kind in graph.edges(data="kind") if kind == "read"]
    return sorted(edges, key=lambda edge: (order[edge[1]], order[edge[0]]))


@check_arguments
def circuit_mask(edges: Sequence[Edge], circuit: Circuit) -> Bool[Tensor, " edge"]:
    """A circuit - a DiGraph, a list of edges, or a mask already - as a mask over `edges`.

    Raises:
        ValueError: an edge that is not among them: the circuit of another model, or of another granularity.

    >>> circuit_mask([("token", "logits"), ("position", "logits")], [("position", "logits")])
    tensor([False,  True])
    """
    if isinstance(circuit, Tensor):
        if circuit.dtype != torch.bool or circuit.shape != (len(edges),):
            raise ValueError(
                f"a circuit's mask must be Boolean, one entry for each of {len(edges)} edges: "
                f"got {circuit.dtype} {list(circuit.shape)}"
            )
        return circuit
    chosen = circuit_edges(circuit) if isinstance(circuit, nx.DiGraph) else [tuple(edge) for edge in circuit]
    index = {edge: place for place, edge in enumerate(edges)}
    mask = torch.zeros(len(edges), dtype=torch.bool)
    nodes = dict.fromkeys(node for edge in edges for node in edge)
    for edge in chosen:
        if edge not in index:
            unknown = [node for node in edge if node not in nodes]
            what = f"no node {unknown[0]!r}" if unknown else f"no edge {' -> '.join(map(str, edge))}"
            raise ValueError(
                f"a circuit must be a part of the model's graph: {what} in it; its nodes are {', '.join(nodes)} "
                "(is this the circuit of another model, or of another granularity?)"
            )
        mask[index[edge]] = True
    return mask


def heads_of(layout: Layout) -> list[tuple[int, int]]:
    """(layer, head) of every head."""
    return [(layer, head) for layer, n_heads in enumerate(layout.n_heads) for head in range(n_heads)]


def readers(layout: Layout) -> dict[str, int]:
    """Every reader and its layer (logits: the number of layers), in the order of a forward pass."""
    named = {f"L{layer}H{head}.{name}": layer for layer, head in heads_of(layout) for name in INPUTS}
    return {**named, LOGITS: layout.n_layers}


def readable_slots(layout: Layout, layer: int) -> list[str]:
    """The slots that readers in a layer find in the residual stream: those written before it."""
    return [slot for slot in layout.slots() if written_in(slot) < layer]


def sender_of(slot: str, granularity: Granularity) -> str:
    """Who writes a slot: itself, or at the granularity of heads the head whose output it is a part of.

    >>> sender_of("L1H0.L0H0.token", "head"), sender_of("position", "head")
    ('L1H0', 'position')
    """
    return slot.split(".")[0] if granularity == "head" else slot


def written_in(slot: str) -> int:
    """The layer that writes a slot; -1 for the embeddings."""
    first = slot.split(".")[0]
    return int(first[1 : first.index("H")]) if "." in slot else -1
