"""What the architectures reach, against what is claimed."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from causal_circuits import figures
from causal_circuits.figures.style import new_grid
from causal_circuits.pages import Check
from causal_circuits.studies.selective_induction.compared import DEEP, GIVEN, SELECTIVE
from causal_circuits.studies.tables import interval, interval_text

Row = dict[str, Any]
GRADIENTS = tuple(f"gradient layer {at}" for at in ("0 with log P", "1 at residues", "2 at the candidates"))


def checks(share: pd.DataFrame, planted: list[Row], selective: list[Row]) -> list[Check]:
    """What is claimed, each with what decides it."""
    two = share[[name for name in share.columns if name.startswith("two layers")]].min(axis=1)
    gap, ordinary = two - share[SELECTIVE], share["ordinary, two layers"] - share["ordinary, three layers"]
    likelihood, hand = [row["maximum likelihood"] for row in planted], [row["share"] for row in planted]
    above = two - hand
    off = max(row["share"] - row["normalized likelihood"] for row in planted)
    cut = {name: [row["without"][name] - row["share"] for row in selective] for name in selective[0]["without"]}
    told = {name: sum(bool(row[name] > 0) for row in planted) for name in GRADIENTS}
    return [
        Check(
            off < 0.02,
            "The planted circuit is as good as the predictor it implements",
            f"its loss less that of choosing the lag with the largest mean share of the likelihood: {off:.3f} at most",
        ),
        Check(
            interval(above)[0] > 0,
            "The planted circuit selects the lag, and no two trained layers do as well",
            f"{interval_text(hand)} (maximum likelihood {np.mean(likelihood):.3f}); the best of two layers less that: "
            f"{interval_text(above)}",
        ),
        Check(
            "passed" if interval(gap)[0] > 0 else "refuted",
            "Trained in the mechanism's blocks of weights, three layers are better than two",
            f"in {(gap > 0).sum()} of {len(gap)} seeds; {interval_text(share[SELECTIVE])}; the best of two layers less "
            f"that: {interval_text(gap)}",
        ),
        Check(
            "passed" if bool((two > share[GIVEN]).all()) else "refuted",
            "With layer 1's pattern given, training finds the other layers: better than two in every seed",
            f"{interval_text(share[GIVEN])}; the best of two layers less that: {interval_text(two - share[GIVEN])}",
        ),
        Check(
            "passed" if interval(two - share[DEEP])[0] > 0 else "refuted",
            "Trained in all its weights, three layers are better than two",
            f"{interval_text(share[DEEP])}; the best of two layers less that: {interval_text(two - share[DEEP])}",
        ),
        Check(
            "passed" if interval(ordinary)[0] > 0 else "refuted",
            "An ordinary transformer of three layers is better than one of two",
            f"by {interval_text(ordinary)}",
        ),
        Check(
            "passed" if all(min(costs) > 0.1 for costs in cut.values()) else "refuted",
            "Every head of the mechanism is needed",
            "; ".join(f"without {name} {interval_text(costs)} more" for name, costs in cut.items()),
        ),
        Check(
            min(told.values()) == len(planted),
            "With one layer empty and the others planted, that layer's first gradient points at the mechanism",
            "; ".join(f"{name.removeprefix('gradient ')} in {n} of {len(planted)}" for name, n in told.items()),
        ),
    ]


def by_seed(share: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Seed -> architecture -> share, the worst architecture first."""
    order = share.mean().sort_values(ascending=False).index
    return {f"seed {seed}": {name: float(share.loc[seed, name]) for name in order} for seed in share.index}


def plot_patterns(row: Row) -> Figure:
    """The patterns of the three layers side by side."""
    seen = {name: np.asarray(pattern) for name, pattern in row["patterns"].items()}
    titles = {"layer 0": "layer 0: query and key", "layer 1": "layer 1: head and key, last query"}
    titles["layer 2"] = "layer 2: sequence's lag and key, last query"
    figure, axes = new_grid(3, 3, 3.8, 3.2)
    for ax, (name, title) in zip(axes, titles.items(), strict=True):
        image = ax.imshow(seen[name], cmap="Blues", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        ax.set(title=f"{row['architecture']}\n{title}" if name == "layer 0" else title, xlabel="key position")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(8, integer=True))
    figure.colorbar(image, ax=axes, label="attention")
    return figure


def plot_formation(selective: list[Row]) -> Any:
    """Each layer's part over training."""
    means = pd.DataFrame([state for row in selective for state in row["states"]]).groupby("step").mean()
    curves = {name: list(zip(means.index + 1, means[name], strict=True)) for name in means.columns}
    return figures.plot_curves(curves, xlabel="step + 1", ylabel="attention")
