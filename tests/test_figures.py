"""Figures: what the axes hold, and what a page holds; test_browser.py looks at pages in a browser."""

import dataclasses
import importlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib as mpl
import networkx as nx
import numpy as np
import pytest
import torch
from assertions import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.figures import plots, rendering

REFERENCES = {
    "entropy floor": 0.85,
    "exact Bayes": 1.9058,
    "edge posterior": 1.9070,
    "best unigram": 2.24,
    "uniform": 2.30,
}


@pytest.fixture
def record() -> cc.TrainingRecord:
    """Forty steps over the fork's 7 positions, recorded three times; uniform attention."""
    attention = uniform_attention(7).expand(3, 2, 1, 7, 7)
    return cc.TrainingRecord(
        losses=torch.linspace(2.3, 1.95, 40, dtype=torch.float64),
        steps=(0, 6, 40),
        recorded_losses=torch.tensor([2.3, 2.2, 1.95], dtype=torch.float64),
        attention=attention,
        score_gradients=attention,
    )


def uniform_attention(n_ctx: int) -> torch.Tensor:
    lower = torch.ones(n_ctx, n_ctx).tril()
    return lower / lower.sum(dim=-1, keepdim=True)


def head_scores(**scores: float) -> cc.HeadScores:
    names = [field.name for field in dataclasses.fields(cc.HeadScores) if field.type is float]
    return cc.HeadScores(layer=0, head=1, role="parent", **{name: scores.get(name, 0.1) for name in names})


def outlined(ax: Axes) -> set[tuple[int, int]]:
    """The (query, key) cells of the open squares."""
    (squares,) = (collection for collection in ax.collections if collection.get_gid() == "true-edges")
    centres = [path.vertices[:4].mean(axis=0) for path in squares.get_paths()]
    return {(round(y), round(x)) for x, y in centres}


def arcs(ax: Axes, name: str) -> set[tuple[int, int]]:
    """The (parent, child) ends of one class of arcs."""
    (lines,) = (collection for collection in ax.collections if collection.get_gid() == name)
    return {(round(path.vertices[0, 0]), round(path.vertices[-1, 0])) for path in lines.get_paths()}


def text_boxes(ax: Axes, words: list[str]) -> list[object]:
    figure = figures_figure(ax)
    figure.draw_without_rendering()
    return [text.get_window_extent() for text in ax.texts if any(word in text.get_text() for word in words)]


def figures_figure(ax: Axes) -> Figure:
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


# Axes


def test_attention_outlines_exactly_the_learned_edges(fork: nx.DiGraph) -> None:
    ax = figures.plot_attention_and_graph(uniform_attention(7), fork, title="step 0")
    assert outlined(ax) == {(child, parent) for parent, child in cc.latent_edges(fork)}
    assert (ax.get_title(), ax.get_xlabel()) == ("step 0", "key position (parent)")
    shown = ax.images[0].get_array()
    assert shown.mask[np.triu_indices(7, 1)].all()
    assert not shown.mask[np.tril_indices(7)].any()


def test_without_a_query_the_last_row_shows_the_targets_parents() -> None:
    ax = figures.plot_attention_and_graph(uniform_attention(5), cc.ngram_graph(5, order=2))
    assert outlined(ax) == {(2, 0), (2, 1), (3, 1), (3, 2), (4, 3), (4, 4)}


def test_a_diverging_matrix_is_symmetric_about_zero_and_keeps_gaps_blank(fork: nx.DiGraph) -> None:
    effects = torch.full((7, 7), torch.nan)
    effects[3, 1], effects[2, 0] = -0.2, 0.1
    ax = figures.plot_matrix(effects, fork, label="nats", diverging=True)
    assert ax.images[0].get_clim() == pytest.approx((-0.2, 0.2))
    assert (~ax.images[0].get_array().mask).sum() == 2
    assert figures_figure(ax).axes[1].get_ylabel() == "nats"


def test_a_matrix_without_a_graph_has_no_outlines() -> None:
    assert not figures.plot_matrix(torch.zeros(4, 4)).collections


