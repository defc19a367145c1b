"""Pages and their parts as text: what they hold, and that nothing leaves them; test_browser.py looks at them."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from assertions import assert_refused
from test_figures import uniform_attention

from causal_circuits import figures, pages
from causal_circuits.pages import rendering

# Attention views


def pattern_view(**changes: object) -> str:
    given: dict[str, object] = {
        "attention": uniform_attention(3)[None].repeat(2, 1, 1),
        "labels": ["1", "0", "query 1"],
        "head_names": ["L0H0", "L1H0"],
    }
    return pages.pattern_view(**{**given, **changes})  # type: ignore[arg-type]


def changed(where: tuple[int, int, int], value: float) -> torch.Tensor:
    attention = uniform_attention(3)[None].repeat(2, 1, 1)
    attention[where] = value
    return attention


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": [1, 0, 1]}, ("labels", "string", "[1, 0, 1]")),
        ({"labels": ["a", "b"]}, ("labels", "each position (3)", "got 2")),
        ({"head_names": ["L0H0"]}, ("head_names", "each head (2)", "got 1")),
        ({"attention": uniform_attention(3)}, ("[head_index, query_pos, key_pos]", "[3, 3]")),
        ({"attention": torch.zeros(1, 2, 3, 3)}, ("[1, 2, 3, 3]", "pattern[0]")),
        ({"attention": changed((1, 2, 0), torch.nan)}, ("be finite", "nan at head 1, query 2, key 0")),
        ({"attention": changed((0, 0, 2), 0.5)}, ("causal", "0.5 at head 0, query 0, key 2")),
        ({"attention": changed((0, 2, 0), -0.5)}, ("negative", "-0.5", "scores")),
        ({"attention": changed((0, 2, 0), 0.5)}, ("sum to 1 within 0.001", "1.167 at head 0, query 2", "softmax")),
    ],
)
def test_pattern_view_refuses_what_circuitsvis_would_draw(changes: dict[str, object], words: tuple[str, ...]) -> None:
    assert_refused(lambda: pattern_view(**changes), *words)


def data_of(view: str) -> dict[str, list]:
    """What the script of a view reads: panels (component, properties), frames, steps."""
    (text,) = re.findall(r'<script type="application/json">(.*)</script>', view)
    return json.loads(text)


@pytest.mark.parametrize(("n_heads", "components"), [(2, ["AttentionPattern"] * 2), (5, ["AttentionHeads"])])
def test_views_are_what_circuitsvis_s_own_functions_say(n_heads: int, components: list[str]) -> None:
    names = [f"L0H{head}" for head in range(n_heads)]
    attention = uniform_attention(3).expand(2, n_heads, 3, 3)
    data = data_of(pattern_view(attention=attention, head_names=names, steps=[0, 1500]))
    assert [panel["component"] for panel in data["panels"]] == components
    properties = data["panels"][0]["properties"]
    np.testing.assert_allclose(np.array(properties["attention"]).reshape(-1, 3)[:3], uniform_attention(3), atol=1e-4)
    assert properties["tokens"] == ["1", "0", "query\u28001"]
    assert properties.get("attentionHeadNames", names) == names
    assert data["steps"] == ["step 0", "step 1,500"]
    assert np.shape(data["frames"]) in {(2, n_heads, 3, 3), (2, 1, n_heads, 3, 3)}


def test_no_label_can_end_the_script() -> None:
    view = pattern_view(labels=["</script><script>alert(1)</script>", "<!--", "&amp;\u2028"], head_names=["<b>", "h"])
    fragment = view
    assert fragment.count("</script>") == 1
    assert "<!--" not in fragment
    assert "<b>" not in fragment
    assert data_of(view)["panels"][0]["properties"]["tokens"][1] == "<!--"


def test_a_notebook_view_carries_its_own_script_and_a_fragment_does_not() -> None:
    view, bundle = pattern_view(), pages.circuits_vis_bundle()
    whole = view._repr_html_()
    assert whole.count(bundle) == 1
    assert "unpkg.com" not in whole
    assert Page(whole).open == []
    assert len(view) < 5000
    assert "sourceMappingURL" not in bundle


# Pages


class Page(HTMLParser):
    """The elements and the visible text of a page."""

    VOID = ("meta", "link", "br", "img", "input")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def element_ids(html: str) -> list[str]:
    return [str(attributes["id"]) for _, attributes in Page(html).elements if "id" in attributes]


def page_of(folder: Path, *sections: pages.Section, **more: object) -> str:
    """A page's text."""
    verdict = [pages.Check(True, "It works", "loss 1.90"), pages.Check(False, "It is fast", "9 s, limit 5 s")]
    given = {"title": "A page", "verdict": verdict, "sections": sections, "meta": {"seed": "0"}} | more
    return pages.write_report(folder / "report.html", **given).read_text()  # type: ignore[arg-type]


