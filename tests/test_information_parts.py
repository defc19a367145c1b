"""Parts of the information modules that their laws leave open: small changes to them once survived the other tests."""

import numpy as np
import pytest
import torch
from assertions import assert_refused

import causal_circuits as cc
from causal_circuits.information import conditional, dag_gradient, pair_laws


@pytest.mark.parametrize("n", [2, 3])
def test_errors_over_kernels_are_those_of_a_mean(n):
    values = np.random.default_rng(0).normal(size=(n, 4, 4))
    found = dag_gradient._averaged(values, None, "enumeration", diagonal=True)
    expected = np.tril(values.std(axis=0, ddof=1) / n**0.5)
    np.testing.assert_allclose(found.standard_error.numpy(), expected, rtol=1e-12)


def test_a_key_of_no_position_is_refused():
    task = cc.InContextTask(cc.chain_graph(5), d_vocab=3)
    batch = task.sample(50)

    def given(*keys: int) -> object:
        return conditional.conditional_information(batch.tokens, batch.target_probs, [conditional.Matches(3, keys)])

    given(-1, 0, 1, 2, -1)
    assert_refused(lambda: given(-2, 0, 1, 2, -1), "key", "-2")


def test_intervals_are_quantiles_of_two_resamples_or_more():
    batch = cc.InContextTask(cc.chain_graph(6), d_vocab=3).sample(400)
    cc.estimate_information(batch.tokens, batch.target_probs, n_bootstrap=2, n_splits=1)
    wide, narrow = (
        cc.estimate_information(batch.tokens, batch.target_probs, n_bootstrap=400, n_splits=1, level=level)
        for level in (0.05, 0.998)
    )
    below = torch.ones(5, 5, dtype=torch.bool).tril(-1)
    width = (wide.upper - wide.lower)[:5, :5][below]
    assert ((narrow.upper - narrow.lower)[:5, :5][below] < 0.05 * width).all()  # both ends near the median
    middle = (narrow.upper[:5, :5][below] - wide.lower[:5, :5][below]) / width
    assert ((middle > 0.3) & (middle < 0.7)).all()


@pytest.mark.parametrize("quantity", [cc.chi_squared_information, cc.mutual_information])
def test_the_bias_of_counting_is_taken_off(monkeypatch, quantity):
    """Two roots share no information; 200 sequences would show 1/200 of chi-squared, half of it in nats."""
    monkeypatch.setattr(pair_laws, "MOST_ENUMERATED", 0)
    monkeypatch.setattr(pair_laws, "SAMPLED_SEQUENCES", 200)
    found = quantity(cc.InContextTask(cc.ngram_graph(6, 2), d_vocab=2, alpha=0.5), 256)
    assert found.method == "sampling"
    assert abs(found.value[1, 0].item()) < 4 * found.standard_error[1, 0].item()
    assert abs(found.value[1, 0].item()) < 0.3 / 200


def test_errors_of_a_measured_gradient_are_those_over_sequences():
    batch = cc.InContextTask(cc.chain_graph(6), d_vocab=3).sample(40)
    for of in ("weights", "scores"):
        found = cc.measured_gradient(batch.tokens, batch.target_probs, of)
        each = [cc.measured_gradient(batch.tokens[i : i + 1], batch.target_probs[i : i + 1], of) for i in range(40)]
        values = torch.stack([one.value for one in each])
        torch.testing.assert_close(found.value, values.mean(dim=0))
        torch.testing.assert_close(found.standard_error, values.std(dim=0) / 40**0.5)


def test_what_is_not_asked_for_is_the_same_everywhere() -> None:
    """With their defaults, information and gradient average over the same kernels: equal at a true parent, exactly."""
    task = cc.InContextTask(cc.chain_graph(5), d_vocab=3, alpha=0.5)
    information, gradient = cc.chi_squared_information(task), cc.predicted_gradient(task)
    assert information.n_samples == gradient.n_samples == cc.mutual_information(task).n_samples
    parents = [(child, child - 1) for child in range(1, 4)]
    for child, parent in parents:
        assert information.value[child, parent].item() == pytest.approx(gradient.value[child, parent].item(), rel=1e-9)


def test_enumeration_draws_the_query_uniformly() -> None:
    """Forests are propagated; summed over all sequences instead they have the same joint laws, the query's too."""
    task = cc.InContextTask(cc.graph_from_parents([None, 0, 0, None]), d_vocab=3, alpha=0.5)
    kernels, law = pair_laws.draw(task, 4, 0)
    joint = np.concatenate(list(pair_laws.enumerated(task, kernels, law, 0)))  # [kernel, pair, s', s]
    found = dict(zip(zip(*np.tril_indices(5, -1), strict=True), joint.swapaxes(0, 1), strict=True))
    for position in range(4):
        expected = np.full((4, 3, 1), 1 / 3) * law[:, None, :]  # independent of all, and not stationary
        np.testing.assert_allclose(found[4, position], expected, atol=1e-6)  # kernels were drawn in float32
    for cells, propagated in pair_laws.propagated(task, kernels, law):
        for cell in cells:
            np.testing.assert_allclose(found[cell], propagated, atol=1e-6)
