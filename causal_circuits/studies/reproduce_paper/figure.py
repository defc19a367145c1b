"""One figure of the paper, made again: what every family of figures hands to the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from causal_circuits import figures

Row = Mapping[str, Any]


@dataclass(frozen=True)
class PaperFigure:
    """One figure, measured.

    Attributes:
        number: in the paper.
        content: of its results.json, beside command, seed, versions and times.
        what: was trained and measured.
        ours, theirs: numbers, in words.
        verdict: ours beside theirs.
        cells: what it was made from, each with the seconds that it took.
        evidence: sections, with the titles and names of pictures as within the figure.
        models: name of a folder -> function that writes a model there.
    """

    number: str
    content: Mapping[str, Any]
    what: str
    ours: str
    theirs: str
    verdict: str
    cells: Sequence[Row]
    evidence: Sequence[figures.Section]
    models: Mapping[str, Callable[[Path], Any]] = field(default_factory=dict)

    GOOD = ("agrees", "improves", "every")  # how a verdict in favour begins

    def results(self) -> dict[str, Any]:
        """Of results.json: the content, the line of the table, and what it cost."""
        spent = {name: sum(cell[name] for cell in self.cells) for name in ("wall_s", "cpu_s")}
        row = {"what": self.what, "ours": self.ours, "theirs": self.theirs, "verdict": self.verdict}
        return {"minutes": spent["wall_s"] / 60, **spent, **self.content, "complete": True, "row": row}

    def check(self, name: str) -> figures.Check:
        """The verdict, with both sides' numbers."""
        claim, evidence = f"{name} - {self.what}: {self.verdict}.", f"Ours: {self.ours}. Theirs: {self.theirs}."
        return figures.Check(self.verdict.startswith(self.GOOD), claim, evidence)


def merged_runs(runs: Sequence[Row]) -> dict[str, Any]:
    """The times of several trainings of one recipe together."""
    wall_s, cpu_s = (sum(run[name] for run in runs) for name in ("train_wall_s", "train_cpu_s"))
    times = {"train_wall_s": wall_s, "train_cpu_s": cpu_s, "steps_per_cpu_s": runs[0]["steps_done"] / cpu_s}
    return {**runs[0], **times, "history": []}
