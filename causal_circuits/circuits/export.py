"""Circuits for other tools: plain JSON values."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from causal_circuits.arguments import check_arguments
from causal_circuits.circuits.evaluate import CircuitModel
from causal_circuits.circuits.graph import Circuit
from causal_circuits.circuits.methods import Discovery
from causal_circuits.circuits.proof import CircuitProof
from causal_circuits.display import frame
from causal_circuits.storage import plain_values, write_files


@check_arguments
def export_circuit(
    path: str | os.PathLike[str],
    model: CircuitModel,
    circuit: Circuit,
    discoveries: Sequence[Discovery] = (),
    proof: CircuitProof | None = None,
) -> None:
    """Write a circuit as JSON: what it was judged by, every edge of the model, and the proof.

    An edge has its sender, its reader, whether it is in the circuit, and a score by each method.

    >>> whole = cc.circuits.circuit_model(model, batch)
    >>> with TemporaryDirectory() as folder:
    ...     export_circuit(f"{folder}/circuit.json", whole, [("position", "L0H0.q")])
    ...     len(cc.storage.read_json(f"{folder}/circuit.json")["edges"])
    19
    """
    edges = frame(model.edges, columns=["sender", "reader"]).assign(in_circuit=model.mask(circuit).numpy())
    edges = edges.assign(**{found.method: found.score.numpy() for found in discoveries})
    content = {
        "counterfactual": model.counterfactual,
        "granularity": model.granularity,
        "metric": model.cost.name,
        "edges": plain_values(edges.to_dict(orient="records")),
        "proof": plain_values(proof),
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_files(Path(path).parent, {Path(path).name: text})
