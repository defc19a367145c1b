"""The benchmark of discovery methods: questions, blindness on tokens, checks that follow the rows."""

import pandas as pd
import pytest

import causal_circuits as cc
from causal_circuits.studies import discovery_benchmark as study
from causal_circuits.studies.discovery_benchmark import Config

QUESTIONS = {
    "exact": {(c, m) for c in ("zero", "mean", "resample", "permute") for m in ("loss", "kl_to_model")},
    "eap": {("zero", "loss"), ("mean", "loss"), ("resample", "loss"), ("permute", "loss"), ("pairs", "loss")},
    "attention": {(None, None)},
}
FLAGS = {"graphs": ("pairs",), "models": ("planted", "decoy"), "methods": tuple(QUESTIONS)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One graph, planted and decoy, at the size of --quick."""
    folder = tmp_path_factory.mktemp("benchmark")
    cc.run(Config.quickly(**FLAGS), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    """From the cells of the first run: nothing is measured again."""
    return cc.run(Config.quickly(**FLAGS), folder, quiet=True).results["rows"]


def test_the_rows_are_what_was_promised(rows, folder, look_at_report):
    for row in rows:
        if row["model"] == "decoy":  # told, never used to leave a model out
            assert row["recipe"] == "displaced"
            low, blind = row["excess_over_edge_posterior"] <= 0.05, row["attention_to_parents"] < 0.5
            assert row["is_decoy"] == (low and blind)
        assert (row["regret"] is None) == (
            (row["counterfactual"], row["metric"]) not in {("mean", "loss"), ("pairs", "loss"), (None, None)}
        )
    assert all(row["optimum_found"] for row in rows if row["model"] == "planted")
    for kind in ("planted", "decoy"):
        for method, questions in QUESTIONS.items():
            asked = [(r["counterfactual"], r["metric"]) for r in rows if (r["model"], r["method"]) == (kind, method)]
            assert len(asked) == len(questions)
            assert set(asked) == questions
    look_at_report(folder / "report.html")


def test_on_planted_models_knock_out_is_exact_and_other_tokens_tell_nothing(rows):
    planted = {(r["method"], r["counterfactual"], r["metric"]): r for r in rows if r["model"] == "planted"}
    best = planted["exact", "zero", "kl_to_model"]
    assert (best["auroc"], best["exact_parent_rate"]) == (1.0, 1.0)
    assert best["auroc_by_loss"] == planted["exact", "zero", "loss"]["auroc"]
    blind = [row["auroc"] for (_, c, _), row in planted.items() if c in ("mean", "resample", "pairs")]
    assert set(blind) == {0.5}, "planted attention is the same on all tokens: no method can see it"


def test_the_checks_follow_the_rows(rows):
    """Rows that say the contrary turn every claim over."""
    rows = pd.DataFrame(rows)
    both = pd.concat([rows, rows[rows.model == "decoy"].assign(model="trained")], ignore_index=True)
    checks = study.make_checks(both)
    assert len(checks) == 4
    assert checks[-1].state == "refuted", "models as like as these are not told apart"
    wrong = study.make_checks(rows.assign(auroc=0.6, optimum_found=False))
    assert [check.state for check in wrong] == ["failed", "refuted", "failed"]
    (line,) = study.loss_lines(both)
    assert line.startswith("decoy: 1 models, none left out; their loss is +0.000 to +0.000 nats")
