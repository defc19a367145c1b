"""Train, recover the graph, detect the heads, prove the circuit: what `induction_head` and `causal_graph` share."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import networkx as nx

import causal_circuits as cc
from causal_circuits.studies.recover_and_prove.measure import Findings, measure
from causal_circuits.studies.recover_and_prove.report import make_report
from causal_circuits.studies.study import Cell, Report, Study, at_least


@dataclass(frozen=True, kw_only=True)
class RecoverAndProve(Study):
    """A two-layer disentangled transformer, trained on sequences of one graph and taken apart."""

    d_vocab: int = 3  #: number of tokens
    n_ctx: int | None = 20  #: context length, query included
    alpha: float = 0.1  #: Dirichlet concentration of the transition matrices
    steps: int = 4500  #: training steps of 1,024 fresh sequences
    warm_start: bool = False  #: write in layer 1's match and the read-out first: only layer 0 is learned

    @abstractmethod
    def make_graph(self) -> nx.DiGraph:
        """The graph that the flags name."""

    @cached_property
    def task(self) -> cc.InContextTask:
        return cc.InContextTask(self.make_graph(), d_vocab=self.d_vocab, alpha=self.alpha)

    def check(self) -> None:
        at_least(2, steps=self.steps)
        if not cc.latent_edges(self.task.graph):
            raise ValueError("the graph has no edge between context positions, so nothing to recover; name a parent")

    def cells(self) -> list[Cell]:
        graph, flags = self.task.graph, ("d_vocab", "alpha", "steps", "warm_start", "seed")
        settings = {name: getattr(self, name) for name in flags}
        settings |= {"parents": cc.graphs.graph_parents(graph), "name": graph.graph.get("name", "forest")}
        return [Cell("training", measure, settings, scratch=True, progress=True)]

    def report(self, rows: Mapping[str, Findings]) -> Report:
        return make_report(rows["training"])
