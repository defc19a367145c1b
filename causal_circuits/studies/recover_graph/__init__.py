"""Recover the causal graph behind your own sequences, or an honest "cannot tell": no model, no training."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import inf
from pathlib import Path
from typing import Annotated, Any

import tyro

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.discovery.user_data import read_data
from causal_circuits.display import table_text
from causal_circuits.pages import Check, Section
from causal_circuits.studies.recover_graph.arrays import read_arrays
from causal_circuits.studies.study import Cell, Report, Study, at_least
from causal_circuits.studies.tables import p_text


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Recover the causal graph behind your own sequences, or an honest "cannot tell": no model, no training.

    DATA holds sequences whose last token is a query, drawn independently of the others, and what followed it:

        tokens        integers [sequences, n_ctx], each in 0 .. d_vocab - 1, the query last
        target_probs  [sequences, d_vocab]: the probabilities of the next token   ... or
        labels        [sequences]: the next token itself

    as an .npz or a .safetensors file. Each sequence may have a transition matrix of its own. Every position gets a
    verdict: a child with its parent, a root, or undecided where the data cannot tell or contradict a forest (a second
    parent); the reason says which, and how many sequences would do where more of them are what is lacking.

        python analyses/recover_graph.py DATA.npz --out out/mine
        python analyses/recover_graph.py DATA.npz --max-parents 2
        python -c "import causal_circuits as cc, numpy as np; batch = cc.InContextTask(
        cc.chain_graph(12), d_vocab=4).sample(2000); np.savez('chain.npz',
        tokens=batch.tokens, target_probs=batch.target_probs)"      # sequences to try it on

    The folder gets report.html (look at this), results.json and figures/. In results.json, graph.found_parents has one
    entry for each context position (null: no parent found, or the query); graph.p_values and graph.weights are those of
    each position's candidate (null at the first and the last, which have none). With --max-parents K above 1, where the
    last position is no query, found_parents has a list a position (empty: a root; null: undecided), and
    graph.target_parents holds those of what follows (null: undecided).
    """

    data: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]  #: an .npz or .safetensors file
    d_vocab: int | None = None  #: number of tokens; None: what the data show
    level: float = 0.05  #: the chance of any false edge
    max_parents: int = 1  #: parents that the target and each position may have; above 1 no position need be a query

    @cached_property
    def arrays(self) -> dict[str, Any]:
        return read_arrays(self.data)

    def check(self) -> None:
        if not 0 < self.level < 1:
            raise ValueError(f"--level must lie in (0, 1): got {self.level}; 0.05 is usual")
        at_least(1, max_parents=self.max_parents)
        read_data(**with_targets(self.arrays), d_vocab=self.d_vocab)

    def cells(self) -> list[Cell]:
        file = {"data": str(self.data), "sha256": hashlib.sha256(self.data.read_bytes()).hexdigest()}
        return [Cell("recovery", measure, file | self.flags("d_vocab", "level", "max_parents"))]

    def report(self, rows: Mapping[str, cc.discovery.RecoveredGraph]) -> Report:
        found = rows["recovery"]
        (targets,) = self.arrays.keys() - {"tokens"}
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
            about={
                "data": str(self.data),
                "sequences": f"{found.n_sequences:,}, of which {found.n_independent:,} independent",
            },
        )


def with_targets(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The tokens, and as targets what the file holds beside them."""
    return {"tokens": arrays["tokens"], "targets": arrays.get("target_probs", arrays.get("labels"))}


def measure(data: str, sha256: str, **how: Any) -> cc.discovery.RecoveredGraph:
    """The graph behind a file of this content."""
    return cc.recover_graph(**with_targets(read_arrays(Path(data))), **how)


def make_checks(found: cc.discovery.RecoveredGraph) -> list[Check]:
    n_edges = sum(len(p.parents) for p in found.positions if p.verdict == "child")
    n_roots = sum(p.verdict == "root" for p in found.positions)
    counted = f"{n_edges} edge{'s' * (n_edges != 1)}, {n_roots} root{'s' * (n_roots != 1)}"
    undecided = f" ({', '.join(map(str, found.undecided))})" if found.undecided else ""
    mixed = [str(p.position) for p in found.positions if p.p_forest < found.level]
    contradictions = [*found.warnings, *([f"no forest explains positions: {', '.join(mixed)}"] if mixed else [])]
    further, tested = f"parents of the target: {found.target_parents or 'undecided'}", "no copies, no constant position"
    if has_query(found):
        further = say_needed(found)
        tested += ", no sign of a query that depends on the context, of roots with another law or of a second parent"
    return [
        Check(
            found.conclusive or "undecided",
            "Every position is decided: a child with its parent, or a root",
            f"{counted}, {len(found.undecided)} undecided{undecided}; {further}",
        ),
        Check(
            not contradictions or "refuted",
            "Nothing that was tested contradicts the assumptions",
            "; ".join(contradictions) or tested,
        ),
    ]


def has_query(found: cc.discovery.RecoveredGraph) -> bool:
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
