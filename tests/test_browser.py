"""Pages as a browser shows them: nothing is asked for, nothing complains, everything that should move moves."""

import os
from pathlib import Path

import pytest
import torch
from browser import (
    CHROMIUM,
    NEEDS_BROWSER,
    assert_accessible,
    assert_report_is_sound,
    assert_sound,
    complaints,
    hover_line,
    open_page,
    requests,
    wait_until,
)
from playwright.sync_api import Browser, Page
from test_figures import uniform_attention
from test_graph_view import FOUND, forming
from test_pages import pattern_view

import causal_circuits as cc
from causal_circuits import figures, pages

pytestmark = NEEDS_BROWSER
BAD = "<script>document.title = 'mine'</script>"


def test_ci_has_what_these_tests_need() -> None:
    assert CHROMIUM or not os.environ.get("CI"), "in CI nothing here may be skipped: see .ci/run"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with everything that moves, and text that would be a script if it were not escaped."""
    fork = cc.graph_from_parents([None, 0, 0, 1, None, 4])
    tokens = torch.tensor([0, 1, 0, 2, 1, 1, 2])
    planted = cc.plant_circuit(fork, d_vocab=3)
    still = cc.films.sequence_attention(cc.disentangled_transformer(3, 7), tokens, step=0)
    film = cc.films.SequenceAttention(
        tokens,
        (0, 100),
        still.heads,
        torch.cat([still.attention, cc.films.sequence_attention(planted, tokens).attention]),
    )
    record = forming(fork)
    facts = {(1, 3): {"weight": 0.98, "information": 1.25, "effect (nats)": 0.015, "p": BAD}}
    bodies = {
        "Graph": figures.interactive_graph(fork, cc.graph_from_parents(FOUND), facts),
        "Forming": figures.graph_film_html(record, fork, beside=[figures.plot_loss(record, {})]),
        "Views": "".join(
            (
                figures.sequence_view(film, fork, names=[BAD, "b", "c"]),
                figures.sequence_view(still, roles=[BAD, "none"]),
                pattern_view(attention=uniform_attention(3).expand(2, 5, 3, 3), head_names=list("abcde"), steps=[0, 9]),
            )
        ),
        BAD: pages.table_html([{BAD: BAD, "n": 1}], BAD),
    }
    sections = [pages.Section(title, f"It shows {BAD}.", body, f"python {BAD}") for title, body in bodies.items()]
    checks = [pages.Check(True, BAD, BAD), pages.Check(False, BAD, BAD)]
    path = tmp_path_factory.mktemp("demo") / "report.html"
    return pages.write_report(path, title=BAD, verdict=checks, sections=sections, meta={"name": BAD})


@pytest.fixture
def open_demo(browser: Browser, demo: Path):  # type: ignore[no-untyped-def]
    """Opens the demo, with or without scripts."""
    return lambda **how: open_page(browser, demo, **how)


def test_a_report_is_sound_and_accessible_on_a_desk_and_on_a_phone(browser: Browser, demo: Path) -> None:
    assert_report_is_sound(browser, demo)


def test_text_of_the_users_shows_as_text(open_demo) -> None:  # type: ignore[no-untyped-def]
    with open_demo() as page:
        assert page.evaluate("document.title") == BAD
        assert page.evaluate("document.body.innerText").count(BAD) == 19
        assert page.evaluate("[...document.scripts].filter((script) => !script.type).length") == 5


def test_hovering_an_edge_tells_its_numbers_and_focus_does_too(open_demo) -> None:  # type: ignore[no-untyped-def]
    with open_demo() as page:
        hover_line(page, "[data-edge='1-3'] .around")
        told = f"1 → 3, found and true: weight 0.98; information 1.25; effect (nats) 0.015; p {BAD}"
        wait_until(page, f"document.querySelector('.graph-view output').textContent === {told!r}")
        page.evaluate("document.querySelector('[data-edge=\"4-5\"]').focus()")
        wait_until(page, "document.querySelector('.graph-view output').textContent === '4 → 5, missing'")
        assert page.evaluate("document.querySelectorAll('.edge.chosen').length") == 1


def move(page: Page, slider: str, to: int) -> None:
    page.evaluate(f"window.slider = document.querySelector('{slider}'); slider.value = {to}; 0")
    page.evaluate("slider.dispatchEvent(new Event('input'))")


OPACITY = "+getComputedStyle(document.querySelector('.graph-film path[data-weights]')).opacity"
TOLD = "document.querySelector('.graph-film output').textContent"


def test_the_film_starts_at_step_0_and_plays_once_when_it_is_scrolled_to(open_demo) -> None:  # type: ignore[no-untyped-def]
    with open_demo() as page:
        assert page.evaluate(OPACITY) == pytest.approx(0.5, abs=1e-3)
        assert page.evaluate(TOLD).startswith("step 0: 0 of 4")
        page.locator(".graph-film svg").first.scroll_into_view_if_needed()
        wait_until(page, f"{TOLD}.startsWith('step 1,500: 4 of 4')")
        move(page, ".graph-film input", 0)
        assert page.evaluate(TOLD).startswith("step 0: 0 of 4")
        page.click(".graph-film button")
        wait_until(page, f"{TOLD}.startsWith('step 1,500: 4 of 4')")


def test_everything_in_a_film_follows_its_slider(open_demo) -> None:  # type: ignore[no-untyped-def]
    shown = "[...document.querySelectorAll('.graph-film image')].map((frame) => frame.getAttribute('display'))"
    line = "document.querySelector('.graph-film .now')"
    with open_demo() as page:
        places = page.evaluate(f"{line}.dataset.x").split()
        for step, frames in ((0, ["inline", "none"]), (1, ["none", "inline"])):
            move(page, ".graph-film input", step)
            assert page.evaluate(shown) == frames
            assert page.evaluate(f"{line}.getAttribute('transform')") == f"translate({places[step]})"


def test_true_edges_are_outlined_where_circuitsvis_draws_them(open_demo) -> None:  # type: ignore[no-untyped-def]
    """Vermillion on the rim of an edge's cell in the planted head of layer 0, and nowhere in that of layer 1."""
    with open_demo() as page:
        assert_sound(page)
        wait_until(page, "document.querySelector('.attention-view canvas')")
        rims = """[...document.querySelectorAll('.attention-view')[0].querySelectorAll('canvas')].map((canvas) => {
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          let n = 0;
          for (let at = 0; at < pixels.length; at += 4)
            n += pixels[at] > 180 && pixels[at + 1] < 130 && pixels[at + 2] < 60;
          return n;
        })"""
        wait_until(page, f"{rims}[0] > 200")
        assert page.evaluate(rims)[1] == 0


