"""What `structure_learning.py` makes of its measurements: curves, table, page. Not a script."""

import argparse
from collections.abc import Sequence
from typing import Any

from going_on import Units
from structure_methods import ATTENTION, CHOW_LIU, GRADIENT, INFORMATION, METHODS, MISSING, PC
from studies import write_study

from causal_circuits import figures

Rows = Sequence[dict[str, Any]]
COUNTS = ("edges", "parents_proposed", "edges_found", "false_edges")
SETTINGS = ("pooled prompts", "one fixed kernel")


def finish(arguments: argparse.Namespace, units: Units, rows: Rows, *, has_pc: bool) -> str:
    """Sum over graphs, draw, write; returns the table."""
    sums = summed(rows)
    content = {"pc": "run" if has_pc else MISSING, "summary": sums, "rows": list(rows)}
    write_study(
        arguments,
        units,
        content,
        draw(sums),
        title="Structure learning on the same tokens: one gradient, attention, and the classics",
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
    for setting in SETTINGS:
        for name, (label, value) in values.items():
            curves = {
                method: [(row["sequences"], value(row)) for row in rows_of(sums, setting, method)] for method in METHODS
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
    for setting in SETTINGS:
        for method in (GRADIENT, ATTENTION):
            row = at(sums, setting, method, most)
            checks.append(
                figures.Check(
                    row["edges_found"] == row["edges"] and not row["false_edges"],
                    f"{setting}: {method} finds every parent and no false edge from {most:,} sequences",
                    f"{row['edges_found']} of {row['edges']} parents, {row['false_edges']} false edges",
                )
            )
    for method in (INFORMATION, CHOW_LIU):
        pooled, fixed = (at(sums, setting, method, most) for setting in SETTINGS)
        checks.append(
            figures.Check(
                pooled["parents_proposed"] < 0.1 * pooled["edges"] and fixed["parents_proposed"] > 0.9 * fixed["edges"],
                f"{method} works with one fixed kernel (over 90% of parents) and fails on pooled prompts (under 10%)",
                f"{fixed['parents_proposed']} of {fixed['edges']} and {pooled['parents_proposed']} of "
                f"{pooled['edges']} parents",
            )
        )
    return checks


def sections(sums: Rows, has_pc: bool) -> list[tuple[str, str, Sequence[str], str]]:
    """The evidence, picture by picture."""
    told = {
        "pooled prompts": "A fresh kernel in every sequence: positions of a prompt share a hidden cause, and pooled "
        "tables no longer obey the data processing inequality. A proposal is a position's best candidate, accepted "
        "if the method's own test is sure of it. The gradient's test is exact at any context length, and asks for some "
        "1,000 sequences."
        + (" Read PC's parents beside its false edges: it links nearly every pair." if has_pc else ""),
        "one fixed kernel": "The same kernel behind all sequences: what the classical methods are made for. A Chow-Liu "
        "tree spans all positions, so it links roots too.",
    }
    found = [
        (
            setting[0].upper() + setting[1:],
            told[setting],
            [f"{name}_{setting.replace(' ', '_')}" for name in ("parents", "found", "false_edges", "shd")],
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
                    f"{setting:17s} {method:25s} {row['parents_proposed']:3d} of {row['edges']} parents proposed, "
                    f"{row['edges_found']} accepted, {row['false_edges']} false edges, mean SHD {row['mean_shd']:.1f} "
                    f"({row['sequences']:,} sequences, {row['graphs']} graphs, {row['seconds_a_graph']:.2f} s each)"
                )
    if not has_pc:
        lines.append(f"{PC} was left out: causal-learn is not installed")
    lines.append(f"look at     {arguments.out / 'report.html'}")
    return "\n".join(lines)
