"""One self-contained HTML page: the verdict first, then the evidence, each figure with the command that remakes it.

The page makes no request: no fonts, no CDN, no favicon, and a content security policy under which a browser would
refuse any. Text is escaped; `Section.body` is HTML, made by `figure_html`, `table_html`,
`attention_html`, `interactive_graph` and `graph_film_html`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

from causal_circuits.arguments import check_arguments
from causal_circuits.display import table_html
from causal_circuits.figures.animation import play_script
from causal_circuits.figures.attention_view import AttentionView, circuits_vis_bundle
from causal_circuits.figures.graph_view import explore_script
from causal_circuits.figures.page_style import PAGE_STYLE
from causal_circuits.figures.rendering import figure_html, save_figure
from causal_circuits.storage import write_files

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"
# What scrolls sideways must be reached by keyboard; what does not must not stop the Tab key.
_SCROLL = """
const reach = () => {
  for (const box of document.querySelectorAll(".figure, .scroll, pre"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; else box.removeAttribute("tabindex");
};
addEventListener("load", reach);
addEventListener("resize", reach);"""
# What moves on a page, by the mark of its body, and the script that moves it: in the page once, if any section has one.
_SCRIPTS: dict[str, Callable[[], str]] = {
    '<div class="attention-view"': circuits_vis_bundle,
    '<div class="graph-view"': explore_script,
    '<div class="graph-film"': play_script,
}


@check_arguments
@dataclass(frozen=True)
class Check:
    """One claim of the verdict.

    Attributes:
        passed: whether it holds.
        claim: what should hold, a sentence.
        evidence: the numbers that decide it.

    >>> Check(True, "The graph was found.", "18 of 18 parents, none false").claim
    'The graph was found.'
    """

    passed: bool
    claim: str
    evidence: str


@check_arguments
@dataclass(frozen=True)
class Section:
    """A piece of evidence.

    Attributes:
        title: its heading.
        sentence: the one sentence that it shows.
        body: HTML (views, text); figures stand above it, the table below.
        command: what to type to make it again.
        figures: matplotlib's, by the name of their files, saved beside the page.
        table: rows, below.

    >>> Section("Attention", "Layer 0 looks at the parents.", "<p>a figure</p>").title
    'Attention'
    """

    title: str
    sentence: str
    body: str = ""
    command: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    table: Any = None


@check_arguments
def write_report(
    path: str | os.PathLike[str],
    *,
    title: str,
    verdict: Sequence[Check],
    sections: Sequence[Section],
    meta: Mapping[str, str],
) -> Path:
    """Write the page; a reader of `path` sees the old page or the whole new one, never half of it.

    Args:
        path: of the HTML file; its folder is made if missing.
        verdict: the claims, passed or failed; shown first.
        sections: the evidence, in order.
        meta: seed, versions, wall time; shown last.

    >>> from tempfile import TemporaryDirectory
    >>> checks = [Check(True, "The graph was found.", "18 of 18 parents")]
    >>> with TemporaryDirectory() as folder:
    ...     path = write_report(folder + "/page.html", title="A chain", verdict=checks, sections=[], meta={"seed": "0"})
    ...     "18 of 18 parents" in path.read_text()
    True
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"a report is written to a file: got the folder {path}; write {path / 'report.html'}")
    drawn = [_with_evidence(section, path.parent / "figures") for section in sections]
    write_files(path.parent, {path.name: report_html(title=title, verdict=verdict, sections=drawn, meta=meta)})
    return path


def _with_evidence(section: Section, folder: Path) -> Section:
    """The section with its figures and its table in the body."""
    shown = ""
    for name, figure in section.figures.items():
        save_figure(figure, folder / name)
        shown += figure_html(folder / name, alt=f"{section.title}: {section.sentence}")
    rows = section.table.to_dict("records") if hasattr(section.table, "to_dict") else section.table
    below = "" if rows is None else table_html(list(rows), caption=section.title)
    beside = f'<div class="side-by-side">{shown}</div>' if shown else ""
    return replace(section, body=beside + section.body + below, figures={}, table=None)


@check_arguments
def report_html(*, title: str, verdict: Sequence[Check], sections: Sequence[Section], meta: Mapping[str, str]) -> str:
    """The page as text; each script stands in it once if any section needs it, else not at all.

    >>> checks = [Check(True, "The graph was found.", "18 of 18 parents")]
    >>> page = report_html(title="A chain", verdict=checks, sections=[], meta={"seed": "0"})
    >>> page.lower().startswith("<!doctype html>"), "18 of 18 parents" in page
    (True, True)
    """
    numbered = list(enumerate(sections, start=1))
    needed = [script for mark, script in _SCRIPTS.items() if any(mark in section.body for section in sections)]
    parts = [
        _head(title),
        f"<header><h1>{escape(title)}</h1></header>\n<main>",
        _verdict_html(verdict),
        _contents_html(numbered),
        *(_section_html(number, section) for number, section in numbered),
        _meta_html(meta),
        "</main>",
        *(f"<script>{script}</script>" for script in (_SCROLL.strip(), *(script() for script in needed))),
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


@check_arguments
def attention_html(views: Sequence[AttentionView]) -> str:
    """CircuitsVis views for a section's body, without the script, which `write_report` adds once a page.

    >>> import numpy as np
    >>> from causal_circuits import figures
    >>> view = figures.attention_view(np.array([[[1.0, 0.0], [0.5, 0.5]]]), labels=["p0=3", "query=7"])
    >>> "<div" in figures.attention_html([view])
    True
    """
    return "\n".join(f'<div class="figure">{view.fragment()}</div>' for view in views)


def _head(title: str) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light">\n'
        f'<title>{escape(title)}</title>\n<link rel="icon" href="data:,">\n<style>{PAGE_STYLE}</style>\n</head>\n<body>'
    )


def _verdict_html(verdict: Sequence[Check]) -> str:
    passed = sum(check.passed for check in verdict)
    items = "\n".join(_check_html(check) for check in verdict)
    summary = f"{passed} of {len(verdict)} checks passed" if verdict else "no checks were made"
    listed = f"\n<ul>\n{items}\n</ul>" if verdict else ""
    return f'<section id="verdict" class="verdict">\n<h2>Verdict: {summary}</h2>{listed}\n</section>'


def _check_html(check: Check) -> str:
    kind, mark = ("pass", "✓ PASS") if check.passed else ("fail", "✗ FAIL")
    claim, evidence = escape(check.claim), escape(check.evidence)
    return (
        f'<li class="{kind}"><span class="mark">{mark}</span>'
        f'<span><strong>{claim}</strong><br><span class="evidence">{evidence}</span></span></li>'
    )


def _contents_html(numbered: Sequence[tuple[int, Section]]) -> str:
    if not numbered:
        return ""
    items = "\n".join(f'<li><a href="#section-{k}">{escape(section.title)}</a></li>' for k, section in numbered)
    return f'<nav aria-label="Evidence">\n<h2>Evidence</h2>\n<ol>\n{items}\n</ol>\n</nav>'


def _section_html(number: int, section: Section) -> str:
    command = ""
    if section.command is not None:
        command = f'\n<p class="again">Make it again:</p>\n<pre><code>{escape(section.command)}</code></pre>'
    return (
        f'<section id="section-{number}">\n<h2>{number}. {escape(section.title)}</h2>\n'
        f'<p class="shows">{escape(section.sentence)}</p>\n{section.body}{command}\n</section>'
    )


def _meta_html(meta: Mapping[str, str]) -> str:
    if not meta:
        return ""
    rows = "\n".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in meta.items())
    return f'<section id="meta" class="meta">\n<h2>How this was made</h2>\n<dl>\n{rows}\n</dl>\n</section>'
