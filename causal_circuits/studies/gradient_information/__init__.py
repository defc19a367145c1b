"""The first gradient beside the mutual information that it tends to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import pandas as pd
import scipy  # type: ignore[import-untyped]  # its parts are imported with their first use
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.gradient_information import measure
from causal_circuits.studies.gradient_information.measure import CHECK_BETA_0, PARTS
from causal_circuits.studies.study import Cell, Report, Study, at_least, one_of
from causal_circuits.studies.tables import GRAPHS, parents_first

Rows = Sequence[Mapping[str, Any]]
LINE = ["graph", "d_vocab", "alpha"]  # the settings of a line differ in n_ctx alone


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """In a child's row of layer 0's first gradient the parent is largest; it follows the information it tends to.

    For every graph, d_vocab, alpha and n_ctx: minus the gradient of the reduced model at its start, measured on fresh
    sequences, beside two predictions - g, the paper's chi-squared information in the limit of long contexts, and G,
    the expectation of the gradient itself at this very context length, computed without sequences
    (`finite_context_gradient`). Measurement against G checks two computations of one thing; how far g is from both
    says what a short context does to the information. Then the same against the number of sequences, the row maxima
    of random forests, and a training run: how the agreement evolves and in which order edges form.

        python analyses/gradient_information.py               # the whole table, some five minutes on one core
        python analyses/gradient_information.py --n-ctx 100 --alpha 1 --d-vocab 3 5 --sequences 50000
    """

    QUICK: ClassVar = {
        "graph": ("chain", "forest"), "d_vocab": (3,), "n_ctx": (10, 20), "sequences": 10_000, "forests": 4
    }  # fmt: skip

    graph: tuple[str, ...] = GRAPHS  #: any of chain, pairs, forest
    d_vocab: tuple[int, ...] = (3, 5)  #: numbers of tokens
    alpha: tuple[float, ...] = (0.1, 1.0)  #: Dirichlet concentrations of the transition matrices
    n_ctx: tuple[int, ...] = (20, 60, 100, 200)  #: context lengths
    sequences: int = 100_000  #: sequences a setting
    forests: int = 50  #: random forests whose row maxima are checked

    def check(self) -> None:
        one_of(GRAPHS, graph=self.graph)
        at_least(4, n_ctx=self.n_ctx)
        at_least(2, d_vocab=self.d_vocab)
        at_least(100, sequences=self.sequences)
        at_least(0, forests=self.forests)

    def cells(self) -> list[Cell]:
        settings = list(product(self.graph, self.d_vocab, self.alpha, self.n_ctx))
        # where theory and measurement are furthest apart: this one is shown pair by pair
        far = ("forest", min(self.alpha), min(self.n_ctx))
        shown = max((i for i, (graph, _, *rest) in enumerate(settings) if (graph, *rest) == far), default=0)
        swept = (max(self.n_ctx[:3]), max(self.alpha))
        measured = []
        for index, (graph, d_vocab, alpha, n_ctx) in enumerate(settings):
            own = {"graph": graph, "d_vocab": d_vocab, "alpha": alpha, "n_ctx": n_ctx, "n_sequences": self.sequences}
            own |= {"with_sweep": (n_ctx, alpha) == swept, "with_matrices": index == shown, "seed": (self.seed, index)}
            name = f"setting {index} {graph} {d_vocab} {alpha} {n_ctx}"
            measured.append(Cell(name, measure.measure_setting, own))
        drawn = range(self.seed, self.seed + self.forests)
        forests = [Cell(f"forest {k}", measure.check_forest, {"seed": k}) for k in drawn]
        training = {"seed": self.seed, "steps": 200 if self.quick else 600}
        return [
            *measured,
            *forests,
            Cell("training", measure.train_and_compare, training),
            Cell("closed form", measure.backward_pass_difference, {"seed": self.seed}),
        ]

    def report(self, rows: Mapping[str, Any]) -> Report:
        measured = [row for name, row in rows.items() if name.startswith("setting")]
        forests = [row for name, row in rows.items() if name.startswith("forest")]
        settings = [row["setting"] for row in measured]
        sweep = [point for row in measured for point in row["sweep"]]
        table = pd.DataFrame([setting_row(setting) for setting in settings])
        difference, formation = rows["closed form"], rows["training"]
        return Report(
            title="Is the gradient the mutual information?",
            checks=[
                check_slope_on_expectation(table),
                *check_slope_on_limit(table),
                *check_parents(settings, forests),
                Check(
                    difference < 0.01,
                    "The closed form is what a backward pass through the model gives",
                    f"relative difference {difference:.1e} at beta0 = {CHECK_BETA_0:g}",
                ),
            ],
            results={
                "settings": settings,
                "against_sequences": sweep,
                "forests": forests,
                "backward_pass_difference": difference,
                "training": {name: value for name, value in formation.items() if name != "attention"},
            },
            sections=[
                *(show_matrices(**row["matrices"]) for row in measured if row["matrices"]),
                show_lengths(table),
                *([show_sequences(pd.DataFrame(sweep))] if sweep else []),
                show_training(formation),
            ],
        )


def setting_row(setting: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of the table: g is the information of the limit, G the gradient expected at this length."""
    by_g, by_finite, bias = (setting["weights"][name] for name in ("by_g", "by_finite", "bias"))
    return {
        **{name: setting[name] for name in (*LINE, "n_ctx")},
        "corr g": by_g.correlation,
        "slope g": by_g.slope,
        "slope g: error": setting["slope_error_g"],
        "corr G": by_finite.correlation,
        "slope G": by_finite.slope,
        "slope G: error": setting["slope_error_finite"],
        "G on g: corr": bias.correlation,
        "G on g: slope": bias.slope,
        "noise": by_finite.noise_share,
        "neither G nor noise": 1 - by_finite.noise_share - by_finite.variance_explained,
        "parents first": f"{sum(rank == 1 for rank in by_g.parent_ranks)}/{len(by_g.parent_ranks)}",
    }


