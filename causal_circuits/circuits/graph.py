"""A model as a graph of who reads whom: the graph whose subgraphs are circuits.

What a reader finds in the residual stream is a sum of what senders wrote, so "reader r uses what sender s wrote" can be
cut exactly, in any transformer. Nodes, in the order in which a forward pass visits them:

* **senders**: ``token`` and ``position`` (the embeddings), each head's output, ``L0H0``, and each MLP's, ``L0MLP``. In
  a disentangled residual stream a head's output has slots of its own, each a sender at the finer granularity:
  ``L0H0.token`` (the tokens it copied), ``L0H0.position``;
* **readers**: each head's three inputs, ``L0H0.q``, ``L0H0.k``, ``L0H0.v``, each MLP's, ``L0MLP.in``, and ``logits``.

An edge sender -> reader is there or cut. The edges reader -> sender inside a head or an MLP are no choice: their
attribute ``kind`` is "inside", the others' is "read", and `circuit_edges` lists those.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import networkx as nx
import torch
from jaxtyping import Bool
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.models import HookedTransformer, layout_of, live_heads

Granularity = Literal["head", "slot"]
Edge = tuple[str, str]
Circuit: TypeAlias = nx.DiGraph | Iterable[Edge] | Bool[Tensor, " edge"]
INPUTS = ("q", "k", "v")
LOGITS = "logits"


@check_arguments
def circuit_graph(model: HookedTransformer, granularity: Granularity = "head") -> nx.DiGraph:
    """The graph of everything that a model could use: with one head in each of two layers and no MLP, 19 edges.

    Args:
        model: any HookedTransformer or bridge.
        granularity: "head" (a head's output is one sender); of a disentangled model also "slot" (each slot of it is).

    >>> model = cc.disentangled_transformer(d_vocab=3, n_ctx=4, n_heads=(1, 1))
    >>> len(circuit_edges(circuit_graph(model))), len(circuit_edges(circuit_graph(model, "slot")))
    (19, 26)
    >>> [sender for sender, reader in circuit_edges(circuit_graph(model)) if reader == "L1H0.k"]
    ['token', 'position', 'L0H0']
    """
    graph, who_reads, who_writes = nx.DiGraph(granularity=granularity), readers(model), senders(model, granularity)
    graph.add_nodes_from((reader, {"kind": "reader", "layer": depth // 2}) for reader, depth in who_reads.items())
    graph.add_nodes_from((sender, {"kind": "sender", "layer": depth_of(sender) // 2}) for sender in who_writes)
    for reader, depth in who_reads.items():
        for sender in who_writes:
            if depth_of(sender) < depth:
                graph.add_edge(sender, reader, kind="read")
            elif sender.split(".")[0] == reader.split(".")[0]:
                graph.add_edge(reader, sender, kind="inside")
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


def readers(model: HookedTransformer) -> dict[str, int]:
    """Every reader and its depth, in the order of a forward pass."""
    named: dict[str, int] = {}
    for layer in range(model.cfg.n_layers):
        heads = [head for at, head in live_heads(model) if at == layer]
        named |= {f"L{layer}H{head}.{name}": 2 * layer for head in heads for name in INPUTS}
        named |= {} if model.cfg.attn_only else {f"L{layer}MLP.in": 2 * layer + 1}
    return {**named, LOGITS: 2 * model.cfg.n_layers}


def senders(model: HookedTransformer, granularity: Granularity) -> list[str]:
    """Every sender, in the order in which they write."""
    if granularity == "slot":
        return list(layout_of(model).slots())
    inside = dict.fromkeys(reader.split(".")[0] for reader in readers(model) if reader != LOGITS)
    return ["token", *(["position"] if "hook_pos_embed" in model.hook_dict else []), *inside]


def sender_of(slot: str, granularity: Granularity) -> str:
    """Who writes a slot: itself, or at the granularity of heads the head whose output it is a part of."""
    return slot.split(".")[0] if granularity == "head" else slot


def depth_of(slot: str) -> int:
    """Twice the layer that writes a slot, one more if its MLP does; -1 for the embeddings."""
    writer = re.match(r"L(\d+)(MLP)?", slot)
    return -1 if writer is None else 2 * int(writer[1]) + (writer[2] is not None)
