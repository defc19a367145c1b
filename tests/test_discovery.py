"""The graph comes back out of planted circuits, roots stay roots, and no circuit gives no graph."""

import pytest
import torch
from assertions import assert_refused
from hypothesis import given, settings
from hypothesis import strategies as st
from test_graphs import forest_parents

import causal_circuits as cc


def assert_recovers(model, task, **arguments):
    found = cc.extract_graph(model, task, n_sequences=8192, **arguments)
    assert cc.compare_graphs(task.graph, found).exact, found.candidates
    return found


@pytest.mark.parametrize("graph", [cc.chain_graph(12), cc.pairs_graph(12), cc.random_forest(16, 0.4, seed=5)])
def test_planted_graph_is_found_with_its_facts(graph):
    found = assert_recovers(cc.plant_circuit(graph, d_vocab=4), cc.InContextTask(graph, d_vocab=4))
    for parent, child in cc.latent_edges(graph):
        facts = found.edges[parent, child]
        assert facts["weight"] > 0.99
        assert facts["margin"] > 0.98
        assert facts["p_value"] < 1e-6
        assert facts["information_share"] >= 0.3
    assert found.roots_tested


@settings(max_examples=12)
@given(parents=forest_parents(39), d_vocab=st.integers(2, 20))
def test_a_planted_graph_of_any_size_is_read_back(parents, d_vocab):
    """Parents are there to the last; that roots have none takes data, which the model alone has not."""
    graph = cc.graph_from_parents(parents)
    found = cc.extract_graph(cc.plant_circuit(graph, d_vocab=d_vocab))
    if len(cc.latent_edges(graph)) == 1:  # the query attends to the only child whatever it copied: the head is unused
        assert {candidate.decided_by for candidate in found.candidates} == {"unused head"}
    else:
        assert cc.compare_graphs(graph, found).recall == 1.0


def test_a_model_that_attends_to_the_wrong_position_is_not_given_the_right_graph():
    graph = cc.chain_graph(10)
    model = cc.plant_circuit(graph, d_vocab=4)
    block = cc.models.attention_block(model, 0, 0, "position", "position").data
    block[5] = 0.0
    block[5, 2] = 20.0  # 5 looks at 2, its parent is 4
    recovery = cc.compare_graphs(graph, cc.extract_graph(model, cc.InContextTask(graph, d_vocab=4), n_sequences=8192))
    assert recovery.missing == ((4, 5),)


@pytest.mark.parametrize(
    ("parents", "attended", "d_vocab", "alpha"),
    [
        ([None, 0, 1, 2, 0], [None, 0, 1, 0, None], 3, 0.1),  # 0 and 3 tell of each other through 1 and 2
        ([None, 0, 0, 0, 2], [None, 0, 0, 0, 1], 3, 0.1),  # 1 is a sibling of 4's parent
        ([None, None, 1, 2, 2, 2], [None, None, 1, 0, 0, 3], 2, 0.3),
    ],
)
def test_a_relative_of_the_parent_is_not_taken_for_it(parents, attended, d_vocab, alpha):
    """A relative may have more than .3 of the best edge's information; the parent of its row has significantly more."""
    graph, task = cc.graph_from_parents(attended), cc.InContextTask(cc.graph_from_parents(parents), d_vocab, alpha)
    for seed in range(5):
        batch = task.sample(10_000, seed=seed)
        assert not cc.compare_graphs(task.graph, cc.extract_graph(cc.plant_circuit(graph, d_vocab), batch=batch)).false


def test_an_untrained_model_is_given_little_of_the_graph_and_no_false_edge():
    """In the first rows half of the attention is easily had: 0 -> 1 by about every second model."""
    graph = cc.chain_graph(12)
    task = cc.InContextTask(graph, d_vocab=4)
    models = [cc.disentangled_transformer(4, 12, init_scale=1.0, seed=seed) for seed in range(6)]
    edges = [edge for model in models for edge in cc.latent_edges(cc.extract_graph(model, task, n_sequences=3000))]
    assert set(edges) <= cc.latent_edges(graph)
    assert 0 < len(edges) < 0.15 * len(models) * len(cc.latent_edges(graph))


def test_independent_tokens_give_no_edges_however_the_model_attends():
    graph = cc.chain_graph(10)
    task = cc.InContextTask(cc.graph_from_parents([None] * 9), d_vocab=4)
    found = cc.extract_graph(cc.plant_circuit(graph, d_vocab=4), task)
    assert cc.latent_edges(found) == set()


@given(seed=st.integers(0, 1000))
def test_extraction_commutes_with_relabelling_tokens(seed):
    graph = cc.random_forest(8, 0.4, seed=seed)
    task = cc.InContextTask(graph, d_vocab=4)
    batch = task.sample(2048, seed=seed)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    relabelled = cc.Batch(order[batch.tokens], batch.target_probs[:, order.argsort()])
    model = cc.plant_circuit(graph, d_vocab=4)
    first, second = (cc.extract_graph(model, task, batch=some) for some in (batch, relabelled))
    assert set(first.edges) == set(second.edges)
    for edge in cc.latent_edges(first):
        assert first.edges[edge]["information"] == pytest.approx(second.edges[edge]["information"], rel=1e-9)


def test_mean_attention_is_the_mean_of_the_models_own_patterns(monkeypatch):
    monkeypatch.setattr("causal_circuits.tasks.batch.CHUNK", 4)
    model = cc.disentangled_transformer(3, 5, (2, 1), init_scale=0.5, seed=1)
    tokens = torch.randint(3, (9, 5), generator=torch.Generator().manual_seed(0))
    _, cache = model.run_with_cache(tokens)
    expected = torch.stack([cache["pattern", layer].mean(dim=0) for layer in (0, 1)])
    torch.testing.assert_close(cc.mean_attention(model, tokens), expected)
    with pytest.raises(ValueError, match="at least one sequence"):
        cc.mean_attention(model, tokens[:0])


def test_auroc_over_children_leaves_the_rows_of_roots_out():
    graph = cc.graph_from_parents([None, 0, None, 2])  # n_ctx 5, roots 0 and 2
    score = torch.zeros(5, 5)
    score[1, 0] = score[3, 2] = 1.0
    score[2, 1] = 2.0  # a root's entry above every edge
    assert cc.edge_auroc(score, graph) < 1.0
    assert cc.edge_auroc(score, graph, children_only=True) == 1.0


def test_a_model_or_batch_that_does_not_fit_is_refused():
    task, model = cc.InContextTask(cc.chain_graph(6), d_vocab=3), cc.plant_circuit(cc.chain_graph(6), d_vocab=3)
    for other in (cc.InContextTask(cc.chain_graph(7), d_vocab=3), cc.InContextTask(cc.chain_graph(6), d_vocab=4)):
        assert_refused(lambda other=other: cc.extract_graph(model, other), "the model must take", "it was built for")
    batch = task.sample(16)
    for targets in (batch.target_probs * 2, batch.target_probs * float("nan"), -batch.target_probs):
        bad = cc.Batch(batch.tokens, targets)
        assert_refused(lambda bad=bad: cc.extract_graph(model, batch=bad), "target_probs must be probabilities")
        assert_refused(lambda bad=bad: cc.knock_out_edges(model, bad), "target_probs must be probabilities")
    assert_refused(lambda: cc.ablate_heads(model, batch[:0], [(0, 0)]), "a batch of 1 or more")
    model.W_U.data[0, 0] = float("nan")
    assert_refused(lambda: cc.extract_graph(model, task), "weights must be finite", "unembed.W_U")