def largest_by_chance(n: int) -> float:
    """How many standard errors from 1 the furthest of n slopes lies by chance alone, in 95% of runs at most."""
    return float(scipy.stats.t.ppf(1 - 0.025 / n, PARTS - 1))


def check_slope_on_expectation(table: pd.DataFrame) -> Check:
    off, errors = (table["slope G"] - 1).abs(), table["slope G: error"]
    furthest, allowed = (off / errors).max(), largest_by_chance(len(table))
    unexplained = table["neither G nor noise"].max()
    return Check(
        bool(furthest <= allowed and unexplained < 0.03),
        "The measured gradient is G, its own expectation computed without sequences: slope 1 within its error, and "
        "less than 3% of the variance neither explained nor noise",
        f"slopes on G within {off.max():.3f} of 1, their errors {errors.min():.3f} to {errors.max():.3f} (sequences "
        f"and matrices); the furthest is {furthest:.1f} errors from 1, and chance allows {allowed:.1f} in {len(table)} "
        f"settings; at most {max(unexplained, 0.0):.1%} of the variance is neither explained nor noise",
    )


def check_slope_on_limit(table: pd.DataFrame) -> list[Check]:
    lines = table.sort_values("n_ctx").groupby(LINE)
    several = lines.n_ctx.nunique() > 1
    short, long = lines.first()[several], lines.last()[several]
    if long.empty:
        return []
    off = (long["slope g"] - 1).abs()
    closer = int((off < (short["slope g"] - 1).abs()).sum())
    apart = int((off > largest_by_chance(len(long)) * long["slope g: error"]).sum())
    return [
        Check(
            closer == len(long) or "refuted",
            "The slope on g, the information of the limit, is closer to 1 in the longest context than in the shortest",
            f"in {closer} of {len(long)} lines (of forests, another one at each length); in the longest contexts it is "
            f"{long['slope g'].min():.3f} to {long['slope g'].max():.3f}, other than 1 beyond its error in {apart} of "
            f"{len(long)}: there the gradient is not the information",
        )
    ]


def check_parents(settings: Rows, forests: Rows) -> list[Check]:
    ranks = [rank for setting in settings for rank in setting["weights"]["by_g"].parent_ranks]
    first = sum(rank == 1 for rank in ranks)
    beaten, rivals = (sum(s[key] for s in settings) for key in ("rivals_beaten", "n_rivals"))
    checks = [
        Check(
            first == len(ranks) and beaten == rivals,
            "In every setting the parent is its row's largest entry: no ancestor, sibling or uncle beats it",
            f"{first} of {len(ranks)} parents first; {beaten} of {rivals} closest rivals beaten",
        )
    ]
    if forests:
        total = pd.DataFrame(forests)[["edges", "parents_first", "recovered", "false_edges"]].sum()
        evidence = (
            f"{len(forests)} random forests: {total.parents_first} of {total.edges} parents are the largest entry of "
            f"their row; recover_graph finds {total.recovered}, {total.false_edges} false edges"
        )
        checks.append(Check(bool(total.parents_first == total.edges), "So in random forests", evidence))
    return checks


