"""Circuits for other tools: plain JSON values, GraphML, a pandas frame."""

import json
import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import networkx as nx
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.evaluate import CircuitModel
from causal_circuits.circuits.graph import Circuit
from causal_circuits.circuits.methods import Discovery
from causal_circuits.circuits.proof import CircuitProof
from causal_circuits.storage import write_files


@check_arguments
def plain_values(result: object) -> Any:
    """A result of this package as JSON values: dataclasses as objects, tensors as lists, NaN and infinity as null.

    >>> from causal_circuits.circuits import OnsetInterval
    >>> plain_values(OnsetInterval(mean=20.0, low=10.0, high=30.0, never=float("nan")))
    {'mean': 20.0, 'low': 10.0, 'high': 30.0, 'never': None}
    """
    if is_dataclass(result) and not isinstance(result, type):
        return {field.name: plain_values(getattr(result, field.name)) for field in fields(result)}
    if isinstance(result, Tensor):
        return plain_values(result.tolist())
    if isinstance(result, dict):
        return {str(key): plain_values(value) for key, value in result.items()}
    if isinstance(result, list | tuple):
        return [plain_values(value) for value in result]
    if isinstance(result, float):
        return result if isfinite(result) else None
    if result is None or isinstance(result, str | bool | int):
        return result
    raise ValueError(f"only results made of numbers, text, tensors and dataclasses can be exported: got {type(result)}")


@check_arguments
def circuit_frame(model: CircuitModel, circuit: Circuit, discoveries: Sequence[Discovery] = ()) -> Any:
    """A pandas DataFrame with one row for each edge of the model: sender, reader, in_circuit, and a column a method.

    >>> import causal_circuits as cc
    >>> from causal_circuits import circuits
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> whole = circuits.circuit_model(model, task.sample(64, seed=0))
    >>> frame = circuits.circuit_frame(whole, [("position", "L0H0.q")])
    >>> list(frame.columns), int(frame.in_circuit.sum())
    (['sender', 'reader', 'in_circuit'], 1)
    """
    import pandas  # type: ignore[import-untyped]  # slow to import

    mask = model.mask(circuit).tolist()
    rows = [
        {"sender": sender, "reader": reader, "in_circuit": keep}
        | {found.method: float(found.score[part]) for found in discoveries}
        for part, ((sender, reader), keep) in enumerate(zip(model.edges, mask, strict=True))
    ]
    return pandas.DataFrame(rows)


@check_arguments
def annotated_graph(model: CircuitModel, circuit: Circuit, discoveries: Sequence[Discovery] = ()) -> nx.DiGraph:
    """The model's whole graph, each edge marked `in_circuit` and with each method's score: what GraphML holds.

    >>> import causal_circuits as cc
    >>> from causal_circuits import circuits
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> whole = circuits.circuit_model(model, task.sample(64, seed=0))
    >>> graph = circuits.annotated_graph(whole, [("position", "L0H0.q")])
    >>> graph.edges["position", "L0H0.q"]["in_circuit"], graph.edges["token", "L0H0.q"]["in_circuit"]
    (True, False)
    """
    graph = model.graph.copy()
    mask = model.mask(circuit).tolist()
    for part, (edge, keep) in enumerate(zip(model.edges, mask, strict=True)):
        graph.edges[edge]["in_circuit"] = keep
        for found in discoveries:
            graph.edges[edge][found.method] = float(found.score[part])
    return graph


@check_arguments
def export_circuit(
    folder: str | os.PathLike[str],
    model: CircuitModel,
    circuit: Circuit,
    discoveries: Sequence[Discovery] = (),
    proof: CircuitProof | None = None,
) -> list[Path]:
    """Write circuit.json, circuit.graphml and circuit.csv to a folder (made if missing), each in one piece.

    >>> import causal_circuits as cc
    >>> from causal_circuits import circuits
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> whole = circuits.circuit_model(model, task.sample(64, seed=0))
    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     [path.name for path in circuits.export_circuit(folder, whole, [("position", "L0H0.q")])]
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
        "circuit.graphml": "\n".join(nx.generate_graphml(annotated_graph(model, circuit, discoveries))) + "\n",
        "circuit.csv": frame.to_csv(index=False),
    }
    folder = write_files(folder, texts)
    return [folder / name for name in texts]
