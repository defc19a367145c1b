"""Which way do edges point? Where observation cannot tell, tokens that are set at random in some sequences can."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd

from causal_circuits.pages import Section
from causal_circuits.studies.interventional_data.measure import measure_forest
from causal_circuits.studies.interventional_data.report import checks, plot_directions, plot_fading
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid, one_of

GRAPHS = ("chain", "forest")


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """With two tokens no observation tells an edge's direction; setting half of the tokens at random tells them all.

    Every two-state chain is reversible, so with two tokens a tree has the same law whichever node is its root: tokens
    and targets say nothing of the directions between two possible roots. With three tokens the target's law does: in
    long contexts the first gradient of a pair is the chi-squared information from parent to child, and less the other
    way. One experiment orients a forest whose skeleton is known: set the tokens of one class of its 2-colouring, in a
    share of the sequences. Edges into set positions fade, edges out of them stay. Which scores show it, as that share
    grows? All are given equally many sequences, in an order of positions drawn at random, so that the causal mask
    tells nothing: pooled mutual information, the first gradient, attention and knock-outs of models trained on the
    table (in this order and turned), each compared with itself on as many observational sequences; and, told which
    sequences were set, the gradient there against the gradient elsewhere.

        python analyses/interventional_data.py                # some five minutes on two cores
        python analyses/interventional_data.py --quick
    """

    QUICK: ClassVar = {
        "graph": ("chain",),
        "n_ctx": 6,
        "shares": (0.0, 1.0),
        "seeds": 1,
        "sequences": 4000,
        "steps": 100,
    }

    graph: tuple[str, ...] = GRAPHS  #: skeletons, chain or forest
    d_vocab: tuple[int, ...] = (2, 3)  #: numbers of tokens
    shares: tuple[float, ...] = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)  #: of the sequences, in which tokens are set
    n_ctx: int = 10  #: context length, query included
    alpha: float = 0.3  #: Dirichlet concentration
    sequences: int = 20_000  #: of each table
    steps: int = 1000  #: of SGD, and half as many of Adam
    seeds: int = 3  #: of graph, root, order, set positions and sequences

    def check(self) -> None:
        one_of(GRAPHS, graph=self.graph)
        at_least(2, d_vocab=self.d_vocab)
        at_least(5, n_ctx=self.n_ctx)
        at_least(100, sequences=self.sequences)
        at_least(1, steps=self.steps, seeds=self.seeds)
        if not (0 in self.shares and 0 <= min(self.shares) < max(self.shares) <= 1):
            raise ValueError(f"--shares must be 0 and some above it, up to 1: got {list(self.shares)}")

    def cells(self) -> list[Cell]:
        axes = {"graph": self.graph, "d_vocab": self.d_vocab, "seed": range(self.seed, self.seed + self.seeds)}
        fixed = ("shares", "n_ctx", "alpha", "sequences", "steps")
        return grid(measure_forest, axes, cores=1, **{name: getattr(self, name) for name in fixed})

    def report(self, rows: Mapping[str, Any]) -> Report:
        points = pd.DataFrame([point for row in rows.values() for point in row["points"]])
        return Report(
            title="Which way do edges point?",
            checks=checks(points),
            results={"forests": list(rows.values())},
            sections=[
                Section(
                    "Directions found",
                    "In a share of the sequences the tokens of every second generation are set at random. Means over "
                    "forests, with 95% intervals; one half is chance. Both orders: the larger of an edge's two scores "
                    "points from parent to child. Fading: what falls against observation points into a set position. "
                    "Told where: the sequences with set positions against the others.",
                    figures={"directions": plot_directions(points)},
                ),
                Section(
                    "What fades",
                    "Of the scores of edges in observational sequences, how much is left: medians over forests.",
                    figures={"fading": plot_fading(points)},
                    table=points.groupby(["d_vocab", "share"])
                    .mean(numeric_only=True)
                    .drop(columns="seed")
                    .reset_index(),
                ),
            ],
        )