def show_lengths(table: pd.DataFrame) -> Section:
    """A line for each graph and alpha at the smallest vocabulary."""
    smallest = table[table.d_vocab == table.d_vocab.min()].sort_values("n_ctx")
    title = "The slope against context length, on the limit g and on G at the length itself"
    drawn = plot_lines(smallest, "n_ctx", {"g": "slope g", "G": "slope G"}, "context length n_ctx", title)
    theory = "Theory: the slope on g tends to 1 as contexts grow, the slope on G is 1 at every length."
    return Section("Longer contexts", theory, figures={"slope_against_n_ctx": drawn}, table=table)


def show_sequences(sweep: pd.DataFrame) -> Section:
    columns = {"g": "correlation_by_g", "G": "correlation_by_finite"}
    title = "Correlation of measured and predicted against the number of sequences, on g and on G"
    drawn = plot_lines(sweep, "n_sequences", columns, "sequences in one gradient", title)
    sentence = (
        "The curves on G leave 1 by noise alone, which falls with the number of sequences; what lies between them and "
        "those on g is what this context length does to g."
    )
    return Section("More sequences", sentence, figures={"correlation_against_sequences": drawn}, table=sweep)


def plot_lines(table: pd.DataFrame, x: str, columns: Mapping[str, str], xlabel: str, title: str) -> Axes:
    lines = {
        f"{graph}, d_vocab {d_vocab}, alpha {alpha:g}, on {prediction}": list(zip(of[x], of[column], strict=True))
        for (graph, d_vocab, alpha), of in table.groupby(LINE, sort=False)
        for prediction, column in columns.items()
    }
    more: dict[str, Any] = {"levels": {"": 1.0}, "title": title, "group_size": 2}
    return figures.plot_curves(lines, xlabel=xlabel, ylabel="measured on predicted", **more)


def show_matrices(graph: Any, measured: Any, g: Any, finite: Any) -> Section:
    expected, limit = "G, expected at this context length", "g, the limit of long contexts"
    shown = {"Minus the gradient, measured": measured, expected: finite, limit: g}
    rows = {title: rows_of_children(information, graph) for title, information in shown.items()}
    largest = max(float(value.nan_to_num().abs().max()) for value in rows.values())
    figure = Figure(figsize=(13.0, 4.0), layout="constrained")
    for ax, (title, value) in zip(figure.subplots(1, 3), rows.items(), strict=True):
        figures.plot_matrix(value, graph, ax, title, "in the unit of g", diverging=True, largest=largest)
    values, error = rows["Minus the gradient, measured"], measured.standard_error
    first = parents_first(values, graph)
    scatters = {}
    for title, stem, predicted in ((expected, "scatter_finite", finite), (limit, "scatter_g", g)):
        scatters[stem] = figures.plot_gradient_vs_information(
            values, predicted.value, graph, error, label=f"predicted: {title}"
        )
    return Section(
        "One gradient beside what is predicted of it",
        f"In the measured gradient the parent (outlined) is the largest entry of its row for {first} of "
        f"{len(cc.latent_edges(graph))} children. Rows of roots, which have no parent to find, and the query's are "
        "left blank: what stands there says nothing of an edge. In the other figures a dot stands for every pair, its "
        "bar for two standard errors.",
        figures={"matrices": figure, **scatters},
    )


def rows_of_children(information: cc.information.Information, graph: Any) -> Tensor:
    """The entries below the diagonal in rows that have a parent; NaN elsewhere."""
    parents = cc.graphs.graph_parents(graph)
    has_none = [row for row, parent in enumerate(parents) if parent is None]
    below = information.value.tril(-1)
    below[[*has_none, len(below) - 1]] = float("nan")
    return below


def show_training(formation: Mapping[str, Any]) -> Section:
    """Which edges form, in which order, and what becomes of the correlation with g."""
    formed, correlation = [step for step in formation["formed_at"] if step is not None], formation["correlation"]
    values = {
        "attention to the parent, mean over edges": formation["attention"].mean(dim=1).tolist(),
        "attention to the parent, least": formation["attention"].amin(dim=1).tolist(),
        "correlation of the gradient with g": correlation,
    }
    steps = [step + 1 for step in formation["steps"]]
    curves = {name: list(zip(steps, of, strict=True)) for name, of in values.items()}
    drawn = figures.plot_curves(curves, xlabel="training step + 1", ylabel="attention, or correlation")
    return Section(
        "Over training",
        f"{len(formed)} of {len(formation['edges'])} edges form. Rank correlation of how early with the pull at the "
        f"start: {formation['order_agreement']:.2f}. The gradient's correlation with g goes from {correlation[0]:.2f} "
        f"at step {formation['steps'][0]} to {correlation[-1]:z.2f} at step {formation['steps'][-1]:,}.",
        figures={"formation": drawn},
    )
