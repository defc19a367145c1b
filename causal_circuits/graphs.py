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

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import short_list, table_html

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
    _check_digraph(digraph)
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
    if listed == [None] or (listed == [-1] and _is_integer(entry)):
        return []
    for parent in listed:
        if not _is_integer(parent):
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


@check_arguments
def validate_graph(graph: nx.DiGraph) -> None:
    """Pass if `graph` is a causal graph; otherwise raise a ValueError that names rule, value and remedy.

    A warning tells of a graph that has no query and does not say that its last node is the target, not a position.

    >>> validate_graph(nx.DiGraph([(1, 0)]))
    Traceback (most recent call last):
    ValueError: a parent must precede its child: edge 1 -> 0 in a graph over 1 positions; renumber the positions
    """
    _check_digraph(graph)
    n_ctx = n_ctx_of(graph)
    if n_ctx < 1:
        raise ValueError("a graph needs a context position and a target: got 1 node; add the target as the last node")
    if graph.in_degree(n_ctx) == 0:
        raise ValueError(
            f"the target (the last node, {n_ctx}) needs a parent: it has none; "
            f"add an edge {n_ctx - 1} -> {n_ctx}, or use graph_from_digraph to add a query and a target"
        )
    if "target" not in graph.graph and not has_query(graph):
        warnings.warn(
            f"the last node, {n_ctx}, is taken as the target, behind {n_ctx} positions: if it is a position, use "
            f'graph_from_digraph to add a query and a target; if it is the target, say graph.graph["target"] = {n_ctx}',
            stacklevel=2,
        )


def _check_digraph(graph: nx.DiGraph) -> None:
    """Raise a ValueError unless it is a DiGraph over 0 .. n - 1 whose edges point forward; its target is n - 1."""
    _check_type(graph)
    last = graph.number_of_nodes() - 1
    if last < 0:
        raise ValueError("a graph needs at least one position: got an empty graph")
    strange = [node for node in graph if not _is_integer(node) or not 0 <= node <= last]
    if strange:
        raise ValueError(
            f"nodes must be the positions 0 .. {last} as integers: got {strange[0]!r}; "
            f"relabel them by {_relabelling(graph)}"
        )
    backward = [edge for edge in graph.edges if edge[0] >= edge[1]]
    if backward and not nx.is_directed_acyclic_graph(graph):
        loop = " -> ".join(str(parent) for parent, _ in nx.find_cycle(graph))
        raise ValueError(f"a causal graph has no cycle: found {loop} -> {loop.split()[0]}; remove one of these edges")
    for parent, child in backward:
        raise ValueError(
            f"a parent must precede its child: edge {parent} -> {child} in a graph over {last} positions; "
            "renumber the positions"
        )
    if graph.graph.get("target", last) != last:
        raise ValueError(
            f'the target must be the last node, {last}: graph.graph["target"] is {graph.graph["target"]!r}; '
            "correct it, or take it away and use graph_from_digraph to add a query and a target"
        )


def _check_type(graph: nx.DiGraph) -> None:
    if not isinstance(graph, nx.DiGraph) or graph.is_multigraph():
        raise ValueError(
            f"a causal graph must be a networkx.DiGraph: got {type(graph).__name__}; make one of (parent, child) pairs "
            "by networkx.DiGraph(edges), which keeps one of parallel edges, or of a list by graph_from_parents"
        )


def _relabelling(graph: nx.DiGraph) -> str:
    """The call that turns a graph's nodes into 0 .. n - 1."""
    numbers = {int(node) for node in graph if str(node).isdecimal() or (isinstance(node, float) and node.is_integer())}
    for first, change in ((0, "int"), (1, "lambda node: int(node) - 1")):
        if numbers == set(range(first, first + len(graph))):
            return f"networkx.relabel_nodes(graph, {change})"
    labelled = any("label" in facts for _, facts in graph.nodes(data=True))
    kept = "" if labelled else ', label_attribute="label"'
    return f"networkx.convert_node_labels_to_integers(graph{kept}), which numbers them in their order"


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def n_ctx_of(graph: nx.DiGraph) -> int:
    """The number of context positions (the target not counted)."""
    _check_type(graph)
    return graph.number_of_nodes() - 1


