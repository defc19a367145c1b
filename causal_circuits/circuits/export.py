"""Circuits for other tools: plain JSON values, a pandas frame."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.evaluate import CircuitModel
from causal_circuits.circuits.graph import Circuit
from causal_circuits.circuits.methods import Discovery
from causal_circuits.circuits.proof import CircuitProof
from causal_circuits.display import frame
from causal_circuits.storage import plain_values, write_files


@check_arguments
def circuit_frame(model: CircuitModel, circuit: Circuit, discoveries: Sequence[Discovery] = ()) -> Any:
    """A pandas DataFrame with one row for each edge of the model: sender, reader, in_circuit, and a column a method.

    >>> whole = cc.circuits.circuit_model(model, batch)
    >>> frame = circuit_frame(whole, [("position", "L0H0.q")])
    >>> list(frame.columns), int(frame.in_circuit.sum())
    (['sender', 'reader', 'in_circuit'], 1)
    """
    table = frame(model.edges, columns=["sender", "reader"]).assign(in_circuit=model.mask(circuit).numpy())
    return table.assign(**{found.method: found.score.numpy() for found in discoveries})


@check_arguments
def export_circuit(
    path: str | os.PathLike[str],
    model: CircuitModel,
    circuit: Circuit,
    discoveries: Sequence[Discovery] = (),
    proof: CircuitProof | None = None,
) -> None:
    """Write a circuit as JSON: what it was judged by, the rows of `circuit_frame`, and the proof.

    >>> whole = cc.circuits.circuit_model(model, batch)
    >>> with TemporaryDirectory() as folder:
    ...     export_circuit(f"{folder}/circuit.json", whole, [("position", "L0H0.q")])
    ...     len(cc.storage.read_json(f"{folder}/circuit.json")["edges"])
    19
    """
    content = {
        "counterfactual": model.counterfactual,
        "granularity": model.granularity,
        "metric": model.cost.name,
        "edges": plain_values(circuit_frame(model, circuit, discoveries).to_dict(orient="records")),
        "proof": plain_values(proof),
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_files(Path(path).parent, {Path(path).name: text})
