"""Decoys: the graph's predictions without the graph's edges, and that the analyses tell the two apart."""

import networkx as nx
import pytest
import torch
from assertions import assert_refused

import causal_circuits as cc
from causal_circuits import circuits
from causal_circuits.models.decoy import carriers

GRAPHS = {
    "chain": cc.chain_graph(12),
    "pairs": cc.pairs_graph(12),
    "forest": cc.random_forest(12, 0.4, seed=2),
    "two parents": cc.ngram_graph(12, order=2),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_carriers_are_later_rows_of_their_own_that_touch_no_edge(name: str) -> None:
    graph = GRAPHS[name]
    found, edges = carriers(graph), set(cc.graphs.attention_cells(graph))
    assert len(set(found.values())) == len(found)
    for child, row in found.items():
        read = {child, *graph.predecessors(child)}
        assert row > child
        assert not {(row, position) for position in read} & edges


def test_a_decoy_that_carries_every_child_predicts_what_the_circuit_predicts() -> None:
    for graph in (cc.pairs_graph(12), cc.graph_from_parents([-1, 0, -1, 0, -1, 3, -1, -1, -1])):
        task = cc.InContextTask(graph, d_vocab=3, alpha=0.1)
        assert len(carriers(graph)) == len(cc.latent_edges(graph))
        tokens = task.sample(200, seed=1).tokens
        planted, decoy = cc.plant_circuit(graph, 3), cc.models.plant_decoy(graph, 3)
        assert torch.allclose(cc.log_probs(planted, tokens), cc.log_probs(decoy, tokens), atol=1e-4)


@pytest.mark.parametrize("name", GRAPHS)
def test_its_attention_shows_no_edge_and_cutting_finds_none(name: str) -> None:
    task = cc.InContextTask(GRAPHS[name], d_vocab=3, alpha=0.1)
    batch, rates = task.sample(300, seed=1), {}
    for kind, model in {
        "planted": cc.plant_circuit(task.graph, 3),
        "decoy": cc.models.plant_decoy(task.graph, 3),
    }.items():
        cut = cc.knock_out_edges(model, batch, metric="kl_to_model")
        scores = circuits.score_against_graph(cut.effect, task.graph)
        rates[kind] = (scores.auroc, scores.exact_parent_rate)
        cells = [cell for cell in cc.graphs.attention_cells(task.graph) if cell[0] < task.n_ctx - 1]
        seen = torch.tensor([float(cut.attention[:, i, j].max()) * (i + 1) for i, j in cells])
        assert (seen <= 1 + 1e-5).all() if kind == "decoy" else (seen > 1.9).all()
    assert rates["planted"] == (1.0, 1.0)
    assert rates["decoy"][0] < 0.7
    assert rates["decoy"][1] <= 0.1


def test_a_trained_decoy_reaches_the_edge_posterior_and_stays_a_decoy() -> None:
    """The pairs graph, on which Adam from zero learns the graph: no other recipe here gives a decoy for it."""
    task = cc.InContextTask(cc.pairs_graph(14), d_vocab=3, alpha=0.1)
    model = cc.models.plant_decoy(task.graph, 3, attention_scale=10.0, match_scale=4.0)
    before, test = model.W_Q.detach().clone(), task.sample(2000, seed=3)
    cc.train(model, task, cc.TrainConfig.joint(400, 0.03, warm_start=None), progress=False)
    assert (model.W_Q - before).abs().max() > 0.1
    assert float(cc.evaluate(model, test).mean()) < task.bayes_loss(test) + 0.02
    scores = circuits.score_against_graph(cc.knock_out_edges(model, test).effect, task.graph)
    assert scores.exact_parent_rate < 0.5


def test_a_graph_too_short_to_displace_is_named() -> None:
    assert_refused(lambda: cc.models.plant_decoy(cc.ngram_graph(4, order=2), 3), "a later row", "make it longer")
    assert_refused(lambda: cc.models.plant_decoy(nx.DiGraph([(1, 0)]), 3), "precede")