@pytest.mark.parametrize(
    ("found", "missing", "false"),
    [
        ([None, 0, 0, 1, None, 4], set(), set()),
        ([None, 0, 1, 1, None, None], {(0, 2), (4, 5)}, {(1, 2)}),
    ],
)
def test_graph_comparison_draws_what_compare_graphs_counts(fork, found, missing, false) -> None:  # type: ignore[no-untyped-def]
    graph = cc.graph_from_parents(found)
    ax = figures.plot_graph_comparison(fork, graph)
    assert arcs(ax, "missing") == missing
    assert arcs(ax, "false") == false
    assert arcs(ax, "found and true") == cc.latent_edges(fork) - missing
    entries = [text.get_text() for text in ax.get_legend().get_texts()]
    hits = len(cc.latent_edges(fork)) - len(missing)
    assert entries == [f"found and true ({hits})", f"missing ({len(missing)})", f"false ({len(false)})", "given (1)"]
    assert {"query", "target"} <= {text.get_text() for text in ax.texts}


def test_false_arcs_hang_below_the_line(fork: nx.DiGraph) -> None:
    ax = figures.plot_graph_comparison(fork, cc.graph_from_parents([None, 0, 1, 1, None, 4]))
    (false,) = (lines for lines in ax.collections if lines.get_gid() == "false")
    assert false.get_paths()[0].vertices[1:-1, 1].max() < 0
    assert ax.get_ylim()[0] < false.get_paths()[0].vertices[:, 1].min()


def test_gradient_points_are_the_strict_lower_triangle(fork: nx.DiGraph) -> None:
    gradient, information = torch.arange(49.0).view(7, 7), torch.arange(49.0).view(7, 7) / 2
    ax = figures.plot_gradient_and_information(gradient, information, fork, title="r = 1")
    others, edges = (collection.get_offsets() for collection in ax.collections)
    assert len(edges) == len(cc.latent_edges(fork))
    assert len(others) + len(edges) == 7 * 6 // 2
    np.testing.assert_allclose(edges[:, 1], 2 * edges[:, 0])
    assert ax.get_title() == "r = 1"


def test_loss_labels_name_every_line_and_do_not_overlap(record: cc.TrainingRecord) -> None:
    ax = figures.plot_loss(record, {**REFERENCES, "not known": float("nan")}, test_loss=1.9064)
    labels = [text.get_text() for text in ax.texts]
    assert labels == [f"{name} {value:.3f}" for name, value in REFERENCES.items()] + ["test loss 1.906"]
    levels = sorted(line.get_ydata()[0] for line in ax.lines if len(line.get_ydata()) == 2)
    assert levels == pytest.approx(sorted(REFERENCES.values()))
    boxes = text_boxes(ax, list(REFERENCES))
    assert not any(a.overlaps(b) for k, a in enumerate(boxes) for b in boxes[:k])  # type: ignore[attr-defined]
    page = figures_figure(ax).bbox
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 for box in boxes)  # type: ignore[attr-defined]


def test_the_running_mean_ends_at_the_mean_of_the_last_tenth(record: cc.TrainingRecord) -> None:
    ax = figures.plot_loss(record, {})
    raw, smooth = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(raw, record.losses)
    assert smooth[-1] == pytest.approx(record.losses[-4:].mean())
    assert smooth[0] == pytest.approx(record.losses[0])


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.1))
def test_dodged_places_keep_order_and_distance_and_move_only_when_they_must(values: list[float], gap: float) -> None:
    places = plots.dodge(values, gap, 0.0, 1.0)
    order = np.argsort(values, kind="stable")
    gaps = np.diff(np.array(places)[order])
    assert (gaps >= gap - 1e-9).all()
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in places)
    if len(values) and (np.diff(np.array(values)[order]) >= gap).all():
        np.testing.assert_allclose(places, values, atol=1e-9)


def test_film_strip_shows_the_first_and_the_last_record(record: cc.TrainingRecord, fork: nx.DiGraph) -> None:
    figure = figures.plot_film_strip(record, fork, n_frames=2)
    frames = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in frames] == ["step 0", "step 40"]
    assert all(len(outlined(ax)) == len(cc.latent_edges(fork)) for ax in frames)
    many = figures.plot_film_strip(record, fork, layer=1, n_frames=9)
    assert sum(bool(ax.get_title()) for ax in many.axes) == 3


def test_a_gradient_film_scales_each_frame_by_its_own_largest_entry(
    record: cc.TrainingRecord, fork: nx.DiGraph
) -> None:
    scales = torch.tensor([1.0, 1e-3, 0.0]).view(3, 1, 1, 1, 1)
    assert record.score_gradients is not None
    faded = dataclasses.replace(record, score_gradients=record.score_gradients * scales)
    figure = figures.plot_film_strip(faded, fork, quantity="score_gradients")
    frames = [ax for ax in figure.axes if ax.get_title()]
    assert [ax.get_title() for ax in frames[:2]] == ["step 0\nlargest 1.0e+00", "step 6\nlargest 1.0e-03"]
    drawn = [ax.images[0].get_array() for ax in frames]
    np.testing.assert_allclose(drawn[0].filled(0), drawn[1].filled(0), atol=1e-6)
    assert drawn[0].max() == pytest.approx(1)
    assert not drawn[2].any()


