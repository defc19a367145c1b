"""Gradients against predictions whose agreement is known."""

import math

import numpy as np
import pytest
import torch
from assertions import assert_close, assert_refused

import causal_circuits as cc
from causal_circuits.information import through_softmax
from causal_circuits.statistics import auroc, rank_correlation

FOREST = [None, 0, 0, 1, 1, None, 5, 3]  # n_ctx 9; 7's parent 3, grandparent 1, uncle 4


@pytest.fixture
def g() -> torch.Tensor:
    task = cc.InContextTask(cc.graph_from_parents(FOREST), d_vocab=3, alpha=1.0)
    return cc.predicted_gradient(task, n_matrices=512).value


@pytest.fixture
def graph():
    return cc.graph_from_parents(FOREST)


def noise(shape: torch.Size, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_multiple_of_the_prediction_agrees_in_all_but_slope(g, graph):
    compared = cc.compare_gradient(0.8 * g, g, graph)
    assert compared.correlation == pytest.approx(1.0)
    assert compared.slope == pytest.approx(0.8)
    assert compared.parent_ranks == (1,) * 6
    assert compared.rows_right == 1.0
    assert math.isnan(compared.noise_share)


def test_the_share_of_noise_is_what_a_perfect_prediction_leaves(g, graph):
    size = 0.03
    measured = g + size * noise(g.shape)
    compared = cc.compare_gradient(measured, g, graph, standard_error=torch.full_like(g, size))
    assert compared.noise_share + compared.variance_explained == pytest.approx(1.0, abs=0.1)
    below = torch.ones_like(g, dtype=torch.bool).tril(-1)
    below[-1] = False
    assert compared.noise_share == pytest.approx(size**2 / measured[below].var(correction=0).item())


def test_ranks_count_larger_entries_and_ties_against_the_parent(g, graph):
    measured = g.clone()
    measured[7, 0] = measured[7, 1] = 10.0  # two positions beat the parent 3
    measured[6, 2] = measured[6, 5]  # a tie with the parent 5
    compared = cc.compare_gradient(measured, g, graph)
    assert compared.parent_ranks == (1, 1, 1, 1, 2, 3)
    assert compared.rows_right == pytest.approx(4 / 6)


def test_the_jacobian_explains_what_g_alone_does_not(g, graph):
    compared = cc.compare_gradient(through_softmax(g), g, graph, of="scores")
    assert compared.variance_explained == pytest.approx(1.0)
    assert compared.variance_explained_without_jacobian < 0.9
    assert compared.slope == pytest.approx(1.0)


def test_the_softmax_jacobian_is_autograds_at_any_attention(g):
    scores = noise(g.shape, 1).requires_grad_()
    future = torch.ones_like(g, dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(future, -torch.inf).softmax(dim=-1)
    (pattern * g).sum().backward()
    assert_close(through_softmax(g, pattern.detach()), scores.grad, 1e-10)
    uniform = torch.ones_like(g).tril() / torch.arange(1, len(g) + 1)[:, None]
    assert_close(through_softmax(g, uniform), through_softmax(g), 1e-10)


def test_no_rival_beats_the_parent_in_the_prediction(g, graph):
    assert cc.compare_gradient(g, g, graph).parent_ranks == (1,) * 6


def test_gradients_of_other_positions_or_with_nan_are_refused(g, graph):
    assert_refused(lambda: cc.compare_gradient(g[:5, :5], g[:5, :5], graph), "9 positions", "[5, 5]")
    spoiled = g.clone()
    spoiled[4, 1] = torch.nan
    assert_refused(lambda: cc.compare_gradient(spoiled, g, graph), "measured", "NaN")
    assert_refused(lambda: cc.compare_gradient(g, spoiled, graph), "predicted", "NaN")


@pytest.mark.parametrize("cell", [(1, 0), (3, 2), (3, 3)])
def test_scores_with_nan_have_no_auroc(cell, graph):
    score = torch.rand(9, 9, generator=torch.Generator().manual_seed(0)).double()
    plain = cc.edge_auroc(score, graph)
    assert 0 <= plain <= 1
    elsewhere = score.clone()
    elsewhere[0, 5] = elsewhere[-1, 0] = torch.nan  # above the diagonal, and the query's row: they do not count
    assert cc.edge_auroc(elsewhere, graph) == plain
    score[cell] = torch.nan
    assert math.isnan(cc.edge_auroc(score, graph))
    assert math.isnan(cc.edge_auroc(torch.full((9, 9), torch.nan), graph))
    assert_refused(lambda: cc.edge_auroc(score[:4, :4], graph), "9 positions", "[4, 4]")


def test_rankings_of_nan_are_nan():
    from causal_circuits.circuits import ground_truth, onsets

    values, truth = np.array([1.0, np.nan, 3.0]), np.array([True, True, False])
    assert math.isnan(auroc(values, truth))
    assert math.isnan(ground_truth.average_precision(values, truth))
    assert math.isnan(rank_correlation(values, np.arange(3.0)))
    curves = torch.tensor([[0.0, 0.0], [torch.nan, 1.0], [1.0, 1.0]])
    assert onsets.onset((0, 1, 2), curves).isnan().tolist() == [True, False]
