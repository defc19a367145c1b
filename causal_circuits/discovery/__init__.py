"""Read causal graphs back out: from layer 0's attention, or from sequences alone, with a confidence for each edge."""

from typing import TYPE_CHECKING

from causal_circuits._moved import missing
from causal_circuits.discovery.attention import edge_auroc, extract_graph, mean_attention
from causal_circuits.discovery.extracted import CandidateEdge, ExtractedGraph, HeadReport
from causal_circuits.discovery.recover import RecoveredGraph, recover_graph
from causal_circuits.discovery.verdicts import Position
from causal_circuits.statistics import holm

__all__ = [
    "CandidateEdge",
    "ExtractedGraph",
    "HeadReport",
    "Position",
    "RecoveredGraph",
    "edge_auroc",
    "extract_graph",
    "holm",
    "mean_attention",
    "recover_graph",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        """No name is added; one that is gone says what to use instead."""
        raise missing(__name__, name)
