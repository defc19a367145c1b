"""Read causal graphs back out: from layer-1 attention, or from sequences alone, with a confidence for each edge."""

from causal_circuits.discovery.attention import CandidateEdge, edge_auroc, extract_graph, mean_attention
from causal_circuits.discovery.recover import Position, RecoveredGraph, recover_graph
from causal_circuits.discovery.testing import holm

__all__ = [
    "CandidateEdge",
    "Position",
    "RecoveredGraph",
    "edge_auroc",
    "extract_graph",
    "holm",
    "mean_attention",
    "recover_graph",
]
