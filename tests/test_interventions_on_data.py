"""Tokens that are set, edges moved, matrices exchanged: what follows changes, nothing else; the posterior knows it."""

import networkx as nx
import numpy as np
import pytest
import torch

import causal_circuits as cc
from causal_circuits.tasks import ExchangeTask, InterventionTask, cross_entropy

GRAPHS = {
    "forest": cc.graph_from_parents([None, 0, 0, 1, None, 4]),
    "two parents": cc.ngram_graph(7, 2),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("do", [{1: 2}, {2: "random", 4: 0}, {6: 1}])
def test_only_what_descends_from_a_set_token_differs(name, do):
    task = cc.InContextTask(GRAPHS[name], d_vocab=3, alpha=0.5)
    twin = InterventionTask(task, do)
    before, after = task.sample(1500, seed=5), twin.sample(1500, seed=5)
    descends = set(do).union(*(nx.descendants(task.graph, position) for position in do))
    for position in range(7):
        same = torch.equal(before.tokens[:, position], after.tokens[:, position])
        assert same == (position not in descends)
    for position, token in do.items():
        counts = after.tokens[:, position].bincount(minlength=3)
        assert counts.min() > 400 if token == "random" else counts[token] == 1500
    assert torch.allclose(before.target_probs, after.target_probs, atol=1e-5) == (7 not in descends)


def test_places_of_a_stream_do_not_depend_on_how_they_are_asked_for():
    twin = InterventionTask(cc.InContextTask(GRAPHS["forest"], d_vocab=3), {2: "random"})
    whole, part = twin.draws(3, 0, 1200), twin.draws(3, 700, 100)
    assert torch.equal(whole.tokens[700:800], part.tokens)
    assert torch.equal(whole.target_probs[700:800], part.target_probs)


def test_the_edge_posterior_counts_no_edge_into_a_set_token():
    task = cc.InContextTask(cc.chain_graph(20), d_vocab=3, alpha=0.3)
    twin = InterventionTask(task, dict.fromkeys(range(2, 19, 2), "random"))
    batch = twin.sample(8000, seed=0)
    aware = cross_entropy(twin.bayes_predictor(batch.tokens), batch.target_probs)
    naive = cross_entropy(task.bayes_predictor(batch.tokens), batch.target_probs)
    assert (naive - aware).mean() > 5 * (naive - aware).std() / 8000**0.5
    cost = cc.interventions.make_cost("kl_to_posterior", batch, task=twin)
    assert cost(twin.bayes_predictor(batch.tokens).log()).abs().max() < 1e-6


def test_the_edge_posterior_of_one_given_pair_of_matrices_is_the_truth_whatever_is_set():
    generator = torch.Generator().manual_seed(0)
    kernels = {k: torch.rand((1, *[3] * (k + 1)), generator=generator).softmax(-1).double().numpy() for k in (1, 2)}
    task = cc.InContextTask(
        cc.graph_from_parents([[], [0], [0, 1], [2], [2, 3]]), d_vocab=3, transition_matrices=kernels
    )
    for do in ({2: 0}, {1: 0, 3: "random"}):  # the second leaves no position with one parent
        batch = InterventionTask(task, do).sample(50)
        assert torch.allclose(InterventionTask(task, do).bayes_predictor(batch.tokens).float(), batch.target_probs)


def test_the_gradient_sees_the_graph_that_is_left_and_recover_graph_does_not_take_it_for_the_task():
    task = cc.InContextTask(cc.chain_graph(8), d_vocab=3)
    batch = InterventionTask(task, {4: "random"}).sample(20_000, seed=0)
    seen = cc.measured_gradient(batch.tokens, batch.target_probs)
    z = (seen.value / seen.standard_error).nan_to_num()
    assert [int(z[child, :child].argmax()) for child in (1, 2, 3, 5, 6)] == [0, 1, 2, 4, 5]
    assert z[4, :4].max() < 5 < 20 < z[5, 4]
    found = cc.recover_graph(batch)
    assert not cc.latent_edges(found.graph)
    assert "position 4" in found.warnings[0]


@pytest.mark.parametrize("parents", [[None, 0, 1, 1, 2, 4], [None, 0, None, 2, 3, 4], [None, 0, 1, 2, 3, 3]])
def test_a_graph_with_edges_moved_removed_or_added_draws_the_same_tokens_where_no_edge_changed(parents):
    graphs = cc.graph_from_parents([None, 0, 1, 2, 3, None]), cc.graph_from_parents(parents)
    before, after = (cc.InContextTask(graph, d_vocab=3, alpha=0.5).sample(1500, seed=5) for graph in graphs)
    moved = {child for _, child in set(graphs[0].edges) ^ set(graphs[1].edges)}
    changed = moved.union(*(nx.descendants(graph, child) for graph in graphs for child in moved))
    for position in range(7):
        same = torch.equal(before.tokens[:, position], after.tokens[:, position])
        assert same == (position not in changed)
    assert before.target_probs.equal(after.target_probs)


def test_an_exchanged_matrix_is_a_fresh_one_and_first_tokens_are_those_of_the_first_task():
    chain = cc.InContextTask(cc.chain_graph(10), d_vocab=3, alpha=0.3)
    moved = cc.InContextTask(cc.graph_from_parents([None, 0, 1, 2, 3, 2, 5, 6, 7]), d_vocab=3, alpha=0.3)
    task = ExchangeTask(chain, moved, at=5)
    whole, part = task.draws(3, 0, 30_000), task.draws(3, 700, 100)
    assert torch.equal(whole.tokens[700:800], part.tokens)
    assert torch.equal(whole.target_probs[700:800], part.target_probs)
    assert torch.equal(whole.tokens[:, :5], chain.sample(30_000, seed=3).tokens[:, :5])
    assert (2, 5) in task.graph.edges
    assert (4, 5) not in task.graph.edges
    seen = cc.measured_gradient(whole.tokens, whole.target_probs)
    z = (seen.value / seen.standard_error).nan_to_num()
    assert [int(z[child, :child].argmax()) for child in (5, 6, 7, 8)] == [2, 5, 6, 7]
    assert z[1:5].max() < 5 < 20 < z[5, 2]  # the first matrix tells nothing of the target's


def test_the_edge_posterior_after_an_exchange_is_the_mean_of_matrices_that_drew_the_tokens():
    chain, batch_size = cc.InContextTask(cc.chain_graph(5), d_vocab=2, alpha=1.0), 200_000
    task = ExchangeTask(chain, chain, at=2)
    batch = task.sample(batch_size)
    code = (batch.tokens * 2 ** torch.arange(5)).sum(dim=1)
    for one in (0, 5, 13, 30):
        alike = batch[code == one]
        mean = alike.target_probs.double().mean(dim=0)
        error = alike.target_probs.double().std(dim=0) / len(alike) ** 0.5
        assert ((task.bayes_predictor(alike.tokens[:1])[0] - mean).abs() < 5 * error).all()
    aware, naive = (cross_entropy(t.bayes_predictor(batch.tokens), batch.target_probs) for t in (task, chain))
    assert (naive - aware).mean() > 5 * (naive - aware).std() / batch_size**0.5
    cost = cc.interventions.make_cost("kl_to_posterior", batch[:100], task=task)
    assert cost(task.bayes_predictor(batch.tokens[:100]).log()).abs().max() < 1e-6


def test_given_matrices_are_exchanged_for_others():
    chain, stay = cc.chain_graph(6), np.eye(2)
    first, second = (cc.InContextTask(chain, 2, transition_matrices=m, roots="uniform") for m in (stay, 1 - stay))
    tokens = ExchangeTask(first, second, at=3).sample(20).tokens
    assert (tokens[:, 1:3] == tokens[:, :1]).all()
    assert (tokens[:, 3:5] == 1 - tokens[:, 2:4]).all()


@pytest.mark.parametrize(
    ("length", "at", "told"), [(6, 3, "the same n_ctx: got 8 and 6"), (8, 0, "got 0"), (8, 8, "got 8")]
)
def test_what_cannot_be_exchanged_is_refused(length, at, told):
    tasks = (cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=3) for n_ctx in (8, length))
    with pytest.raises(ValueError, match=told):
        ExchangeTask(*tasks, at=at)


@pytest.mark.parametrize(
    ("do", "told"), [({}, "at least one"), ({9: 0}, "positions lie in"), ({1: 3}, "tokens lie in")]
)
def test_what_cannot_be_set_is_refused(do, told):
    with pytest.raises(ValueError, match=told):
        InterventionTask(cc.InContextTask(cc.chain_graph(8), d_vocab=3), do)