def test_head_scores_put_the_role_below_the_head() -> None:
    ax = figures.plot_head_scores([head_scores(parent_score=0.97, copying_score=-0.4)])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["L0H1\nparent"]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([0.1, 0.97, 0.1, -0.4])


def test_ablation_bars_are_grouped_by_label_and_say_when_there_is_no_gain() -> None:
    ax = figures.plot_ablation([("L0H0", "zero", 1.1), ("L0H0", "mean", 0.9), ("L1H0", "zero", float("nan"))])
    assert [label.get_text() for label in ax.get_xticklabels()] == ["L0H0", "L1H0"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["zero", "mean"]
    assert [text.get_text() for text in ax.texts].count("n/a") == 2
    assert any((line.get_ydata() == np.array([1, 1])).all() for line in ax.lines)


def test_figures_draw_on_the_axes_they_are_given_and_change_no_style(
    record: cc.TrainingRecord, fork: nx.DiGraph
) -> None:
    before = dict(mpl.rcParams)
    attention = uniform_attention(7)
    calls = [
        lambda ax: figures.plot_loss(record, REFERENCES, ax=ax),
        lambda ax: figures.plot_attention_and_graph(attention, fork, ax=ax),
        lambda ax: figures.plot_matrix(attention, ax=ax),
        lambda ax: figures.plot_graph_comparison(fork, fork, ax=ax),
        lambda ax: figures.plot_gradient_and_information(attention, attention, fork, ax=ax),
        lambda ax: figures.plot_head_scores([head_scores()], ax=ax),
        lambda ax: figures.plot_ablation([("L0H0", "zero", 1.0)], ax=ax),
    ]
    for call in calls:
        ax = Figure().add_subplot()
        assert call(ax) is ax
        figures.figure_html(ax, "alt")
    assert dict(mpl.rcParams) == before


def test_plots_refuse_what_does_not_fit(record: cc.TrainingRecord, fork: nx.DiGraph) -> None:
    assert_refused(lambda: figures.plot_matrix(torch.zeros(2, 4, 4)), "[n_ctx, n_ctx]", "[2, 4, 4]", "choose one")
    assert_refused(
        lambda: figures.plot_attention_and_graph(uniform_attention(5), fork), "5 against 7", "pass the graph"
    )
    assert_refused(lambda: figures.plot_film_strip(record, fork, head=3), "heads 0 .. 0", "L0H3")
    blind = dataclasses.replace(record, attention=None)
    assert_refused(lambda: figures.plot_film_strip(blind, fork), "has no attention", "attention=True")
    assert_refused(lambda: figures.plot_film_strip(record, fork, quantity="loss"), "quantity", "'loss'")  # type: ignore[arg-type]
    assert_refused(lambda: figures.plot_head_scores([]), "at least one head", "detect_induction_heads")
    assert_refused(lambda: figures.plot_ablation([]), "at least one result")


# Attention views


def attention_view(**changes: object) -> figures.AttentionView:
    given: dict[str, object] = {
        "attention": uniform_attention(3)[None].repeat(2, 1, 1),
        "labels": ["p0=1", "p1=0", "query=1"],
        "head_names": ["L0H0", "L1H0"],
    }
    return figures.attention_view(**{**given, **changes})  # type: ignore[arg-type]


def changed(where: tuple[int, int, int], value: float) -> torch.Tensor:
    attention = uniform_attention(3)[None].repeat(2, 1, 1)
    attention[where] = value
    return attention


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": [1, 0, 1]}, ("each item: a string", "[1, 0, 1]", "position_labels")),
        ({"labels": ["a", "b"]}, ("labels", "each position (3)", "got 2")),
        ({"labels": "abc"}, ("labels", "one string")),
        ({"head_names": ["L0H0"]}, ("head_names", "each head (2)", "got 1")),
        ({"attention": uniform_attention(3)}, ("[head_index, query_pos, key_pos]", "[3, 3]")),
        ({"attention": torch.zeros(1, 2, 3, 3)}, ("[1, 2, 3, 3]", "pattern[0]")),
        ({"attention": torch.ones(2, 3, 2)}, ("[2, 3, 2]",)),
        ({"attention": changed((1, 2, 0), torch.nan)}, ("be finite", "nan at head 1, query 2, key 0")),
        ({"attention": changed((0, 0, 2), 0.5)}, ("causal", "0.5 at head 0, query 0, key 2")),
        ({"attention": changed((0, 2, 0), -0.5)}, ("negative", "-0.5", "scores")),
        ({"attention": changed((0, 2, 0), 0.5)}, ("sum to 1", "1.167 at head 0, query 2", "softmax")),
    ],
)
def test_attention_view_refuses_what_circuitsvis_would_draw(changes: dict[str, object], words: tuple[str, ...]) -> None:
    assert_refused(lambda: attention_view(**changes), *words)


