"""Pages in the system's headless Chromium, through Playwright, and what every page of ours must be."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NEEDS_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome")


@contextmanager
def running_browser() -> Iterator["Browser"]:
    """A Chromium that finds no other host, for as long as the context lasts."""
    from playwright.sync_api import sync_playwright

    offline = ["--no-sandbox", "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=offline)


@contextmanager
def open_page(
    browser: "Browser", path: Path, *, width: int = 1200, height: int = 900, scripts: bool = True
) -> Iterator["Page"]:
    """A page in a context of its own, once it has loaded."""
    mobile, size = width < 600, {"width": width, "height": height}
    with browser.new_context(viewport=size, is_mobile=mobile, java_script_enabled=scripts) as context:
        context.set_default_timeout(60_000)  # milliseconds; the machine may be busy
        page = context.new_page()
        page.goto(path.resolve().as_uri())
        yield page


def requests(page: "Page") -> list[str]:
    """Every address asked for, but for the page itself and data that it carries."""
    return [found.url for found in page.requests() if found.url != page.url and not found.url.startswith("data:")]


def complaints(page: "Page") -> list[str]:
    """Errors and warnings of the console and of the browser itself, and exceptions."""
    logged = [said.text for said in page.console_messages() if said.type in ("error", "warning", "assert")]
    return logged + [str(error) for error in page.page_errors()]


def wait_until(page: "Page", condition: str) -> None:
    """Wait for a JavaScript expression to be true (`wait_for_function` needs `eval`, which our pages forbid)."""
    page.evaluate(
        f"""new Promise((done, fail) => {{
          const last = Date.now() + 60_000;
          const look = () => {{
            if ({condition}) done();
            else if (Date.now() > last) fail(new Error("never true"));
            else setTimeout(look, 20);
          }};
          look();
        }})"""
    )


def hover_line(page: "Page", selector: str) -> None:
    """Move the pointer to the middle of an SVG path, which need not be the middle of its box."""
    line = page.locator(selector)
    line.scroll_into_view_if_needed()
    x, y = line.evaluate(
        """(path) => {
          const middle = path.getPointAtLength(path.getTotalLength() / 2);
          const place = new DOMPoint(middle.x, middle.y).matrixTransform(path.getScreenCTM());
          return [place.x, place.y];
        }"""
    )
    page.mouse.move(x, y)


def assert_sound(page: "Page") -> None:
    """The page asks for nothing, complains of nothing, is painted, and no view of it is empty."""
    wait_until(page, "!document.querySelector('.attention-view .pattern:not(:has(canvas))')")
    wait_until(
        page,
        """![...document.querySelectorAll(".attention-view canvas")].some((canvas) => {
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width || 1, canvas.height || 1).data;
          return pixels.every((value, at) => value === pixels[at % 4]);
        })""",
    )
    assert requests(page) == [], requests(page)
    assert complaints(page) == [], complaints(page)
    wait_until(page, "performance.getEntriesByName('first-contentful-paint').length")


def assert_accessible(page: "Page") -> None:
    """axe-core finds nothing serious or critical."""
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(page).response["violations"]
    found = [(each["id"], each["nodes"]) for each in violations if each["impact"] in ("serious", "critical")]
    assert found == [], found


def assert_report_is_sound(browser: "Browser", path: Path) -> None:
    """A report is sound and accessible on a desk, and on a phone, where nothing hangs over the side.

    On a desk no picture is shown so small that its letters cannot be read.
    """
    assert path.stat().st_size < 6_000_000
    with open_page(browser, path) as page:
        assert_sound(page)
        small = page.evaluate(
            "[...document.querySelectorAll('.figure > svg, .figure > img')].filter((e) => e.checkVisibility() && "
            "e.getBoundingClientRect().width < 0.75 * parseFloat(e.style.width)).map((e) => e.outerHTML.slice(0, 200))"
        )
        assert small == [], small
        assert_accessible(page)
    with open_page(browser, path, width=375, height=800) as page:
        assert_sound(page)
        wide = page.evaluate(
            "[...document.body.querySelectorAll('*')].filter((e) => e.getBoundingClientRect().right > 376 && "
            "!e.closest('.figure, .scroll, pre, svg')).map((e) => e.outerHTML.slice(0, 120))"
        )
        assert page.evaluate("document.documentElement.scrollWidth") == 375, wide
