"""Which circuit-discovery methods find the latent graph, and asked which question."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import causal_circuits as cc
from causal_circuits.circuits import METHODS
from causal_circuits.studies.discovery_benchmark.measure import measure
from causal_circuits.studies.discovery_benchmark.report import make_report
from causal_circuits.studies.discovery_benchmark.subjects import GRAPHS, MODELS, make_graph
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid, one_of


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Whether a method finds the latent graph depends on what it puts in an entry's place, not on cutting alone.

    Seven discovery methods score every attention entry of layer 0, and are held to the graph. What stands in for an
    entry (nothing; its mean over sequences; its weight in a run on other tokens, or with permuted positions) and what
    is measured (the loss; the divergence from the whole model) is the same for all methods in a comparison; a table
    has a line for each combination that makes sense. Methods with a single gradient, taken at the whole model, are not
    asked by the divergence, whose derivative is zero there; 'path of embeddings' is EAP and EAP-IG as published,
    between pairs of runs on other tokens. Attention that depends on positions alone is the same on all tokens: there
    no method can see it. Effects that differ by less than a millionth of a nat are ties. Every edge between heads is
    scored too, and held to the best circuit of every size: of all, where these can be tried, else of those known.

    *Planted*: the circuit is written by hand. *Trained*: from a warm start (several parents: from matches).
    *Adam*: at 0.1 on everything, from zero; some of these models learn the graph. *Decoy*: the planted circuit
    displaced (`plant_decoy`: a later row does what the child's row should do), then trained to the end. No model is
    chosen by what it turned out to be: all are counted. `is_decoy` tells which have a loss within 0.05 nats of the
    edge posterior and pay the parents less than half of their rows' attention.

        python analyses/discovery_benchmark.py                    # 4 graphs x 4 kinds of model x 2 seeds
        python analyses/discovery_benchmark.py --graphs chain --models planted decoy --seeds 1
    """

    QUICK: ClassVar = {
        "n_ctx": 8, "steps": 200, "seeds": 1, "sequences": 256, "frontier_sequences": 16, "max_edges": 9
    }  # fmt: skip

    graphs: tuple[str, ...] = GRAPHS  #: of chain, pairs, forest, two-parent
    models: tuple[str, ...] = MODELS  #: of planted, trained, adam, decoy
    methods: tuple[str, ...] = METHODS  #: of exact, attention, gradient_x_attention, eap, eap_ig, acdc, random
    seeds: int = 2  #: runs of each graph and model
    d_vocab: int = 3  #: number of tokens
    n_ctx: int = 20  #: context length
    alpha: float = 0.1  #: Dirichlet concentration of the transition matrices
    steps: int = 1000  #: training steps of 1,024 sequences
    sequences: int = 1024  #: to score entries on
    frontier_sequences: int = 64  #: to try all circuits on
    max_edges: int = 19  #: edges to try all circuits of

    def check(self) -> None:
        one_of(GRAPHS, graphs=self.graphs)
        one_of(MODELS, models=self.models)
        one_of(METHODS, methods=self.methods)
        at_least(1, seeds=self.seeds)
        at_least(2, steps=self.steps)
        at_least(8, sequences=self.sequences, frontier_sequences=self.frontier_sequences)
        at_least(5, n_ctx=self.n_ctx)
        if not 1 <= self.max_edges <= 30:
            raise ValueError(f"--max-edges must lie in 1 .. 30: got {self.max_edges}")
        cc.InContextTask(make_graph("chain", self.n_ctx, 0), d_vocab=self.d_vocab, alpha=self.alpha)

    def cells(self) -> list[Cell]:
        names = ("methods", "d_vocab", "n_ctx", "alpha", "steps", "sequences", "frontier_sequences", "max_edges")
        same = {name: getattr(self, name) for name in names}
        seeds = range(self.seed, self.seed + self.seeds)
        return grid(measure, {"graph": self.graphs, "model": self.models, "seed": seeds}, **same)

    def report(self, rows: Mapping[str, Any]) -> Report:
        return make_report([row for of_model in rows.values() for row in of_model])
