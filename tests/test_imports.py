"""Imports point one way only, and each outside library has one door."""

import ast
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest
import torch

import causal_circuits
from causal_circuits.models import hooked

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "causal_circuits"

# What each module may import of ours, besides `arguments`, which checks the arguments of public functions.
ALLOWED = {
    "_moved": "",
    "arguments": "",
    "display": "",
    "graphs": "display",
    "locks": "",
    "native": "",
    "statistics": "",
    "storage": "",
    "tasks": "display graphs native storage",
    "classical": "graphs tasks",
    "generalization": "display graphs tasks",
    "models": "graphs native storage tasks",
    "information": "display graphs statistics tasks recording",
    "recording": "display storage models",
    "films": "display storage tasks models recording",
    "training": "display graphs locks native storage tasks models information recording",
    "heads": "display graphs tasks models recording interventions",
    "interventions": "display graphs tasks models",
    "discovery": "display graphs statistics tasks models information recording",
    "circuits": "display graphs statistics storage tasks models information recording training interventions",
    "pages": "display storage",
    "figures": (
        "display graphs storage tasks classical generalization models information recording films "
        "training heads interventions discovery circuits pages"
    ),
    "encoding": "models",
    "studies": "circuits discovery display figures models pages statistics storage",
    "measuring": "encoding native studies",
    "ray_cells": "locks measuring storage studies",
    "gathering": "display encoding measuring storage studies",
    "running": "display encoding gathering locks measuring pages ray_cells storage studies",
    "cli": "studies",
}
USERS = ("studies", "cli")  # they use the package by its front door, as a notebook does
DOORS = {
    "transformer_lens": {"models/hooked"},
    "matplotlib": {"figures", "pages", "studies"},
    "circuitsvis": {"pages"},
    "jinja2": {"pages"},
}


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
    """heads.py and models/build.py belong to the modules heads and models."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def sources() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_arrows_and_go_through_the_doors(path: Path) -> None:
    own, here = module_of(path), path.relative_to(PACKAGE).with_suffix("").as_posix()
    assert own in ALLOWED, f"{own} is a new module: say in ALLOWED what it may import"
    for name in imported_names(path.read_text()):
        if name == "causal_circuits" and own in USERS:
            continue
        package, *parts = name.split(".")
        assert {own, here} & DOORS.get(package, {own}), f"{path.name} imports {name}; only {DOORS[package]} may"
        if package == "causal_circuits" and parts[0] not in (own, "arguments"):
            assert parts[0] in ALLOWED, f"{path.name} imports {name} through the package's front door"
            assert parts[0] in ALLOWED[own].split(), f"{own} must not import {parts[0]}: {path.name} imports {name}"


def test_the_arrows_form_no_cycle() -> None:
    arrows = [(module, needed) for module, needs in ALLOWED.items() for needed in needs.split()]
    assert nx.is_directed_acyclic_graph(nx.DiGraph(arrows))


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


USED = """
import sys
import causal_circuits as cc
from causal_circuits.cli import main
main(None, ["--version"]), main(None, ["--help"])
assert "torch" not in sys.modules and "figures" in dir(cc)
graph = cc.random_forest(6, seed=1)
task = cc.InContextTask(graph, d_vocab=3)
information = cc.chi_squared_information(task)
gradient = cc.predicted_gradient(task)
config = cc.TrainConfig.warm()
cc.circuits, cc.training, cc.recording
assert "matplotlib" not in sys.modules
assert cc.figures is sys.modules["causal_circuits.figures"] and not hasattr(cc, "figure")
cc.figures.plot_gradient_vs_information(information.value, gradient.value, graph)
print(*sorted({"transformer_lens", "scipy.special", "pandas", "circuitsvis", "matplotlib.pyplot"} & set(sys.modules)))
"""


def test_graphs_tasks_information_and_figures_do_without_transformer_lens_and_the_list_without_torch() -> None:
    """Its import takes longer than everything else; the other libraries named come with what needs them, too."""
    done = subprocess.run([sys.executable, "-c", USED], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, ""), done.stderr + done.stdout


def test_instances_of_the_annotation_are_transformer_lens_models() -> None:
    annotation = causal_circuits.models.HookedTransformer
    model = causal_circuits.reduced_transformer(3, 4)
    assert isinstance(model, annotation)
    assert issubclass(hooked.HookedTransformer, annotation)
    assert issubclass(hooked.Transformer, annotation)
    assert not isinstance(model.blocks, annotation)
    is_4 = hooked.LibraryTransformer is None  # the bridges of 3.9 ignore edits at hook_pattern
    assert isinstance(causal_circuits.models.as_bridge(model), annotation) == is_4
    with pytest.raises(ValueError, match=r"model must be a HookedTransformer: got a Linear"):
        causal_circuits.models.live_heads(torch.nn.Linear(2, 2))
