"""What one more parent tells: enumeration against plain loops, estimates against enumeration, closed forms."""

from itertools import product

import numpy as np
import oracles
import pytest
import torch
from assertions import assert_refused, assert_within_sampling_error

import causal_circuits as cc

KERNEL = np.array([[[0.9, 0.1], [0.2, 0.8]], [[0.3, 0.7], [0.6, 0.4]]])
PARENTS = [[], [], [0, 1], [1, 2], [0, 3], [2, 4]]  # n_ctx 5


def small_task() -> cc.InContextTask:
    return cc.InContextTask(cc.graph_from_parents(PARENTS), d_vocab=2, kernels={2: KERNEL})


def test_exact_lifts_equal_plain_loops() -> None:
    task, given = small_task(), [cc.information.HeadKeys(2, (-1, -1, 0, 1, -1))]
    for matches in ([], given):
        found = cc.information.exact_conditional_information(task, matches).value
        for child, key, last_key in product(range(5), range(5), range(5)):
            expected = 0.0
            if key < child:
                held = (
                    [(matches[0].keys[child], matches[0].last_key)] if matches and matches[0].keys[child] >= 0 else []
                )
                expected = oracles.lift(PARENTS, KERNEL, child, key, last_key, held)
            assert float(found[child, key, last_key]) == pytest.approx(expected, abs=1e-6)


def test_estimates_agree_with_enumeration() -> None:
    task, given = small_task(), [cc.information.HeadKeys(2, (-1, -1, 0, 1, -1))]
    exact = cc.information.exact_conditional_information(task, given)
    batch = task.sample(20_000, seed=2)
    found = cc.information.conditional_information(batch.tokens, batch.target_probs, given)
    assert_within_sampling_error(found.value, exact.value, found.standard_error + 1e-5)
    assert torch.allclose(found.share_matched, exact.share_matched, atol=0.02)


def test_a_standard_error_is_the_spread_of_the_estimate_over_samples() -> None:
    """Neither too small nor too large, also where the pair's share of the matched sequences is half."""
    task, given, found = small_task(), [cc.information.HeadKeys(2, (-1, -1, 0, 1, -1))], []
    for seed in range(200):
        batch = task.sample(400, seed=seed)
        found.append(cc.information.conditional_information(batch.tokens, batch.target_probs, given))
    spread = torch.stack([each.value for each in found]).std(dim=0)
    error = torch.stack([each.standard_error for each in found]).square().mean(dim=0).sqrt()
    told = (spread > 0.01) & error.isfinite()
    assert told.sum() > 20
    ratio = (error / spread)[told]
    assert float(ratio.min()) > 0.75  # 200 samples tell a spread to 5%
    assert float(ratio.max()) < 1.3


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_each_parent_known_multiplies_what_the_next_one_tells(alpha: float) -> None:
    """Uniform independent tokens: E[w | m matches] = 1 + (d_vocab rho - 1) d_vocab^(m - k)."""
    task = cc.InContextTask(cc.graph_from_parents([[], [], [], [], [0, 1], [2, 3]]), d_vocab=2, alpha=alpha)
    rho = (alpha + 1) / (2 * alpha + 1)
    excess = [(2 * rho - 1) * 2.0 ** (m - 2) for m in range(3)]
    alone = cc.information.exact_conditional_information(task, n_kernels=8192).value[4, 1, 3]
    given = cc.information.exact_conditional_information(
        task, [cc.information.HeadKeys(2, (-1, -1, -1, -1, 0))], n_kernels=8192
    ).value[4, 1, 3]
    assert float(alone) == pytest.approx(excess[1] - excess[0], abs=0.02)
    assert float(given) == pytest.approx(excess[2] - excess[1], abs=0.02)


def test_a_root_and_a_child_of_another_kernel_tell_nothing() -> None:
    task = cc.InContextTask(cc.graph_from_parents([[], [0], [], [], [2, 3]]), d_vocab=2, alpha=0.3)
    lift = cc.information.exact_conditional_information(task, n_kernels=4096).value
    monte_carlo = 4.5 * 2**0.5 / 4096**0.5  # w lies in 0 .. 2 with mean 1: 4.5 errors of a mean over kernels, at most
    assert lift[2].abs().max() < monte_carlo  # a root
    assert lift[1].abs().max() < monte_carlo  # a child, but its kernel is drawn apart from the target's


def test_bad_matches_are_refused() -> None:
    batch = small_task().sample(64)
    for matches, words in (
        (cc.information.HeadKeys(5, (-1,) * 5), ("last_key in 0 .. 4", "5")),
        (cc.information.HeadKeys(4, (-1,) * 3), ("one key for each of 5", "3 keys")),
        (cc.information.HeadKeys(4, (-1, -1, 3, -1, -1)), ("its position", "3 at position 2")),
    ):
        assert_refused(
            lambda m=matches: cc.information.conditional_information(batch.tokens, batch.target_probs, [m]), *words
        )
    large = cc.InContextTask(cc.ngram_graph(12, 2), d_vocab=4)
    assert_refused(lambda: cc.information.exact_conditional_information(large), "1,048,576", "smaller task")
