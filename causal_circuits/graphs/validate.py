"""What makes a DiGraph a causal graph, what is said of one that is not, and its number of positions and parents."""

import warnings

import networkx as nx
import numpy as np

from causal_circuits.arguments import check_arguments


@check_arguments
def validate_graph(graph: nx.DiGraph) -> None:
    """Pass if `graph` is a causal graph; otherwise raise a ValueError that names rule, value and remedy.

    A warning tells of a graph that has no query and does not say that its last node is the target, not a position.

    >>> validate_graph(nx.DiGraph([(1, 0)]))
    Traceback (most recent call last):
    ValueError: a parent must precede its child: edge 1 -> 0 in a graph over 1 positions; renumber the positions
    """
    check_digraph(graph)
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


def check_digraph(graph: nx.DiGraph) -> None:
    """Raise a ValueError unless it is a DiGraph over 0 .. n - 1 whose edges point forward; its target is n - 1."""
    if graph.is_multigraph():
        raise ValueError(
            f"a causal graph must be a networkx.DiGraph: got {type(graph).__name__}; make one of (parent, child) pairs "
            "by networkx.DiGraph(edges), which keeps one of parallel edges"
        )
    last = graph.number_of_nodes() - 1
    if last < 0:
        raise ValueError("a graph needs at least one position: got an empty graph")
    strange = [node for node in graph if not is_integer(node) or not 0 <= node <= last]
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


def _relabelling(graph: nx.DiGraph) -> str:
    """The call that turns a graph's nodes into 0 .. n - 1."""
    numbers = {int(node) for node in graph if str(node).isdecimal() or (isinstance(node, float) and node.is_integer())}
    for first, change in ((0, "int"), (1, "lambda node: int(node) - 1")):
        if numbers == set(range(first, first + len(graph))):
            return f"networkx.relabel_nodes(graph, {change})"
    labelled = any("label" in facts for _, facts in graph.nodes(data=True))
    kept = "" if labelled else ', label_attribute="label"'
    return f"networkx.convert_node_labels_to_integers(graph{kept}), which numbers them in their order"


def is_integer(value: object) -> bool:
    """Whether a value is an integer; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


@check_arguments
def n_ctx_of(graph: nx.DiGraph) -> int:
    """The number of context positions (the target not counted).

    >>> n_ctx_of(nx.DiGraph([(0, 1), (2, 3)], target=3))
    3
    """
    return int(graph.number_of_nodes()) - 1


@check_arguments
def parents_of(graph: nx.DiGraph, node: int) -> tuple[int, ...]:
    """The parents of a node, in order of position.

    >>> parents_of(cc.chain_graph(5), 2), parents_of(cc.chain_graph(5), 0)
    ((1,), ())
    """
    if node not in graph:
        raise ValueError(f"a node must be one of the graph's, 0 .. {n_ctx_of(graph)}: got {node!r}")
    return tuple(sorted(int(parent) for parent in graph.predecessors(node)))


@check_arguments
def has_query(graph: nx.DiGraph) -> bool:
    """Whether the graph is a forest whose last position is a parentless query, the target's only parent.

    >>> has_query(cc.chain_graph(5)), has_query(cc.ngram_graph(5, order=2))
    (True, False)
    """
    check_digraph(graph)
    target = n_ctx_of(graph)
    in_degrees = [graph.in_degree(node) for node in graph]
    return max(in_degrees) <= 1 and parents_of(graph, target) == (target - 1,) and graph.in_degree(target - 1) == 0
