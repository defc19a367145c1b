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
from causal_circuits.discovery.several_heads import judge_heads

PAPER = [[], [], *([(i - 1) // 2, i - 1] for i in range(2, 33))]
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


def planted(task: cc.InContextTask) -> torch.Tensor:
    """[head, query, key]: head h on parent number h, the last row on the target's."""
    n_ctx = task.n_ctx
    attention = torch.zeros(2, n_ctx, n_ctx)
    for row in [*range(2, n_ctx - 1), n_ctx]:
        for head, parent in enumerate(cc.graphs.parents_of(task.graph, row)):
            attention[head, min(row, n_ctx - 1), parent] = 1.0
    return attention


def judged(task: cc.InContextTask, attention: torch.Tensor) -> set[tuple[int, int]]:
    batch = task.sample(8192, seed=3)
    found, _, _ = judge_heads(attention, batch.tokens, batch.target_probs, range(len(attention)), 0.5, 0.01)
    return {(c.parent, c.child) for c in found if c.accepted}


def test_heads_on_one_key_that_single_out_the_same_sequences_carry_both_parents() -> None:
    """x_7 = x_15 and x_7 = x_31 is x_7 = x_15 and x_15 = x_31: of different parents in order only 7 and 15."""
    task = cc.InContextTask(cc.graph_from_parents(PAPER), d_vocab=5)
    attention = planted(task)
    attention[1, 16] = 0.0
    attention[1, 16, 7] = 1.0
    assert judged(task, attention) == {(p, c) for p, c in task.graph.edges if c != 31}


def test_a_last_row_that_is_half_free_carries_the_parents_of_the_last_position() -> None:
    task = cc.InContextTask(cc.graph_from_parents(PAPER), d_vocab=5)
    attention = planted(task)
    attention[1, -1] = 0.0
    attention[1, -1, 31], attention[1, -1, 30] = 0.55, 0.45
    assert judged(task, attention) == set(task.graph.edges)


def test_a_wrong_key_rejects_the_row_it_is_in_and_no_other() -> None:
    task = cc.InContextTask(cc.graph_from_parents(PAPER), d_vocab=5)
    attention = planted(task)
    attention[1, 20] = 0.0
    attention[1, 20, 12] = 1.0
    assert judged(task, attention) == {(p, c) for p, c in task.graph.edges if c not in (20, 31)}


def test_rows_too_early_or_out_of_order_are_no_children() -> None:
    task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=3)
    batch = task.sample(8192, seed=0)
    test = RowTest(batch.tokens, batch.target_probs)
    assert "fewer earlier positions" in judge_row(test, 1, {6: 0, 7: 0}, {6, 7}, {}).reason
    assert judge_row(test, 5, {6: 4, 7: 3}, {6, 7}, {}).keys == {6: 3, 7: 4}  # swapped
    assert "information of a child" in judge_row(test, 5, {6: 1, 7: 2}, {6, 7}, {}).reason
    few = RowTest(batch.tokens[:20], batch.target_probs[:20])
    assert "too few sequences" in judge_row(few, 5, {6: 3, 7: 4}, {6, 7}, {}).reason
