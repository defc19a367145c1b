"""The verdict on every position, and what it rests on."""

from math import inf
from typing import Any

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.display import table_text
from causal_circuits.pages import Check, Section
from causal_circuits.studies.study import Report
from causal_circuits.studies.tables import p_text


def make_report(found: cc.discovery.RecoveredGraph, targets: str, data: str) -> Report:
    frame = found.to_frame().replace(inf, None)
    p_values = frame.p_value.where(frame.candidate.notna()).map(p_text)
    table = frame.assign(p_value=p_values).rename(columns={"candidate": "candidate parent", "reason": "why"})
    tested = frame.candidate.notna().any()
    return Report(
        title="The causal graph behind these sequences",
        checks=make_checks(found),
        results=make_results(found, targets),
        sections=[
            Section(
                "The graph",
                "Arcs run from parent to child; if the assumptions hold, the chance of any false edge is at most "
                f"{found.level:g}.",
                figures={"graph": figures.plot_recovered_graph(found)},
            ),
            Section(
                "What it rests on",
                "Each position's candidate parent, on a scale where an edge scores 1 and an independent pair 0."
                if tested
                else f"No position has a candidate parent: {'; '.join(frame.reason.unique())}.",
                figures={"weights": figures.plot_recovery(found)} if tested else {},
                table=table if tested else None,
            ),
        ],
        summary=[
            *(("", line) for line in table_text(table.to_dict("records")).splitlines()),
            *(("warning", warning) for warning in found.warnings),
        ],
        about={"data": data, "sequences": f"{found.n_sequences:,}, of which {found.n_independent:,} independent"},
    )


def make_checks(found: cc.discovery.RecoveredGraph) -> list[Check]:
    n_edges = sum(len(p.parents) for p in found.positions if p.verdict == "child")
    n_roots = sum(p.verdict == "root" for p in found.positions)
    counted = f"{n_edges} edge{'s' * (n_edges != 1)}, {n_roots} root{'s' * (n_roots != 1)}"
    undecided = f" ({', '.join(map(str, found.undecided))})" if found.undecided else ""
    mixed = [str(p.position) for p in found.positions if p.p_forest < found.level]
    contradictions = [*found.warnings, *([f"no forest explains positions: {', '.join(mixed)}"] if mixed else [])]
    return [
        Check(
            found.conclusive or "undecided",
            "Every position is decided: a child with its parent, or a root",
            f"{counted}, {len(found.undecided)} undecided{undecided}; "
            + (
                say_needed(found)
                if has_query(found)
                else f"parents of the target: {found.target_parents or 'undecided'}"
            ),
        ),
        Check(
            not contradictions or "refuted",
            "Nothing that was tested contradicts the assumptions",
            "; ".join(contradictions)
            or "no copies, no constant position"
            + (", no sign of a query that depends on the context, of roots with another law or of a second parent")
            * has_query(found),
        ),
    ]


def has_query(found: cc.discovery.RecoveredGraph) -> bool:
    """Whether the last position was taken as a query."""
    return len(found.positions) < len(found.weights)


def say_needed(found: cc.discovery.RecoveredGraph) -> str:
    """How many sequences would do: a number only where more of them are what is lacking, or none is."""
    if found.sequences_needed == inf:
        return "from how many an edge would be certain is not known"
    if found.undecided and found.sequences_needed <= found.n_independent:
        return "more sequences alone would not do: a typical edge would show; every position's reason says what is open"
    return f"about {found.sequences_needed:,.0f} sequences make a typical edge of this task certain"


def make_results(found: cc.discovery.RecoveredGraph, targets: str) -> dict[str, Any]:
    """Every number; a query, the last position, has no parent and no verdict of its own."""
    query = [None] * has_query(found)
    return {
        "data": {
            "n_sequences": found.n_sequences,
            "n_independent": found.n_independent,
            "n_ctx": len(found.weights),
            "targets": targets,
        },
        "graph": {
            "found_parents": [*found.found_parents, *query],
            "p_values": [*(None if p.candidate is None else p.p_value for p in found.positions), *query],
            "weights": [*(None if p.candidate is None else p.weight for p in found.positions), *query],
            "verdicts": [*(p.verdict for p in found.positions), *(["query"] if query else [])],
            "target_parents": found.target_parents,
            "edges": sum(len(p.parents) for p in found.positions if p.verdict == "child"),
            "undecided": found.undecided,
            "conclusive": found.conclusive,
        },
        "sequences_needed": found.sequences_needed,
        "warnings": found.warnings,
        "positions": found.positions,
    }