def test_the_film_keeps_still_at_its_end_where_reduced_motion_is_asked_for(open_demo) -> None:  # type: ignore[no-untyped-def]
    with open_demo() as page:
        page.emulate_media(reduced_motion="reduce")
        page.reload()
        page.locator(".graph-film svg").first.scroll_into_view_if_needed()
        page.wait_for_timeout(300)
        assert page.evaluate(TOLD).startswith("step 1,500: 4 of 4")
        assert page.evaluate("document.querySelector('.graph-film button').textContent") == "Play"


def test_the_slider_of_a_view_changes_every_pattern(open_demo) -> None:  # type: ignore[no-untyped-def]
    view = "document.querySelector('.attention-view')"
    pictures = f"[...{view}.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL())"
    with open_demo() as page:
        assert_sound(page)
        page.evaluate(f"window.before = {pictures}; 0")
        move(page, ".attention-steps input", 0)
        wait_until(page, f"{pictures}.length === 2 && {pictures}.every((picture, k) => picture !== before[k])")
        assert page.evaluate(f"{view}.querySelector('output').textContent") == "step 0"
        move(page, ".attention-steps input", 1)
        wait_until(page, f"{pictures}.length === 2 && {pictures}.every((picture, k) => picture === before[k])")
        assert complaints(page) == []


def test_of_many_heads_one_is_chosen_by_keyboard_and_stays_chosen_at_another_step(open_demo) -> None:  # type: ignore[no-untyped-def]
    view = "[...document.querySelectorAll('.attention-view')].at(-1)"
    chosen = f"{view}.querySelectorAll('h3')[1]?.textContent.startsWith('c')"
    with open_demo() as page:
        assert_sound(page)
        page.locator(".AttentionHeads [role=button]").nth(2).press("Enter")
        wait_until(page, chosen)
        page.evaluate(f"window.old = {view}.querySelector('canvas'); 0")
        page.evaluate(f"window.slider = {view}.querySelector('input'); slider.value = 0; 0")
        page.evaluate("slider.dispatchEvent(new Event('input'))")
        wait_until(page, f"!old.isConnected && {chosen}")
        assert complaints(page) == []


def test_without_scripts_everything_but_the_views_is_there(open_demo) -> None:  # type: ignore[no-untyped-def]
    with open_demo(scripts=False) as page:
        for selector in (".graph-view svg", ".graph-film svg", ".graph-film figure svg", "table", "noscript p"):
            assert page.locator(selector).first.bounding_box()["height"] > 10, selector
        assert "needs JavaScript" in page.content()
        assert requests(page) == []
        assert complaints(page) == []


def test_a_report_can_be_printed(open_demo) -> None:  # type: ignore[no-untyped-def]
    with open_demo() as page:
        assert_sound(page)
        page.emulate_media(media="print")
        hidden = "!document.querySelector('{}').checkVisibility()"
        assert page.evaluate(hidden.format(".film-controls"))
        assert page.evaluate(hidden.format("nav"))
        assert page.pdf(prefer_css_page_size=True).startswith(b"%PDF-")


def test_two_views_of_a_notebook_load_the_script_once_and_work(browser: Browser, tmp_path: Path) -> None:
    page, view = tmp_path / "notebook.html", pattern_view()
    page.write_text(f"<!DOCTYPE html><body>{view._repr_html_()}{view._repr_html_()}")
    with open_page(browser, page) as shown:
        assert_sound(shown)
        assert shown.evaluate("document.querySelectorAll('canvas').length") == 4


def test_the_checks_see_what_they_are_there_to_see(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text('<img src="http://example.test/x.png"><script>fetch("http://example.test/y")</script>')
    with open_page(browser, page) as shown:
        wait_until(shown, "document.images[0].complete")
        assert sorted(requests(shown)) == ["http://example.test/x.png", "http://example.test/y"]
        assert complaints(shown)
        with pytest.raises(AssertionError, match="image-alt"):
            assert_accessible(shown)
