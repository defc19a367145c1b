"""Tokens that are set: what descends from them changes, nothing else, and the edge posterior knows it."""

import networkx as nx
import pytest
import torch

import causal_circuits as cc
from causal_circuits.tasks import InterventionTask, cross_entropy

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


@pytest.mark.parametrize(
    ("do", "told"), [({}, "at least one"), ({9: 0}, "positions lie in"), ({1: 3}, "tokens lie in")]
)
def test_what_cannot_be_set_is_refused(do, told):
    with pytest.raises(ValueError, match=told):
        InterventionTask(cc.InContextTask(cc.chain_graph(8), d_vocab=3), do)
