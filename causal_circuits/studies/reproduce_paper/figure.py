"""One figure of the paper, made again: what every family of figures hands to the report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from causal_circuits import pages

Row = Mapping[str, Any]
GOOD = ("agrees", "improves", "every")  # how a verdict in favour begins
SHOWS = {
    "heads": "Attention of each head of layer 0, the true edges of both parent numbers outlined.",
    "heads_block": "The same in the paper's metric, the softmax of A1's position block.",
    "loss": "The loss in training, against what can be reached.",
    "weights": "The trained matrices, their slots named, beside the true edges.",
    "attention": "Attention, a row for each position that looks; true edges outlined.",
    "attention_by_position": "Attention to the true parent by position; below the line it counts as not learned.",
    "attention_by_graph": "Attention to the true parent, graph by graph, beside what the authors' notebook prints.",
    "curve": "Attention to the parents in training, in the paper's metric.",
}


@dataclass(frozen=True)
class PaperFigure:
    """One figure, measured.

    Attributes:
        number: in the paper.
        content: of its results.json, beside command, seed, versions and times.
        what, ours, theirs, verdict: what was trained, both sides' numbers and how they compare, in words.
        cells: what it was made from, each with the seconds that it took.
        plots: matplotlib's, by name; the end of a name is a key of `SHOWS`, before it stands a graph's name.
        models: name of a folder -> function that writes a model there.
    """

    number: str
    content: Mapping[str, Any]
    what: str
    ours: str
    theirs: str
    verdict: str
    cells: Sequence[Row]
    plots: Mapping[str, Any]
    models: Mapping[str, Callable[[Path], Any]]

    def results(self) -> dict[str, Any]:
        """Of results.json: the content, the line of the table, and what it cost."""
        spent = {name: sum(cell[name] for cell in self.cells) for name in ("wall_s", "cpu_s")}
        row = {"what": self.what, "ours": self.ours, "theirs": self.theirs, "verdict": self.verdict}
        return {"minutes": spent["wall_s"] / 60, **spent, **self.content, "complete": True, "row": row}

    def check(self, name: str) -> pages.Check:
        """The verdict, with both sides' numbers."""
        claim, evidence = f"{name} - {self.what}: {self.verdict}.", f"Ours: {self.ours}. Theirs: {self.theirs}."
        return pages.Check(self.verdict.startswith(GOOD), claim, evidence)

    def sections(self, name: str, folder: str, command: str) -> list[pages.Section]:
        """One a picture; files are named after the figure's folder."""
        made = []
        for stem, plot in self.plots.items():
            shown = max((end for end in SHOWS if stem.endswith(end)), key=len)
            title = f"{name}: {stem.replace('_', ' ')}"
            made.append(pages.Section(title, SHOWS[shown], command=command, figures={f"{folder}_{stem}": plot}))
        return made
