"""Which way do edges point? Where observation cannot tell, tokens that are set at random in some sequences can."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from causal_circuits.figures.style import GREY, SMALL, look_of, new_grid
from causal_circuits.pages import Check, Section
from causal_circuits.studies.interventional_data.measure import CONTRAST, METHODS, measure_forest
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid, one_of
from causal_circuits.studies.tables import SHARE, interval, interval_text

GRAPHS = ("chain", "forest")
MODELS = ("attention", "knock-out")
RIGHT = 0.95  # of directions, to be called found


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """With two tokens no observation tells an edge's direction; setting half of the tokens at random tells them all.

    Every two-state chain is reversible, so with two tokens a tree has the same law whichever node is its root. With
    three the target's law tells the direction: in long contexts the first gradient of a pair is the chi-squared
    information from parent to child, and less the other way. One experiment orients a forest whose skeleton is known:
    set the tokens of one class of its 2-colouring, in a share of the sequences. Edges into set positions fade, edges
    out of them stay. Which scores show it, as that share grows? All are given equally many sequences, in an order of
    positions drawn at random: pooled mutual information, the first gradient, attention and knock-outs of models
    trained on the table (in this order and turned), each compared with itself on as many observational sequences; and,
    told which sequences were set, the gradient there against the gradient elsewhere.

        python analyses/interventional_data.py                # some five minutes on two cores
        python analyses/interventional_data.py --quick
    """

    QUICK: ClassVar = {
        "graph": ("chain",), "n_ctx": 6, "shares": (0.0, 1.0), "seeds": 1, "sequences": 4000, "steps": 100
    }  # fmt: skip

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
        same = self.flags("shares", "n_ctx", "alpha", "sequences", "steps")
        return grid(measure_forest, axes, cores=1, **same)

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
                    table=points.drop(columns=["graph", "seed"]).groupby(["d_vocab", "share"], as_index=False).mean(),
                ),
            ],
        )


def checks(points: pd.DataFrame) -> list[Check]:
    return [check for d_vocab, of in points.groupby("d_vocab") for check in checks_of(int(d_vocab), of)]


def checks_of(d_vocab: int, of: pd.DataFrame) -> list[Check]:
    alone, told = of[of.share == 0], {name: found_from(of, name) for name in METHODS["fading"]}
    words = {n: f"{n}: {'never' if at is None else f'from {at:.0%} of the sequences on'}" for n, at in told.items()}
    models, best = [f"{name}, fading" for name in MODELS], of[of.share > 0].groupby("share").mean(numeric_only=True)
    observed = "; ".join(f"{name} {interval_text(alone[name], SHARE)}" for name in METHODS["both orders"])
    first = Check(
        all(interval(alone[name], SHARE)[0] <= 0.5 for name in METHODS["both orders"]),
        "Vocabulary of 2: observation leaves the directions open to every score",
        observed,
    )
    if d_vocab > 2:
        target = interval(alone["gradient, both orders"], SHARE)[0] >= RIGHT
        first = Check(
            target, f"Vocabulary of {d_vocab}: the target's law orients edges without an experiment", observed
        )
    most = "; ".join(f"{name} at most {best[name].max():.2f}" for name in [*models, *(f"{m}, AUROC" for m in MODELS)])
    return [
        first,
        Check(
            None not in (told["gradient, fading"], told[CONTRAST]),
            f"Vocabulary of {d_vocab}: where positions are set at random the first gradient orients 95% of the edges",
            f"{words['gradient, fading']}; {words[CONTRAST]}; {words['mutual information, fading']}",
        ),
        Check(
            "passed" if any(told[name] is not None for name in models) else "refuted",
            f"Vocabulary of {d_vocab}: so does the attention of a trained model, or knock-outs",
            f"{words[models[0]]}; {words[models[1]]}; {most}",
        ),
    ]


def found_from(of: pd.DataFrame, name: str) -> float | None:
    """The least share from which on a method has 95% of the directions right, on average."""
    mean = of.groupby("share")[name].mean()
    return min((share for share in mean.index if (mean[share:] >= RIGHT).all()), default=None)


def plot_directions(points: pd.DataFrame) -> Figure:
    """Directions found against the share: rows are ways to decide, columns numbers of tokens."""
    sizes = points.d_vocab.unique().tolist()
    figure, axes = new_grid(len(METHODS) * len(sizes), len(sizes), 4.4, 3.0)
    for ax, (way, d_vocab) in zip(axes, [(way, size) for way in METHODS for size in sizes], strict=True):
        of = points[points.d_vocab == d_vocab].groupby("share")
        for k, name in enumerate(METHODS[way], start=way == "both orders"):
            low, high = np.array([interval(values, SHARE) for _, values in of[name]]).T
            middle, at = of[name].mean().to_numpy(), np.arange(len(low)) + 0.06 * (k - 2)
            label = name.removesuffix(f", {way}")
            ends = (middle - low, high - middle)
            ax.errorbar(at, middle, ends, label=label, markersize=4, linewidth=1.2, **look_of(k))
        share_axis(ax, [share for share, _ in of])
        ax.axhline(0.5, color=GREY, linewidth=0.9, linestyle=":", zorder=0)
        ax.set_ylim(0, 1.05)
        ax.set_title(f"{d_vocab} tokens, {way}", fontsize=10)
        ax.set_ylabel("directions right")
    handles = axes[-1].get_legend_handles_labels()[0]
    figure.legend(handles=handles, loc="outside lower left", ncols=3, frameon=False, fontsize=SMALL)
    return figure


def plot_fading(points: pd.DataFrame) -> Figure:
    """What is left of scores, of edges into set positions and out of them; medians over forests."""
    names, of = ("gradient", "attention", "knock-out"), points.groupby("share").median(numeric_only=True)
    figure, axes = new_grid(len(names), len(names), 3.2, 2.8)
    for ax, name in zip(axes, names, strict=True):
        for k, way in enumerate(("into", "out of")):
            ax.plot(of[f"{name} {way}"].to_numpy(), label=f"{way} set positions", markersize=4, **look_of(k))
        share_axis(ax, of.index)
        ax.set_title(name, fontsize=10)
    axes[0].set_ylabel("left of the observational score")
    axes[0].legend(frameon=False, fontsize=SMALL)
    return figure


def share_axis(ax: Axes, shares: Iterable[float]) -> None:
    """An x axis with the shares at equal distances."""
    names = [f"{share:.0%}" for share in shares]
    ax.set_xticks(range(len(names)), names, fontsize=SMALL)
    ax.set_xlabel("sequences with tokens set")
