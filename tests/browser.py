"""Headless Chromium, spoken to through its DevTools protocol on a pipe: no driver, no port, nothing to install.

One `Browser` serves many pages; a `Page` counts what it asked for and what it complained about.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ROOT = Path(__file__).resolve().parents[1]
AXE = ROOT / "node_modules" / "axe-core" / "axe.min.js"
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND"),
    *("--hide-scrollbars", "--remote-debugging-pipe"),
)
PATIENCE = 60.0  # seconds that a page may take on a busy machine before a test gives up


class Browser:
    """A running Chromium; messages are JSON ended by a zero byte, on file descriptors 3 (to it) and 4 (from it)."""

    def __init__(self, profile: Path) -> None:
        theirs, self._to = os.pipe()
        self._from, back = os.pipe()

        def as_3_and_4() -> None:
            spare = os.dup(back)  # `theirs` may be 4, `back` 3: out of the way first
            os.dup2(theirs, 3)
            os.dup2(spare, 4)
            for end in (3, 4):
                os.set_inheritable(end, True)  # dup2 leaves it as it was where both numbers are one

        command = [str(CHROMIUM), *OPTIONS, f"--user-data-dir={profile}"]
        self._process = subprocess.Popen(
            command, close_fds=False, preexec_fn=as_3_and_4, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(theirs)
        os.close(back)
        os.set_blocking(self._from, False)
        self._rest, self._number = b"", 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        """Send one command and wait for its answer; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)
        raise TimeoutError(f"Chromium did not answer {method} within {PATIENCE} s")

    def wait_for(self, method: str, session: str) -> None:
        """Wait until an event has come, now or before."""
        if any(event.get("method") == method and event.get("sessionId") == session for event in self.events):
            return
        for event in self._messages():
            self.events.append(event)
            if event.get("method") == method and event.get("sessionId") == session:
                return
        raise TimeoutError(f"no {method} within {PATIENCE} s")

    def _messages(self) -> Iterator[dict[str, Any]]:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            while b"\0" in self._rest:
                first, self._rest = self._rest.split(b"\0", 1)
                yield json.loads(first)
            try:
                self._rest += os.read(self._from, 1 << 20)
            except BlockingIOError:
                time.sleep(0.005)

    def close(self) -> None:
        """End the process."""
        self.call("Browser.close")
        self._process.wait(timeout=30)
        os.close(self._to)
        os.close(self._from)


