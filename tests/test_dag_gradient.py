"""The predicted gradient of any causal graph: against brute force, autograd of the model it predicts, and data."""

import numpy as np
import oracles
import pytest
import torch
from assertions import assert_within_sampling_error
from hypothesis import given, settings
from hypothesis import strategies as st

import causal_circuits as cc
from causal_circuits.information import pair_laws

Context = list[tuple[int, ...]]


def own_matrices(graph, d_vocab: int, seed: int) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        k: rng.dirichlet(np.ones(d_vocab), size=(d_vocab,) * k)
        for k in sorted({degree for _, degree in graph.in_degree} - {0})
    }


def random_dag(seed: int, n_ctx: int = 5):
    """Positions with up to three parents, the last with one at least, the target with one or two."""
    rng = np.random.default_rng((seed, 1))
    parents = [
        sorted(rng.choice(child, size=rng.integers(child == n_ctx - 1, min(child, 3) + 1), replace=False).tolist())
        for child in range(n_ctx)
    ]
    target = sorted(rng.choice(n_ctx, size=rng.integers(1, 3), replace=False).tolist())
    return cc.graph_from_parents([*parents, target])


def parents_and_target(graph) -> Context:
    return [cc.graphs.parents_of(graph, node) for node in range(graph.number_of_nodes())]


def lower(matrix: np.ndarray, last_key: int | None, diagonal: int) -> np.ndarray:
    kept = np.tril(matrix, diagonal)
    if last_key is not None:
        kept[-1] = 0.0
    return kept


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), last_key=st.sampled_from([None, 0, 3, 4]))
def test_the_limit_equals_brute_force_over_all_sequences(seed, last_key):
    graph = random_dag(seed)
    kernels = own_matrices(graph, 2, seed)
    task = cc.InContextTask(graph, d_vocab=2, transition_matrices=kernels, roots="uniform")
    found = cc.predicted_gradient(task, n_matrices=2, last_key=last_key)
    key = 4 if last_key is None else last_key
    expected = oracles.limit_gradient(parents_and_target(graph), kernels, np.full(2, 0.5), key)
    assert found.method == "enumeration"
    np.testing.assert_allclose(found.value, lower(expected, last_key, -1), atol=3e-6)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("last_key", [None, 1, 3])
def test_the_finite_context_gradient_is_autograds_on_the_reduced_model(seed, last_key):
    graph = random_dag(seed)
    kernels = own_matrices(graph, 2, seed)
    task = cc.InContextTask(graph, d_vocab=2, transition_matrices=kernels, roots="uniform")
    found = cc.information.finite_context_gradient(task, n_matrices=2, last_key=last_key).value
    scores = cc.information.through_softmax(found).numpy()  # autograd differentiates scores
    differences = []
    for beta0 in (1e-3, 1e-4):
        of_model = oracles.gradient_by_autograd(parents_and_target(graph), kernels, np.full(2, 0.5), beta0, last_key)
        differences.append(np.abs(lower(of_model, last_key, 0) - scores).max() / np.abs(scores).max())
    assert differences[1] < 1e-3
    assert (
        differences[1] < differences[0] / 5 or differences[1] < 2e-5
    )  # first order in beta0, down to kernels' float32


@settings(deadline=None)
@given(seed=st.integers(0, 10_000), n_tokens=st.integers(2, 3))
def test_forests_with_other_roots_equal_brute_force(seed, n_tokens):
    graph = cc.random_forest(6, 0.4, seed=seed)
    kernels = own_matrices(graph, n_tokens, seed)
    task = cc.InContextTask(graph, d_vocab=n_tokens, transition_matrices=kernels, roots="uniform")
    found = cc.predicted_gradient(task, n_matrices=2)
    assert found.method == "propagation"
    context, law = [cc.graphs.parents_of(graph, i) for i in range(5)], np.full(n_tokens, 1 / n_tokens)
    joint = oracles.pair_laws(context, kernels, law)
    share = np.mean([joint[i, i].diagonal() for i in range(5)], axis=0)
    for i in range(5):
        for j in range(i):
            expected = (kernels[1].T / share[:, None] * joint[i, j]).sum() - 1
            assert found.value[i, j].item() == pytest.approx(expected, abs=3e-6)
    finite = cc.information.finite_context_gradient(task, n_matrices=2).value
    np.testing.assert_allclose(finite, oracles.expected_first_order_gradient(context, kernels[1], law), atol=1e-5)


@pytest.mark.parametrize("last_key", [None, 4])
def test_sampling_agrees_with_enumeration_within_its_errors(monkeypatch, last_key):
    task = cc.InContextTask(cc.ngram_graph(6, 2), d_vocab=2, alpha=0.5)
    exact = cc.predicted_gradient(task, 512, last_key=last_key)
    exact_finite = cc.information.finite_context_gradient(task, 4096, last_key=last_key)
    monkeypatch.setattr(pair_laws, "MOST_ENUMERATED", 0)
    sampled = cc.predicted_gradient(task, 512, last_key=last_key)  # the same kernels, from the same seed
    finite = cc.information.finite_context_gradient(task, 128, seed=1, last_key=last_key)
    assert (exact.method, sampled.method, finite.method) == ("enumeration", "sampling", "sampling")
    above = torch.ones(6, 6, dtype=torch.bool).triu()  # the diagonal too: in the limit a token tells nothing of itself
    assert torch.equal(sampled.value[above], exact.value[above])
    below = torch.ones(6, 6, dtype=torch.bool).tril(-1)
    below[-1] = last_key is None
    below = below.tril(-1)
    assert (sampled.value - exact.value)[below].abs().max() < 0.02  # of values up to .5
    assert_within_sampling_error(sampled.value[below], exact.value[below], sampled.standard_error[below])
    error = (finite.standard_error**2 + exact_finite.standard_error**2).sqrt()
    assert_within_sampling_error(finite.value[below], exact_finite.value[below], error[below])


@pytest.mark.parametrize("d_vocab", [2, 3])
def test_each_parent_of_the_target_singles_out_the_parents_of_its_rank(d_vocab):
    task = cc.InContextTask(cc.ngram_graph(7, 2), d_vocab=d_vocab, alpha=0.3)
    for rank, last_key in enumerate(task.target_parents):
        g = cc.predicted_gradient(task, 1024, last_key=last_key)
        for child in range(2, 6):
            assert int(g.value[child, :child].argmax()) == child - 2 + rank
        assert cc.compare_gradient(g.value, g.value, task.graph).rows_right == 1.0


def test_the_gradient_at_a_finite_context_tends_to_the_limit_like_one_over_n_ctx():
    kernel, scaled = np.array([[[0.8, 0.2], [0.5, 0.5]], [[0.3, 0.7], [0.4, 0.6]]]), []
    for n_ctx in (7, 10, 13):
        graph = cc.graph_from_parents([[], [], [0, 1], *[[] for _ in range(n_ctx - 3)], [n_ctx - 2, n_ctx - 1]])
        task = cc.InContextTask(graph, d_vocab=2, transition_matrices={2: kernel})
        both = (
            predict(task, 2, last_key=n_ctx - 2)
            for predict in (cc.predicted_gradient, cc.information.finite_context_gradient)
        )
        limit, finite = (g.value[2, 0].item() for g in both)
        scaled.append(n_ctx * (limit - finite))
    assert limit > 0.05
    assert abs(scaled[2] / scaled[1] - 1) < 0.6 * abs(scaled[1] / scaled[0] - 1) < 0.1
