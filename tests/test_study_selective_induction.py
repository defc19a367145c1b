"""Latent lags: task and predictors against slow oracles, the planted circuit, a small study, checks that fail."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

import causal_circuits as cc
from causal_circuits.studies import selective_induction as study
from causal_circuits.studies.selective_induction import compared as built
from causal_circuits.studies.selective_induction import measure
from causal_circuits.tasks import LagTask


def test_tokens_follow_the_token_one_lag_back_and_nothing_else():
    task = LagTask(n_ctx=8, d_vocab=3, lags=(2, 3), matrix_seed=1)
    for lag in task.lags:
        tokens = LagTask(8, 3, (lag,), task.matrix).sample(40_000, seed=0).tokens.numpy()
        for parent, law in enumerate(task.matrix):
            children = tokens[:, lag:][tokens[:, :-lag] == parent]
            assert np.bincount(children, minlength=3) / len(children) == pytest.approx(law, abs=0.01)
        start = np.bincount(tokens[:, :lag].ravel(), minlength=3) / tokens[:, :lag].size
        assert start == pytest.approx(task.stationary, abs=0.01)
    assert task.sample(5, seed=3).tokens.equal(task.sample(5, seed=3).tokens)


def test_bayes_over_lags_is_that_of_an_enumeration():
    task = LagTask(n_ctx=6, d_vocab=2, lags=(1, 2, 4), matrix_seed=0)
    batch = task.sample(20, seed=0)
    for tokens, found in zip(batch.tokens.tolist(), task.predictors(batch.tokens)["Bayes"], strict=True):
        likelihoods = []
        for lag in task.lags:
            laws = [task.stationary if i < lag else task.matrix[tokens[i - lag]] for i in range(6)]
            likelihoods.append(np.prod([law[token] for law, token in zip(laws, tokens, strict=True)]))
        expected = sum(p * task.matrix[tokens[-lag]] for p, lag in zip(likelihoods, task.lags, strict=True))
        assert found.numpy() == pytest.approx(expected / sum(likelihoods), abs=1e-12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lags": (1, 1)}, "lags must be different"),
        ({"lags": (1, 16)}, r"lie in 1 \.\. n_ctx - 1 = 15"),
        ({"d_vocab": 1}, "d_vocab must be an integer of at least 2"),
        ({"alpha": 0.0}, "alpha must lie in"),
        ({"transition_matrix": np.eye(3)}, r"\[d_vocab, d_vocab\] = \[4, 4\]: got \[3, 3\]"),
        ({"transition_matrix": np.eye(4)}, "must be above 0"),
        ({"transition_matrix": np.ones((4, 4))}, "must be probabilities"),
    ],
)
def test_what_is_no_task_is_refused_by_name(wrong, message):
    with pytest.raises(ValueError, match=message):
        LagTask(**wrong)
    with pytest.raises(ValueError, match="tokens must be integers in"):
        LagTask().predictors(torch.full((2, 16), 7))


def test_a_copy_with_another_seed_or_vocabulary_has_a_matrix_of_its_own():
    task = LagTask(n_ctx=6, d_vocab=3, lags=(1, 2))
    for field, value in (("matrix_seed", 4), ("d_vocab", 5)):
        expected = LagTask(**{"n_ctx": 6, "d_vocab": 3, "lags": (1, 2), field: value})
        assert np.array_equal(dataclasses.replace(task, **{field: value}).matrix, expected.matrix)
    assert np.abs(task.matrix.sum(axis=1) - 1).max() < 1e-15
    assert repr(task) == "LagTask(n_ctx=6, d_vocab=3, lags=(1, 2))"


@pytest.mark.parametrize(("lags", "n_ctx"), [((1, 2), 12), ((1, 3), 12), ((1, 2, 3), 13)])
def test_the_planted_circuit_is_its_formula(lags, n_ctx):
    """Shares of the likelihood, their mean in each residue class, a softmax over lags, log P of the tokens there."""
    task = LagTask(n_ctx, 3, lags, matrix_seed=2)
    tokens, m = task.sample(50, seed=0).tokens, built.n_residues(lags)
    model, scores = built.planted(task, selecting=30.0), []
    for row in tokens.tolist():
        likelihood = np.array([[task.matrix[row[i - lag], row[i]] for lag in lags] for i in range(max(lags), n_ctx)])
        share = likelihood / likelihood.sum(axis=1, keepdims=True)
        residues = np.arange(max(lags), n_ctx) % m
        scores.append(30 * sum(share[residues == r].mean(axis=0) for r in range(m)))
    weights = torch.tensor(np.array(scores)).softmax(dim=1)
    logs = torch.stack([torch.tensor(np.log(task.matrix))[tokens[:, n_ctx - lag]] for lag in lags], dim=1)
    expected = (weights[:, :, None] * logs).sum(dim=1).log_softmax(dim=1)
    assert cc.log_probs(model, tokens).detach().double().numpy() == pytest.approx(expected.numpy(), abs=1e-3)


def test_a_small_study(tmp_path, look_at_report, monkeypatch):
    monkeypatch.setattr(measure, "N_TEST", 256)
    config = study.Config(seeds=1, steps=5, batch_size=32, n_ctx=8)
    result = cc.run(config, tmp_path, quiet=True)
    rows = {row["architecture"]: row for row in result.results["rows"]}
    assert rows.keys() == {"planted", *built.architectures((1, 2)), *built.ORDINARY}
    assert rows["planted"]["share"] < 0.5 < rows["planted"]["stationary"]
    assert set(rows[built.SELECTIVE]["without"]) == {"layer 0", "layer 1", "layer 2", "L1H0", "L1H1"}
    look_at_report(tmp_path / "report.html")


def rows(change):
    """Three seeds in which every claim holds, but for a change of one of them."""
    share = {"two layers, 1 and 1 heads": 0.4, built.DEEP: 0.2, built.SELECTIVE: 0.03, built.GIVEN: 0.03}
    share |= {"ordinary, two layers": 0.5, "ordinary, three layers": 0.2} | change
    planted = {"share": 0.05, "normalized likelihood": 0.06, "maximum likelihood": 0.05} | change
    planted |= dict.fromkeys(study.GRADIENTS, True) | change
    selective = {"share": 0.03, "without": {"layer 0": 1.0} | change}
    return pd.DataFrame([share] * 3), [planted] * 3, [selective] * 3


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({}, None),
        ({"normalized likelihood": 0.0}, 0),
        ({"two layers, 1 and 1 heads": 0.01}, 1),
        ({built.SELECTIVE: 0.5}, 2),
        ({built.GIVEN: 0.5}, 3),
        ({built.DEEP: 0.4}, 4),
        ({"ordinary, three layers": 0.5}, 5),
        ({"layer 0": 0.1}, 6),
        ({"gradient layer 2 at the candidates": False}, 7),
    ],
)
def test_each_check_can_fail(change, failing):
    found = [check.passed for check in study.checks(*rows(change))]
    assert found[failing if failing is not None else 0] is (failing is None)
    if failing is None:
        assert all(found)


@pytest.mark.parametrize(
    ("gains", "state"),
    [([0.10, 0.11, 0.12], "passed"), ([0.1, -0.1, 0.0], "undecided"), ([-0.10, -0.11, -0.12], "refuted")],
)
def test_a_gain_whose_interval_holds_zero_is_undecided(gains, state):
    share, planted, selective = rows({})
    share[built.DEEP] = share["two layers, 1 and 1 heads"] - np.array(gains)
    assert study.checks(share, planted, selective)[4].state == state
