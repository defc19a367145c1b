"""Laws that hold for every size this package is for: graphs of 2 to 40 nodes, 2 to 20 tokens, alpha .001 to 10.

Each property is one that the other files check at a few small sizes; here hypothesis chooses the size.
"""

import numpy as np
import oracles
import pytest
import torch
from assertions import assert_close, assert_given_back
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused import draw
from test_graphs import dag_parents
from test_tasks import assert_posterior_equals_loops

import causal_circuits as cc

few = settings(max_examples=12)
seeds = st.integers(0, 10_000)
vocabularies = st.integers(2, 20)
alphas = st.floats(-3, 1).map(lambda exponent: 10.0**exponent)
head_counts = st.tuples(st.integers(1, 3), st.integers(1, 2))


forests = st.tuples(st.integers(2, 40), st.floats(0, 1), seeds)  # of `random_forest`: n_ctx, root probability, seed


@few
@given(graph=st.one_of(forests, dag_parents()), d_vocab=vocabularies, alpha=alphas, n=st.integers(1, 40), seed=seeds)
def test_sequences_are_well_formed_and_a_longer_batch_begins_with_the_shorter(graph, d_vocab, alpha, n, seed):
    graph = cc.random_forest(*graph) if isinstance(graph, tuple) else cc.graph_from_parents(graph)
    if max(degree for _, degree in graph.in_degree) > 1:
        d_vocab = min(d_vocab, 5)  # a matrix has a row for every tuple of parents' tokens
    task = cc.InContextTask(graph, d_vocab=d_vocab, alpha=alpha)
    batch = task.sample(n, seed=seed)
    batch.check(d_vocab, task.n_ctx)
    assert torch.allclose(batch.target_probs.sum(dim=1), torch.ones(n), atol=1e-5)
    longer = task.sample(n + 9, seed=seed)
    if task.counts:  # every number a function of (seed, place)
        assert torch.equal(longer.tokens[:n], batch.tokens)
        assert torch.equal(longer.target_probs[:n], batch.target_probs)


@few
@given(forest=forests, d_vocab=vocabularies, alpha=alphas, seed=seeds)
def test_the_edge_posterior_counts_edges(forest, d_vocab, alpha, seed):
    graph = cc.random_forest(*forest)
    task = cc.InContextTask(graph, d_vocab=d_vocab, alpha=alpha)
    assert_posterior_equals_loops(task, np.full((d_vocab, d_vocab), alpha), seed)


@few
@given(
    d_vocab=vocabularies,
    n_ctx=st.integers(2, 24),
    n_heads=st.lists(st.integers(1, 2), min_size=1, max_size=3),
    batch=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=seeds,
)
def test_the_structured_forward_is_the_plain_one(d_vocab, n_ctx, n_heads, batch, dtype, seed):
    model = cc.disentangled_transformer(d_vocab, n_ctx, tuple(n_heads), init_scale=0.3, seed=seed, dtype=dtype)
    tokens, _ = draw(d_vocab, n_ctx, batch, seed)
    found = cc.models.structured_logits(model, tokens)
    assert found.dtype == dtype
    assert_close(found, model(tokens)[:, -1], 2e-5 if dtype == torch.float32 else 1e-12)


@few
@given(forest=forests, d_vocab=vocabularies)
def test_a_planted_graph_is_read_back(forest, d_vocab):
    """Parents are there to the last; that roots have none takes data, which the model alone has not."""
    graph = cc.random_forest(*forest)
    found = cc.extract_graph(cc.plant_circuit(graph, d_vocab=d_vocab))
    if len(cc.latent_edges(graph)) == 1:  # the query attends to the only child whatever it copied: the head is unused
        assert {candidate.decided_by for candidate in found.candidates} == {"unused head"}
        return
    assert set(cc.latent_edges(graph)) <= set(found.edges)
    assert cc.compare_graphs(graph, found).recall == 1.0


@few
@given(forest=forests, d_vocab=st.integers(2, 12), alpha=alphas)
def test_nothing_informs_more_than_the_parent(forest, d_vocab, alpha):
    graph = cc.random_forest(*forest)
    task = cc.InContextTask(graph, d_vocab=d_vocab, alpha=alpha)
    for quantity in (cc.chi_squared_information, cc.predicted_gradient):
        value = quantity(task, n_kernels=16).value
        assert value.isfinite().all()
        for parent, child in cc.latent_edges(graph):
            assert value[child, :child].max() <= value[child, parent] * (1 + 1e-6) + 1e-9


@few
@given(
    d_vocab=vocabularies,
    n_ctx=st.integers(2, 10),
    n_heads=head_counts,
    n=st.integers(1, 4),
    layer=st.integers(0, 1),
    method=st.sampled_from(["zero", "renormalize"]),
    seed=seeds,
)
def test_a_cut_entry_costs_what_a_loop_says(d_vocab, n_ctx, n_heads, n, layer, method, seed):
    model = cc.disentangled_transformer(d_vocab, n_ctx, n_heads, init_scale=0.3, seed=seed)
    batch = cc.Batch(*draw(d_vocab, n_ctx, n, seed))
    generator = np.random.default_rng(seed)
    head, query = int(generator.integers(n_heads[layer])), int(generator.integers(n_ctx))
    key = int(generator.integers(query + 1))
    with assert_given_back(model):
        found = cc.knock_out_edges(model, batch, layer=layer, method=method, entries=[(head, query, key)])
    weights = oracles.weights_of(model, d_vocab, n_ctx, n_heads)
    run = oracles.disentangled_forward(*weights, batch.tokens, d_vocab)
    before = oracles.cross_entropies(run.logits, batch.target_probs)
    after = oracles.losses_with_entry_cut(
        *weights, batch.tokens, batch.target_probs, d_vocab, layer, head, query, key, method == "renormalize"
    )
    harm = (after - before).detach()
    assert float(found.effect[head, query, key]) == pytest.approx(float(harm.mean()), abs=1e-5, rel=1e-4)
    error = float(harm.std()) / n**0.5 if n > 1 else np.inf
    assert float(found.standard_error[head, query, key]) == pytest.approx(error, abs=1e-5, rel=1e-3)
    assert found.baseline_loss == pytest.approx(float(before.detach().mean()), rel=1e-5)
    assert_close(found.attention[head], run.patterns[layer, head].detach().mean(dim=0), 1e-5)