def test_a_view_hands_circuitsvis_the_pattern_labels_and_names() -> None:
    properties = json.loads(attention_view().properties)
    np.testing.assert_allclose(properties["attention"][0], uniform_attention(3), atol=1e-4)
    assert properties["tokens"] == ["p0=1", "p1=0", "query=1"]
    assert properties["attentionHeadNames"] == ["L0H0", "L1H0"]


def test_no_label_can_end_the_script() -> None:
    view = attention_view(labels=["</script><script>alert(1)</script>", "<!--", "&amp;\u2028"], head_names=["<b>", "h"])
    fragment = view.fragment()
    assert fragment.count("</script>") == 1
    assert "<!--" not in fragment
    assert "<b>" not in fragment
    assert json.loads(view.properties)["tokens"][1] == "<!--"


def test_a_notebook_view_carries_its_own_script_and_a_fragment_does_not() -> None:
    view, bundle = attention_view(), figures.circuits_vis_bundle()
    assert bundle in view._repr_html_()
    assert view._repr_html_().count("</script>") == 1
    assert len(view.fragment()) < 5000
    assert "unpkg.com" not in view._repr_html_()
    assert element_ids(view.fragment()) != element_ids(view.fragment())
    assert "sourceMappingURL" not in bundle


def test_position_labels_mark_the_query() -> None:
    assert figures.position_labels(torch.tensor([3, 0, 3])) == ["p0=3", "p1=0", "query=3"]
    assert figures.position_labels([3, 0], has_query=False) == ["p0=3", "p1=0"]


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


def demo_page(*sections: figures.Section, title: str = "A page") -> str:
    verdict = [figures.Check(True, "It works", "loss 1.90"), figures.Check(False, "It is fast", "9 s, limit 5 s")]
    return figures.report_html(title=title, verdict=verdict, sections=sections, meta={"seed": "0"})


def matrix_html(n_ctx: int = 6) -> str:
    return figures.figure_html(figures.plot_matrix(uniform_attention(n_ctx)), "uniform attention")


def test_ids_on_a_page_are_unique_and_every_reference_finds_its_own() -> None:
    html = demo_page(
        figures.Section("One", "It shows.", matrix_html()), figures.Section("Two", "It too.", matrix_html())
    )
    ids = element_ids(html)
    assert len(ids) == len(set(ids))
    referred = set(re.findall(r'href="#([^"]+)"', html)) | set(re.findall(r"url\(#([^)]+)\)", html))
    assert referred
    assert referred <= set(ids)


def test_a_figure_has_role_and_alt_text() -> None:
    html = figures.figure_html(figures.plot_matrix(uniform_attention(6)), 'a "quoted" <alt>')
    (svg,) = Page(html).named("svg")
    assert (svg["role"], svg["aria-label"]) == ("img", 'a "quoted" <alt>')
    assert "<?xml" not in html
    assert_refused(lambda: figures.figure_html(Figure(), " "), "alt text")


