"""Gradients against predictions whose agreement is known, and edge formation in records written by hand."""

import math

import numpy as np
import pytest
import torch
from assertions import assert_close, assert_refused

import causal_circuits as cc
from causal_circuits.information import through_softmax
from causal_circuits.information.comparison import _formed
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


def test_comparisons_need_matrices_over_the_graphs_positions(g, graph):
    assert_refused(lambda: cc.compare_gradient(g[:5, :5], g[:5, :5], graph), "9 positions", "[5, 5]")


def test_relations_of_rivals():
    graph = cc.graph_from_parents(FOREST)
    places = {"ancestor": (7, 1), "sibling": (2, 1), "uncle": (7, 4), "unrelated": (6, 0)}
    for relation, (child, rival) in places.items():
        value = torch.zeros(9, 9, dtype=torch.float64)
        for parent, other in cc.latent_edges(graph):
            value[other, parent] = 1.0
        value[child, rival] = 0.5
        (found,) = [r for r in cc.information.closest_rivals(value, graph) if r.child == child]
        assert (found.position, found.relation, found.excess) == (rival, relation, 0.5), relation


def test_no_rival_beats_the_parent_in_the_prediction(g, graph):
    assert all(rival.excess > 0 for rival in cc.information.closest_rivals(g, graph))


def record_of(attention: torch.Tensor, g: torch.Tensor) -> cc.TrainingRecord:
    """A record whose score gradients are g through the softmax of its attention [record, query, key]."""
    gradients = torch.stack([through_softmax(g, pattern) for pattern in attention])
    return cc.TrainingRecord(
        losses=torch.zeros(4),
        steps=(0, 10, 20, 30),
        recorded_losses=torch.zeros(4),
        attention=attention[:, None, None],
        score_gradients=gradients[:, None, None],
    )


def test_edges_form_when_their_attention_stays_above_one_half(g, graph):
    attention = (torch.ones_like(g).tril() / torch.arange(1, len(g) + 1)[:, None]).repeat(4, 1, 1) * 0.1
    cells = sorted((child, parent) for parent, child in cc.latent_edges(graph))
    for (child, parent), weights in zip(
        cells,
        ([0.6, 0.6, 0.6, 0.6], [0.1, 0.5, 0.5, 0.9], [0.1, 0.9, 0.4, 0.9], [0.1, 0.1, 0.6, 0.7], [0.0] * 4, [0.0] * 4),
        strict=True,
    ):
        attention[:, child, parent] = torch.tensor(weights, dtype=attention.dtype)
    formed = cc.information.edge_formation(record_of(attention, g), g, graph)
    assert formed.formed_at == (0, 10, 30, 20, None, None)
    assert formed.edges == tuple((parent, child) for child, parent in cells)
    assert [c.correlation for c in formed.comparisons] == pytest.approx([1.0] * 4)
    assert formed.order_agreement > 0.5  # earlier rows are pulled harder, and formed earlier here


def test_edge_formation_needs_recorded_gradients(graph, g):
    bare = cc.TrainingRecord(torch.zeros(1), (0,), torch.zeros(1), None, None)
    assert_refused(lambda: cc.information.edge_formation(bare, g, graph), "no attention", "attention=True")


def test_in_training_the_stronger_pull_wins_the_race():
    task = cc.InContextTask(cc.chain_graph(10), d_vocab=3, alpha=0.1)
    model = cc.disentangled_transformer(3, 10)
    config = cc.TrainConfig(stages=(cc.Stage(60, 0.3, train=("W_Q.0",)),), seed=0, warm_start=4.0)
    record = cc.train(model, task, config, record=cc.RecordAt.every(2, until=60), progress=False)
    formed = cc.information.edge_formation(record, cc.predicted_gradient(task).value, task.graph)
    assert None not in formed.formed_at
    assert formed.comparisons[0].rows_right == 1.0
    assert formed.order_agreement > 0.5


# ---- NaN is no score


def test_nan_gradients_are_refused_or_stay_nan(g, graph):
    spoiled = g.clone()
    spoiled[4, 1] = torch.nan
    assert_refused(lambda: cc.compare_gradient(spoiled, g, graph), "measured", "NaN")
    assert_refused(lambda: cc.compare_gradient(g, spoiled, graph), "predicted", "NaN")
    assert_refused(lambda: cc.information.closest_rivals(spoiled, graph), "row 4", "NaN")


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
    assert _formed((0, 1), torch.tensor([torch.nan, torch.nan])) is None