@check_arguments
def parents_of(graph: nx.DiGraph, node: int) -> tuple[int, ...]:
    """The parents of a node, in order of position.

    >>> parents_of(chain_graph(5), 2), parents_of(chain_graph(5), 0)
    ((1,), ())
    """
    _check_type(graph)
    if node not in graph:
        raise ValueError(f"a node must be one of the graph's, 0 .. {n_ctx_of(graph)}: got {node!r}")
    return tuple(sorted(int(parent) for parent in graph.predecessors(node)))


@check_arguments
def has_query(graph: nx.DiGraph) -> bool:
    """Whether the graph is a forest whose last position is a parentless query, the target's only parent.

    >>> has_query(chain_graph(5)), has_query(ngram_graph(5, order=2))
    (True, False)
    """
    _check_digraph(graph)
    target = n_ctx_of(graph)
    in_degrees = [graph.in_degree(node) for node in graph]
    return max(in_degrees) <= 1 and parents_of(graph, target) == (target - 1,) and graph.in_degree(target - 1) == 0


@check_arguments
def graph_parents(graph: nx.DiGraph) -> list[int | None] | list[list[int]]:
    """The list that `graph_from_parents` turns back into this graph.

    >>> graph_parents(chain_graph(5))
    [None, 0, 1, 2]
    >>> graph_parents(ngram_graph(3, order=2))
    [[], [], [0, 1], [1, 2]]
    """
    _check_digraph(graph)
    n_ctx = n_ctx_of(graph)
    if n_ctx == 1 or not has_query(graph):  # one position is too few for the short form
        return [list(parents_of(graph, node)) for node in range(n_ctx + 1)]
    return [next(iter(parents_of(graph, node)), None) for node in range(n_ctx - 1)]


@check_arguments
def latent_edges(graph: nx.DiGraph) -> set[tuple[int, int]]:
    """The edges that a model has to learn: all, except query -> target where the query is given.

    >>> sorted(latent_edges(chain_graph(4)))
    [(0, 1), (1, 2)]
    """
    given, edges = has_query(graph), _edges(graph)
    if given:
        edges.remove((n_ctx_of(graph) - 1, n_ctx_of(graph)))
    return edges


def attention_cells(graph: nx.DiGraph) -> list[tuple[int, int]]:
    """The (query, key) = (child, parent) cells of the true edges in an [n_ctx, n_ctx] matrix, row by row.

    The given edge query -> target has no cell. In a graph without a query the last row is the one that the
    prediction is read from: it stands for the target's parents, which layer 0 must copy there, so that the parents of
    the last position itself cannot be.

    >>> attention_cells(chain_graph(4)), attention_cells(ngram_graph(3, order=2))
    ([(1, 0), (2, 1)], [(2, 1), (2, 2)])
    """
    last = n_ctx_of(graph) - 1
    cells = [(child, parent) for child in range(last) for parent in parents_of(graph, child)]
    return cells if has_query(graph) else cells + [(last, parent) for parent in parents_of(graph, last + 1)]


def _edges(graph: nx.DiGraph) -> set[tuple[int, int]]:
    return {(int(parent), int(child)) for parent, child in graph.edges}


def edge_entries(graph: nx.DiGraph) -> tuple[np.ndarray, np.ndarray]:
    """Which entries [query, key] of a pattern are edges, and which could be: causal ones, but none of a query's row.

    >>> is_edge, possible = edge_entries(chain_graph(4))
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

    >>> parent_attention(np.eye(4, k=-1), chain_graph(4)).tolist()
    [1.0, 1.0]
    """
    cells = np.array(attention_cells(graph), dtype=int).reshape(-1, 2)
    return pattern[..., cells[:, 0], cells[:, 1]]


