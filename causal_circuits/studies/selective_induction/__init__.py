"""Selective induction heads: three attention layers can find the lag of a chain in context, two less well."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from causal_circuits import figures
from causal_circuits.figures.style import new_grid
from causal_circuits.pages import Check, Section
from causal_circuits.studies.selective_induction.compared import (
    DEEP,
    GIVEN,
    ORDINARY,
    PLANTED,
    SELECTIVE,
    architectures,
    n_residues,
)
from causal_circuits.studies.selective_induction.measure import measure_planted, measure_training
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid
from causal_circuits.studies.tables import interval, interval_text, is_positive

SHARE = "loss: 0 Bayes, 1 all lags alike"
Row = dict[str, Any]
GRADIENTS = tuple(f"gradient layer {at}" for at in ("0 with log P", "1 at residues", "2 at the candidates"))


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

    QUICK: ClassVar = {"seeds": 1, "steps": 150}

    lags: tuple[int, ...] = (1, 2)  #: the lags that are drawn
    d_vocab: int = 4  #: number of tokens
    n_ctx: int = 16  #: length of the sequences
    seeds: int = 5  #: independent trainings of each architecture, with a transition matrix each
    steps: int = 1500  #: of Adam
    batch_size: int = 128  #: sequences a step

    def check(self) -> None:
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
        every = list(rows.values())
        table = pd.DataFrame([{key: value for key, value in row.items() if np.isscalar(value)} for row in every])
        share = table.pivot(index="seed", columns="architecture", values="share")
        worst_first = share[share.mean().sort_values(ascending=False).index]
        by_seed = {f"seed {seed}": of.to_dict() for seed, of in worst_first.iterrows()}
        planted = [row for row in every if row["architecture"] == PLANTED]
        selective = [row for row in every if row["architecture"] == SELECTIVE]
        names = ("maximum likelihood", "normalized likelihood")
        references = {name: fmean(row[name] for row in planted) for name in names}
        return Report(
            title="Selective induction heads",
            checks=checks(share, planted, selective),
            results={"rows": every},
            sections=[
                Section(
                    "Who selects the lag",
                    "The loss on a scale from exact Bayes over lags (0) to all lags alike (1); a dot is a training.",
                    figures={"excess": figures.plot_groups(by_seed, levels=references, xlabel=SHARE)},
                    table=table,
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
                    table=[{"seed": row["seed"], **row["onsets"]} for row in selective],
                ),
                Section(
                    "Which head does what",
                    "The loss between Bayes (0) and all lags alike (1): with all heads, and with the mean of one in "
                    "its place.",
                    table=[{"seed": row["seed"], "all heads": row["share"], **row["without"]} for row in selective],
                ),
            ],
        )


def checks(share: pd.DataFrame, planted: list[Row], selective: list[Row]) -> list[Check]:
    two = share[[name for name in share.columns if name.startswith("two layers")]].min(axis=1)
    gain = {name: two - share[name] for name in (SELECTIVE, GIVEN, DEEP)}
    ordinary, hand = share["ordinary, two layers"] - share["ordinary, three layers"], [row["share"] for row in planted]
    likelihood = fmean(row["maximum likelihood"] for row in planted)
    off = max(row["share"] - row["normalized likelihood"] for row in planted)
    cut = {name: [row["without"][name] - row["share"] for row in selective] for name in selective[0]["without"]}
    told = {name: sum(bool(row[name] > 0) for row in planted) for name in GRADIENTS}
    said = {
        name: f"{interval_text(share[name])}; the best of two layers less that: {interval_text(gain[name])}, positive "
        f"in {(gain[name] > 0).sum()} of {len(two)} seeds"
        for name in gain
    }
    return [
        Check(
            off < 0.02,
            "The planted circuit is as good as the predictor it implements",
            f"its loss less that of choosing the lag with the largest mean share of the likelihood: {off:.3f} at most",
        ),
        Check(
            interval(two - hand)[0] > 0,
            "The planted circuit selects the lag, and no two trained layers do as well",
            f"{interval_text(hand)} (maximum likelihood {likelihood:.3f}); the best of two layers less that: "
            f"{interval_text(two - hand)}",
        ),
        Check(
            is_positive(*interval(gain[SELECTIVE])),
            "Trained in the mechanism's blocks of weights, three layers are better than two",
            said[SELECTIVE],
        ),
        Check(
            bool((gain[GIVEN] > 0).all()) or "refuted",
            "With layer 1's pattern given, training finds the other layers: better than two in every seed",
            said[GIVEN],
        ),
        Check(
            is_positive(*interval(gain[DEEP])),
            "Trained in all its weights, three layers are better than two",
            said[DEEP],
        ),
        Check(
            is_positive(*interval(ordinary)),
            "An ordinary transformer of three layers is better than one of two",
            f"by {interval_text(ordinary)}",
        ),
        Check(
            all(min(costs) > 0.1 for costs in cut.values()) or "refuted",
            "Every head of the mechanism is needed",
            "; ".join(f"without {name} {interval_text(costs)} more" for name, costs in cut.items()),
        ),
        Check(
            min(told.values()) == len(planted),
            "With one layer empty and the others planted, that layer's first gradient points at the mechanism",
            "; ".join(f"{name.removeprefix('gradient ')} in {n} of {len(planted)}" for name, n in told.items()),
        ),
    ]


def plot_patterns(row: Row) -> Figure:
    seen = {name: np.asarray(pattern) for name, pattern in row["patterns"].items()}
    titles = {"layer 0": "layer 0: query and key", "layer 1": "layer 1: head and key, last query"}
    titles["layer 2"] = "layer 2: lag and key, last query"
    figure, axes = new_grid(3, 3, 3.8, 3.2)
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        image = ax.imshow(seen[name], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        ax.set(title=f"{row['architecture']}\n{title}" if name == "layer 0" else title, xlabel="key position")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
    figure.colorbar(image, ax=axes, label="attention")
    return figure


def plot_formation(selective: list[Row]) -> Any:
    means = pd.DataFrame([state for row in selective for state in row["states"]]).groupby("step").mean()
    curves = {name: list(zip(means.index + 1, means[name], strict=True)) for name in means.columns}
    return figures.plot_curves(curves, xlabel="step + 1", ylabel="attention")
