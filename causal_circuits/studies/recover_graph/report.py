"""The verdict on every position, and what it rests on."""

from dataclasses import asdict
from typing import Any

import pandas as pd

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.study import Report


def make_report(found: cc.discovery.RecoveredGraph, targets: str, data: str) -> Report:
    """The graph of a file whose targets are "target_probs" or "labels"."""
    contradictions = list_contradictions(found)
    undecided = ", ".join(map(str, found.undecided)) or "none"
    return Report(
        title="The causal graph behind these sequences",
        checks=[
            Check(
                found.conclusive,
                "Every position is decided: a child with its parent, or a root",
                f"{count(found, 'child')} edges; undecided: {undecided}; {say_needed(found)}",
            ),
            Check(
                not contradictions,
                "Nothing that was tested contradicts the assumptions",
                "; ".join(contradictions)
                or "no copies, no constant position, no sign of a query that depends on the context, of roots with "
                "another law or of a second parent",
            ),
        ],
        results=make_results(found, targets),
        sections=make_sections(found),
        summary=summarize(found),
        about={"data": data, "sequences": f"{found.n_sequences:,}, of which {found.n_independent:,} independent"},
    )


def make_results(found: cc.discovery.RecoveredGraph, targets: str) -> dict[str, Any]:
    """Every number; the query, the last position, has no parent."""
    return {
        "data": {
            "n_sequences": found.n_sequences,
            "n_independent": found.n_independent,
            "n_ctx": len(found.positions) + 1,
            "targets": targets,
        },
        "graph": {
            "found_parents": [*found.found_parents, None],
            "p_values": [*(None if p.candidate is None else p.p_value for p in found.positions), None],
            "weights": [*(None if p.candidate is None else p.weight for p in found.positions), None],
            "verdicts": [*(p.verdict for p in found.positions), "query"],
            "edges": count(found, "child"),
            "undecided": found.undecided,
            "conclusive": found.conclusive,
        },
        "sequences_needed": found.sequences_needed,
        "warnings": found.warnings,
        "positions": [asdict(p) for p in found.positions],
    }


def summarize(found: cc.discovery.RecoveredGraph) -> list[tuple[str, str]]:
    """The closing table."""
    lines = [("position", "parent  weight   p (Holm)  verdict")]
    for p in found.positions:
        parent = "-" if p.parent is None else str(p.parent)
        weight, p_value = ("", "") if p.candidate is None else (f"{p.weight:.2f}", f"{p.p_value:.1e}")
        lines.append((f"{p.position:8d}", f"{parent:>6s}  {weight:>6s}  {p_value:>9s}  {p.verdict}: {p.reason}"))
    lines += [("warning", warning) for warning in found.warnings]
    counts = f"{count(found, 'child')} edges, {count(found, 'root')} roots, {len(found.undecided)} undecided"
    lines.append(("graph", f"{counts}, from {found.n_independent:,} independent sequences; {say_needed(found)}"))
    return lines


def count(found: cc.discovery.RecoveredGraph, verdict: str) -> int:
    """How many positions have this verdict."""
    return sum(p.verdict == verdict for p in found.positions)


def say_needed(found: cc.discovery.RecoveredGraph) -> str:
    """How many sequences would do: a number only where more of them are what is lacking, or none is."""
    if found.sequences_needed == float("inf"):
        return "from how many an edge would be certain is not known"
    if found.undecided and found.sequences_needed <= found.n_independent:
        return (
            "not for want of sequences alone: a typical edge would show, and every position's reason says what is open"
        )
    return f"about {found.sequences_needed:,.0f} make a typical edge of this task certain"


def list_contradictions(found: cc.discovery.RecoveredGraph) -> list[str]:
    """The warnings, and the positions that no forest explains."""
    mixed = [str(p.position) for p in found.positions if p.p_forest < found.level]
    return [*found.warnings, *([f"no forest explains positions: {', '.join(mixed)}"] if mixed else [])]


def make_sections(found: cc.discovery.RecoveredGraph) -> list[Section]:
    """The graph, then what it rests on."""
    rows = [
        {
            "position": p.position,
            "verdict": p.verdict,
            "candidate parent": p.candidate,
            "weight": p.weight,
            "p (Holm)": None if p.candidate is None else f"{p.p_value:.1e}",
            "closest rival": p.rival,
            "sequences needed": p.sequences_needed if p.sequences_needed < float("inf") else None,
            "why": p.reason,
        }
        for p in found.positions
    ]
    return [
        Section(
            "The graph",
            "Arcs run from parent to child; if the assumptions hold, the chance of any false edge is at most "
            f"{found.level:g}.",
            figures={"graph": figures.plot_recovered_graph(found)},
        ),
        Section(
            "What it rests on",
            "Each position's candidate parent, on a scale where an edge scores 1 and an independent pair 0.",
            figures={"weights": figures.plot_recovery(found)},
            table=pd.DataFrame(rows, dtype=object),
        ),
    ]
