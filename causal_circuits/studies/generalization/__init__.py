"""Models under transition matrices of other priors than that of training: Theorem 2 beside measurement."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import causal_circuits as cc
from causal_circuits.studies.algorithm_1 import FULL_ADAM, GRADIENT_DESCENT
from causal_circuits.studies.generalization.measure import Sizes, measure_model, measure_restricted
from causal_circuits.studies.generalization.report import make_report
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid, one_of
from causal_circuits.studies.tables import GRAPHS, check_lengths, make_graph

RESTRICTED = ("sticky", "sparse", "periodic", "near-deterministic")


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """A model trained on one prior predicts under matrices of others, better in longer contexts; not from every prior.

    Theorem 2 of the paper: for any matrix pi~ with entries bounded below, f tends to pi~(. | s_T), uniformly.
    Algorithm 1 trains models at one alpha; they are then run on matrices of other alphas, on sparse, sticky, periodic
    and near-deterministic ones, and on matrices that a search makes as bad as it can, all with entries >= gamma /
    d_vocab (but for the losses of the Dirichlet families: they are over the prior itself, whose entries have no bound,
    so that Theorem 2 says nothing of them). A Dirichlet prior covers all matrices, so these tests weigh matrices
    otherwise and exclude none; models are therefore also trained on one restricted family alone (--restricted), and
    tested on matrices of the others that differ from every training matrix by .2 or more in some entry.

        excess        loss minus the family's own edge posterior, what counting edges gives when told the family: over
                      all contexts, and over those that hold every token (where one is absent the reduced model says 0)
        |f - pi~|     largest over tokens, mean over sequences, largest over query tokens and matrices
        |f - pi^|     the same against pi^, the frequencies with which tokens followed the query's token along edges

    The first distance cannot vanish faster than pi^ converges to pi~, whatever the model; the second is the model's.

        python analyses/generalization.py                     # about five minutes
        python analyses/generalization.py --alpha 0.3 --gamma 0.2 --graph forest
    """

    QUICK: ClassVar = {
        "lengths": (8, 20), "seeds": 1, "full_up_to": 8, "restricted": ("sticky",), "steps": (60, 60),
        "kernels": 64, "test": 256, "starts": 6, "rounds": 2
    }  # fmt: skip

    lengths: tuple[int, ...] = (10, 20, 40, 80, 160)  #: context lengths
    seeds: int = 2  #: reduced models at each length
    full_up_to: int = 40  #: longest context of the full model
    graph: str = "chain"  #: chain, pairs or forest
    d_vocab: int = 3  #: number of tokens
    alpha: float = 1.0  #: Dirichlet concentration in training
    restricted: tuple[str, ...] = ("sticky", "periodic")
    """to train on alone: of sticky, sparse, periodic, near-deterministic"""
    gamma: float = 0.1  #: entries of a matrix are at least gamma / d_vocab
    steps: tuple[int, int] = (100, 200)  #: of stage 1 and stage 2
    kernels: int = 512  #: transition matrices that stand for a family
    test: int = 1024  #: test sequences a family
    starts: int = 48  #: random matrices that the search starts from
    rounds: int = 40  #: of the search for the worst matrix

    def check(self) -> None:
        at_least(1, seeds=self.seeds, steps=self.steps, starts=self.starts)
        at_least(16, kernels=self.kernels, test=self.test)
        at_least(0, rounds=self.rounds)
        one_of(GRAPHS, graph=self.graph)
        one_of(RESTRICTED, restricted=self.restricted)
        check_lengths(self.lengths)
        cc.tasks.bounded_below(cc.tasks.matrix_family("sticky", 1, self.d_vocab), self.gamma)
        cc.InContextTask(make_graph(self.graph, self.lengths[0]), self.d_vocab, self.alpha)

    def cells(self) -> list[Cell]:
        """A model each: reduced at every length and seed, full at the short ones; then those of restricted training."""
        short, seeds = [n for n in self.lengths if n <= self.full_up_to], range(self.seed, self.seed + self.seeds)
        reduced, full = {"variant": [GRADIENT_DESCENT.name]}, {"variant": [FULL_ADAM.name]}
        sizes = {field.name: getattr(self, field.name) for field in fields(Sizes)}
        return [
            *grid(measure_model, reduced | {"n_ctx": self.lengths, "seed": seeds}, sizes=sizes),
            *grid(measure_model, full | {"n_ctx": short, "seed": [self.seed]}, sizes=sizes),
            *grid(measure_restricted, reduced | {"family": self.restricted, "n_ctx": self.lengths}, sizes=sizes),
            *grid(measure_restricted, full | {"family": self.restricted, "n_ctx": short}, sizes=sizes),
        ]

    def report(self, rows: Mapping[str, Any]) -> Report:
        names = ("families", "worst", "restricted", "examples")
        found = {name: [row for cell in rows.values() for row in cell.get(name, ())] for name in names}
        bound = f"Entries >= {self.gamma:g} / {self.d_vocab}; errors on 4,096 fresh sequences."
        return make_report(**found, seed=self.seed, d_vocab=self.d_vocab, bound=bound)
