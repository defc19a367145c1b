"""Public names and the documentation match, and every public function and class has an example that runs.

The examples themselves run as doctests (`--doctest-modules` in pyproject.toml).
"""

import dataclasses
import importlib
import inspect
import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import causal_circuits as cc
from causal_circuits._moved import MOVED

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [
        *set(ROOT.glob("*.md")) - {ROOT / "CHANGELOG.md"},  # which names what is gone
        *(page for page in (ROOT / "docs").glob("*.md") if not page.is_symlink()),
        *ROOT.glob("*/README.md"),
        *(ROOT / "notebooks").glob("*.ipynb"),
    ]
)
# what a page may call a module of ours; `cc` is the package
MODULES = (
    "graphs|tasks|information|models|recording|training|films|heads|interventions|discovery|circuits|figures|storage"
)
USED = re.compile(rf"(?<![\w./])(?:cc|causal_circuits|(?:cc\.|causal_circuits\.)?(?:{MODULES}))(?:\.[A-Za-z_]\w*)+")
FILES = re.compile(r"(?<![\w/])(?:analyses|benchmarks|docs|notebooks|tests)/[\w/.-]*\.(?:py|md|json|png|ipynb)\b")


def public() -> dict[str, Any]:
    """Every public function and class of ours, by the path that a user imports it from."""
    found = {}
    for path in [cc.__name__, *(f"{cc.__name__}.{name}" for name in MODULES.split("|"))]:
        module = importlib.import_module(path)
        for name in getattr(module, "__all__", []):
            value = getattr(module, name)
            if callable(value) and str(getattr(value, "__module__", "")).startswith(cc.__name__):
                found[f"{path}.{name}"] = value
    return found


def text_of(page: Path) -> str:
    """What a page says in code: between backticks, in blocks, or in the cells of a notebook."""
    if page.suffix == ".ipynb":
        return "\n".join("".join(cell["source"]) for cell in json.loads(page.read_text())["cells"])
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), flags=re.DOTALL))


def resolves(dotted: str) -> bool:
    """Whether a dotted name is a name of ours, or an attribute of one; file names are none."""
    if dotted.endswith((".py", ".md")):
        return True
    value: Any = cc
    for part in dotted.removeprefix("causal_circuits.").removeprefix("cc.").split("."):
        if not hasattr(value, part):
            try:
                value = importlib.import_module(f"{value.__name__}.{part}")
            except (ImportError, AttributeError):
                return inspect.isclass(value) and part in value.__annotations__
        else:
            value = getattr(value, part)
    return True


@pytest.mark.parametrize("path", public())
def test_a_public_name_has_a_claim_and_an_example(path: str):
    documentation = inspect.getdoc(public()[path]) or ""
    assert documentation.split("\n")[0].endswith((".", ":")), "the first line is a sentence"
    assert ">>> " in documentation, "no example"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_that_the_documentation_uses_exist(page: Path):
    assert [name for name in USED.findall(text_of(page)) if not resolves(name)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_the_documentation_names_exist(page: Path):
    assert [name for name in FILES.findall(page.read_text()) if not (ROOT / name).exists()] == []


def test_a_name_that_does_not_exist_is_found():
    assert USED.findall("`cc.no_such_name(3)`, `figures.nothing`") == ["cc.no_such_name", "figures.nothing"]
    assert not resolves("cc.no_such_name")
    assert not resolves("figures.nothing")
    assert resolves("cc.InContextTask.sample")
    assert resolves("cc.interventions.KnockOut.effect")


@pytest.mark.parametrize("name", sorted(MOVED))
def test_a_name_that_moved_warns_and_is_still_there(name: str) -> None:
    room, _, new = MOVED[name].partition(".")
    with pytest.warns(DeprecationWarning, match=rf"causal_circuits\.{name} is causal_circuits\.{MOVED[name]} now"):
        assert getattr(cc, name) is getattr(getattr(cc, room), new)


def test_keywords_of_before_warn_and_are_still_taken() -> None:
    matrices = np.array([[0.5, 0.5], [0.2, 0.8]])
    with pytest.warns(DeprecationWarning, match="InContextTask: kernels is transition_matrices now"):
        task = cc.InContextTask(cc.chain_graph(4), d_vocab=2, kernels=matrices)
    assert task.given_matrices[1].tolist() == [matrices.tolist()]
    with pytest.raises(TypeError, match="argument 'kernels'"):  # both, of which one would be dropped
        cc.InContextTask(cc.chain_graph(4), d_vocab=2, kernels=matrices, transition_matrices=matrices)
    with pytest.raises(TypeError, match="argument 'kernels'"):  # never had it
        cc.plant_circuit(cc.chain_graph(4), d_vocab=2, kernels=matrices)


def test_every_page_of_the_site_is_reached_from_its_index():
    docs = ROOT / "docs"
    pages = {page.stem for page in docs.glob("*.md")}
    trees = re.findall(r"```{toctree}\n(.*?)```", (docs / "index.md").read_text(), flags=re.DOTALL)
    patterns = [line for tree in trees for line in tree.split("\n") if line and not line.startswith(":")]
    assert {page for page in pages if not any(fnmatchcase(page, pattern) for pattern in patterns)} == {"index"}


def test_results_that_hold_arrays_are_compared_as_objects_and_shown_short() -> None:
    """`==` of two arrays is no truth value, and the repr that a dataclass makes lists all their numbers."""
    for name, thing in public().items():
        if dataclasses.is_dataclass(thing):
            types = [str(field.type) for field in dataclasses.fields(thing)]
            if any(re.match(r"(?!.*Callable).*(Tensor|ndarray|DiGraph)", kind) for kind in types):
                assert "__eq__" not in vars(thing), name
                assert inspect.unwrap(thing.__repr__).__code__.co_filename != "<string>", name
