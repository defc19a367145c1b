"""Causal graphs over the positions of a context: make, validate, compare.

A causal graph is a `networkx.DiGraph` whose nodes are the context positions ``0 .. n_ctx - 1`` and one more node,
``n_ctx``: the *target*, the token to be predicted. An edge goes parent -> child, and a parent precedes its child. A
node may have a "label", which figures show. `graph.graph["target"]` says that the last node is the target: the
functions here write it, and a graph without a query that does not say it brings a warning.

Two families (Nichani, Damian & Lee 2024, sections 2 and 6):

* **forests with a query.** The last context position is the *query*: it has no parents, its token is uniform, and it
  is the only parent of the target. Every other position has one parent or is a root.
* **general DAGs.** Positions have up to k parents, and so has the target.
"""

from causal_circuits.graphs.compare import GraphRecovery, compare_graphs
from causal_circuits.graphs.edges import attention_cells, edge_entries, graph_parents, latent_edges, parent_attention
from causal_circuits.graphs.make import (
    MOST_POSITIONS,
    Parents,
    chain_graph,
    graph_from_digraph,
    graph_from_parents,
    ngram_graph,
    pairs_graph,
    random_forest,
)
from causal_circuits.graphs.validate import has_query, n_ctx_of, parents_of, validate_graph

__all__ = [
    "MOST_POSITIONS",
    "GraphRecovery",
    "Parents",
    "attention_cells",
    "chain_graph",
    "compare_graphs",
    "edge_entries",
    "graph_from_digraph",
    "graph_from_parents",
    "graph_parents",
    "has_query",
    "latent_edges",
    "n_ctx_of",
    "ngram_graph",
    "pairs_graph",
    "parent_attention",
    "parents_of",
    "random_forest",
    "validate_graph",
]