def matrix_html(n_ctx: int = 6) -> str:
    return pages.figure_html(figures.plot_matrix(uniform_attention(n_ctx)), "uniform attention")


def test_ids_on_a_page_are_unique_and_every_reference_finds_its_own(tmp_path: Path) -> None:
    html = page_of(tmp_path, *(pages.Section(name, "It shows.", matrix_html()) for name in ("One", "Two")))
    ids = element_ids(html)
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert referred
    assert referred <= set(ids)


def test_a_large_figure_becomes_a_png(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_SVG_BYTES", 1000)
    (image,) = Page(matrix_html()).named("img")
    assert str(image["src"]).startswith("data:image/png;base64,")
    assert image["alt"] == "uniform attention"


def test_all_text_is_escaped(tmp_path: Path) -> None:
    bad = "<script>alert('x')</script>&"
    table = pages.table_html([{bad: bad, "n": 12345, "share": 0.123456}, {"n": None, "share": True}], bad)
    section = pages.Section(bad, bad, table, command=bad)
    html = page_of(tmp_path, section, title=bad, verdict=[pages.Check(True, bad, bad)], meta={bad: bad})
    assert len(Page(html).named("script")) == html.count("<script>") == 1  # the page's own
    assert Page(html).text.count(bad) == 13
    assert all(text in Page(table).text for text in ("12,345", "0.1235", "-", "yes"))


def test_an_empty_table_says_so() -> None:
    assert "no rows" in Page(pages.table_html([], "Nothing")).text


def test_the_verdict_comes_first_and_the_command_once_below_it(tmp_path: Path) -> None:
    section = pages.Section("One", "It shows.", "<p>evidence</p>", "python one.py")
    text = Page(page_of(tmp_path, section, section)).text
    order = ("Verdict: 1 of 2 checks passed; 1 failed", "✓ PASS", "✗ FAIL", "python one.py", "evidence")
    assert [text.index(words) for words in order] == sorted(text.index(words) for words in order)
    assert text.count("python one.py") == 1


def test_sections_that_have_commands_of_their_own_keep_them(tmp_path: Path) -> None:
    sections = [pages.Section(name, "It shows.", command=f"python {name}.py") for name in "ab"]
    text = Page(page_of(tmp_path, *sections)).text
    assert text.index("a.py") < text.index("2. b") < text.index("b.py")


def test_a_column_of_one_value_is_told_once_and_headings_are_words() -> None:
    table = pages.table_html([{"n_ctx": 8, "row_maximum": k, "alpha": None} for k in range(3)], "Rows")
    assert re.findall("<th [^>]*>(.*?)</th>", table) == ["row maximum"]
    assert "<caption>Rows; in all rows: n_ctx 8, alpha -</caption>" in table
    assert len(Page(pages.table_html([{"n_ctx": 8}] * 3, "Rows")).named("td")) == 3  # nothing else to show


def test_of_many_checks_those_that_passed_are_folded(tmp_path: Path) -> None:
    checks = [pages.Check(k != 6, f"claim {k}", "a number") for k in range(8)]
    shown, fold = Page(page_of(tmp_path, verdict=checks)).text.split("2 more, all passed")
    assert [k for k in range(8) if f"claim {k}" in shown] == [0, 1, 2, 3, 4, 6]
    assert [k for k in range(8) if f"claim {k}" in fold] == [5, 7]


def test_every_state_of_a_check_is_a_word_and_only_passed_counts(tmp_path: Path) -> None:
    states = ("passed", "failed", "refuted", "undecided", "not tested")
    checks = [pages.Check(state, "A claim", "a number") for state in states]
    text = Page(page_of(tmp_path, verdict=checks)).text
    assert "Verdict: 1 of 5 checks passed; 1 failed, 1 refuted, 1 undecided, 1 not tested" in text
    assert all(word in text for word in ("PASS", "FAIL", "REFUTED", "UNDECIDED", "NOT TESTED"))
    quick = Page(page_of(tmp_path, verdict=checks, quick=True)).text
    assert "Quick run" in quick
    assert "Verdict: not tested" in quick
    assert [check.passed for check in checks] == [True, False, False, False, False]
    assert (pages.Check(True, "", "").state, pages.Check(False, "", "").state) == ("passed", "failed")
    assert_refused(lambda: pages.Check("good", "", ""), "state", "good")  # type: ignore[arg-type]


def test_figures_of_a_section_are_saved_beside_the_page_and_its_table_is_folded(tmp_path: Path) -> None:
    drawn = {"ones": figures.plot_matrix(uniform_attention(6))}
    for n_rows, evidence in ((2, drawn), (2, {}), (20, {})):
        table = pd.DataFrame({"position": range(n_rows), "share": np.linspace(0, 1, n_rows)})
        section = pages.Section("Attention", "It shows.", figures=evidence, table=table)
        page = pages.write_report(tmp_path / "report.html", title="T", verdict=[], sections=[section], meta={})
        shown = Page(page.read_text())
        assert [svg["aria-label"] for svg in shown.named("svg")] == ["Attention: It shows."] * bool(evidence)
        assert bool(shown.named("details")) == (n_rows == 20 or bool(evidence))
        assert len(shown.named("td")) == 2 * n_rows
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"ones.png", "ones.svg"}


