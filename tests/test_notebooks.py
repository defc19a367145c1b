"""The notebooks run, each in a namespace of its own, and what they show is a page that a browser shows.

Their cells run in this process, types checked and warnings errors; `make docs` runs them in kernels of their own.
"""

import json
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from browser import NEEDS_BROWSER, assert_sound, open_page
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from playwright.sync_api import Browser
from traitlets.config import Config

Shown = list[dict[str, str]]  # of each cell, by MIME type
NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


class Shell(InteractiveShell):
    """One in which `%matplotlib inline` works without a window."""

    def enable_gui(self, gui: str | None = None) -> None:
        assert gui in (None, "inline")


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """What the cells of one notebook show, by type; run from its own folder, as a user would."""
    cells = json.loads(request.param.read_text(encoding="utf-8"))["cells"]
    with pytest.MonkeyPatch.context() as patch, mpl.rc_context():
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        patch.chdir(request.param.parent)
        patch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # a shell puts its own there
        shell, outputs = Shell(config=Config({"HistoryManager": {"enabled": False}})), []
        with capture_output() as told:
            for cell in cells:
                if cell["cell_type"] == "code":
                    done = shell.run_cell("".join(cell["source"]))
                    done.raise_error()
                    outputs.append(shell.display_formatter.format(done.result)[0])
        shell.run_line_magic("matplotlib", "agg")  # or the next shell would not be told of inline figures
    assert told.stderr == ""
    return outputs + [output.data for output in told.outputs]


def shown(outputs: Shown, kind: str) -> list[str]:
    return [output[kind] for output in outputs if kind in output]


def test_there_are_six_and_they_are_stripped() -> None:
    assert [path.stem[0] for path in NOTEBOOKS] == list("123456")
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        assert cells[0]["cell_type"] == "markdown"
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


def test_a_notebook_runs_and_shows_figures(executed: Shown) -> None:
    assert len(shown(executed, "image/png")) >= 2
    assert len(shown(executed, "image/png")) + len(shown(executed, "text/html")) >= 6
    assert not any("object at 0x" in text for text in shown(executed, "text/plain"))


@NEEDS_BROWSER
def test_what_a_notebook_shows_is_sound(executed: Shown, browser: Browser, tmp_path: Path) -> None:
    parts = shown(executed, "text/html")
    parts += [f'<img alt="" src="data:image/png;base64,{image}">' for image in shown(executed, "image/png")]
    page = tmp_path / "shown.html"
    page.write_text("<!DOCTYPE html><html lang='en'><title>shown</title><body>" + "\n".join(parts), encoding="utf-8")
    with open_page(browser, page) as loaded:
        assert_sound(loaded)
        assert loaded.evaluate("[...document.images].every((image) => image.naturalWidth > 100)")
        views = sum('class="attention-view"' in part for part in parts)
        assert loaded.evaluate("document.querySelectorAll('.attention-view').length") == views
