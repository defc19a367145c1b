"""Information against enumeration, against the numbers of the theory, and against the gradient it predicts."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import causal_circuits as cc


def enumerated_pair_laws(graph, kernel: np.ndarray, law: np.ndarray) -> np.ndarray:
    """P(x_i = a, x_j = b) for all pairs [i, j, a, b], by summing over every sequence of tokens."""
    n_positions, n_tokens = cc.graphs.n_ctx_of(graph) - 1, len(law)
    joint = np.zeros((n_positions, n_positions, n_tokens, n_tokens))
    for tokens in itertools.product(range(n_tokens), repeat=n_positions):
        probability = 1.0
        for position in range(n_positions):
            parents = cc.parents_of(graph, position)
            probability *= kernel[tokens[parents[0]], tokens[position]] if parents else law[tokens[position]]
        for i, j in itertools.product(range(n_positions), repeat=2):
            joint[i, j, tokens[i], tokens[j]] += probability
    return joint


def random_kernel(seed: int, n_tokens: int) -> np.ndarray:
    return np.random.default_rng(seed).dirichlet(np.ones(n_tokens), size=n_tokens)


@given(seed=st.integers(0, 10_000), n_tokens=st.integers(2, 3))
def test_both_quantities_equal_enumeration_over_all_sequences(seed, n_tokens):
    graph = cc.random_forest(6, 0.3, seed=seed)
    kernel = random_kernel(seed, n_tokens)
    task = cc.InContextTask(graph, d_vocab=n_tokens, kernels=kernel)
    law = task.given_laws[0]
    joint = enumerated_pair_laws(graph, kernel, law)
    chi_squared, gradient = cc.chi_squared_information(task, n_kernels=2), cc.predicted_gradient(task, n_kernels=2)
    for i in range(5):
        for j in range(i):
            excess = joint[i, j] - np.outer(law, law)
            expected = (excess**2 / np.outer(law, law)).sum()
            assert chi_squared.value[i, j].item() == pytest.approx(expected, abs=1e-6)
            expected = (kernel.T / law[:, None] * excess).sum()
            assert gradient.value[i, j].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("d_vocab", "alpha", "parent", "uncle"), [(10, 0.1, 2.998, 1.257), (3, 1.0, 0.307, 0.073)])
def test_gradient_at_parent_grandparent_sibling_and_uncle(d_vocab, alpha, parent, uncle):
    # 1 and 2 are children of 0; 3 is a child of 1: its parent 1, its grandparent 0, its uncle 2
    task = cc.InContextTask(cc.graph_from_parents([None, 0, 0, 1]), d_vocab=d_vocab, alpha=alpha)
    gradient = cc.predicted_gradient(task, n_kernels=20_000)
    for (i, j), expected in {(3, 1): parent, (3, 0): 0.0, (2, 1): 0.0, (3, 2): uncle}.items():
        assert abs(gradient.value[i, j].item() - expected) < 5 * gradient.standard_error[i, j].item() + 5e-4


@given(seed=st.integers(0, 10_000), d_vocab=st.integers(2, 6), alpha=st.sampled_from([0.1, 0.5, 2.0]))
def test_no_position_has_a_larger_gradient_than_the_parent(seed, d_vocab, alpha):
    graph = cc.random_forest(12, 0.3, seed=seed)
    task = cc.InContextTask(graph, d_vocab=d_vocab, alpha=alpha)
    gradient = cc.predicted_gradient(task, n_kernels=256).value
    chi_squared = cc.chi_squared_information(task, n_kernels=256).value
    assert chi_squared.min() >= 0
    for parent, child in cc.latent_edges(graph):
        assert gradient[child, parent].item() == pytest.approx(chi_squared[child, parent].item(), rel=1e-6)
        assert gradient[child, :child].max() <= gradient[child, parent] * (1 + 1e-9)


def test_information_falls_along_a_chain():
    chi_squared = cc.chi_squared_information(cc.InContextTask(cc.chain_graph(8), d_vocab=4, alpha=0.5)).value
    assert (chi_squared[6, :6].diff() > 0).all()


def test_positions_without_a_common_ancestor_share_no_information():
    task = cc.InContextTask(cc.pairs_graph(8), d_vocab=4)
    information = cc.chi_squared_information(task, n_kernels=64).value
    edges = {(child, parent) for parent, child in cc.latent_edges(task.graph)}
    for i, j in itertools.product(range(8), repeat=2):
        assert (information[i, j] > 0) == ((i, j) in edges)


def test_score_gradient_is_the_softmax_jacobian_of_uniform_attention():
    g = torch.randn(7, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tril(-1)
    scores = torch.zeros(7, 7, dtype=torch.float64, requires_grad=True)
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    (scores.masked_fill(future, -torch.inf).softmax(dim=-1) * g).sum().backward()
    torch.testing.assert_close(cc.score_gradient_of(g), scores.grad)


def test_estimate_equals_its_formula_summed_by_hand():
    task = cc.InContextTask(cc.random_forest(6, 0.3, seed=4), d_vocab=3)
    batch = task.sample(7, seed=1)
    expected = np.zeros((6, 6))
    for tokens, target in zip(batch.tokens.tolist(), batch.target_probs.tolist(), strict=True):
        context, query = tokens[:-1], tokens[-1]
        frequency = [(context.count(a) + 0.5) / (5 + 1.5) for a in range(3)]
        for i in range(5):
            others = [a for k, a in enumerate(context) if k != i]
            for j in range(i):
                hit = (context[j] == query) - others.count(query) / 4
                expected[i, j] += 3 * target[context[i]] / frequency[context[i]] * hit / 7
    np.testing.assert_allclose(cc.estimate_gradient(batch.tokens, batch.target_probs).value, expected, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_estimated_row_maxima_are_the_parents(seed):
    graph = cc.random_forest(20, 0.4, seed=seed)
    batch = cc.InContextTask(graph, d_vocab=3 + seed).sample(20_000, seed=seed)
    estimate = cc.estimate_gradient(batch.tokens, batch.target_probs)
    for parent, child in cc.latent_edges(graph):
        assert estimate.value[child, :child].argmax() == parent
        assert estimate.value[child, parent] > 5 * estimate.standard_error[child, parent]


def test_estimate_sees_nothing_between_independent_tokens():
    batch = cc.InContextTask(cc.graph_from_parents([None] * 19), d_vocab=5).sample(20_000, seed=2)
    estimate = cc.estimate_gradient(batch.tokens, batch.target_probs)
    below = torch.ones(20, 20, dtype=torch.bool).tril(-1)
    below[-1] = False
    assert (estimate.value / estimate.standard_error)[below].abs().max() < 5  # of 171 entries


def test_gradient_of_the_reduced_model_is_proportional_to_the_prediction():
    task = cc.InContextTask(cc.pairs_graph(20), d_vocab=10, alpha=0.1)
    model = cc.warm_start(cc.reduced_transformer(10, 20), 0.1)
    measured = -cc.take_snapshot(model, task.sample(8192, seed=0)).score_gradients[0, 0].double()
    predicted = cc.score_gradient_of(cc.predicted_gradient(task).value)
    below = torch.ones(20, 20, dtype=torch.bool).tril(-1)
    below[-1] = False
    correlation = torch.corrcoef(torch.stack([measured[below], predicted[below]]))[0, 1]
    assert correlation > 0.98
    scale = measured[below] @ predicted[below] / predicted[below].square().sum() * 10 * 20 / 0.1
    assert 0.65 < scale < 1.0  # THEORY: .76 at this context length, tending to 1


def test_information_needs_a_forest_with_stationary_roots():
    with pytest.raises(ValueError, match="at most one parent"):
        cc.chi_squared_information(cc.InContextTask(cc.ngram_graph(6, 2), d_vocab=2))
    with pytest.raises(ValueError, match="roots='uniform'"):
        cc.predicted_gradient(cc.InContextTask(cc.chain_graph(6), d_vocab=2, roots="uniform"))
