"""Read causal graphs back out: from layer-1 attention, or from sequences alone, with a confidence for each edge."""

from causal_circuits.discovery.attention import edge_auroc, extract_graph, mean_attention
from causal_circuits.discovery.candidates import CandidateEdge
from causal_circuits.discovery.extracted import ExtractedGraph
from causal_circuits.discovery.head_matches import FurtherParent
from causal_circuits.discovery.recover import RecoveredGraph, recover_graph
from causal_circuits.discovery.several_heads import HeadReport, judge_heads
from causal_circuits.discovery.testing import holm
from causal_circuits.discovery.verdicts import Position

__all__ = [
    "CandidateEdge",
    "ExtractedGraph",
    "FurtherParent",
    "HeadReport",
    "Position",
    "RecoveredGraph",
    "edge_auroc",
    "extract_graph",
    "holm",
    "judge_heads",
    "mean_attention",
    "recover_graph",
]
