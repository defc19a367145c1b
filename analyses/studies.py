"""What `two_stage.py`, `generalization.py` and `structure_learning.py` share: checks of flags, and what a study writes.

Not a script.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import networkx as nx
from going_on import Units
from results_file import json_values, result_header, versions, write_results

import causal_circuits as cc
from causal_circuits import figures

GRAPHS: dict[str, Callable[[int], nx.DiGraph]] = {
    "chain": cc.chain_graph,
    "pairs": cc.pairs_graph,
    "forest": lambda n_ctx: cc.random_forest(n_ctx, seed=0),
}


def graph_maker(name: str) -> Callable[[int], nx.DiGraph]:
    """The graph of a name at any length; a ValueError for an unknown name."""
    if name not in GRAPHS:
        raise ValueError(f"--graph must be one of {', '.join(GRAPHS)}: got {name!r}")
    return GRAPHS[name]


def check_counts(arguments: argparse.Namespace, **least: int) -> None:
    """Every named flag is at least this large; a list's entries are, and there is one."""
    if arguments.seed < 0:
        raise ValueError(f"--seed must be 0 or more: got {arguments.seed}")
    for name, smallest in least.items():
        value, flag = getattr(arguments, name), "--" + name.replace("_", "-")
        for number in value if isinstance(value, list) else [value]:
            if number < smallest:
                raise ValueError(f"{flag} must be at least {smallest}: got {number}")


def check_lengths(lengths: Sequence[int]) -> None:
    """Different lengths, two or more: one length has no rate."""
    if len(set(lengths)) < 2 or len(set(lengths)) < len(lengths):
        raise ValueError(f"--lengths must name at least two different context lengths: got {list(lengths)}")


def means_by(rows: Sequence[Mapping[str, Any]], key: str, value: str, **only: object) -> list[tuple[float, float]]:
    """(key, mean of value) over the rows that have these entries, in order of key; NaNs left out."""
    groups: dict[float, list[float]] = {}
    for row in rows:
        if all(row[name] == wanted for name, wanted in only.items()) and row[value] == row[value]:
            groups.setdefault(row[key], []).append(float(row[value]))
    return [(at, sum(values) / len(values)) for at, values in sorted(groups.items())]


def write_study(
    arguments: argparse.Namespace,
    units: Units,
    content: dict[str, Any],
    plots: Mapping[str, Any],
    *,
    title: str,
    verdict: Sequence[figures.Check],
    sections: Sequence[tuple[str, str, Sequence[str], str]],
) -> dict[str, Any]:
    """Figures, report.html and, last, results.json, which ends the need for units; returns its content.

    A section is (title, the one sentence it shows, names of its plots, HTML below them).
    """
    out: Path = arguments.out
    for name, figure in plots.items():
        figures.save_figure(figure, out / "figures" / name)
    header, seconds = result_header(units.program, arguments), units.wall_s()
    command = str(header["command"])
    whole = {**header, **content, "timing": {"wall_s": seconds}}
    figures.write_report(
        out / "report.html",
        title=title,
        verdict=verdict,
        sections=[
            figures.Section(
                heading,
                sentence,
                "".join(figures.figure_html(out / "figures" / name, alt=f"{heading}: {sentence}") for name in names)
                + more,
                command,
            )
            for heading, sentence, names, more in sections
        ],
        meta={"command": command, "seed": str(arguments.seed), "wall time": f"{seconds:.1f} s"}
        | {name: str(number) for name, number in versions().items()},
    )
    write_results(whole, out)
    units.finish()
    return json_values(whole)  # type: ignore[return-value]  # a dict stays one
