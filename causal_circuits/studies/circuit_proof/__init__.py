"""The circuit of one model: written down edge by edge, then proved, refuted, or left undecided."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import networkx as nx

import causal_circuits as cc
from causal_circuits.studies import causal_graph
from causal_circuits.studies.circuit_proof.measure import measure_model, train_and_measure, train_several_heads
from causal_circuits.studies.circuit_proof.report import make_report
from causal_circuits.studies.parents_file import graph_of_file
from causal_circuits.studies.study import Cell, Report, at_least
from causal_circuits.studies.tables import two_parents_graph


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
        python analyses/circuit_proof.py --graph 3-gram --n-ctx 12           # two parents, two heads in layer 0

    With k parents a position (two-parents, k-grams, a file of lists) k heads of layer 0 are trained by the recipe that
    `train` has for them; circuits are searched among the edges that cost most when cut, and forming is not watched.
    """

    QUICK: ClassVar = {"n_ctx": 10, "steps": 600, "sequences": 256, "formation_seeds": 1}

    graph: str = "forest"
    """chain, pairs or forest; two-parents (the paper's: (i - 1) // 2 and i - 1), 3-gram or 4-gram"""
    parents: Path | None = None  #: a JSON list of parents, or of lists of them, the target's last; in place of --graph
    steps: int = 2000  #: training steps of 1,024 fresh sequences, with one parent a position
    warm_start: bool = True  #: write in layer 1's match and the read-out first: only layer 0 is learned
    model: Path | None = None  #: prove the circuit of the model saved in this folder; train nothing
    decoy: bool = False  #: train by Adam at 0.1 from zero: often no graph
    sequences: int = 1024  #: to prove on; an eighth of them to search on
    formation_seeds: int = 5  #: trainings in which edges are seen to form

    def check(self) -> None:
        at_least(64, sequences=self.sequences)
        at_least(1, formation_seeds=self.formation_seeds)
        if self.model is not None and self.decoy:
            raise ValueError("--decoy trains a model and --model loads one: choose one of them")
        super().check()
        if not self.task.has_query and (self.decoy or not self.warm_start):
            raise ValueError(
                "--decoy and --no-warm-start are recipes for one parent a position: save a model of plant_decoy or of "
                "your own training, and name it with --model"
            )
        if self.model is not None:
            model, k = cc.load_model(self.model), len(self.task.target_parents)
            cc.models.check_model(model, self.task.d_vocab, self.task.n_ctx)
            found = cc.models.layout_of(model).n_heads
            if found[0] < k:
                raise ValueError(
                    f"--model must have a head of layer 0 for each of the target's {k} parents: this has {found[0]}"
                )

    def make_graph(self) -> nx.DiGraph:
        n_ctx = 20 if self.n_ctx is None else self.n_ctx
        if self.parents is not None:
            return graph_of_file(self.parents, self.n_ctx, several=None)
        if self.graph == "two-parents":
            at_least(3, n_ctx=n_ctx)
            return two_parents_graph(n_ctx)
        if self.graph in ("3-gram", "4-gram"):
            return cc.ngram_graph(n_ctx, int(self.graph[0]) - 1)
        return super().make_graph()

    def cells(self) -> list[Cell]:
        """The saved model; or a training for each seed, the first of them searched and proved."""
        task = {"parents": cc.graphs.graph_parents(self.task.graph), "d_vocab": self.d_vocab, "alpha": self.alpha}
        same = {"task": task, "n_sequences": self.sequences, "seed": self.seed}
        if self.model is not None:
            weights = cc.storage.digest(dict(cc.load_model(self.model).named_parameters()))
            return [Cell("saved model", measure_model, {**same, "folder": str(self.model), "weights": weights})]
        if not self.task.has_query:
            return [Cell("training", train_several_heads, same)]
        recipe = "adam" if self.decoy else "warm" if self.warm_start else "zero"
        same |= {"recipe": recipe, "steps": self.steps}
        return [
            Cell(f"training {seed}", train_and_measure, {**same, "own_seed": seed, "prove": seed == self.seed})
            for seed in range(self.seed, self.seed + self.formation_seeds)
        ]

    def report(self, rows: Mapping[str, Any]) -> Report:
        return make_report(self.task, list(rows.values()), trained=self.model is None)
