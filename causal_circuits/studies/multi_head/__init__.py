"""Several heads that share a graph with several parents a position."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import networkx as nx

import causal_circuits as cc
from causal_circuits.studies.multi_head.measure import measure_heads, measure_training
from causal_circuits.studies.multi_head.report import make_report
from causal_circuits.studies.parents_file import graph_of_file
from causal_circuits.studies.study import Cell, Report, Study, at_least
from causal_circuits.studies.tables import two_parents_graph


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """With k parents a position, k heads of layer 0 share the graph between them; one, trained as long, stops above.

    Trains a multi-head disentangled HookedTransformer on sequences in which every token depends on several earlier
    ones, started where the gradient of order k points (`cc.TrainConfig.matched`). Then reads the union graph out of all
    heads (which attends to which parent, where), names what is missing and why - not learned, not needed, a decoy -,
    says how much of the loss the graph is worth at all, cuts every attention entry of every head, and trains a single
    head on the same task for as many steps (by the recipe for one parent from small random weights: it has no full
    match to start from), from several seeds; only a difference of more than .05 nats in each of them counts. Layer 1
    has two heads, from which the read-out can tell how many keys match (docs/SEVERAL_PARENTS.md).

        python analyses/multi_head.py                        # the paper's graph: parents (i - 1) // 2 and i - 1
        python analyses/multi_head.py --ngram 4 --d-vocab 3  # 4-grams: three parents, three heads
        python analyses/multi_head.py --parents my_dag.json  # [[], [], [0, 1], ..., [3, 7]]

    A parents file is a JSON list of lists over all context positions and, last, the target: n_ctx + 1 entries, [] for
    a root.
    """

    QUICK: ClassVar = {"quick": True, "seeds": 1}  # and a tenth of the steps, smaller samples

    d_vocab: int = 5  #: number of tokens
    n_ctx: int | None = None  #: context length; None: 32, or what the parents file says
    alpha: float = 0.1  #: Dirichlet concentration of the transition matrices
    steps: int = 9000  #: training steps of 1,024 fresh sequences
    ngram: int | None = None  #: K-grams: K - 1 parents, the positions just before
    parents: Path | None = None  #: a JSON list of lists of parents
    heads: str | None = None  #: heads of the two layers, such as 2,1, the paper's; None: one a parent, and 2
    seeds: int = 3  #: how many seeds compare k heads with one

    def check(self) -> None:
        at_least(1, seeds=self.seeds)
        if self.task.has_query:
            raise ValueError("this graph gives every position one parent at most, and a query: see causal_graph.py")
        at_least(2, steps=self.trained_steps)
        _ = self.n_heads

    @property
    def graph(self) -> nx.DiGraph:
        if self.ngram is not None and self.parents is not None:
            raise ValueError("--ngram and --parents both name a graph: give one of them")
        if self.parents is not None:
            return graph_of_file(self.parents, self.n_ctx, several=True)
        n_ctx = 32 if self.n_ctx is None else self.n_ctx
        if self.ngram is not None:
            at_least(2, ngram=self.ngram)
            return cc.ngram_graph(n_ctx, self.ngram - 1)
        at_least(3, n_ctx=n_ctx)
        return two_parents_graph(n_ctx)

    @property
    def task(self) -> cc.InContextTask:
        return cc.InContextTask(self.graph, d_vocab=self.d_vocab, alpha=self.alpha)

    @property
    def n_heads(self) -> tuple[int, int]:
        """The heads of both layers: as many in layer 0 as the target has parents, unless a flag says otherwise."""
        if self.heads is None:
            return len(self.task.target_parents), 2
        try:
            first, second = (int(part) for part in self.heads.split(","))
        except ValueError as error:
            raise ValueError(f"--heads must be two integers such as 2,1: got {self.heads!r}") from error
        if first < 1 or second < 1:
            raise ValueError(f"--heads needs at least one head in each layer: got {self.heads!r}")
        return first, second

    @property
    def trained_steps(self) -> int:
        return max(self.steps // 10, 1) if self.quick else self.steps

    def cells(self) -> list[Cell]:
        """The training that is read and proved; the same with one head; both from further seeds."""
        same = {
            "parents": cc.graphs.graph_parents(self.graph),
            "d_vocab": self.d_vocab,
            "alpha": self.alpha,
            "steps": self.trained_steps,
            "quick": self.quick,
        }
        found, one = [], (1, self.n_heads[1])
        for seed in range(self.seed, self.seed + self.seeds):
            first = seed == self.seed
            whole = measure_heads if first else measure_training
            for name, n_heads, measure in (("all heads", self.n_heads, whole), ("one head", one, measure_training)):
                settings = {**same, "n_heads": n_heads, "seed": seed, "read": first and measure is measure_training}
                found.append(Cell(f"{name} seed {seed}", measure, settings, scratch=True, progress=True))
        return found

    def report(self, rows: Mapping[str, Any]) -> Report:
        repeats = [
            {
                "seed": seed,
                "excess": rows[f"all heads seed {seed}"]["excess"],
                "single_excess": rows[f"one head seed {seed}"]["excess"],
            }
            for seed in range(self.seed, self.seed + self.seeds)
        ]
        return make_report(self.task, rows[f"all heads seed {self.seed}"], rows[f"one head seed {self.seed}"], repeats)
