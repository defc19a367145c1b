"""Selective induction heads: three attention layers can find the lag of a chain in context, two less well."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from causal_circuits import figures
from causal_circuits.pages import Section
from causal_circuits.studies.selective_induction.compared import (
    ORDINARY,
    PLANTED,
    SELECTIVE,
    architectures,
    n_residues,
)
from causal_circuits.studies.selective_induction.measure import measure_planted, measure_training
from causal_circuits.studies.selective_induction.report import by_seed, checks, plot_formation, plot_patterns
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid

SHARE = "loss: 0 Bayes, 1 all lags alike"


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Where the lag of a chain is latent, three layers can select it in context; no two trained layers do as well.

    "Selective induction heads" (D'Angelo et al. 2025, arXiv 2509.08184): one transition matrix, a lag drawn anew in
    every sequence. Layer 0 attends to the candidates for a token's parent by their likelihood; layer 1, a head for each
    residue of positions, takes the mean over the sequence; layer 2 copies the latest token at the best lag. Written by
    hand, these layers come near the loss of maximum likelihood, and no two trained layers do; whether training finds
    them, in all weights or in the blocks that they use, is measured. Losses are read between that of Bayes (0) and of
    all lags alike (1).

        python analyses/selective_induction.py            # lags 1 and 2, five seeds
        python analyses/selective_induction.py --quick    # one seed, fewer steps
        python analyses/selective_induction.py --lags 1 2 3 --n-ctx 24 --steps 3000
    """

    QUICK: ClassVar = {"seeds": 1, "steps": 300}

    lags: tuple[int, ...] = (1, 2)  #: the lags that are drawn
    d_vocab: int = 4  #: number of tokens
    n_ctx: int = 16  #: length of the sequences
    seeds: int = 5  #: independent trainings of each architecture, with a transition matrix each
    steps: int = 1500  #: of Adam
    batch_size: int = 128  #: sequences a step

    def check(self) -> None:
        """Lags between which there is something to select, in sequences that show them."""
        at_least(2, d_vocab=self.d_vocab)
        at_least(1, lags=self.lags, seeds=self.seeds, steps=self.steps, batch_size=self.batch_size)
        if len(set(self.lags)) < max(2, len(self.lags)):
            raise ValueError(f"--lags must be two or more different ones: got {self.lags}")
        at_least(max(self.lags) + n_residues(self.lags), n_ctx=self.n_ctx)

    def cells(self) -> list[Cell]:
        """A training each, and a planted circuit for each seed."""
        seeds = range(self.seed, self.seed + self.seeds)
        sizes = {"lags": list(self.lags), "d_vocab": self.d_vocab, "n_ctx": self.n_ctx}
        how = {"steps": self.steps, "batch_size": self.batch_size}
        names = {"architecture": (*architectures(self.lags), *ORDINARY), "seed": seeds}
        trainings = [replace(cell, progress=True) for cell in grid(measure_training, names, cores=1, **sizes, **how)]
        return [*grid(measure_planted, {"seed": seeds}, cores=1, **sizes), *trainings]

    def report(self, rows: Mapping[str, dict[str, Any]]) -> Report:
        """Losses of all architectures, the heads and the formation of the mechanism."""
        every = list(rows.values())
        table = pd.DataFrame([{key: value for key, value in row.items() if np.isscalar(value)} for row in every])
        share = table.pivot(index="seed", columns="architecture", values="share")
        planted = [row for row in every if row["architecture"] == PLANTED]
        selective = [row for row in every if row["architecture"] == SELECTIVE]
        references = {
            name: fmean(row[name] for row in planted) for name in ("maximum likelihood", "normalized likelihood")
        }
        return Report(
            title="Selective induction heads",
            checks=checks(share, planted, selective),
            results={"rows": every},
            sections=[
                Section(
                    "Who selects the lag",
                    "The loss on a scale from exact Bayes over lags (0) to all lags alike (1); a dot is a training.",
                    figures={"excess": figures.plot_groups(by_seed(share), levels=references, xlabel=SHARE)},
                ),
                Section(
                    "The three layers",
                    "Above as trained, below as written by hand: layer 0 at every candidate; each head of layer 1 at "
                    "positions of one residue; layer 2's query at the token that the sequence's lag makes the parent.",
                    figures={"patterns": plot_patterns(selective[0]), "patterns_planted": plot_patterns(planted[0])},
                ),
                Section(
                    "When it forms",
                    "Attention on what each layer should look at, means over seeds; the table has the first step at "
                    "which it is half way from its first to its last value.",
                    figures={"formation": plot_formation(selective)},
                    table=pd.DataFrame([{"seed": row["seed"], **row["onsets"]} for row in selective]),
                ),
                Section(
                    "Which head does what",
                    "The share of the way from Bayes to all lags alike that is lost without a head (its mean in its "
                    "place).",
                    table=pd.DataFrame(
                        [{"seed": row["seed"], "all heads": row["share"], **row["without"]} for row in selective]
                    ),
                ),
                Section("All", "Losses are nats above exact Bayes.", table=table),
            ],
        )
