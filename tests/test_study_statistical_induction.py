"""The study of statistical induction heads: a small run, and each check made to fail once."""

import pandas as pd
import pytest

import causal_circuits as cc
from causal_circuits.studies.statistical_induction import SHOWN, Config, checks


def test_three_phases_and_both_heads_on_a_short_chain(tmp_path, look_at_report):
    study = Config(d_vocab=(3,), n_ctx=16, prior=("dirichlet",), seeds=1, steps=500)
    (row,) = cc.run(study, tmp_path, quiet=True).results["trainings"]
    assert row["phases"] == "uniform > unigram > bigram"
    assert (row["L0H0"], row["L1H0"]) == ("previous-token", "induction")
    assert row["gradient first at"] == 1
    assert row["truth with bigram"] < row["truth"] < row["without L0H0"]
    assert row["states"][0]["uniform"] == pytest.approx(0.0, abs=1e-6)  # zero weights
    look_at_report(tmp_path / "report.html")


GOOD = dict.fromkeys(SHOWN, 0) | {
    **{"phases": "uniform > unigram > bigram", "L0H0": "previous-token", "L1H0": "induction", "bigram from": 300},
    **{"truth": 0.1, "truth with unigram": 0.2, "without L0H0": 0.2, "gradient first at": 1},
}


@pytest.mark.parametrize(
    ("change", "states"),
    [
        ({}, ["passed", "passed", "passed"]),
        ({"phases": "uniform > bigram"}, ["failed", "passed", "passed"]),
        ({"L1H0": "none"}, ["passed", "failed", "passed"]),
        ({"without L0H0": 0.12}, ["passed", "failed", "passed"]),
        ({"truth": 0.21}, ["passed", "failed", "passed"]),
        ({"gradient first at": 2}, ["passed", "passed", "failed"]),
    ],
)
def test_each_check_can_fail(change, states):
    assert [check.state for check in checks("dirichlet", pd.DataFrame([GOOD, GOOD | change]))] == states


def test_an_induction_head_on_independent_tokens_would_be_said():
    rows = [GOOD | {"phases": "uniform > unigram", "L0H0": "none", "L1H0": "none", "bigram from": None}, GOOD]
    assert [check.state for check in checks("independent", pd.DataFrame(rows[:1]))] == ["passed"]
    assert [check.state for check in checks("independent", pd.DataFrame(rows))] == ["failed"]
