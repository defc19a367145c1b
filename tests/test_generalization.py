"""Other kernels: the families keep their promise, errors are what they say, and the search only ever gets worse."""

import numpy as np
import pytest
import torch
from assertions import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, kstest

import causal_circuits as cc

KERNEL = np.array([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6], [0.05, 0.9, 0.05]])


@given(
    family=st.sampled_from(cc.tasks.MATRIX_FAMILIES),
    d_vocab=st.integers(2, 6),
    gamma=st.floats(0.0, 0.9),
    seed=st.integers(0, 99),
)
def test_every_family_is_stochastic_and_bounded_below(family: str, d_vocab: int, gamma: float, seed: int) -> None:
    kernels = cc.tasks.matrix_family(family, 5, d_vocab, gamma=gamma, seed=seed)
    assert kernels.shape == (5, d_vocab, d_vocab)
    assert np.allclose(kernels.sum(axis=-1), 1.0, atol=1e-12)
    assert kernels.min() >= gamma / d_vocab - 1e-12
    assert np.array_equal(kernels, cc.tasks.matrix_family(family, 5, d_vocab, gamma=gamma, seed=seed))
    other = cc.tasks.matrix_family(family, 5, d_vocab, gamma=gamma, seed=seed + 1)
    assert d_vocab < 4 or not np.array_equal(kernels, other)


def test_each_family_is_what_its_name_says() -> None:
    assert np.diagonal(cc.tasks.matrix_family("sticky", 50, 4, gamma=0.0), axis1=1, axis2=2).min() >= 0.8
    assert ((cc.tasks.matrix_family("sparse", 50, 5, gamma=0.0) > 0).sum(axis=-1) <= 2).all()
    assert set(np.unique(cc.tasks.matrix_family("near-deterministic", 50, 4, gamma=0.0))) == {0.0, 1.0}


def test_families_refuse_what_they_are_not() -> None:
    assert_refused(lambda: cc.tasks.matrix_family("square"), "sticky", "'square'")
    assert_refused(lambda: cc.tasks.matrix_family("sparse", gamma=1.0), "gamma", "[0, 1)", "1.0")


def test_prediction_errors_are_the_mean_distance_of_each_query_token(fork) -> None:
    def predictor(tokens: torch.Tensor) -> torch.Tensor:
        return torch.softmax(torch.nn.functional.one_hot(tokens[:, :3], 3).sum(dim=1).double(), dim=-1)

    found = cc.generalization.prediction_errors(predictor, fork, KERNEL, n_sequences=200, seed=5)
    batch = cc.InContextTask(fork, 3, transition_matrices=KERNEL).sample(200, seed=5)
    distances: list[list[float]] = [[], [], []]
    for tokens, predicted in zip(batch.tokens.tolist(), predictor(batch.tokens).tolist(), strict=True):
        row = KERNEL[tokens[-1]]
        distances[tokens[-1]].append(max(abs(p - q) for p, q in zip(predicted, row, strict=True)))
    assert np.allclose(found, [np.mean(d) for d in distances], atol=1e-6)  # targets are float32
    assert np.allclose(cc.generalization.prediction_errors(predictor, fork, KERNEL, reference=predictor), 0.0)


def test_a_predictor_that_knows_the_kernel_has_no_error_and_an_unasked_token_none_to_show() -> None:
    graph = cc.chain_graph(6)
    perfect = cc.generalization.prediction_errors(lambda tokens: torch.from_numpy(KERNEL)[tokens[:, -1]], graph, KERNEL)
    assert perfect.max() < 1e-6
    one = cc.generalization.prediction_errors(
        lambda tokens: torch.full((len(tokens), 3), 1 / 3), graph, KERNEL, n_sequences=1
    )
    assert np.isnan(one).sum() == 2


def test_prediction_errors_need_a_query() -> None:
    assert_refused(
        lambda: cc.generalization.prediction_errors(lambda t: t, cc.ngram_graph(5, 1), np.full((2, 2), 0.5)),
        "forest with a query",
    )


@given(st.integers(0, 30))
def test_the_search_is_never_worse_than_its_random_start(seed: int) -> None:
    target = np.random.default_rng(seed).dirichlet(np.ones(4), size=4)
    worst = cc.generalization.worst_matrix(
        lambda kernel: -float(np.abs(kernel - target).max()), 4, gamma=0.1, n_start=8, n_rounds=10, seed=seed
    )
    assert worst.error >= worst.start_error
    assert worst.error == -np.abs(worst.matrix - target).max()
    assert np.allclose(worst.matrix.sum(axis=1), 1.0)
    assert worst.matrix.min() >= 0.1 / 4 - 1e-12


def test_the_search_finds_a_known_worst_kernel() -> None:
    """The kernel furthest from uniform in the first row and column: a corner, (1 - gamma) + gamma / d_vocab."""
    worst, again = (
        cc.generalization.worst_matrix(lambda k: float(k[0, 0] + k[1, 0]), 3, gamma=0.3, n_rounds=100, seed=2)
        for _ in range(2)
    )
    assert 2 * 0.79 < worst.error <= 2 * 0.8 + 1e-12
    assert np.array_equal(worst.matrix, again.matrix)


@pytest.mark.parametrize("alpha", [0.1, 0.3, 1.0, 10.0])
def test_dirichlet_families_have_the_alpha_of_their_name(alpha: float) -> None:
    """An entry of a row of 4 is Beta(alpha, 3 alpha)."""
    entries = cc.tasks.matrix_family(f"dirichlet {alpha:g}", 4000, 4, gamma=0.0, seed=1)[:, 0, 0]
    assert kstest(entries, beta(alpha, 3 * alpha).cdf).pvalue > 1e-4
