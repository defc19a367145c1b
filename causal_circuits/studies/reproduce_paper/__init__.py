"""The figures of the paper, made again and set beside what the authors recorded."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import causal_circuits as cc
from causal_circuits.pages import Check
from causal_circuits.pages.report import State
from causal_circuits.studies.reproduce_paper import forests, one_parent, ordinary, two_parents
from causal_circuits.studies.reproduce_paper.measuring import PaperFigure, Row
from causal_circuits.studies.reproduce_paper.table import FIGURES, write_table
from causal_circuits.studies.study import Cell, Report, Study, one_of

FAMILIES: Mapping[str, Any] = {  # the module that makes a figure from what was measured
    "2": one_parent,
    "5": two_parents,
    "6": one_parent,
    "7": two_parents,
    "8": ordinary,
    "9": forests,
}
SIDE_BY_SIDE = 4  # models of Figure 9 trained at once by our recipe


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Figures 2 and 5 to 9 of the paper, made again; each is set beside what the authors recorded.

    Verdicts compare in pairs (the same graphs, the same sequences) with 95% intervals where the record allows it, and
    say "differs" or "falls short" where the interval lies on that side. Each figure leaves its numbers and models in
    figure_N (figure_N_faithful); the page shows the figures of the last command.

        2     a Markov chain in context: the attention weights of both layers and W_U
        5, 7  two parents a position: two heads share the graph
        6     pairs, a random forest, a small manual graph
        8     an ordinary transformer (overlapping embeddings, value matrices, MLPs) on the chain: does it beat Bayes?
        9     20 random forests; our recipe was chosen on two of them, so it is judged on the other 18

        python analyses/reproduce_paper.py --figure 9                # our recipe: minutes
        python analyses/reproduce_paper.py --figure 9 --faithful     # the paper's optimiser, schedule, start and steps
        python analyses/reproduce_paper.py --figure all --table docs/REPRODUCTION.md
    """

    QUICK: ClassVar = {"quick": True}  # tiny sizes, to see that everything runs

    figure: str | None = None  #: 2, 5, 6, 7, 8, 9 or all; 5 and 7 are two pictures of one training
    faithful: bool = False  #: the paper's own training in place of our recipe
    table: Path | None = None
    """also write the table of every figure that lies in the folder of results to this file; given alone, nothing is
    measured, and the page shows no figure"""

    def check(self) -> None:
        if self.figure is not None:
            one_of((*FIGURES, "all"), figure=self.figure)
        if self.table is not None and self.table.is_dir():
            raise ValueError(f"--table must name a file: {self.table} is a folder")

    @property
    def numbers(self) -> tuple[str, ...]:
        if self.figure in ("5", "7"):
            return ("5", "7")
        return {None: (), "all": FIGURES}.get(self.figure, (str(self.figure),))

    def cells(self) -> list[Cell]:
        """One a training: a graph of Figures 2 and 6, four (faithful: all) of Figure 9, one for each other figure."""
        if self.figure is None and self.table is None:
            raise ValueError(f"name a --figure ({', '.join(FIGURES)} or all), or a --table to write")
        same = {"seed": self.seed, "faithful": self.faithful, "quick": self.quick}
        kind = f"{'faithful ' if self.faithful else ''}{'quick ' if self.quick else ''}seed {self.seed}"
        found = []
        for number in self.numbers:
            for name, (measure, own) in self.trainings(number).items():
                settings = {**own, **same}
                found.append(Cell(f"figure {number} {name} {kind}", measure, settings, scratch=True, progress=True))
        return found

    def trainings(self, number: str) -> dict[str, tuple[Callable[..., Row], dict[str, Any]]]:
        """Name -> what measures it, and its own settings; Figure 7 is made from the training of Figure 5."""
        if number == "9":
            graphs = list(range(2 if self.quick else 20))
            size = len(graphs) if self.faithful else SIDE_BY_SIDE
            chunks = [graphs[start : start + size] for start in range(0, len(graphs), size)]
            return {f"graphs {some[0]} to {some[-1]}": (one_parent.measure, {"graphs": some}) for some in chunks}
        named = {"2": ["chain"], "6": ["pairs", "random forest", "small manual graph"]}
        if number in named:
            return {name: (one_parent.measure, {"graphs": [name]}) for name in named[number]}
        others = {"5": ("two parents", two_parents), "8": ("ordinary transformer", ordinary)}
        return {others[number][0]: (others[number][1].measure, {})} if number in others else {}

    def report(self, rows: Mapping[str, Row]) -> Report:
        checks, sections, summary, results, saved = [], [], [], dict[str, Row](), dict[str, Any]()
        kind = ("the paper's training" if self.faithful else "our recipe") + (", at toy size" if self.quick else "")
        for number in self.numbers:
            training = "5" if number == "7" else number
            cells = [row for name, row in rows.items() if name.startswith(f"figure {training} ")]
            made: PaperFigure = FAMILIES[number].report(number, cells)
            result = results[number] = self.results(number, made, cells)
            name, folder = f"Figure {number}, {kind}", f"figure_{number}{'_faithful' if self.faithful else ''}"
            evidence = f"Ours: {made.ours}. Theirs: {made.theirs}."
            checks.append(Check(state_of(made.verdict), f"{name} - {made.what}: {made.verdict}.", evidence))
            for section in made.sections:
                plots = {f"{folder}_{stem}": plot for stem, plot in section.figures.items()}
                title = f"{name}: {section.title}"
                sections.append(replace(section, title=title, command=result["command"], figures=plots))
            saved |= {f"{folder}/models/{model}": write for model, write in made.models.items()}
            saved[f"{folder}/results.json"] = partial(write_results, result)
        if self.table is not None:
            saved["table"] = lambda place: write_table(place.parent, self.table)
            summary.append(("table", f"of every figure in the folder: {self.table}"))
        return Report(
            title="How Transformers Learn Causal Structure, figure by figure",
            checks=checks,
            results={"figures": {number: result["row"] for number, result in results.items()}},
            sections=sections,
            summary=summary,
            saved=saved,
        )

    def results(self, number: str, made: PaperFigure, cells: list[Row]) -> dict[str, Any]:
        flags = f"{' --faithful' if self.faithful else ''}{' --quick' if self.quick else ''}"
        wall_s, cpu_s = (sum(cell[name] for cell in cells) for name in ("wall_s", "cpu_s"))
        content: dict[str, Any] = cc.storage.plain_values(
            {
                "figure": number,
                "command": f"python analyses/reproduce_paper.py --figure {number} --seed {self.seed}{flags}",
                "seed": self.seed,
                "faithful": self.faithful,
                "quick": self.quick,
                "versions": cc.running.versions(),
                "minutes": wall_s / 60,
                "wall_s": wall_s,
                "cpu_s": cpu_s,
                **made.content,
                "complete": True,
                "row": {"what": made.what, "ours": made.ours, "theirs": made.theirs, "verdict": made.verdict},
            }
        )
        return content


def state_of(verdict: str) -> State:
    """A figure's verdict as the state of a check: what differs from the record contradicts it."""
    if verdict.startswith(("agrees", "improves", "every")):
        return "passed"
    if verdict.startswith("differs"):
        return "refuted"
    return "undecided" if verdict.startswith("level") or "too few" in verdict else "failed"


def write_results(results: Row, path: Path) -> None:
    cc.storage.write_files(path.parent, {path.name: json.dumps(results, indent=2, allow_nan=False) + "\n"})
