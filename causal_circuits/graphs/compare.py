"""One causal graph against another, edge by edge."""

import warnings
from dataclasses import dataclass

import networkx as nx

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Result
from causal_circuits.graphs.edges import edges_of, latent_edges
from causal_circuits.graphs.validate import check_digraph, n_ctx_of


@check_arguments
@dataclass(frozen=True, repr=False)
class GraphRecovery(Result):
    """How a found graph compares with the true one, over the edges that had to be learned.

    `precision` is 1 when nothing was found and `recall` is 1 when there was nothing to find. The structural
    Hamming distance counts missing and false edges (order is fixed by position, so no edge can be reversed).

    >>> recovery = compare_graphs(cc.chain_graph(5), cc.pairs_graph(5))
    >>> recovery.missing, recovery.false, round(recovery.recall, 3)
    (((1, 2),), (), 0.667)
    """

    precision: float
    recall: float
    f1: float
    structural_hamming_distance: int
    exact: bool
    missing: tuple[tuple[int, int], ...]
    false: tuple[tuple[int, int], ...]


@check_arguments
def compare_graphs(true: nx.DiGraph, found: nx.DiGraph) -> GraphRecovery:
    """Compare two causal graphs over the same positions, edge by edge.

    The edge query -> target of the true graph is given and not compared. If neither graph says that its last node is
    the target, and `found` lacks that edge, it may be an edge like any other: it counts as missing, with a warning.

    >>> compare_graphs(cc.chain_graph(6), cc.chain_graph(6)).exact
    True
    >>> compare_graphs(cc.chain_graph(6), cc.pairs_graph(6)).missing
    ((1, 2), (3, 4))
    """
    for graph in (true, found):
        check_digraph(graph)
    if n_ctx_of(true) != n_ctx_of(found):
        raise ValueError(
            f"graphs must cover the same positions to be compared: {n_ctx_of(true)} against {n_ctx_of(found)} "
            "(the last node is the target); add what one of them lacks"
        )
    true_edges = latent_edges(true)
    given = edges_of(true) - true_edges
    if not given <= edges_of(found) and "target" not in true.graph | found.graph:
        warnings.warn(
            f"the last node, {n_ctx_of(true)}, may be the target or a position, and its edge counts as missing: if it "
            f'is the target, say true.graph["target"] = {n_ctx_of(true)}; if not, use graph_from_digraph for both',
            stacklevel=2,
        )
        true_edges, given = edges_of(true), set()
    found_edges = edges_of(found) - given
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
