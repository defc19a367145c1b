"""Causal graphs from families, from lists of parents, and from a DiGraph without a target."""

from collections.abc import Sequence
from typing import Any

import networkx as nx
import numpy as np
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.graphs.validate import check_digraph, is_integer, parents_of, validate_graph

Parents = Sequence[Any] | np.ndarray | Tensor  # `graph_from_parents` says what is wrong with an entry, and where

# Far beyond what an [n_ctx, n_ctx] matrix of attention allows; a larger number is a slip, and would fill the memory.
MOST_POSITIONS = 100_000


@check_arguments
def chain_graph(n_ctx: int) -> nx.DiGraph:
    """The in-context Markov chain: the parent of position i is i - 1, up to the query.

    >>> sorted(chain_graph(4).edges)
    [(0, 1), (1, 2), (3, 4)]
    """
    _check_n_ctx(n_ctx)
    return _named("chain", [None, *range(n_ctx - 2)])


@check_arguments
def pairs_graph(n_ctx: int) -> nx.DiGraph:
    """The paper's in-context-learning graph: odd positions have the position before as parent.

    >>> sorted(pairs_graph(6).edges)
    [(0, 1), (2, 3), (5, 6)]
    """
    _check_n_ctx(n_ctx)
    return _named("pairs", [i - 1 if i % 2 else None for i in range(n_ctx - 1)])


@check_arguments
def random_forest(n_ctx: int, root_probability: float = 0.5, seed: int | np.random.Generator = 0) -> nx.DiGraph:
    """A random forest: each position is a root with `root_probability`, else its parent is uniform.

    Position 0 is always a root. The same seed gives the same graph.

    >>> graph = random_forest(20, seed=3)
    >>> max(degree for _, degree in graph.in_degree)
    1
    """
    _check_n_ctx(n_ctx)
    if not 0 <= root_probability <= 1:
        raise ValueError(f"root_probability must lie in [0, 1]: got {root_probability}; 0.5 is the paper's value")
    generator = np.random.default_rng(seed)
    parents: list[int | None] = [None]
    for position in range(1, n_ctx - 1):
        is_root = generator.random() < root_probability
        parent = int(generator.integers(position))
        parents.append(None if is_root else parent)
    return _named("forest", parents)


@check_arguments
def ngram_graph(n_ctx: int, order: int) -> nx.DiGraph:
    """The in-context n-gram: the parents of position i are i - order, ..., i - 1.

    The first `order` positions are roots; the target's parents are the last `order` positions.

    >>> sorted(ngram_graph(4, order=2).edges)
    [(0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4)]
    """
    _check_n_ctx(n_ctx)
    if not 1 <= order < n_ctx:
        raise ValueError(f"an n-gram's order must lie in 1 .. n_ctx - 1 = {n_ctx - 1}: got {order}")
    parents = [() if i < order else tuple(range(i - order, i)) for i in range(n_ctx + 1)]
    return _named(f"{order + 1}-gram", parents)


@check_arguments
def graph_from_parents(parents: Parents) -> nx.DiGraph:
    """The graph whose position i has the parents ``parents[i]``.

    Args:
        parents: one entry a position. *Forest*: ``n_ctx - 1`` entries, each an int, or None or -1 for a
            root; the query position and the target follow by themselves. *General*: if any entry is a
            list, tuple or array, ``n_ctx + 1`` entries, the target's parents last, ``[]`` for a root.

    Raises:
        ValueError: the list is empty, an entry is no position, parents are repeated, out of order or after the child.

    >>> sorted(graph_from_parents([None, 0, 0]).edges)          # n_ctx 4: 0 -> 1, 0 -> 2, query -> target
    [(0, 1), (0, 2), (3, 4)]
    >>> sorted(graph_from_parents([[], [], [0, 1], [1, 2]]).edges)    # n_ctx 3, two parents each
    [(0, 2), (1, 2), (1, 3), (2, 3)]
    """
    entries = [_plain(entry) for entry in _plain(parents)]
    if not entries:
        raise ValueError("a graph needs at least one position before the query: got an empty list of parents")
    general = any(isinstance(entry, list | tuple) for entry in entries)
    n_ctx = len(entries) - 1 if general else len(entries) + 1
    if n_ctx < 1:
        raise ValueError("a graph needs at least one context position: got only the target's parents")
    graph = nx.DiGraph(target=n_ctx)
    graph.add_nodes_from(range(n_ctx + 1))
    for child, entry in enumerate(entries):
        for parent in _entry_parents(child, entry, n_ctx):
            graph.add_edge(parent, child)
    if not general:
        graph.add_edge(n_ctx - 1, n_ctx)
    validate_graph(graph)
    return graph


