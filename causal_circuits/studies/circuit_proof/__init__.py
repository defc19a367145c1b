"""The circuit of one model: written down edge by edge, then proved, refuted, or left undecided."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import causal_circuits as cc
from causal_circuits.studies import causal_graph
from causal_circuits.studies.circuit_proof.measure import measure_model, train_and_measure
from causal_circuits.studies.circuit_proof.report import make_report
from causal_circuits.studies.study import Cell, Report, at_least


@dataclass(frozen=True, kw_only=True)
class Config(causal_graph.Config):
    """The circuit of a model can be written down edge by edge, and proved, refuted, or left undecided.

    Takes one two-layer model - trained here, or loaded from a folder that another analysis wrote - and asks in this
    order: do the tools obey their own laws on it; which circuit is the best of its size, out of all there are; is that
    circuit faithful, complete, minimal and sufficient on fresh sequences (sufficient: better than all others of its
    size, or a random choice of them; where they are too few for the level, that cannot be tested); which discovery
    method would have found it, all asked by the same loss and the same counterfactual; does causal scrubbing leave the
    paper's hypothesis standing; and do the attention entries that matter equal the latent graph. If the model is
    trained here, also, over several seeds: when did each edge begin to matter, against when attention shows it and how
    hard the gradient pulled at it.

        python analyses/circuit_proof.py                                     # a forest, about two minutes on two cores
        python analyses/circuit_proof.py --graph chain --d-vocab 10
        python analyses/circuit_proof.py --model out/induction_head/model --graph chain --d-vocab 10
        python analyses/circuit_proof.py --decoy                             # Adam from zero: often no graph
    """

    steps: int = 2000
    """training steps of 1,024 fresh sequences"""
    warm_start: bool = True
    """write layer 1's match and the read-out in before training, so that only layer 0 is learned"""
    model: Path | None = None
    """prove the circuit of the model saved in this folder; train nothing"""
    decoy: bool = False
    """train by Adam at 0.1 from zero: often no graph"""
    sequences: int = 1024
    """to prove on; an eighth of them to search on"""
    formation_seeds: int = 5
    """trainings in which edges are seen to form"""

    def check(self) -> None:
        """One model, and enough sequences to prove something of it."""
        at_least(64, sequences=self.sequences)
        at_least(1, formation_seeds=self.formation_seeds)
        if self.model is not None and self.decoy:
            raise ValueError("--decoy trains a model and --model loads one: choose one of them")
        super().check()
        if self.model is not None:
            cc.models.check_model(cc.load_model(self.model), self.task.d_vocab, self.task.n_ctx)

    def cells(self) -> list[Cell]:
        """The saved model; or a training for each seed, the first of them searched and proved."""
        task = {"parents": cc.graphs.graph_parents(self.task.graph), "d_vocab": self.d_vocab, "alpha": self.alpha}
        same = {"task": task, "n_sequences": self.sequences, "seed": self.seed}
        if self.model is not None:
            weights = cc.storage.digest(dict(cc.load_model(self.model).named_parameters()))
            return [Cell("saved model", measure_model, {**same, "folder": str(self.model), "weights": weights})]
        recipe = "adam" if self.decoy else "warm" if self.warm_start else "zero"
        same |= {"recipe": recipe, "steps": self.steps}
        return [
            Cell(f"training {seed}", train_and_measure, {**same, "own_seed": seed, "prove": seed == self.seed})
            for seed in range(self.seed, self.seed + self.formation_seeds)
        ]

    def report(self, rows: Mapping[str, Any]) -> Report:
        """Four criteria, seven methods, and the graph."""
        return make_report(self.task, list(rows.values()), trained=self.model is None)
