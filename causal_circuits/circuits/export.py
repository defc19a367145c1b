"""Circuits for other tools: plain JSON values, GraphML, a pandas frame."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import networkx as nx

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.evaluate import CircuitModel
from causal_circuits.circuits.graph import Circuit
from causal_circuits.circuits.methods import Discovery
from causal_circuits.circuits.proof import CircuitProof
from causal_circuits.storage import plain_values, write_files


@check_arguments
def circuit_frame(model: CircuitModel, circuit: Circuit, discoveries: Sequence[Discovery] = ()) -> Any:
    """A pandas DataFrame with one row for each edge of the model: sender, reader, in_circuit, and a column a method.

    >>> from causal_circuits import InContextTask, chain_graph, circuits, plant_circuit
    >>> task = InContextTask(chain_graph(6), d_vocab=3)
    >>> whole = circuits.circuit_model(plant_circuit(task.graph, d_vocab=3), task.sample(64))
    >>> frame = circuit_frame(whole, [("position", "L0H0.q")])
    >>> list(frame.columns), int(frame.in_circuit.sum())
    (['sender', 'reader', 'in_circuit'], 1)
    """
    import pandas  # slow to import

    frame = pandas.DataFrame(model.edges, columns=["sender", "reader"])
    frame["in_circuit"] = model.mask(circuit).numpy()
    for found in discoveries:
        frame[found.method] = found.score.numpy()
    return frame


@check_arguments
def export_circuit(
    folder: str | os.PathLike[str],
    model: CircuitModel,
    circuit: Circuit,
    discoveries: Sequence[Discovery] = (),
    proof: CircuitProof | None = None,
) -> list[Path]:
    """Write circuit.json, circuit.graphml and circuit.csv to a folder (made if missing), each in one piece.

    >>> from tempfile import TemporaryDirectory
    >>> from causal_circuits import InContextTask, chain_graph, circuits, plant_circuit
    >>> task = InContextTask(chain_graph(6), d_vocab=3)
    >>> whole = circuits.circuit_model(plant_circuit(task.graph, d_vocab=3), task.sample(64))
    >>> with TemporaryDirectory() as folder:
    ...     [path.name for path in export_circuit(folder, whole, [("position", "L0H0.q")])]
    ['circuit.json', 'circuit.graphml', 'circuit.csv']
    """
    frame = circuit_frame(model, circuit, discoveries)
    content = {
        "counterfactual": model.counterfactual,
        "granularity": model.granularity,
        "metric": model.cost.name,
        "edges": plain_values(frame.to_dict(orient="records")),
        "proof": plain_values(proof),
    }
    texts = {
        "circuit.json": json.dumps(content, indent=2, allow_nan=False) + "\n",
        "circuit.graphml": "\n".join(nx.generate_graphml(_annotated(model.graph, frame))) + "\n",
        "circuit.csv": frame.to_csv(index=False),
    }
    folder = write_files(folder, texts)
    return [folder / name for name in texts]


def _annotated(graph: nx.DiGraph, frame: Any) -> nx.DiGraph:
    """The model's whole graph, each edge with the frame's columns."""
    graph = graph.copy()
    nx.set_edge_attributes(graph, frame.set_index(["sender", "reader"]).to_dict(orient="index"))
    return graph
