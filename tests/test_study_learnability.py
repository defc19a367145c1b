"""The map of learnability: rows are what single trainings give, and each check can fail."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

import causal_circuits as cc
from causal_circuits.studies import learnability
from causal_circuits.studies.learnability import Config, edge_steps, loss_step, make_checks
from causal_circuits.studies.power_laws import Exponent, fit_exponents

FLAGS = {"graph": ("chain", "star"), "n_ctx": (6,), "alpha": (0.1, 1.0), "steps": 400}


def test_a_map_and_its_file(tmp_path, look_at_report):
    done = cc.run(Config.quickly(**FLAGS), tmp_path, quiet=True)
    table = pd.read_parquet(tmp_path / "learnability.parquet")
    assert table[["graph", "alpha"]].values.tolist() == [[g, a] for g in FLAGS["graph"] for a in FLAGS["alpha"]]
    assert len(done.results["settings"]) == 4
    assert (table.gradient == 1).all()
    assert (table.gain > 0).all()
    assert set(table.g.round(6)) == set(table.g[:2].round(6))  # g is that of d_vocab and alpha
    assert cc.results(tmp_path).graph.tolist() == table.graph.tolist()
    look_at_report(tmp_path / "report.html")


def test_members_of_an_ensemble_are_rows_of_trainings_alone():
    """To rounding, which the steps at which something is there do not show."""
    one = {"d_vocab": 3, "n_ctx": 6, "seed": 0, "steps": 300, "batch_size": 64}
    together = learnability.measure_sizes(graph=("chain", "star"), alpha=(0.1,), **one)
    for row in together:
        (alone,) = learnability.measure_sizes(graph=(row["graph"],), alpha=(0.1,), **one)
        assert row["edge_steps"] == alone["edge_steps"]
        assert row["excess"] == pytest.approx(alone["excess"], abs=1e-4)


def test_an_edge_is_there_from_the_step_from_which_it_stays():
    attention = torch.zeros(4, 1, 1, 4, 4)
    attention[:, 0, 0, 2, 1] = torch.tensor([0.9, 0.5, 0.7, 0.8])  # half-way from 1/3 to 1 is 2/3
    attention[:, 0, 0, 1, 0] = torch.tensor([0.5, 0.8, 0.8, 0.7])  # of 1/2, 3/4
    record = cc.TrainingRecord(torch.ones(9), (0, 2, 5, 9), torch.ones(4), attention, None, layers=(0,))
    assert edge_steps(record, [(1, 2), (0, 1)]) == [5.0, math.inf]


def test_the_loss_is_there_when_the_mean_of_a_window_is():
    losses = torch.cat([torch.ones(60), torch.zeros(60)])
    assert loss_step(losses, 0.5) == 85
    assert math.isnan(loss_step(losses, -0.1))


def test_exponents_are_found_and_their_intervals_hold_them():
    random = np.random.default_rng(0)
    g, n = random.uniform(0.1, 2, 200), random.integers(5, 50, 200)
    noise = random.normal(0, 0.1, 200)
    values = np.exp(noise) * 3 * g**-1.5 * n**0.5
    fits = fit_exponents({"g": g.tolist(), "n": n.tolist()}, values.tolist(), list(range(200)))
    assert -1.6 < fits["g"].low < -1.5 < fits["g"].high < -1.4
    assert 0.4 < fits["n"].low < 0.5 < fits["n"].high < 0.6
    assert fit_exponents({"g": [1.0, 1.0]}, [1.0, 2.0], [0, 1]) == {}


@pytest.mark.parametrize(
    ("changes", "failed"),
    [
        ({}, []),
        ({"gradient": [0.5, 0.5, 1.0]}, [0]),
        ({"attention": [1.0, 1.0, 1.0]}, [1]),
        ({"graph_step": [400.0, 400.0, math.nan]}, [3]),
    ],
)
def test_each_check_can_fail(changes, failed):
    table = {
        "graph": ["chain", "pairs", "star"],
        "gradient": [1.0, 1.0, 1.0],
        "attention": [1.0, 1.0, 0.0],
        "graph_step": [100.0, 200.0, math.nan],
        "loss_step": [300.0, 300.0, 300.0],
    }
    many = pd.concat([pd.DataFrame(table | changes)] * 25)
    checks = make_checks(many, {"g": Exponent(-1.0, -1.1, -0.9)})
    assert [k for k, check in enumerate(checks) if not check.passed] == failed
    states = [
        make_checks(many, fits)[2].state
        for fits in ({}, {"g": Exponent(-1.0, -2.0, 0.1)}, {"g": Exponent(1.0, 0.5, 2.0)})
    ]
    assert states == ["undecided", "undecided", "refuted"]
    few = make_checks(pd.DataFrame(table), {})
    assert [few[k].state for k in (0, 3)] == ["undecided"] * 2  # 2 of 2
