"""The figures of the paper, made again and set beside what the authors recorded."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import causal_circuits as cc
from causal_circuits.pages import Section
from causal_circuits.studies.reproduce_paper import forests, ordinary, single, two_parents
from causal_circuits.studies.reproduce_paper.figure import PaperFigure, Row
from causal_circuits.studies.reproduce_paper.table import FIGURES, write_table
from causal_circuits.studies.study import Cell, Report, Study, one_of

FAMILIES: Mapping[str, Any] = {
    "2": single,
    "5": two_parents,
    "6": single,
    "7": two_parents,
    "8": ordinary,
    "9": forests,
}


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Every experiment of the paper, run again; each is set beside what the authors recorded.

    2     a Markov chain in context: A1, A2 and W_U
    5, 7  two parents a position: two heads share the graph
    6     pairs, a random forest, a small manual graph
    8     an ordinary transformer (overlapping embeddings, value matrices, MLPs) on the chain: does it beat Bayes?
    9     20 random forests; our recipe was chosen on two of them, so it is judged on the other 18

    Verdicts compare in pairs (the same graphs, the same sequences) with 95% intervals where the record allows it, and
    say "differs" or "falls short" where the interval lies on that side. Each figure leaves its numbers and models in
    figure_N (figure_N_faithful); the page shows the figures of the last command.

        python analyses/reproduce_paper.py --figure 9                # our recipe: minutes
        python analyses/reproduce_paper.py --figure 9 --faithful     # the paper's optimiser, schedule, start and steps
        python analyses/reproduce_paper.py --figure all --table docs/REPRODUCTION.md
    """

    QUICK: ClassVar = {"quick": True}  # tiny sizes, to see that everything runs

    figure: str | None = None
    """2, 5, 6, 7, 8, 9 or all; 5 and 7 are two pictures of one training"""
    faithful: bool = False
    """the paper's own training in place of our recipe"""
    table: Path | None = None
    """also write the table of every figure that lies in the folder of results to this file; given alone, nothing is
    measured, and the page shows no figure"""

    def check(self) -> None:
        """A figure of the paper, and a file for the table."""
        if self.figure is not None:
            one_of((*FIGURES, "all"), figure=self.figure)
        if self.table is not None and self.table.is_dir():
            raise ValueError(f"--table must name a file: {self.table} is a folder")

    @property
    def numbers(self) -> tuple[str, ...]:
        """The figures asked for."""
        if self.figure in ("5", "7"):
            return ("5", "7")
        return {None: (), "all": FIGURES}.get(self.figure, (str(self.figure),))

    def cells(self) -> list[Cell]:
        """One a training: a graph of Figures 2 and 6, four (faithful: all) of Figure 9, one for each other figure."""
        if self.figure is None and self.table is None:
            raise ValueError(f"name a --figure ({', '.join(FIGURES)} or all), or a --table to write")
        same = {"seed": self.seed, "faithful": self.faithful, "quick": self.quick}
        kind = f"{'faithful ' if self.faithful else ''}{'quick ' if self.quick else ''}seed {self.seed}"
        return [
            Cell(
                f"figure {number} {name} {kind}", FAMILIES[number].measure, {**own, **same}, scratch=True, progress=True
            )
            for number in self.numbers
            if number != "7"  # it is made from the cell of Figure 5
            for name, own in FAMILIES[number].trainings(number, self.faithful, self.quick).items()
        ]

    def report(self, rows: Mapping[str, Row]) -> Report:
        """Every figure's verdict, pictures, numbers and models."""
        made = [self.make(number, rows) for number in self.numbers]
        results = {figure.number: self.results(figure) for figure in made}
        saved: dict[str, Any] = {}
        for figure in made:
            folder = self.folder(figure.number)
            saved |= {f"{folder}/models/{name}": write for name, write in figure.models.items()}
            saved[f"{folder}/results.json"] = partial(write_results, results[figure.number])
        if self.table is not None:
            saved["table"] = lambda place: write_table(place.parent, self.table)
        return Report(
            title="How Transformers Learn Causal Structure, figure by figure",
            checks=[figure.check(self.name(figure.number)) for figure in made],
            results={"figures": {number: result["row"] for number, result in results.items()}},
            sections=[section for figure in made for section in self.sections(figure)],
            summary=[(f"figure {n}", summarize(result)) for n, result in results.items()] + self.about_table(),
            saved=saved,
        )

    def make(self, number: str, rows: Mapping[str, Row]) -> PaperFigure:
        """A figure from its cells."""
        training = "5" if number == "7" else number
        cells = [row for name, row in rows.items() if name.startswith(f"figure {training} ")]
        return FAMILIES[number].report(number, cells)

    def results(self, figure: PaperFigure) -> dict[str, Any]:
        """The content of a figure's results.json."""
        header = {
            "figure": figure.number,
            "command": self.command(figure.number),
            "seed": self.seed,
            "faithful": self.faithful,
            "quick": self.quick,
            "versions": cc.running.versions(),
        }
        return cc.running.json_values({**header, **figure.results()})

    def command(self, number: str) -> str:
        """What makes a figure again."""
        more = f"{' --faithful' if self.faithful else ''}{' --quick' if self.quick else ''}"
        return f"python analyses/reproduce_paper.py --figure {number} --seed {self.seed}{more}"

    def folder(self, number: str) -> str:
        """Where a figure's results and models go."""
        return f"figure_{number}{'_faithful' if self.faithful else ''}"

    def name(self, number: str) -> str:
        """Which figure, trained how."""
        kind = "the paper's training" if self.faithful else "our recipe"
        return f"Figure {number}, {kind}{', at toy size' if self.quick else ''}"

    def sections(self, figure: PaperFigure) -> list[Section]:
        """The pictures of a figure."""
        number = figure.number
        return figure.sections(self.name(number), self.folder(number), self.command(number))

    def about_table(self) -> list[tuple[str, str]]:
        """The line of the closing table that says where the table of all figures is."""
        return [] if self.table is None else [("table", f"of every figure in the folder: {self.table}")]


def write_results(results: Row, path: Path) -> None:
    """A figure's results.json."""
    cc.storage.write_files(path.parent, {path.name: json.dumps(results, indent=2, allow_nan=False) + "\n"})


def summarize(result: Row) -> str:
    """A figure's line of the closing table."""
    row = result["row"]
    return f"{row['verdict']}: {row['ours']}  [{result['minutes']:.1f} min, {result['cpu_s']:.0f} CPU s]"
