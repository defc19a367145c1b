"""The parts of graph discovery one by one: sums over sequences against loops, where rules begin."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import causal_circuits as cc
from causal_circuits.discovery.assumptions import unusable_positions
from causal_circuits.discovery.edge_scores import EdgeScores
from causal_circuits.discovery.user_data import read_data
from causal_circuits.statistics import holm


@pytest.fixture(scope="module")
def data():
    """60 sequences over 6 positions and a query: tokens, targets."""
    batch = cc.InContextTask(cc.graph_from_parents([None, 0, 0, None, 1, None]), d_vocab=3).sample(60, seed=3)
    return batch.tokens.numpy(), batch.target_probs.double().numpy()


@pytest.fixture(scope="module")
def terms(data):
    """Each sequence's child factors a_i, hits h_j, |y|^2 factor and offset, by the formulas of `edge_scores`."""
    tokens, targets = data
    asked = np.bincount(tokens[:, -1], minlength=3) / len(tokens)
    sharpness = np.array([y @ y for y in targets])
    plain = np.array([[3 * y[token] for token in row[:-1]] for y, row in zip(targets, tokens, strict=True)])
    offset = np.polyval(np.polyfit(sharpness, plain.mean(axis=1), 1), sharpness)
    hit = np.array([[(token == row[-1]) / (3 * asked[row[-1]]) for token in row[:-1]] for row in tokens])
    return plain - offset[:, None], hit, 3 * sharpness - offset, offset


def assert_contrasts(found, values) -> None:
    """Mean and unbiased variance over sequences of values [sequence, ...]."""
    np.testing.assert_allclose(found.mean, values.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(found.variance, values.var(axis=0, ddof=1), atol=1e-9)
    assert found.n == len(values)


def test_differences_of_edge_scores_have_the_means_and_variances_of_plain_loops(data, terms):
    (a, h, sharp, _), scores, best = terms, EdgeScores(*data, 60), np.array([0, 0, 0, 2, 1, 4])
    products = a[:, :, None] * h[:, None, :]
    np.testing.assert_allclose(scores.score, products.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(scores.expected, (sharp[:, None] * h).mean(axis=0), atol=1e-9)
    at_best = np.stack([products[:, i, j] for i, j in enumerate(best)], axis=1)
    assert_contrasts(scores.against_rivals(best), at_best[:, :, None] - products)
    assert_contrasts(scores.against_edge(), (sharp[:, None] - a)[:, :, None] * h[:, None, :])
    below = scores.below(0.7)
    np.testing.assert_allclose(below.mean, 0.7 - products.mean(axis=0), atol=1e-9)
    np.testing.assert_allclose(below.variance, products.var(axis=0, ddof=1), atol=1e-9)
    halfway = 0.3 * sharp[:, None, None] * h[:, None, :] + 0.7 * 0.2 - products
    assert_contrasts(scores.against_edge(0.3, 0.2), halfway)
    edges = np.stack([products[:, 1, 0], products[:, 4, 2]], axis=1)
    assert_contrasts(scores.between_edges(np.array([1, 4]), np.array([0, 2])), edges[:, None, :] - edges[:, :, None])
    largest = (np.abs(a).max(axis=1) * h.max(axis=1)).max()
    assert below.bound == pytest.approx(2 * largest)


def test_what_a_forest_implies_has_the_means_and_variances_of_plain_loops(data, terms):
    (tokens, targets), (a, h, _, offset), scores = data, terms, EdgeScores(*data, 60)
    earlier = np.tril(np.ones((6, 6), dtype=bool), -1)
    earlier[:, 2] = earlier[2] = False
    row, agreement = scores.against_row(earlier), scores.against_agreement()
    parent = np.array([-1, 0, -1, -1, 1, -1])
    beyond = scores.beyond_parent(parent)
    for i in range(6):
        for j in range(i):
            others = [k for k in range(i) if k not in (2, j)]
            pair = a[:, i] * h[:, j]
            equal = tokens[:, i] == tokens[:, j]
            found = [(agreement, pair + offset * h[:, j] - equal)]
            if i != 2 and j != 2 and others:
                found.append((row, pair - np.mean([a[:, i] * h[:, k] for k in others], axis=0)))
            if parent[i] >= 0:
                law = np.array([y[token] for y, token in zip(targets, tokens[:, j], strict=True)])
                found.append((beyond, h[:, parent[i]] * (equal - law)))
            for contrasts, values in found:
                assert contrasts.mean[i, j] == pytest.approx(values.mean(), abs=1e-9)
                assert contrasts.variance[i, j] == pytest.approx(values.var(ddof=1), abs=1e-9)
    np.testing.assert_array_equal(agreement.flipped().mean, -agreement.mean)


def test_the_first_pair_is_tested_by_others_and_by_equal_tokens(data, terms):
    (a, h, _, offset), others = terms, np.array([2, 3, 5])
    by_others, by_match = EdgeScores(*data, 60).of_first_pair(1, 0, others)
    pair = a[:, 1] * h[:, 0]
    both = [[pair - a[:, other] * h[:, key] for key in (0, 1)] for other in others]
    assert_contrasts(by_others, np.moveaxis(np.array(both), 2, 0))
    equal = data[0][:, 1] == data[0][:, 0]
    assert_contrasts(by_match, (pair + offset * h[:, 0] - equal)[:, None, None])


def test_fewer_sequences_than_rows_count_where_some_are_copies(data):
    few, all_of_them = EdgeScores(*data, 30).against_edge(), EdgeScores(*data, 60).against_edge()
    np.testing.assert_allclose(few.variance / (30 / 29), all_of_them.variance / (60 / 59))
    assert few.n == 30


def rejected_stepping_down(p_values: list[float], level: float) -> set[int]:
    """Holm (1979) as he wrote it: the smallest against level / n, the next against level / (n - 1), until one holds."""
    left, out = sorted(range(len(p_values)), key=p_values.__getitem__), set()
    while left and p_values[left[0]] * len(left) <= level:
        out.add(left.pop(0))
    return out


@given(st.lists(st.sampled_from([0.0, 0.004, 0.01, 0.02, 0.03, 0.3, 0.7, 1.0]), max_size=7))
def test_corrected_p_values_decide_as_holms_procedure_does(p_values):
    adjusted = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, adjusted, strict=True))
    for level in (0.011, 0.051, 0.101, 0.5, 0.99):
        assert {i for i, q in enumerate(adjusted) if q <= level} == rejected_stepping_down(p_values, level)


@pytest.mark.parametrize(("chance", "named"), [(0.53, []), (0.7, [2])])
def test_a_position_is_passed_over_for_another_law_not_for_one_that_is_a_little_off(chance, named):
    """With 20,000 sequences three hundredths are beyond doubt (p below 1e-10), but no sign of another process."""
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.random((20_000, 6)) < [0.5, 0.5, chance, 0.5, 0.5, 0.5]).long()
    why, _ = unusable_positions(read_data(tokens, torch.from_numpy(rng.integers(2, size=len(tokens))), None))
    assert [position for position, reason in why.items() if "frequencies" in reason] == named