@check_arguments
def graph_from_digraph(digraph: nx.DiGraph) -> nx.DiGraph:
    """The forest with a query and a target added behind the nodes 0 .. n - 1 of a DiGraph, attributes included.

    The new query (node n) is the only parent of the new target (node n + 1), so positions may have at most
    one parent. A DiGraph that already holds its target needs no conversion: every function takes it as it is; say so
    by ``networkx.DiGraph(edges, target=n_ctx)`` where it has no query.

    >>> graph = graph_from_digraph(nx.DiGraph([(0, 1), (1, 2)]))
    >>> sorted(graph.edges), graph.graph["target"]
    ([(0, 1), (1, 2), (3, 4)], 4)
    """
    check_digraph(digraph)
    if "target" in digraph.graph:
        raise ValueError(
            f"a query and a target are added to a graph that has none: its target is {digraph.graph['target']}; "
            'use it as it is, or take graph.graph["target"] away'
        )
    n = digraph.number_of_nodes()
    crowded = [node for node in digraph if digraph.in_degree(node) > 1]
    if crowded:
        raise ValueError(
            f"a graph with a query gives each position at most one parent: position {crowded[0]} has "
            f"{list(parents_of(digraph, crowded[0]))}; add the target node yourself to use several parents"
        )
    graph = nx.DiGraph(target=n + 1)
    graph.add_nodes_from(range(n + 2))
    graph.update(digraph)
    graph.add_edge(n, n + 1)
    graph.graph.update(digraph.graph)
    return graph


def _named(name: str, parents: Parents) -> nx.DiGraph:
    graph = graph_from_parents(parents)
    graph.graph["name"] = name
    return graph


def _check_n_ctx(n_ctx: int) -> None:
    if n_ctx < 2:
        raise ValueError(f"n_ctx must be an integer of at least 2 (one position and the query): got {n_ctx}")
    if n_ctx > MOST_POSITIONS:
        raise ValueError(f"n_ctx must be at most {MOST_POSITIONS:,} (attention is [n_ctx, n_ctx]): got {n_ctx:,}")


def _plain(value: Any) -> Any:
    """Lists and numbers in place of arrays and tensors."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic | Tensor) else value


def _entry_parents(child: int, entry: object, n_ctx: int) -> list[int]:
    """The parents that one entry of a parents list names, each checked to lie in the context."""
    listed: list[Any] = list(entry) if isinstance(entry, list | tuple) else [entry]
    if listed == [None] or (listed == [-1] and is_integer(entry)):
        return []
    for parent in listed:
        if not is_integer(parent):
            raise ValueError(
                f"a parent must be an integer position, None or -1 for a root: got {parent!r} at position {child}"
            )
        if not 0 <= parent < n_ctx:
            raise ValueError(
                f"a parent must lie in the context 0 .. {n_ctx - 1}: got {parent} at position {child}; "
                "use None or -1 for a root"
            )
    if len(set(listed)) != len(listed):
        raise ValueError(f"a parent may be named once: got {listed} at position {child}; remove the repetition")
    if listed != sorted(listed):
        raise ValueError(
            f"parents must be named in order, as the axes of the transition matrix: got {listed} at position "
            f"{child}; write {sorted(listed)}"
        )
    return [int(parent) for parent in listed]
