"""What pyproject.toml promises about dependencies is what the two constraints files hold and what the code imports.

That it installs and works with them takes minutes: tests/packaging/check_install.py.
"""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORTED_AS = {"transformer-lens": "transformer_lens", "pytest-xdist": "xdist", "causal-learn": "causallearn"}


def requirements(*extras: str) -> list[Requirement]:
    """The dependencies of the package and of some of its extras, itself left out."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines if not line.startswith(PROJECT["name"])]


def pins(name: str) -> dict[str, Version]:
    """Package -> version, of a file of constraints."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    return {plain(name): Version(version) for name, version in (line.split("==") for line in lines)}


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lower_bound(wanted: Requirement) -> Version:
    """The version behind >=."""
    (bound,) = [Version(clause.version) for clause in wanted.specifier if clause.operator == ">="]
    return bound


@pytest.mark.parametrize("wanted", requirements("structure", "test"), ids=lambda wanted: wanted.name)
def test_the_oldest_constraints_are_the_lower_bounds(wanted: Requirement):
    assert pins("constraints-oldest.txt")[plain(wanted.name)] == lower_bound(wanted)


@pytest.mark.parametrize("wanted", requirements("structure", "ray", "test", "dev"), ids=lambda wanted: wanted.name)
def test_the_constraints_are_allowed(wanted: Requirement):
    assert wanted.specifier.contains(pins("constraints.txt")[plain(wanted.name)])


def outside_imports(folder: str) -> set[str]:
    """Top-level packages, neither Python's nor ours, that files of a folder import."""
    found: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                found.add(node.module.split(".")[0])
    beside = {path.stem for path in (ROOT / folder).glob("*.py")}
    return found - beside - set(sys.stdlib_module_names) - {"causal_circuits"}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("causal_circuits", ["structure", "ray"]), ("analyses", []), ("benchmarks", ["ray", "dev"])],
)
def test_everything_imported_is_declared(folder: str, extras: list[str]):
    declared = {IMPORTED_AS.get(wanted.name, wanted.name.lower()) for wanted in requirements(*extras)}
    assert outside_imports(folder) <= declared
