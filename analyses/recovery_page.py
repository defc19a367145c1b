"""Table, figures and page of `recover_graph.py`. Not a script."""

from pathlib import Path
from typing import Any

import causal_circuits as cc
from causal_circuits import figures


def table(found: cc.RecoveredGraph, out: Path) -> str:
    """The short table that ends a run."""
    n_children = sum(p.verdict == "child" for p in found.positions)
    n_roots = sum(p.verdict == "root" for p in found.positions)
    lines = ["position  parent  weight   p (Holm)  verdict"]
    for p in found.positions:
        candidate = "-" if p.parent is None else str(p.parent)
        weight, p_value = ("", "") if p.candidate is None else (f"{p.weight:.2f}", f"{p.p_value:.1e}")
        lines.append(f"{p.position:8d}  {candidate:>6s}  {weight:>6s}  {p_value:>9s}  {p.verdict}: {p.reason}")
    lines += [f"warning: {warning}" for warning in found.warnings]
    lines += [
        f"{n_children} edges, {n_roots} roots, {len(found.undecided)} undecided, from {found.n_independent:,} "
        f"independent sequences; {needed(found)}",
        f"look at  {out / 'report.html'}",
    ]
    return "\n".join(lines)


def needed(found: cc.RecoveredGraph) -> str:
    """How many sequences would do, in words: a number only where more of them are what is lacking, or none is."""
    if found.sequences_needed == float("inf"):
        return "from how many an edge would be certain is not known"
    if found.undecided and found.sequences_needed <= found.n_independent:
        return (
            "not for want of sequences alone: a typical edge would show, and every position's reason says what is open"
        )
    return f"about {found.sequences_needed:,.0f} make a typical edge of this task certain"


def contradictions(found: cc.RecoveredGraph) -> list[str]:
    """The warnings, and the positions that no forest explains."""
    mixed = [str(p.position) for p in found.positions if p.p_forest < found.level]
    return [*found.warnings, *([f"no forest explains positions: {', '.join(mixed)}"] if mixed else [])]


def draw_figures(found: cc.RecoveredGraph, folder: Path) -> None:
    """Write figures/graph and figures/weights."""
    figures.save_figure(figures.plot_recovered_graph(found), folder / "graph")
    figures.save_figure(figures.plot_recovery(found), folder / "weights")


def write_page(found: cc.RecoveredGraph, content: dict[str, Any], out: Path) -> None:
    """One self-contained page: the graph, then what it rests on."""
    command = str(content["command"])
    n_edges = sum(p.parent is not None for p in found.positions)
    figures.write_report(
        out / "report.html",
        title="The causal graph behind these sequences",
        verdict=[
            figures.Check(
                found.conclusive,
                "Every position is decided: a child with its parent, or a root",
                f"{n_edges} edges; undecided: {', '.join(map(str, found.undecided)) or 'none'}; {needed(found)}",
            ),
            figures.Check(
                not contradictions(found),
                "Nothing that was tested contradicts the assumptions",
                "; ".join(contradictions(found))
                or "no copies, no constant position, no sign of a query that depends on the context, of roots with "
                "another law or of a second parent",
            ),
        ],
        sections=[
            figures.Section(
                "The graph",
                f"Arcs run from parent to child; if the assumptions hold, the chance of any false edge is at most "
                f"{found.level:g}.",
                figures.figure_html(out / "figures" / "graph", alt="Arc diagram of the recovered graph"),
                command,
            ),
            figures.Section(
                "What it rests on",
                "Each position's candidate parent, on a scale where an edge scores 1 and an independent pair 0.",
                figures.figure_html(out / "figures" / "weights", alt="Scores of every position's candidate parent")
                + figures.table_html(rows(found), caption="Every position, its candidate parent and the verdict"),
                command,
            ),
        ],
        meta={
            "data": str(content["config"]["data"]),
            "sequences": f"{found.n_sequences:,}, of which {found.n_independent:,} independent",
            "command": command,
            "wall time": f"{content['timing']['wall_s']:.1f} s",
            **{name: str(number) for name, number in content["versions"].items()},
        },
    )


def rows(found: cc.RecoveredGraph) -> list[dict[str, object]]:
    """One row for each position."""
    return [
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
