"""Circuits as graphs: evaluate any of them exactly, discover them, test them, and hold them to the latent graph.

In the order in which one uses it: `circuit_graph` (what a model could use), `circuit_model` (the model as a function of
its circuit), `discover` (seven methods, one signature), `oracle_frontier` and `rank` (the best circuit of every size,
and how far a method is from it), `prove_circuit` (four criteria, one verdict), `entry_model` and `score_against_graph`
(attention entries against the true graph), `watch_formation` (all of it while training), `export_circuit`.
"""

from causal_circuits.circuits.counterfactuals import COUNTERFACTUALS, Counterfactual
from causal_circuits.circuits.entries import ENTRY_COUNTERFACTUALS, EntryCounterfactual, EntryModel, entry_model
from causal_circuits.circuits.evaluate import CircuitModel, circuit_model
from causal_circuits.circuits.export import circuit_frame, export_circuit
from causal_circuits.circuits.formation import CircuitFormation, watch_formation
from causal_circuits.circuits.frontier import Frontier, inert_edges, oracle_frontier
from causal_circuits.circuits.graph import CircuitGraph, circuit_edges, circuit_graph, circuit_mask, circuit_subgraph
from causal_circuits.circuits.ground_truth import GraphScores, score_against_graph
from causal_circuits.circuits.methods import METHODS, Discovery, MethodName, discover
from causal_circuits.circuits.onsets import OnsetInterval, onset, onset_interval
from causal_circuits.circuits.proof import CircuitProof, Criterion, NeededEdge, prove_circuit
from causal_circuits.circuits.regret import Ranking, rank
from causal_circuits.circuits.self_checks import SelfCheck, self_checks
from causal_circuits.storage import plain_values

__all__ = [
    "COUNTERFACTUALS",
    "ENTRY_COUNTERFACTUALS",
    "METHODS",
    "CircuitFormation",
    "CircuitGraph",
    "CircuitModel",
    "CircuitProof",
    "Counterfactual",
    "Criterion",
    "Discovery",
    "EntryCounterfactual",
    "EntryModel",
    "Frontier",
    "GraphScores",
    "MethodName",
    "NeededEdge",
    "OnsetInterval",
    "Ranking",
    "SelfCheck",
    "circuit_edges",
    "circuit_frame",
    "circuit_graph",
    "circuit_mask",
    "circuit_model",
    "circuit_subgraph",
    "discover",
    "entry_model",
    "export_circuit",
    "inert_edges",
    "onset",
    "onset_interval",
    "oracle_frontier",
    "plain_values",
    "prove_circuit",
    "rank",
    "score_against_graph",
    "self_checks",
    "watch_formation",
]
