"""How many sequences one gradient needs: measured beside what signal and noise of single entries predict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import scipy  # type: ignore[import-untyped]  # its parts are imported with their first use

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.pages.report import State
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid, one_of
from causal_circuits.studies.tables import GRAPHS, curves_of, is_share, make_graph, parents_first

Row = dict[str, Any]
PILOT = 2_000  # sequences that tell the noise of an entry; none of them is used again
SURE = 0.95  # the predicted number makes all parents first with this probability


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """One gradient at the start of training finds the graph, from no more sequences than signal and noise predict.

    For each graph, d_vocab, n_ctx and alpha: from how many sequences is every parent the largest entry of its row
    (`measured_gradient`), and how many parents and false edges does `recover_graph` name? Predicted beforehand: the
    entries' expectation G needs no sequence (`finite_context_gradient`), the noise of an entry comes from 2,000 other
    sequences, and n is the least number at which a union bound over all rivals, with normal noise, leaves 5%.

        python analyses/sample_complexity.py                # some four minutes on two cores
        python analyses/sample_complexity.py --alpha 0.3 --n-ctx 15 30 60
    """

    QUICK: ClassVar = {"graph": ("forest",), "d_vocab": (3,), "n_ctx": (10, 20), "seeds": 1, "sizes": (100, 1000, 4000)}

    graph: tuple[str, ...] = ("chain", "forest")  #: any of chain, pairs, forest
    d_vocab: tuple[int, ...] = (3, 10)  #: numbers of tokens
    n_ctx: tuple[int, ...] = (10, 20, 40)  #: context lengths
    alpha: tuple[float, ...] = (0.1, 1.0)  #: Dirichlet concentrations
    seeds: int = 3  #: independent tables of each setting
    sizes: tuple[int, ...] = (100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600)  #: numbers of sequences

    def check(self) -> None:
        one_of(GRAPHS, graph=self.graph)
        at_least(2, d_vocab=self.d_vocab)
        at_least(5, n_ctx=self.n_ctx)
        at_least(10, sizes=self.sizes)
        at_least(1, seeds=self.seeds)

    def cells(self) -> list[Cell]:
        tables = {"graph": self.graph, "d_vocab": self.d_vocab, "n_ctx": self.n_ctx, "alpha": self.alpha}
        seeds = range(self.seed, self.seed + self.seeds)
        return grid(measure_table, {**tables, "seed": seeds}, sizes=self.sizes)

    def report(self, rows: Mapping[str, Row]) -> Report:
        tables = pd.DataFrame(rows.values()).drop(columns="points")
        points = pd.DataFrame([point for row in rows.values() for point in row["points"]])
        enough, evidence = compare(tables)
        false = f"{points.false_edges.sum()} named in {len(points)} tables of all sizes"
        found = {name: plot_found(points, name) for name in ("first", "recovered")}
        return Report(
            title="How many sequences does one gradient need?",
            checks=[
                Check(enough, f"The predicted number is enough in {SURE:.0%} of tables or more", evidence),
                Check(not points.false_edges.any(), "recover_graph names no false edge, from however few", false),
            ],
            results={"tables": list(rows.values())},
            sections=[
                Section(
                    "Needed and predicted",
                    "One mark a table. Needed: the fewest sequences tried from which on every parent is first in its "
                    "row of the gradient; below the dotted line these are fewer than predicted.",
                    figures={"needed": plot_needed(tables)},
                ),
                Section(
                    "Parents found",
                    "Shares of parents, means over tables: first in their row of one gradient, and named by "
                    "recover_graph, which asks for significance.",
                    figures=found,
                    table=tables,
                ),
            ],
        )


def measure_table(graph: str, d_vocab: int, n_ctx: int, alpha: float, seed: int, sizes: Sequence[int]) -> Row:
    """Parents that are first, found, and false edges, from growing parts of one table."""
    task = cc.InContextTask(make_graph(graph, n_ctx), d_vocab=d_vocab, alpha=alpha)
    edges, table = cc.latent_edges(task.graph), task.sample(max(sizes), seed=(seed, 11))
    setting = {"graph": graph, "d_vocab": d_vocab, "n_ctx": n_ctx, "alpha": alpha, "seed": seed}
    points: list[Row] = []
    for size in sorted(sizes):
        part = table[:size]
        value = cc.measured_gradient(part.tokens, part.target_probs).value
        recovery = cc.compare_graphs(task.graph, cc.recover_graph(part.tokens, part.target_probs).graph)
        first = parents_first(value, task.graph) / len(edges)
        found = 1 - len(recovery.missing) / len(edges)
        points.append({**setting, "n": size, "first": first, "recovered": found, "false_edges": len(recovery.false)})
    needed = [point["n"] for point in points if all(p["first"] == 1 for p in points if p["n"] >= point["n"])]
    return {**setting, "predicted": predict(task, seed), "needed": min(needed, default=None), "points": points}


def predict(task: cc.InContextTask, seed: int) -> float:
    """The least n at which sum over rivals of P(noise > gap) <= 1 - SURE, with normal noise of variance s^2 / n."""
    pilot = task.sample(PILOT, seed=(seed, 12))
    noise = cc.measured_gradient(pilot.tokens, pilot.target_probs).standard_error.double() * PILOT**0.5
    expected = cc.information.finite_context_gradient(task, n_matrices=256, seed=seed).value.double()
    ratios = []  # gap over noise, of every parent and every other earlier position
    for parent, child in cc.latent_edges(task.graph):
        gap, spread = expected[child, parent] - expected[child], (noise[child, parent] ** 2 + noise[child] ** 2).sqrt()
        ratios += [float(gap[j] / spread[j]) for j in range(child) if j != parent]
    sizes = np.geomspace(1, 1e9, 2000)
    failure = scipy.stats.norm.sf(np.array(ratios)[:, None] * sizes**0.5).sum(axis=0)
    return float(sizes[failure <= 1 - SURE].min(initial=np.inf))


def compare(tables: pd.DataFrame) -> tuple[State, str]:
    """Whether the predicted number is enough as often as is claimed, and how far it is from the needed one."""
    enough, of_tables = is_share(tables.needed <= tables.predicted, SURE)
    ratio = (tables.needed / tables.predicted).dropna()
    known, said = tables.dropna(subset="needed"), "no rank correlation (too few different numbers)"
    if known[["needed", "predicted"]].nunique().min() > 1:
        said = f"rank correlation {known.needed.astype(float).corr(known.predicted, method='spearman'):.2f}"
    return enough, (
        f"enough in {of_tables}; needed / predicted {ratio.min():.2f} to {ratio.max():.2f}, "
        f"median {ratio.median():.2f}; {said}; in {tables.needed.isna().sum()} tables no size tried was enough"
    )


def plot_needed(tables: pd.DataFrame) -> Any:
    series = curves_of(tables, "predicted", "needed", "{graph}, alpha {alpha:g}", mean=False)
    line = ("needed = predicted", 1.0, 1.0)
    return figures.plot_scaling(series, {}, xlabel="predicted sequences", ylabel="needed sequences", bound=line)


def plot_found(points: pd.DataFrame, what: str) -> Any:
    curves = curves_of(points, "n", what, "{graph}, d_vocab {d_vocab}, alpha {alpha:g}")
    label = {"first": "parents first in their row", "recovered": "parents that recover_graph names"}[what]
    return figures.plot_curves(curves, xlabel="sequences", ylabel=f"share of {label}")