@check_arguments
@dataclass(frozen=True, repr=False)
class GraphRecovery:
    """How a found graph compares with the true one, over the edges that had to be learned.

    `precision` is 1 when nothing was found and `recall` is 1 when there was nothing to find. The structural
    Hamming distance counts missing and false edges (order is fixed by position, so no edge can be reversed).

    >>> compare_graphs(chain_graph(5), pairs_graph(5))
    GraphRecovery(1 missing: 1 -> 2; 0 false; precision 1.000, recall 0.667, F1 0.800)
    """

    precision: float
    recall: float
    f1: float
    structural_hamming_distance: int
    exact: bool
    missing: tuple[tuple[int, int], ...]
    false: tuple[tuple[int, int], ...]

    def _differences(self) -> dict[str, str]:
        """Missing and false edges in words."""
        listed = {"missing": self.missing, "false": self.false}
        return {what: short_list([f"{a} -> {b}" for a, b in edges]) for what, edges in listed.items()}

    def __repr__(self) -> str:
        counts = {"missing": len(self.missing), "false": len(self.false)}
        told = [f"{counts[what]} {what}{edges and f': {edges}'}" for what, edges in self._differences().items()]
        said = "the same graph" if self.exact else "; ".join(told)
        return f"GraphRecovery({said}; precision {self.precision:.3f}, recall {self.recall:.3f}, F1 {self.f1:.3f})"

    def _repr_html_(self) -> str:
        """A table of the scores and of every edge that differs."""
        row = {
            "precision": self.precision,
            "recall": self.recall,
            "F1": self.f1,
            "structural Hamming distance": self.structural_hamming_distance,
            **{f"{what} edges": edges or "none" for what, edges in self._differences().items()},
        }
        return table_html([row], "The same graph" if self.exact else "The graphs differ")


@check_arguments
def compare_graphs(true: nx.DiGraph, found: nx.DiGraph) -> GraphRecovery:
    """Compare two causal graphs over the same positions, edge by edge.

    The edge query -> target of the true graph is given and not compared. If neither graph says that its last node is
    the target, and `found` lacks that edge, it may be an edge like any other: it counts as missing, with a warning.

    >>> compare_graphs(chain_graph(6), chain_graph(6)).exact
    True
    >>> compare_graphs(chain_graph(6), pairs_graph(6)).missing
    ((1, 2), (3, 4))
    """
    for graph in (true, found):
        _check_digraph(graph)
    if n_ctx_of(true) != n_ctx_of(found):
        raise ValueError(
            f"graphs must cover the same positions to be compared: {n_ctx_of(true)} against {n_ctx_of(found)} "
            "(the last node is the target); add what one of them lacks"
        )
    true_edges = latent_edges(true)
    given = _edges(true) - true_edges
    if not given <= _edges(found) and "target" not in true.graph | found.graph:
        warnings.warn(
            f"the last node, {n_ctx_of(true)}, may be the target or a position, and its edge counts as missing: if it "
            f'is the target, say true.graph["target"] = {n_ctx_of(true)}; if not, use graph_from_digraph for both',
            stacklevel=2,
        )
        true_edges, given = _edges(true), set()
    found_edges = _edges(found) - given
    hits = len(true_edges & found_edges)
    precision = hits / len(found_edges) if found_edges else 1.0
    recall = hits / len(true_edges) if true_edges else 1.0
    return GraphRecovery(
        precision=precision,
        recall=recall,
        f1=2 * precision * recall / (precision + recall) if hits else float(not true_edges and not found_edges),
        structural_hamming_distance=len(true_edges ^ found_edges),
        exact=true_edges == found_edges,
        missing=tuple(sorted(true_edges - found_edges)),
        false=tuple(sorted(found_edges - true_edges)),
    )
