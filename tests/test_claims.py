"""docs/CLAIMS.md has an entry for every analysis; every test, check and script that it names exists.

Beside it: what separates a claim from its rival where no other test does.
"""

import ast
import re
from pathlib import Path

import torch

import causal_circuits as cc

ROOT = Path(__file__).resolve().parent.parent
CLAIMS = (ROOT / "docs" / "CLAIMS.md").read_text()
PARTS = ("Claim", "Measured", "Rivals", "Told apart by", "Refuted by")


def entry(script: str) -> str:
    """The section of a script."""
    found = re.search(rf"^## [^\n]*`{re.escape(script)}`\n(.*?)(?=^## |\Z)", CLAIMS, flags=re.DOTALL | re.MULTILINE)
    assert found, f"docs/CLAIMS.md has no section whose heading names `{script}`"
    return found.group(1)


def test_every_analysis_has_an_entry_with_all_its_parts() -> None:
    scripts = [path.name for path in sorted((ROOT / "analyses").glob("*.py"))]
    table = (ROOT / "analyses" / "README.md").read_text()
    assert sorted(re.findall(r"^\| \[`(\w+\.py)", table, flags=re.MULTILINE)) == scripts
    for script in scripts:
        for part in PARTS:
            assert f"* **{part}.**" in entry(f"analyses/{script}"), f"{script} has no {part!r}"


def test_every_test_and_function_that_an_entry_names_exists() -> None:
    named = re.findall(r"`((?:tests|causal_circuits)/[\w/]+\.py)::(\w+)`", CLAIMS)
    assert len(named) > 40
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text())
        assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body), f"{path}::{name}"


def test_the_sign_of_the_match_turns_layer_0_towards_the_parents_or_away() -> None:
    """At uniform attention its gradient is nearly odd in a small match: positive, it points at every parent."""
    task = cc.InContextTask(cc.random_forest(12, 0.4, seed=3), d_vocab=3, alpha=0.1)
    batch, gradients = task.sample(20_000, seed=1), {}
    for sign in (1.0, -1.0):
        model = cc.models.warm_start(cc.disentangled_transformer(3, 12), 1.0)
        cc.models.attention_block(model, 1, 0, "token", "L0H0.token").data.mul_(0.1 * sign)
        gradients[sign] = cc.training.take_snapshot(model, batch).score_gradients[0, 0]
    edges = cc.latent_edges(task.graph)
    assert all(int(gradients[1.0][child, :child].argmax()) == parent for parent, child in edges)
    assert all(int(gradients[-1.0][child, :child].argmin()) == parent for parent, child in edges)
    below = torch.ones(12, 12, dtype=torch.bool).tril(-1)
    below[-1] = False
    both = torch.stack([gradients[1.0][below], gradients[-1.0][below]]).double()
    assert float(torch.corrcoef(both)[0, 1]) < -0.9
