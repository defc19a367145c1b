"""Rows against the target's law: the known answer, equal events against brute force, and what heads then carry."""

from itertools import combinations, product

import oracles
import pytest
import torch
from assertions import assert_within_sampling_error
from hypothesis import given, settings
from hypothesis import strategies as st

import causal_circuits as cc
from causal_circuits.discovery.row_shares import RowTest, judge_row, same_event

MIXED = [[], [], [0, 1], [0], [1, 2], [0, 2, 3], [3, 4], [], [2, 6], [5, 6], [4, 8]]


@pytest.mark.parametrize(("d_vocab", "alpha"), [(2, 0.1), (3, 1.0), (5, 0.1)])
def test_a_child_has_the_targets_own_information_and_others_less(d_vocab: int, alpha: float) -> None:
    task = cc.InContextTask(cc.graph_from_parents(MIXED), d_vocab=d_vocab, alpha=alpha)
    batch = task.sample(40_000, seed=1)
    test = RowTest(batch.tokens, batch.target_probs)
    for child in range(2, task.n_ctx - 1):
        above = cc.graphs.parents_of(task.graph, child)
        if len(above) == 2 and child not in task.target_parents:  # a child that chooses the target's row is biased
            whole = test.share(child, dict(zip(task.target_parents, above, strict=True)))
            assert_within_sampling_error(torch.tensor([whole.value]), torch.ones(1), torch.tensor([whole.error + 0.02]))
            assert test.share(child, {task.target_parents[0]: above[0]}).value < 0.9
    root = test.share(7, dict(zip(task.target_parents, (2, 6), strict=True)))
    assert root.value < 0.5


def test_the_share_equals_plain_loops() -> None:
    task = cc.InContextTask(cc.graph_from_parents(MIXED), d_vocab=3)
    batch, keys = task.sample(400, seed=2), {4: 1, 8: 2}
    found = RowTest(batch.tokens, batch.target_probs).share(5, keys).value
    expected = oracles.row_share(batch.tokens.tolist(), batch.target_probs.tolist(), 5, keys)
    assert found == pytest.approx(expected, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_same_event_finds_exactly_the_parents_that_hold_in_the_same_sequences(data: st.DataObject) -> None:
    n_ctx, k = 6, data.draw(st.integers(1, 3))
    last_keys = tuple(sorted(data.draw(st.sets(st.integers(0, n_ctx - 1), min_size=k, max_size=k))))
    child = data.draw(st.integers(1, n_ctx - 1))
    keys = {t: data.draw(st.integers(0, child - 1)) for t in last_keys if data.draw(st.booleans())}
    sequences = list(product(range(3), repeat=n_ctx))

    def event(pairs: dict[int, int]) -> list[bool]:
        return [all(x[key] == x[t] for t, key in pairs.items()) for x in sequences]

    wanted = event(keys)
    choices = [dict(zip(last_keys, chosen, strict=True)) for chosen in combinations(range(child), k)]
    assert same_event(keys, child, last_keys) == [choice for choice in choices if event(choice) == wanted]


def test_rows_too_early_or_out_of_order_are_no_children() -> None:
    task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=3)
    batch = task.sample(8192, seed=0)
    test = RowTest(batch.tokens, batch.target_probs)
    assert "fewer earlier positions" in judge_row(test, 1, {6: 0, 7: 0}, {6, 7}, {}).reason
    assert judge_row(test, 5, {6: 4, 7: 3}, {6, 7}, {}).keys == {6: 3, 7: 4}  # swapped
    assert "information of a child" in judge_row(test, 5, {6: 1, 7: 2}, {6, 7}, {}).reason
    few = RowTest(batch.tokens[:20], batch.target_probs[:20])
    assert "too few sequences" in judge_row(few, 5, {6: 3, 7: 4}, {6, 7}, {}).reason
