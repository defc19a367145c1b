"""Imports point one way only, and each outside library has one door."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformer_lens

import causal_circuits

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "causal_circuits"

CHECKED = {"arguments"}  # what checks the arguments of public functions
ALLOWED: dict[str, set[str]] = {
    "arguments": set(),
    "display": set(),
    "graphs": {"display"},
    "locks": set(),
    "native": set(),
    "storage": set(),
    "streamed": set(),
    "tasks": {"graphs", "native", "storage"},
    "classical": {"graphs", "tasks"},
    "generalization": {"graphs", "tasks"},
    "models": {"graphs", "native", "storage", "tasks"},
    "information": {"graphs", "tasks", "recording"},
    "recording": {"display", "models", "storage", "streamed"},
    "films": {"models", "recording", "storage", "tasks"},
    "training": {"graphs", "native", "tasks", "models", "recording", "storage", "streamed", "locks"},
    "heads": {"display", "graphs", "models", "recording", "tasks"},
    "interventions": {"graphs", "models", "tasks"},
    "discovery": {"graphs", "tasks", "information", "models", "recording", "heads", "interventions"},
    "circuits": {
        "display",
        "graphs",
        "tasks",
        "information",
        "models",
        "recording",
        "training",
        "interventions",
        "discovery",
        "storage",
    },
    "figures": {
        "display",
        "storage",
        "graphs",
        "tasks",
        "information",
        "classical",
        "generalization",
        "models",
        "recording",
        "films",
        "training",
        "heads",
        "interventions",
        "discovery",
        "circuits",
    },
    "encoding": {"models"},
    "studies": {"circuits", "discovery", "figures", "models", "storage"},
    "running": {"encoding", "figures", "locks", "native", "storage", "studies"},
    "cli": {"studies"},
}
ALLOWED |= {module: needs | CHECKED for module, needs in ALLOWED.items() if module not in CHECKED}
USERS = {"studies", "cli"}  # they use the package by its front door, as a notebook does
DOORS = {"transformer_lens": {"models"}, "matplotlib": {"figures"}, "circuitsvis": {"figures"}}


def imported_names(source: str) -> list[str]:
    """Every dotted name that a file imports, wherever the import stands; `from a import b` gives a.b."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where an import points"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def module_of(path: Path) -> str:
    """graphs.py and models/build.py belong to the modules graphs and models."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_within_the_package_follow_the_arrows(path: Path) -> None:
    own = module_of(path)
    assert own in ALLOWED, f"{own} is a new module: say in ALLOWED what it may import"
    for name in imported_names(path.read_text()):
        if name.split(".")[0] != "causal_circuits" or (name == "causal_circuits" and own in USERS):
            continue
        target = name.split(".")[1]
        if target == own:
            continue
        assert target in ALLOWED, f"{path.name} imports {name} through the package's front door"
        assert target in ALLOWED[own], f"{own} must not import {target}: {path.name} imports {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_each_outside_library_has_one_door(path: Path) -> None:
    for name in imported_names(path.read_text()):
        doors = DOORS.get(name.split(".")[0])
        assert doors is None or module_of(path) in doors, f"{path.name} imports {name}; only {doors} may"


def test_the_arrows_form_no_cycle() -> None:
    done: set[str] = set()
    while len(done) < len(ALLOWED):
        ready = {module for module, needs in ALLOWED.items() if module not in done and needs <= done}
        assert ready, f"a cycle among {set(ALLOWED) - done}"
        done |= ready


def test_analyses_use_only_public_names() -> None:
    for path in sorted((ROOT / "analyses").glob("*.py")):
        for name in imported_names(path.read_text()):
            parts = name.split(".")
            assert parts[0] not in DOORS, f"{path.name} imports {name}; analyses go through the package"
            if parts[0] == "causal_circuits":
                assert not any(part.startswith("_") for part in parts), f"{path.name} imports a private name: {name}"
                assert_resolves(parts, path)


def assert_resolves(parts: list[str], path: Path) -> None:
    """causal_circuits.a.b is a public name, or a public name of a public module."""
    if len(parts) == 1:
        return
    public = set(causal_circuits.__all__) | set(ALLOWED)
    assert parts[1] in public, f"{path.name} imports {'.'.join(parts)}, which is not public"
    assert len(parts) <= 3, f"{path.name} reaches into the folder of a module: {'.'.join(parts)}"


def test_every_public_name_exists() -> None:
    assert causal_circuits.__all__
    for name in causal_circuits.__all__:
        assert getattr(causal_circuits, name) is not None


USED = """
import sys
import causal_circuits as cc
assert "torch" not in sys.modules
graph = cc.random_forest(6, seed=1)
task = cc.InContextTask(graph, d_vocab=3)
information = cc.chi_squared_information(task)
gradient = cc.predicted_gradient(task)
config = cc.TrainConfig.warm()
cc.circuits, cc.training, cc.recording
assert "matplotlib" not in sys.modules
cc.figures.plot_gradient_and_information(gradient.value, information.value, graph)
cc.figures.plot_gradient_vs_information(information.value, gradient.value, graph)
print(*sorted({"transformer_lens", "scipy.special", "pandas", "circuitsvis", "matplotlib.pyplot"} & set(sys.modules)))
"""


def test_graphs_tasks_information_and_figures_do_without_transformer_lens() -> None:
    """Its import takes longer than everything else; the other libraries named come with what needs them, too."""
    done = subprocess.run([sys.executable, "-c", USED], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr + done.stdout


def test_instances_of_the_annotation_are_transformer_lens_models() -> None:
    annotation = causal_circuits.models.HookedTransformer
    model = causal_circuits.reduced_transformer(3, 4)
    assert isinstance(model, annotation)
    assert issubclass(transformer_lens.HookedTransformer, annotation)
    assert not isinstance(model.blocks, annotation)
    with pytest.raises(ValueError, match=r"model must be a HookedTransformer: got a Linear"):
        causal_circuits.live_heads(torch.nn.Linear(2, 2))
