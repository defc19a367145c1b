"""What the rows of `structure_learning` add up to: totals over graphs, checks, curves."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.structure_learning.methods import (
    ATTENTION,
    CHOW_LIU,
    CHOW_LIU_GIVEN,
    CHOW_LIU_NODES,
    COVARIANCE,
    GRADIENT,
    GRADIENT_LAWS,
    INFORMATION,
    INFORMATION_GIVEN,
    METHODS,
    MISSING,
    PC,
    PC_NODES,
)
from causal_circuits.studies.study import Report

COUNTS = ["edges", "parents_by_chance", "variance_by_chance", "edges_proposed", "parents_proposed"]
COUNTS += ["edges_found", "false_edges"]
POOLED, FIXED, NOISE = SETTINGS = ("pooled prompts", "one fixed kernel", "pure noise")
CLASSICS = (INFORMATION, INFORMATION_GIVEN, CHOW_LIU, CHOW_LIU_NODES, CHOW_LIU_GIVEN)
ROW_MAXIMA = (GRADIENT, GRADIENT_LAWS, COVARIANCE, ATTENTION, INFORMATION, INFORMATION_GIVEN)
DRAWN = (GRADIENT, GRADIENT_LAWS, COVARIANCE, ATTENTION, INFORMATION, INFORMATION_GIVEN, CHOW_LIU_GIVEN, PC_NODES)
MOST_ERRORS = 3.5  # standard errors from chance
ABOUT = {
    POOLED: "A fresh transition matrix in every sequence: positions of a prompt share a hidden cause, and pooled "
    "tables no longer obey the data processing inequality. All methods see the same tokens and one sampled next token "
    "a sequence; rows named exact laws see the law in its place. A proposal is a position's best candidate, accepted "
    "if the method's own test is sure of it; attention's and the gradient's tests tell roots by the statistic of "
    "recover_graph, the others ask for dependence alone.",
    FIXED: "The same matrix behind all sequences: what the classical methods are made for. A Chow-Liu tree spans all "
    "positions, so it links roots too. A model trained on such a table can learn the matrix by heart.",
    NOISE: "Uniform tokens, and laws of the next token that have nothing to do with them: the control. The graph that "
    "proposals are compared with is that of the same number, which made none of these sequences.",
}


def make_report(rows: Sequence[dict[str, Any]], *, has_pc: bool) -> Report:
    """Checks, results, sections and closing table."""
    totals = sum_over_graphs(rows)
    missing = [] if has_pc else [("PC", "left out: causal-learn is not installed")]
    return Report(
        title="Structure learning on one table: a gradient, a covariance, attention, and the classics",
        checks=make_checks(totals),
        results={
            "pc": "run" if has_pc else MISSING,
            "summary": totals.to_dict(orient="records"),
            "rows": list(rows),
        },
        sections=[*make_sections(totals), *([] if has_pc else [Section("PC", MISSING)])],
        summary=[*summarize(totals), *missing],
    )


def sum_over_graphs(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """A row for each setting, method and number of sequences."""
    groups = pd.DataFrame(rows).groupby(["setting", "method", "sequences"], sort=False)
    totals = pd.concat(
        [
            groups.size().rename("graphs"),
            groups[COUNTS].sum(),
            groups[["shd", "seconds"]].mean().rename(columns={"shd": "mean_shd", "seconds": "seconds_a_graph"}),
        ],
        axis=1,
    )
    return totals.reset_index()


def make_checks(totals: pd.DataFrame) -> list[Check]:
    """The claims, each with the numbers that decide it."""
    most = totals.sequences.max()
    by = totals[totals.sequences == most].set_index(["setting", "method"])
    checks = [
        Check(
            bool(row.edges_found == row.edges and not row.false_edges),
            f"{POOLED}: {method}: every parent and no false edge from {most:,} sequences",
            f"{row.edges_found} of {row.edges} parents, {row.false_edges} false edges",
        )
        for method in (GRADIENT, GRADIENT_LAWS, ATTENTION)
        for row in [by.loc[(POOLED, method)]]
    ]
    row = by.loc[(POOLED, COVARIANCE)]
    checks.append(
        Check(
            bool(row.parents_proposed == row.edges),
            f"{POOLED}: the {COVARIANCE}, counted without a model, has its largest entry of each row at the parent",
            f"{row.parents_proposed} of {row.edges} parents; its plain test of dependence accepts {row.false_edges} "
            "false edges, in rows of roots",
        )
    )
    checks.append(
        Check(
            all(by.parents_proposed[POOLED, method] < 0.5 * row.edges for method in CLASSICS),
            f"{POOLED}: the classics propose fewer than half of the parents, also where they are given query and label",
            proposals(by, POOLED, CLASSICS) + f" of {row.edges}",
        )
    )
    for method in (PC, PC_NODES):
        of_pc = totals[(totals.setting == POOLED) & (totals.method == method)]
        checks += [check_pc(of_pc.iloc[-1])] if len(of_pc) else []
    checks.append(
        Check(
            all(by.parents_proposed[FIXED, method] > 0.9 * row.edges for method in CLASSICS),
            f"{FIXED}: the classics, made for it, propose over 90% of the parents",
            proposals(by, FIXED, CLASSICS) + f" of {row.edges}",
        )
    )
    trained = by.loc[(FIXED, ATTENTION)]
    checks.append(
        Check(
            bool(trained.parents_proposed < 0.5 * trained.edges),
            f"{FIXED}: training finds less than half of the graph, since the target's law needs no context",
            f"{trained.parents_proposed} of {trained.edges} parents proposed "
            f"({trained.parents_by_chance:.1f} by chance)",
        )
    )
    noise = by.loc[NOISE].loc[list(ROW_MAXIMA)]
    errors = (noise.parents_proposed - noise.parents_by_chance) / noise.variance_by_chance**0.5
    checks.append(
        Check(
            bool((errors.abs() < MOST_ERRORS).all()),
            f"{NOISE}: what has no structure gives true edges by chance only (within {MOST_ERRORS} standard errors)",
            proposals(by, NOISE, ROW_MAXIMA) + f", by chance {noise.parents_by_chance.iloc[-1]:.1f}",
        )
    )
    return checks


def proposals(by: pd.DataFrame, setting: str, methods: Sequence[str]) -> str:
    """How many parents each method proposes."""
    return "; ".join(f"{method} {by.parents_proposed[setting, method]}" for method in methods)


def check_pc(row: Any) -> Check:
    """Whether PC links more pairs that are no edge than there are edges."""
    return Check(
        bool(row.false_edges > row.edges),
        f"{POOLED}: {row.method} does not tell edges from other pairs: of these it links more than there are edges",
        f"{row.edges_found} of {row.edges} edges and {row.false_edges:,} pairs that are none, from "
        f"{row.sequences:,} sequences",
    )


def make_sections(totals: pd.DataFrame) -> list[Section]:
    """The evidence, a setting each."""
    return [
        Section(
            setting[0].upper() + setting[1:],
            ABOUT[setting],
            figures={} if setting == NOISE else plot_setting(totals, setting),
            table=totals[totals.setting == setting].to_dict(orient="records"),
        )
        for setting in SETTINGS
    ]


def plot_setting(totals: pd.DataFrame, setting: str) -> dict[str, Any]:
    """Curves over the number of sequences, a line a method."""
    values = {
        "parents": ("share of parents proposed", totals.parents_proposed / totals.edges),
        "found": ("share of parents accepted", totals.edges_found / totals.edges),
        "false_edges": ("false edges a graph", totals.false_edges / totals.graphs),
        "shd": ("structural Hamming distance, mean", totals.mean_shd),
    }
    plots = {}
    for name, (label, value) in values.items():
        lines = totals.assign(value=value)[totals.setting == setting].groupby("method")
        curves = {
            method: list(zip(of.sequences.tolist(), of.value.tolist(), strict=True))
            for method, of in lines
            if method in DRAWN
        }
        ordered = {method: curves[method] for method in DRAWN if method in curves}
        plots[f"{name}_{setting.replace(' ', '_')}"] = figures.plot_curves(
            ordered, xlabel="sequences", ylabel=label, title=setting
        )
    return plots


def summarize(totals: pd.DataFrame) -> list[tuple[str, str]]:
    """The largest number of sequences that each method was given."""
    largest = totals.sort_values("sequences").groupby(["setting", "method"]).last()
    return [
        (
            setting,
            f"{method:39s} {row.parents_proposed:3d} of {row.edges} parents proposed, {row.edges_found} accepted, "
            f"{row.false_edges} false edges, mean SHD {row.mean_shd:.1f} ({row.sequences:,} sequences, {row.graphs} "
            f"graphs, {row.seconds_a_graph:.2f} s each)",
        )
        for setting in SETTINGS
        for method in METHODS
        if (setting, method) in largest.index
        for row in [next(largest.loc[[(setting, method)]].itertuples())]
    ]