def test_a_large_figure_becomes_a_png(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_SVG_BYTES", 1000)
    (image,) = Page(matrix_html()).named("img")
    assert str(image["src"]).startswith("data:image/png;base64,")
    assert image["alt"] == "uniform attention"


def test_all_text_is_escaped() -> None:
    bad = "<script>alert('x')</script>&"
    table = figures.table_html([{bad: bad, "n": 12345, "share": 0.123456}, {"n": None, "share": True}], bad)
    section = figures.Section(bad, bad, table, command=bad)
    html = figures.report_html(title=bad, verdict=[figures.Check(True, bad, bad)], sections=[section], meta={bad: bad})
    assert len(Page(html).named("script")) == html.count("<script>") == 1  # the page's own
    assert Page(html).text.count(bad) == 13
    assert all(text in Page(table).text for text in ("12,345", "0.1235", "-", "yes"))


def test_an_empty_table_says_so() -> None:
    assert "no rows" in Page(figures.table_html([], "Nothing")).text


def test_the_verdict_comes_first_in_words_and_symbols() -> None:
    text = Page(demo_page(figures.Section("One", "It shows.", "<p>evidence</p>", "python one.py"))).text
    order = [
        text.index(words)
        for words in ("Verdict: 1 of 2 checks passed", "✓ PASS", "✗ FAIL", "evidence", "python one.py")
    ]
    assert order == sorted(order)


def test_the_bundle_stands_once_on_a_page_with_views_and_never_without() -> None:
    both = figures.Section("Views", "They show.", figures.attention_html([attention_view(), attention_view()]))
    bundle = figures.circuits_vis_bundle()
    assert demo_page(both, both).count(bundle) == 1
    assert bundle not in demo_page(figures.Section("None", "No view.", "<p></p>"))


def assert_loads_nothing(html: str) -> None:
    """No element names an outside address, and the page forbids what a script might ask for."""
    page = Page(html)
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            value = str(attributes.get(name) or "")
            assert value.startswith(("data:", "#")) or not value, f"<{tag} {name}={value[:60]}>"
    styles = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL) + re.findall(r'style="([^"]*)"', html)
    assert not any("url(http" in style or "@import" in style for style in styles)
    policy = [meta["content"] for meta in page.named("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert len(policy) == 1
    assert str(policy[0]).startswith("default-src 'none'")


def test_a_page_is_whole_and_asks_for_nothing() -> None:
    html = demo_page(
        figures.Section("Matrix", "It shows.", matrix_html()),
        figures.Section("View", "It shows.", figures.attention_html([attention_view()])),
    )
    assert_loads_nothing(html)
    page = Page(html)
    assert page.open == []
    assert html.startswith("<!DOCTYPE html>")
    assert page.named("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.named("meta")
    assert "needs JavaScript" in page.text
    assert len(html) < 6e6


def test_a_report_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.html"
    arguments = {"title": "T", "verdict": [], "sections": [], "meta": {}}
    assert figures.write_report(path, **arguments) == path  # type: ignore[arg-type]
    old = path.read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        figures.write_report(path, **{**arguments, "title": "other"})  # type: ignore[arg-type]
    assert path.read_text() == old
    assert list(path.parent.iterdir()) == [path]


def test_saved_figures_are_png_and_svg_and_do_not_change(tmp_path: Path) -> None:
    ax = figures.plot_matrix(uniform_attention(6))
    png, svg = figures.save_figure(ax, tmp_path / "figures" / "v1.0")
    assert (png.name, svg.name) == ("v1.0.png", "v1.0.svg")
    assert png.read_bytes()[:4] == b"\x89PNG"
    again = figures.save_figure(figures.plot_matrix(uniform_attention(6)), tmp_path / "again")
    assert svg.read_text() == again[1].read_text()
    assert not list(tmp_path.glob("**/*.part"))


def test_views_offer_a_remedy_when_circuitsvis_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    views = importlib.import_module("causal_circuits.figures.attention_view")  # the function has the same name
    monkeypatch.setattr(views, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install circuitsvis"):
        views.circuits_vis_bundle.__wrapped__()


def test_a_saved_figure_is_shown_as_the_figure_itself(tmp_path):
    axes = figures.plot_matrix(np.tril(np.ones((4, 4))), title="A title")
    figures.save_figure(axes, tmp_path / "matrix")
    drawn, saved = (figures.figure_html(source, alt="ones") for source in (axes, tmp_path / "matrix"))
    saved_file = (tmp_path / "matrix.svg").read_text()
    for path in re.findall(r'<path d="([^"]+)"', saved_file):
        assert path in saved
    for tag in ("<path", "<use", "<g ", "aria-label=", "style="):
        assert drawn.count(tag) == saved.count(tag)
    assert re.search(r"width:\d+px", drawn)[0] == re.search(r"width:\d+px", saved)[0]


def test_saving_gives_the_layout_engine_back(tmp_path):
    axes = figures.plot_matrix(np.tril(np.ones((4, 4))))
    engine = axes.figure.get_layout_engine()
    figures.save_figure(axes, tmp_path / "matrix")
    assert axes.figure.get_layout_engine() is engine