@dataclass
class Page:
    """One page in one tab, loaded."""

    browser: Browser
    session: str
    address: str
    seen: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        """A command to this tab."""
        return self.browser.call(method, self.session, **parameters)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, awaited; an exception there is one here."""
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a JavaScript expression is true."""
        end = time.monotonic() + PATIENCE
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.05)

    def _events(self, method: str) -> list[dict[str, Any]]:
        own = [event for event in self.browser.events if event.get("sessionId") == self.session]
        return [event["params"] for event in own if event["method"] == method]

    @property
    def requests(self) -> list[str]:
        """Every address asked for, but for the page itself and data that it carries."""
        asked = [event["request"]["url"] for event in self._events("Network.requestWillBeSent")]
        return [url for url in asked if url != self.address and not url.startswith(("data:", "blob:"))]

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and what the browser itself logged."""
        logged = [event["entry"]["text"] for event in self._events("Log.entryAdded")]
        thrown = [str(event["exceptionDetails"]) for event in self._events("Runtime.exceptionThrown")]
        said = [e for e in self._events("Runtime.consoleAPICalled") if e["type"] in ("error", "warning", "assert")]
        return logged + thrown + [str(event["args"]) for event in said]

    def first_paint(self) -> float:
        """Milliseconds from the start of navigation to the first contentful paint."""
        self.until("performance.getEntriesByName('first-contentful-paint').length")
        return float(self.run("performance.getEntriesByName('first-contentful-paint')[0].startTime"))

    def hover(self, selector: str) -> None:
        """Move the pointer to the middle of an element (of an SVG path: to the middle of its line)."""
        self._mouse("mouseMoved", selector)

    def click(self, selector: str) -> None:
        """Press and release the left button there."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._mouse(kind, selector, button="none" if kind == "mouseMoved" else "left", clickCount=1)

    def _mouse(self, kind: str, selector: str, **more: object) -> None:
        x, y = self.run(
            f"""(() => {{
              const element = document.querySelector({json.dumps(selector)});
              element.scrollIntoView({{ block: "center" }});
              if (element.getPointAtLength) {{
                const at = element.getPointAtLength(element.getTotalLength() / 2);
                const place = new DOMPoint(at.x, at.y).matrixTransform(element.getScreenCTM());
                return [place.x, place.y];
              }}
              const box = element.getBoundingClientRect();
              return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **more)

    def screenshot(self, path: Path, whole: bool = True) -> Path:
        """A PNG of the page."""
        path.write_bytes(
            base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole, format="png")["data"])
        )
        return path

    def pdf(self, path: Path) -> Path:
        """The page as it would be printed."""
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", preferCSSPageSize=True)["data"]))
        return path

    def axe(self) -> list[dict[str, Any]]:
        """What axe-core objects to: id, impact, and the elements."""
        self.run(AXE.read_text() + "\n;0")
        results = self.run("axe.run(document, { resultTypes: ['violations'] })")
        return [
            {"id": v["id"], "impact": v["impact"], "nodes": [node["html"][:200] for node in v["nodes"]]}
            for v in results["violations"]
        ]


@contextmanager
def open_page(
    browser: Browser, path: Path, *, width: int = 1200, height: int = 900, scripts: bool = True
) -> Iterator[Page]:
    """A page in a tab of its own, once it has loaded; the tab is closed afterwards."""
    context = browser.call("Target.createBrowserContext", disposeOnDetach=True)["browserContextId"]
    target = browser.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    page = Page(browser, session, path.resolve().as_uri())
    for domain in ("Page", "Network", "Runtime", "Log"):
        page.call(f"{domain}.enable")
    mobile = width < 600
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
    page.call("Emulation.setScriptExecutionDisabled", value=not scripts)
    page.call("Page.navigate", url=page.address)
    browser.wait_for("Page.loadEventFired", session)
    try:
        yield page
    finally:
        browser.call("Target.disposeBrowserContext", browserContextId=context)
        browser.events = [event for event in browser.events if event.get("sessionId") != session]


NEEDS_BROWSER = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome")
NEEDS_AXE = pytest.mark.skipif(
    not AXE.exists(), reason="no axe-core: npm install --prefix . --no-save axe-core (.ci/run does it)"
)


def assert_sound(page: Page, paint_ms: float = 2000.0) -> None:
    """A page that has loaded asks for nothing, complains of nothing, and is painted soon; no view of it is empty."""
    page.until("[...document.querySelectorAll('.attention-view')].every((view) => view.querySelector('canvas'))")
    empty = page.run(
        """[...document.querySelectorAll(".attention-view canvas")].filter((canvas) => {
          const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width || 1, canvas.height || 1).data;
          return pixels.every((value, at) => value === pixels[at % 4]);
        }).length"""
    )
    assert empty == 0, f"{empty} canvases have one colour"
    assert page.requests == [], page.requests
    assert page.complaints == [], page.complaints
    painted = page.first_paint()
    assert painted < paint_ms, f"first paint after {painted:.0f} ms"


def assert_report_is_sound(browser: Browser, path: Path) -> None:
    """A report is sound on a desk and on a phone (where nothing hangs over the side), and axe-core has no objection.

    On a desk no picture is shown so small that its letters cannot be read.
    """
    assert path.stat().st_size < 6_000_000
    with open_page(browser, path) as page:
        assert_sound(page)
        small = page.run(
            "[...document.querySelectorAll('.figure > svg, .figure > img')].filter((e) => e.checkVisibility() && "
            "e.getBoundingClientRect().width < 0.75 * parseFloat(e.style.width)).map((e) => e.outerHTML.slice(0, 200))"
        )
        assert not small, small
        if AXE.exists():
            assert_accessible(page)
    with open_page(browser, path, width=375, height=800) as page:
        assert_sound(page)
        wide = page.run(
            "[...document.body.querySelectorAll('*')].filter((e) => e.getBoundingClientRect().right > 376 && "
            "!e.closest('.figure, .scroll, pre, svg')).map((e) => e.outerHTML.slice(0, 120))"
        )
        assert page.run("document.documentElement.scrollWidth") == 375, wide


def assert_accessible(page: Page) -> None:
    """axe-core finds nothing serious or critical."""
    found = [violation for violation in page.axe() if violation["impact"] in ("serious", "critical")]
    assert found == [], found
