"""The code of README and docs prints what they say, and links of the site lead to what there is."""

import contextlib
import io
import re
import runpy
from pathlib import Path

import numpy as np
import pytest

from causal_circuits import cli, studies

ROOT = Path(__file__).resolve().parent.parent
WITH_CODE = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if not page.is_symlink() and "```text" in page.read_text()
]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_the_code_of_a_page_prints_what_the_page_says(page: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("\n".join(blocks(page, "python")), page.name, "exec"), {})
    assert printed.getvalue() == "".join(blocks(page, "text"))


def test_the_readmes_cell_is_short() -> None:
    (cell,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in cell.splitlines() if line.strip() and not line.startswith("import")]) <= 15


def test_every_study_has_a_page_with_its_claim_its_picture_and_its_numbers(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("chain.npz", tokens=np.eye(4, dtype=int), labels=np.arange(4))
    pictures, claims = runpy.run_path(str(ROOT / "docs/pictures.py")), (ROOT / "docs/CLAIMS.md").read_text()
    study_page = runpy.run_path(str(ROOT / "docs/links.py"))["study_page"]
    assert set(pictures["PICTURES"]) == set(studies.NAMES)
    assert sum(path.stat().st_size for path in (ROOT / "docs/pictures").iterdir()) < 600_000
    for name in studies.NAMES:
        assert (ROOT / f"docs/pictures/{name}.png").exists(), f"python docs/pictures.py {name}"
        cli.parse(name, pictures["command"](name).split()[2:])  # or it raises
        page = study_page(name, "What it claims.", claims, "PICTURE", quick=True)
        assert "**Measured.**" in page
        assert "](../" in page or "](" not in page


def test_a_colab_link_leads_to_its_notebook() -> None:
    colab_link = runpy.run_path(str(ROOT / "docs/links.py"))["colab_link"]
    for notebook in (ROOT / "docs/tutorials").glob("*.ipynb"):
        form = r"\(https://colab\.research\.google\.com/github/owner/name/blob/main/(notebooks/\w+\.ipynb)\)"
        (path,) = re.findall(form, colab_link(notebook.stem, "owner/name"))
        assert (ROOT / path).samefile(notebook)


def test_links_lead_to_pages_wherever_these_stand() -> None:
    links_to_pages = runpy.run_path(str(ROOT / "docs/links.py"))["links_to_pages"]
    text = "[a](../README.md#run) [b](../setup.py) ![c](film.png) [d](https://example.org/x)"
    pages = {ROOT / "README.md": "start"}
    expected = "[a](/start#run) b ![c](/film.png) [d](https://example.org/x)"
    assert links_to_pages(text, ROOT / "docs", pages, ROOT / "docs") == expected
