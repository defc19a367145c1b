"""One self-contained HTML page: the verdict first, then the evidence, and the command that makes it again.

The page makes no request: no fonts, no CDN, no favicon, and a content security policy under which a browser would
refuse any. Text is escaped; `Section.body` is HTML, made by `figure_html`, `table_html`,
`interactive_graph`, `graph_film_html` or `pattern_view`.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from causal_circuits.arguments import check_arguments
from causal_circuits.pages.rendering import figure_html, figure_of, save_figure, table_html
from causal_circuits.pages.templates import render, scripts_of
from causal_circuits.storage import write_files

State = Literal["passed", "failed", "refuted", "undecided", "not tested"]
HALF = 8.0  # inches; two figures narrower than this stand side by side on a wide screen
UNFOLDED = 5  # checks that a page shows in any case; later ones that passed (in a quick run: all) are folded


@check_arguments
@dataclass(frozen=True)
class Check:
    """One claim of the verdict, and what became of it.

    Attributes:
        state: "passed"; "failed" (the method did not do what it should); "refuted" (a hypothesis about the world that
            this run contradicts); "undecided" (the data do not tell); "not tested" (this run was too small). True and
            False stand for "passed" and "failed".
        claim: what should hold, a sentence.
        evidence: the numbers that decide it.

    >>> Check(True, "The graph was found.", "18 of 18 parents, none false").state
    'passed'
    >>> Check("undecided", "Attention comes before information.", "2 of 3 seeds").passed
    False
    """

    state: bool | State
    claim: str
    evidence: str

    def __post_init__(self) -> None:
        if isinstance(self.state, bool):
            object.__setattr__(self, "state", "passed" if self.state else "failed")

    @property
    def passed(self) -> bool:
        """Whether the claim holds."""
        return self.state == "passed"


@check_arguments
@dataclass(frozen=True)
class Section:
    """A piece of evidence.

    Attributes:
        title: its heading.
        sentence: the one sentence that it shows.
        body: HTML (views, films, further tables), below the figures.
        command: what to type to make it again.
        figures: name -> figure, side by side; `write_report` saves each beside the page as figures/NAME.png and .svg.
        table: the numbers (a frame, or rows), last; folded if large, or if anything else stands in the section.

    >>> Section("Attention", "Layer 0 looks at the parents.", "<p>a figure</p>").title
    'Attention'
    """

    title: str
    sentence: str
    body: str = ""
    command: str | None = None
    figures: Mapping[str, Figure | Axes] = field(default_factory=dict)
    table: pd.DataFrame | Sequence[Mapping[str, Any]] | None = None


@check_arguments
def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    verdict: Sequence[Check],
    sections: Sequence[Section],
    meta: Mapping[str, str],
    command: str | None = None,
    quick: bool = False,
) -> Path:
    """Write the page; a reader of `path` sees the old page or the whole new one, never half of it.

    Args:
        path: of the HTML file; its folder is made if missing, and the figures of sections go to figures/ beside it.
        verdict: the claims and their states; shown first.
        sections: the evidence, in order.
        meta: seed, versions, wall time; shown last.
        command: what makes the page again, below the verdict; None: that of the sections, if they have one.
        quick: the run was too small to decide anything: a banner says so, and no claim counts as tested.

    >>> checks = [Check(True, "The graph was found.", "18 of 18 parents")]
    >>> with TemporaryDirectory() as folder:
    ...     path = write_report(folder + "/page.html", title="A chain", verdict=checks, sections=[], meta={"seed": "0"})
    ...     "18 of 18 parents" in path.read_text()
    True
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"a report is written to a file: got the folder {path}; write {path / 'report.html'}")
    if quick:
        verdict = [replace(check, state="not tested") for check in verdict]
    folded = [check for check in verdict[UNFOLDED:] if check.state == ("not tested" if quick else "passed")]
    bodies = [_body(section, path.parent / "figures") for section in sections]
    commands = {command} if command else {section.command for section in sections} - {None}
    page = render(
        "page.html.jinja",
        title=title,
        verdict=[check for check in verdict if check not in folded],
        folded=folded,
        summary=_summary(verdict),
        sections=[(section, Markup(body), _is_half(section)) for section, body in zip(sections, bodies, strict=True)],
        command=commands.pop() if len(commands) == 1 else None,  # several stay with their sections
        meta=meta,
        quick=quick,
        scripts=scripts_of("".join(bodies)),
    )
    write_files(path.parent, {path.name: page})
    return path


def _body(section: Section, folder: Path) -> str:
    """The figures (saved in the folder, too), then the body, then the table."""
    shown = []
    for name, figure in section.figures.items():
        save_figure(figure, folder / name)
        shown.append(figure_html(folder / name, f"{section.title}: {section.sentence}"))
    beside = f'<div class="side-by-side">{"".join(shown)}</div>' if shown else ""
    is_evidence = bool(shown or section.body)  # beside which the numbers can wait
    table = "" if section.table is None else table_html(section.table, f"{section.title}, in numbers", fold=is_evidence)
    return beside + section.body + table


def _is_half(section: Section) -> bool:
    """Whether it fits beside another on a wide screen: a single figure of usual width, and no more."""
    widths = [figure_of(drawn).get_figwidth() for drawn in section.figures.values()]
    return len(widths) == 1 and bool(widths[0] < HALF) and not section.body


def _summary(verdict: Sequence[Check]) -> str:
    """4 of 7 checks passed; 1 failed, 1 refuted, 1 not tested."""
    if not verdict:
        return "no checks were made"
    counts = Counter(check.state for check in verdict)
    if counts["not tested"] == len(verdict):
        return "not tested"
    others = [f"{counts[state]} {state}" for state in ("failed", "refuted", "undecided", "not tested") if counts[state]]
    return f"{counts['passed']} of {len(verdict)} checks passed" + (f"; {', '.join(others)}" if others else "")
