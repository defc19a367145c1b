"""The notebooks run from a fresh kernel, each by itself, and what they show is a page that a browser shows."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from browser import NEEDS_BROWSER, assert_sound, open_page
from nbclient import NotebookClient
from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What other libraries write to stderr whatever we do: a missing widget library, TransformerLens's own announcement.
NOT_OURS = re.compile(r"IProgress not found|notebook_tqdm|HookedTransformer is deprecated|model = HookedTransformer\(")


@pytest.fixture(scope="module", params=NOTEBOOKS, ids=lambda path: path.stem)
def executed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> nbformat.NotebookNode:
    """One notebook, run from its own folder as a user would."""
    notebook = nbformat.read(request.param, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        where = {"metadata": {"path": str(ROOT / "notebooks")}}
        NotebookClient(notebook, timeout=600, startup_timeout=600, resources=where).execute()  # a busy machine may wait
    return notebook


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells for output in cell.get("outputs", [])]


def shown(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    return [output.data[kind] for output in outputs(notebook) if kind in output.get("data", {})]


def test_there_are_five_and_they_are_stripped() -> None:
    assert [path.stem[0] for path in NOTEBOOKS] == list("12345")
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text())["cells"]
        assert cells[0]["cell_type"] == "markdown"
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)


def test_a_notebook_runs_quietly_and_shows_figures(executed: nbformat.NotebookNode) -> None:
    said = [output.text for output in outputs(executed) if output.get("name") == "stderr"]
    lines = [line for text in said for line in text.splitlines() if line.strip() and not NOT_OURS.search(line)]
    assert lines == []
    assert len(shown(executed, "image/png")) >= 2
    assert len(shown(executed, "image/png")) + len(shown(executed, "text/html")) >= 6
    assert not any("object at 0x" in text for text in shown(executed, "text/plain"))


@NEEDS_BROWSER
def test_what_a_notebook_shows_is_sound(executed: nbformat.NotebookNode, browser: Browser, tmp_path: Path) -> None:
    parts = shown(executed, "text/html")
    parts += [f'<img alt="" src="data:image/png;base64,{image}">' for image in shown(executed, "image/png")]
    page = tmp_path / "shown.html"
    page.write_text("<!DOCTYPE html><html lang='en'><title>shown</title><body>" + "\n".join(parts), encoding="utf-8")
    with open_page(browser, page) as loaded:
        assert_sound(loaded)
        assert loaded.evaluate("[...document.images].every((image) => image.naturalWidth > 100)")
        views = sum('class="attention-view"' in part for part in parts)
        assert loaded.evaluate("document.querySelectorAll('.attention-view').length") == views