def test_the_bundle_stands_once_on_a_page_with_views_and_never_without(tmp_path: Path) -> None:
    both = pages.Section("Views", "They show.", pattern_view() + pattern_view())
    bundle = pages.circuits_vis_bundle()
    assert page_of(tmp_path, both, both).count(bundle) == 1
    assert bundle not in page_of(tmp_path, pages.Section("None", "No view.", "<p></p>"))


def test_a_page_is_whole_and_asks_for_nothing(tmp_path: Path) -> None:
    parts = {"Matrix": matrix_html(), "View": pattern_view()}
    html = page_of(tmp_path, *(pages.Section(name, "It shows.", part) for name, part in parts.items()))
    page = Page(html)
    (policy,) = (meta["content"] for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert page.open == []
    assert html.startswith("<!DOCTYPE html>")
    assert page.named("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")
    assert "needs JavaScript" in page.text
    assert len(html) < 6e6


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.html"
    arguments = {"title": "T", "verdict": [], "sections": [], "meta": {}}
    assert pages.write_report(path, **arguments) == path  # type: ignore[arg-type]
    old = path.read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        pages.write_report(path, **{**arguments, "title": "other"})  # type: ignore[arg-type]
    assert path.read_text() == old
    assert list(path.parent.iterdir()) == [path]


def test_saving_gives_the_layout_engine_back(tmp_path):
    axes = figures.plot_matrix(np.tril(np.ones((4, 4))))
    engine = axes.figure.get_layout_engine()
    pages.save_figure(axes, tmp_path / "matrix")
    assert axes.figure.get_layout_engine() is engine
