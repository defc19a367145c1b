"""The README's cell prints what the README says it prints, and its commands are the ones that CI runs."""

import contextlib
import io
import re
from pathlib import Path

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def fenced(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)
    assert found, f"the README has no {language} block"
    return found.group(1)


def test_the_notebook_cell_prints_what_it_says():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(fenced("python"), "README.md", "exec"), {})
    assert printed.getvalue() == fenced("text")


def test_the_notebook_cell_is_short():
    lines = [line for line in fenced("python").splitlines() if line.strip() and not line.startswith("import")]
    assert len(lines) <= 15
