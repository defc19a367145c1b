"""The study of the first gradient: its numbers, the checks that can fail, the errors of slopes."""

import numpy as np
import pandas as pd
import pytest
import torch

import causal_circuits as cc
from causal_circuits.studies import gradient_information as study
from causal_circuits.studies.gradient_information import Config, measure


def test_measures_and_reports(tmp_path, look_at_report):
    config = Config.quickly(graph=("chain",), d_vocab=(2,), alpha=(1.0,), n_ctx=(5, 8), sequences=4000, forests=1)
    results = cc.run(config, tmp_path, quiet=True).results
    assert [setting["n_ctx"] for setting in results["settings"]] == [5, 8]
    for setting in results["settings"]:
        on_finite = setting["weights"]["by_finite"]
        assert on_finite["slope"] == pytest.approx(1.0, abs=0.2)
        assert on_finite["variance_explained"] + on_finite["noise_share"] > 0.9
        errors = setting["prediction_error"], setting["sampling_error"]
        assert setting["slope_error_finite"] == pytest.approx(np.hypot(*errors))
        assert min(errors) > 0
    assert results["backward_pass_difference"] < 0.01
    assert results["forests"][0]["parents_first"] == results["forests"][0]["edges"]
    assert results["training"]["correlation"][1] > 0.5
    look_at_report(tmp_path / "report.html")


def settings_with(slopes: dict[int, tuple[float, float]], error: float = 0.01) -> pd.DataFrame:
    """A row for each n_ctx, with these slopes on g and on G and this error of both."""

    def comparison(slope: float) -> cc.information.GradientComparison:
        return cc.information.GradientComparison(0.99, slope, (1,), 1.0, 0.98, 0.98, 0.01)

    rest = {"graph": "chain", "d_vocab": 3, "alpha": 1.0, "slope_error_finite": error, "slope_error_g": error}
    rows = []
    for n_ctx, (g, finite) in slopes.items():
        weights = {"by_g": comparison(g), "by_finite": comparison(finite), "bias": comparison(g)}
        rows.append(study.setting_row({"n_ctx": n_ctx, "weights": weights, **rest}))
    return pd.DataFrame(rows)


def test_the_slope_on_the_expected_gradient_can_fail():
    assert study.check_slope_on_expectation(settings_with({20: (0.8, 1.02), 100: (0.95, 0.99)})).passed
    off = study.check_slope_on_expectation(settings_with({20: (0.8, 1.07), 100: (0.95, 0.99)}))
    assert not off.passed
    assert "the furthest is 7.0 errors from 1" in off.evidence


def test_a_slope_on_g_that_stays_away_from_1_is_said():
    (towards,) = study.check_slope_on_limit(settings_with({20: (0.8, 1.0), 100: (0.931, 1.0)}))
    assert towards.passed
    assert "0.931 to 0.931, other than 1 beyond its error in 1 of 1" in towards.evidence
    (away,) = study.check_slope_on_limit(settings_with({20: (0.9, 1.0), 100: (0.8, 1.0)}))
    assert not away.passed
    assert study.check_slope_on_limit(settings_with({20: (0.9, 1.0)})) == []


def test_the_error_of_a_slope_covers_sequences_and_transition_matrices():
    """Against the scatter of slopes over independent repetitions of everything."""
    task = cc.InContextTask(cc.chain_graph(8), d_vocab=3, alpha=0.3)
    slopes, errors = [], []
    for seed in range(12):
        measured = measure.gradients_of_parts(task.sample(4000, seed=(seed, 1)))
        predicted = [cc.information.finite_context_gradient(task, 16, seed=3 * (8 * seed + part)) for part in range(8)]
        means = [measure.mean_of_parts(of).value for of in (measured, predicted)]
        slopes.append(cc.compare_gradient(*means, task.graph).slope)
        errors.append(np.hypot(*measure.slope_errors(measured, predicted, task.graph)))
    scatter, said = np.std(slopes, ddof=1), np.sqrt(np.mean(np.square(errors)))
    assert 0.6 < said / scatter < 1.7  # 12 repetitions know their own scatter to a factor of 1.5
    assert np.mean(slopes) == pytest.approx(1.0, abs=4 * said / 12**0.5)


def test_an_edge_forms_where_its_attention_stays_above_one_half():
    curves = ([0.6, 0.6, 0.6, 0.6], [0.1, 0.5, 0.5, 0.9], [0.1, 0.9, 0.4, 0.9], [0.0] * 4, [float("nan")] * 4)
    found = [measure.formed_from((0, 10, 20, 30), torch.tensor(weights)) for weights in curves]
    assert found == [0, 10, 30, None, None]


def test_in_training_the_stronger_pull_wins_the_race():
    assert measure.train_and_compare(0, 150)["order_agreement"] > 0.5
