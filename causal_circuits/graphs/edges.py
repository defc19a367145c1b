"""The edges of a causal graph, as a list of parents, a set, or the entries of an attention pattern."""

from typing import Any

import networkx as nx
import numpy as np

from causal_circuits.arguments import check_arguments
from causal_circuits.graphs.validate import check_digraph, has_query, n_ctx_of, parents_of


@check_arguments
def graph_parents(graph: nx.DiGraph) -> list[int | None] | list[list[int]]:
    """The list that `graph_from_parents` turns back into this graph.

    >>> graph_parents(cc.chain_graph(5))
    [None, 0, 1, 2]
    >>> graph_parents(cc.ngram_graph(3, order=2))
    [[], [], [0, 1], [1, 2]]
    """
    check_digraph(graph)
    n_ctx = n_ctx_of(graph)
    if n_ctx == 1 or not has_query(graph):  # one position is too few for the short form
        return [list(parents_of(graph, node)) for node in range(n_ctx + 1)]
    return [next(iter(parents_of(graph, node)), None) for node in range(n_ctx - 1)]


@check_arguments
def latent_edges(graph: nx.DiGraph) -> set[tuple[int, int]]:
    """The edges that a model has to learn: all, except query -> target where the query is given.

    >>> sorted(latent_edges(cc.chain_graph(4)))
    [(0, 1), (1, 2)]
    """
    given, edges = has_query(graph), edges_of(graph)
    if given:
        edges.remove((n_ctx_of(graph) - 1, n_ctx_of(graph)))
    return edges


def attention_cells(graph: nx.DiGraph) -> list[tuple[int, int]]:
    """The (query, key) = (child, parent) cells of the true edges in an [n_ctx, n_ctx] matrix, row by row.

    The given edge query -> target has no cell. In a graph without a query the last row is the one that the
    prediction is read from: it stands for the target's parents, which layer 0 must copy there, so that the parents of
    the last position itself cannot be.

    >>> attention_cells(cc.chain_graph(4)), attention_cells(cc.ngram_graph(3, order=2))
    ([(1, 0), (2, 1)], [(2, 1), (2, 2)])
    """
    last = n_ctx_of(graph) - 1
    cells = [(child, parent) for child in range(last) for parent in parents_of(graph, child)]
    return cells if has_query(graph) else cells + [(last, parent) for parent in parents_of(graph, last + 1)]


def roots_of(graph: nx.DiGraph) -> list[int]:
    """Positions without a parent, the query left out."""
    last = n_ctx_of(graph) - has_query(graph)
    return [node for node in range(last) if not graph.in_degree(node)]


def edges_of(graph: nx.DiGraph) -> set[tuple[int, int]]:
    """All edges as (parent, child), that of the target included."""
    return {(int(parent), int(child)) for parent, child in graph.edges}


def edge_entries(graph: nx.DiGraph) -> tuple[np.ndarray, np.ndarray]:
    """Which entries [query, key] of a pattern are edges, and which could be: causal ones, but none of a query's row.

    >>> is_edge, possible = edge_entries(cc.chain_graph(4))
    >>> np.argwhere(is_edge).tolist(), possible.sum(axis=1).tolist()
    ([[1, 0], [2, 1]], [1, 2, 3, 0])
    """
    n_ctx = n_ctx_of(graph)
    is_edge, possible = np.zeros((n_ctx, n_ctx), dtype=bool), np.tri(n_ctx, dtype=bool)
    for cell in attention_cells(graph):
        is_edge[cell] = True
    possible[-1] &= not has_query(graph)
    return is_edge, possible


def parent_attention(pattern: Any, graph: nx.DiGraph) -> Any:
    """The entries of patterns [..., query, key], arrays or tensors, that are edges: [..., edge] (`attention_cells`).

    >>> parent_attention(np.eye(4, k=-1), cc.chain_graph(4)).tolist()
    [1.0, 1.0]
    """
    cells = np.array(attention_cells(graph), dtype=int).reshape(-1, 2)
    return pattern[..., cells[:, 0], cells[:, 1]]
