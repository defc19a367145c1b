"""The study of sample complexity: the predicted number is that of a planted signal, and the needed one is counted."""

import pandas as pd
import pytest

import causal_circuits as cc
from causal_circuits.studies import sample_complexity
from causal_circuits.studies.sample_complexity import Config


def test_counts_what_it_measures(tmp_path, look_at_report):
    done = cc.run(Config.quickly(n_ctx=(8,), alpha=(0.1,), sizes=(50, 400, 3200)), tmp_path, quiet=True)
    (table,) = done.results["tables"]
    assert [point["n"] for point in table["points"]] == [50, 400, 3200]
    assert table["points"][-1]["first"] == table["points"][-1]["recovered"] == 1.0
    assert table["needed"] == min(p["n"] for p in table["points"] if p["first"] == 1.0)
    assert 10 < table["predicted"] < 10_000
    look_at_report(tmp_path / "report.html")


@pytest.mark.parametrize(("share", "least", "most"), [(1, 50, 60), (1 / 16, 0, 30)])
def test_the_predicted_number_is_enough_in_95_tables_of_100_and_a_sixteenth_in_few(share, least, most):
    """Fresh tables: how often every parent is its row's largest entry. P(fewer than 50 of 60 at .95) = 2e-4."""
    task = cc.InContextTask(cc.random_forest(8, seed=0), d_vocab=3, alpha=0.3)
    n, right = int(sample_complexity.predict(task, seed=0) * share) + 1, 0
    for seed in range(60):
        batch = task.sample(n, seed=(seed, 99))
        value = cc.measured_gradient(batch.tokens, batch.target_probs).value
        right += all(int(value[c, :c].argmax()) == p for p, c in cc.latent_edges(task.graph))
    assert least <= right <= most


@pytest.mark.parametrize(
    ("needed", "times", "state"),
    [
        ([90.0, 200.0], 36, "passed"),
        ([90.0, 200.0], 1, "undecided"),
        ([90.0, 300.0], 36, "refuted"),
        ([90.0, None], 36, "refuted"),
    ],
)
def test_the_check_can_fail(needed, times, state):
    tables = pd.DataFrame({"needed": needed * times, "predicted": [100.0, 210.0] * times}, dtype=float)
    assert sample_complexity.compare(tables)[0] == state


def test_equal_tables_have_no_rank_correlation():
    equal = pd.DataFrame({"needed": [90.0, 90.0], "predicted": [100.0, 210.0]})
    assert "no rank correlation" in sample_complexity.compare(equal)[1]
