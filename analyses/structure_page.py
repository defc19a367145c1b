"""What `structure_learning.py` makes of its measurements: curves, table, page. Not a script."""

import argparse
from collections.abc import Sequence
from typing import Any

from going_on import Units
from structure_methods import (
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
from studies import write_study

from causal_circuits import figures

Rows = Sequence[dict[str, Any]]
COUNTS = ("edges", "parents_by_chance", "variance_by_chance", "edges_proposed", "parents_proposed")
COUNTS += ("edges_found", "false_edges")
POOLED, FIXED, NOISE = SETTINGS = ("pooled prompts", "one fixed kernel", "pure noise")
CLASSICS = (INFORMATION, INFORMATION_GIVEN, CHOW_LIU, CHOW_LIU_NODES, CHOW_LIU_GIVEN)
ROW_MAXIMA = (GRADIENT, GRADIENT_LAWS, COVARIANCE, ATTENTION, INFORMATION, INFORMATION_GIVEN)
DRAWN = (GRADIENT, GRADIENT_LAWS, COVARIANCE, ATTENTION, INFORMATION, INFORMATION_GIVEN, CHOW_LIU_GIVEN, PC_NODES)
MOST_ERRORS = 3.5  # standard errors from chance


def finish(arguments: argparse.Namespace, units: Units, rows: Rows, *, has_pc: bool) -> str:
    """Sum over graphs, draw, write; returns the table."""
    sums = summed(rows)
    content = {"pc": "run" if has_pc else MISSING, "summary": sums, "rows": list(rows)}
    write_study(
        arguments,
        units,
        content,
        draw(sums),
        title="Structure learning on one table: a gradient, a covariance, attention, and the classics",
        verdict=verdict(sums, max(arguments.sizes)),
        sections=sections(sums, has_pc),
    )
    return table(sums, arguments, has_pc)


def summed(rows: Rows) -> list[dict[str, Any]]:
    """Totals over graphs for each setting, method and number of sequences."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["setting"], row["method"], row["sequences"]), []).append(row)
    return [
        {
            "setting": setting,
            "method": method,
            "sequences": sequences,
            "graphs": len(group),
            **{name: sum(row[name] for row in group) for name in COUNTS},
            "mean_shd": sum(row["shd"] for row in group) / len(group),
            "seconds_a_graph": sum(row["seconds"] for row in group) / len(group),
        }
        for (setting, method, sequences), group in groups.items()
    ]


def draw(sums: Rows) -> dict[str, Any]:
    """Every figure by the name of its file."""
    values = {
        "parents": ("share of parents proposed", lambda row: row["parents_proposed"] / row["edges"]),
        "found": ("share of parents accepted", lambda row: row["edges_found"] / row["edges"]),
        "false_edges": ("false edges a graph", lambda row: row["false_edges"] / row["graphs"]),
        "shd": ("structural Hamming distance, mean", lambda row: row["mean_shd"]),
    }
    plots = {}
    for setting in (POOLED, FIXED):
        for name, (label, value) in values.items():
            curves = {
                method: [(row["sequences"], value(row)) for row in rows_of(sums, setting, method)] for method in DRAWN
            }
            plots[f"{name}_{setting.replace(' ', '_')}"] = figures.plot_curves(
                {method: curve for method, curve in curves.items() if curve},
                xlabel="sequences",
                ylabel=label,
                title=setting,
            )
    return plots


def rows_of(sums: Rows, setting: str, method: str) -> list[dict[str, Any]]:
    """The rows of one setting and method, one a number of sequences."""
    return [row for row in sums if (row["setting"], row["method"]) == (setting, method)]


def at(sums: Rows, setting: str, method: str, sequences: int) -> dict[str, Any]:
    """One row of the summary."""
    return next(row for row in rows_of(sums, setting, method) if row["sequences"] == sequences)


def verdict(sums: Rows, most: int) -> list[figures.Check]:
    """The claims, each with the numbers that decide it."""
    checks = []
    for method in (GRADIENT, GRADIENT_LAWS, ATTENTION):
        row = at(sums, POOLED, method, most)
        checks.append(
            figures.Check(
                row["edges_found"] == row["edges"] and not row["false_edges"],
                f"{POOLED}: {method}: every parent and no false edge from {most:,} sequences",
                f"{row['edges_found']} of {row['edges']} parents, {row['false_edges']} false edges",
            )
        )
    row = at(sums, POOLED, COVARIANCE, most)
    checks.append(
        figures.Check(
            row["parents_proposed"] == row["edges"],
            f"{POOLED}: the {COVARIANCE}, counted without a model, has its largest entry of each row at the parent",
            f"{row['parents_proposed']} of {row['edges']} parents; its plain test of dependence accepts "
            f"{row['false_edges']} false edges, in rows of roots",
        )
    )
    pooled = {method: at(sums, POOLED, method, most) for method in CLASSICS}
    checks.append(
        figures.Check(
            all(row["parents_proposed"] < 0.5 * row["edges"] for row in pooled.values()),
            f"{POOLED}: the classics propose fewer than half of the parents, also where they are given query and label",
            "; ".join(f"{method} {row['parents_proposed']}" for method, row in pooled.items()) + f" of {row['edges']}",
        )
    )
    for row in (rows_of(sums, POOLED, method)[-1] for method in (PC, PC_NODES) if rows_of(sums, POOLED, method)):
        checks.append(
            figures.Check(
                row["false_edges"] > row["edges"],
                f"{POOLED}: {row['method']} does not tell edges from other pairs: of these it links more than there "
                "are edges",
                f"{row['edges_found']} of {row['edges']} edges and {row['false_edges']:,} pairs that are none, from "
                f"{row['sequences']:,} sequences",
            )
        )
    fixed = {method: at(sums, FIXED, method, most) for method in CLASSICS}
    checks.append(
        figures.Check(
            all(row["parents_proposed"] > 0.9 * row["edges"] for row in fixed.values()),
            f"{FIXED}: the classics, made for it, propose over 90% of the parents",
            "; ".join(f"{method} {row['parents_proposed']}" for method, row in fixed.items()) + f" of {row['edges']}",
        )
    )
    row = at(sums, FIXED, ATTENTION, most)
    checks.append(
        figures.Check(
            row["parents_proposed"] < 0.5 * row["edges"],
            f"{FIXED}: training finds less than half of the graph, since the target's law needs no context",
            f"{row['parents_proposed']} of {row['edges']} parents proposed ({row['parents_by_chance']:.1f} by chance)",
        )
    )
    noise = {method: at(sums, NOISE, method, most) for method in ROW_MAXIMA}
    checks.append(
        figures.Check(
            all(abs(errors_from_chance(row)) < MOST_ERRORS for row in noise.values()),
            f"{NOISE}: what has no structure gives true edges by chance only (within {MOST_ERRORS} standard errors)",
            "; ".join(f"{method} {row['parents_proposed']}" for method, row in noise.items())
            + f", by chance {row['parents_by_chance']:.1f}",
        )
    )
    return checks


def errors_from_chance(row: dict[str, Any]) -> float:
    """How many standard errors the parents proposed lie above a random earlier position a row."""
    return float((row["parents_proposed"] - row["parents_by_chance"]) / row["variance_by_chance"] ** 0.5)


def sections(sums: Rows, has_pc: bool) -> list[tuple[str, str, Sequence[str], str]]:
    """The evidence, picture by picture."""
    told = {
        POOLED: "A fresh kernel in every sequence: positions of a prompt share a hidden cause, and pooled tables no "
        "longer obey the data processing inequality. All methods see the same tokens and one sampled next token a "
        "sequence; rows named exact laws see the law in its place. A proposal is a position's best candidate, accepted "
        "if the method's own test is sure of it; attention's and the gradient's tests tell roots by the statistic of "
        "recover_graph, the others ask for dependence alone."
        + (" Read PC's parents beside its false edges: it links nearly every pair." if has_pc else ""),
        FIXED: "The same kernel behind all sequences: what the classical methods are made for. A Chow-Liu tree spans "
        "all positions, so it links roots too. A model trained on such a table can learn the kernel by heart, and its "
        "attention shows no graph.",
        NOISE: "Uniform tokens, and laws of the next token that have nothing to do with them: the control. The graph "
        "that proposals are compared with is that of the same number, which made none of these sequences.",
    }
    found = [
        (
            setting[0].upper() + setting[1:],
            told[setting],
            []
            if setting == NOISE
            else [f"{name}_{setting.replace(' ', '_')}" for name in ("parents", "found", "false_edges", "shd")],
            figures.table_html([row for row in sums if row["setting"] == setting], caption="Totals over graphs"),
        )
        for setting in SETTINGS
    ]
    return found if has_pc else [*found, ("PC", MISSING, [], "")]


def table(sums: Rows, arguments: argparse.Namespace, has_pc: bool) -> str:
    """The short table that ends a run: the largest number of sequences that each method was given."""
    lines = []
    for setting in SETTINGS:
        for method in METHODS:
            rows = rows_of(sums, setting, method)
            if rows:
                row = max(rows, key=lambda row: row["sequences"])
                lines.append(
                    f"{setting:17s} {method:39s} {row['parents_proposed']:3d} of {row['edges']} parents proposed, "
                    f"{row['edges_found']} accepted, {row['false_edges']} false edges, mean SHD {row['mean_shd']:.1f} "
                    f"({row['sequences']:,} sequences, {row['graphs']} graphs, {row['seconds_a_graph']:.2f} s each)"
                )
    if not has_pc:
        lines.append(f"{PC} was left out: causal-learn is not installed")
    lines.append(f"look at     {arguments.out / 'report.html'}")
    return "\n".join(lines)
