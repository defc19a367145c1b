"""Heads take turns: the mixed second derivative, what a turn writes, and graphs that several heads learn."""

import numpy as np
import pytest
import torch
from assertions import assert_close, assert_given_back, assert_refused

import causal_circuits as cc
from causal_circuits.recording import join_records
from causal_circuits.training import mean_loss
from causal_circuits.training.steps import TRAINING_STREAM

MIXED = [[], [], [0, 1], [1], [0, 2], [], [2, 4], [3, 5], [1, 6], [0, 4, 7], [6, 8], [2, 9]]


def loss_with_score_raised(model: cc.models.HookedTransformer, batch: cc.Batch, i: int, j: int, t: int, by: float):
    """The mean loss when layer 1's score of key i rises by `by` where tokens j and t are equal, but not on average."""
    same = (batch.tokens[:, j] == batch.tokens[:, t]).double()
    same -= same.mean()

    def raise_score(pattern: torch.Tensor, hook: object) -> torch.Tensor:
        last = pattern[:, :, -1].clone()
        last[:, 0, i] = last[:, 0, i] * (by * same).exp()
        pattern = pattern.clone()
        pattern[:, :, -1] = last / last.sum(dim=-1, keepdim=True)
        return pattern

    with torch.no_grad(), model.hooks(fwd_hooks=[("blocks.1.attn.hook_pattern", raise_score)]):
        return float(mean_loss(model, batch))


def test_the_gain_is_minus_the_derivative_of_the_loss() -> None:
    task = cc.InContextTask(cc.ngram_graph(5, 2), d_vocab=3)
    model = cc.disentangled_transformer(3, 5, (2, 1), init_scale=0.4, seed=1, dtype=torch.float64)
    batch = task.sample(64, seed=0).to("cpu", torch.float64)
    with assert_given_back(model):
        gain = cc.training.pair_gain(model, batch).value.double()
    step, cells = 1e-4, [(i, j, t) for i in range(4) for j in range(i) for t in range(5)]
    slopes = [
        (loss_with_score_raised(model, batch, *cell, step) - loss_with_score_raised(model, batch, *cell, -step))
        / (2 * step)
        for cell in cells
    ]
    assert_close(torch.stack([gain[cell] for cell in cells]), -torch.tensor(slopes), 1e-5)
    assert gain[-1].abs().max() == 0
    assert gain.triu().diagonal(dim1=0, dim2=1).abs().max() == 0


def test_the_first_gain_points_at_the_targets_parents_and_the_second_at_what_is_left() -> None:
    graph = cc.ngram_graph(12, 2)
    task = cc.InContextTask(graph, d_vocab=3)
    model = cc.models.warm_readout(cc.disentangled_transformer(3, 12, (2, 1)), 4.0)
    first = cc.training.take_turn(model, task.sample(8192, seed=1), 0)
    second = cc.training.take_turn(model, task.sample(8192, seed=2), 1, (first,))
    assert {first.last_key, second.last_key} == set(task.target_parents)
    assert float(second.support.max()) > float(first.support.max())  # given the first parent, the second tells more
    for turn in (first, second):
        number = task.target_parents.index(turn.last_key)
        right = [int(turn.gain[row].argmax()) == cc.graphs.parents_of(graph, row)[number] for row in range(2, 11)]
        assert all(right)


@pytest.mark.parametrize(
    ("parents", "d_vocab"),
    [
        ([[], [], *([i - 2, i - 1] for i in range(2, 13))], 3),
        ([[], [], [], *([i - 3, i - 2, i - 1] for i in range(3, 25))], 3),
        (MIXED, 3),
    ],
    ids=["3-gram", "4-gram", "mixed"],
)
def test_heads_in_turn_learn_every_edge_that_tells_something(parents: list[list[int]], d_vocab: int) -> None:
    graph = cc.graph_from_parents(parents)
    task = cc.InContextTask(graph, d_vocab=d_vocab)
    k = len(task.target_parents)
    model = cc.disentangled_transformer(d_vocab, task.n_ctx, (k, 1))
    config = cc.training.TurnConfig(steps=40 * k + 20, settle=40, batch_size=512, n_sequences=8192)
    record, turns = cc.training.train_in_turns(model, task, config, record=cc.RecordAt(steps=()), progress=False)
    assert {turn.last_key for turn in turns} == set(task.target_parents)
    found = cc.extract_graph(model, task, n_sequences=8192)
    recovery = cc.compare_graphs(graph, found)
    assert recovery.false == ()
    silent = {
        (p, c)
        for p, c in graph.edges
        if c == task.n_ctx - 1
        or (c < task.n_ctx and (graph.in_degree(c) != k or p == task.target_parents[parents[c].index(p)]))
    }
    assert set(recovery.missing) <= silent
    test = task.sample(4096, seed=5)
    assert float(cc.evaluate(model, test).mean()) < min(
        loss for which, loss in cc.tasks.subset_losses(task, test).items() if len(which) < k
    )
    assert len(record.losses) == config.steps


def test_training_a_task_with_several_parents_takes_turns_by_itself() -> None:
    task = cc.InContextTask(cc.ngram_graph(6, 2), d_vocab=2)
    models = [cc.disentangled_transformer(2, 6, (2, 1)) for _ in range(2)]
    seen: list[int] = []

    class Stop(Exception):
        pass

    def stop_at(step: int, model: cc.models.HookedTransformer) -> None:
        seen.append(step)
        if step == 130:
            raise Stop

    record = cc.RecordAt(steps=(0, 60, 130))
    with pytest.raises(Stop):
        cc.train(models[0], task, record=record, progress=False, on_record=stop_at)
    with pytest.raises(Stop):
        cc.training.train_in_turns(models[1], task, record=record, progress=False, on_record=stop_at)
    assert seen == [0, 60, 130] * 2  # counted through the turns
    torch.testing.assert_close(models[0].W_Q, models[1].W_Q)


def test_a_constant_gain_of_rows_is_no_match() -> None:
    """A key that is t itself always matches: it tells nothing, however much a row is worth."""
    task = cc.InContextTask(cc.graph_from_parents(MIXED), d_vocab=3)
    model = cc.models.warm_readout(cc.disentangled_transformer(3, 11, (2, 1)), 4.0)
    gain = cc.training.pair_gain(model, task.sample(2048, seed=1)).value
    assert float(torch.stack([gain[:, t, t].abs().max() for t in range(11)]).max()) < 1e-6


def test_a_head_too_many_gets_nothing_to_do_and_carries_nothing() -> None:
    task = cc.InContextTask(cc.ngram_graph(10, 2), d_vocab=3)
    model = cc.disentangled_transformer(3, 10, (3, 2))
    config = cc.training.TurnConfig(steps=100, settle=30, batch_size=512, n_sequences=8192)
    _, turns = cc.training.train_in_turns(model, task, config, record=cc.RecordAt(steps=()), progress=False)
    assert [turn.last_key is None for turn in turns] == [False, False, True]
    heads = cc.extract_graph(model, task, n_sequences=8192).heads
    assert [head.role == "carries nothing" for head in heads] == [False, False, True]


def test_a_single_head_stops_above_two_and_the_parent_it_leaves_is_named() -> None:
    task = cc.InContextTask(cc.ngram_graph(12, 2), d_vocab=3)
    model = cc.disentangled_transformer(3, 12, (1, 1))
    with pytest.warns(UserWarning, match="has 2 parents and layer 0 of the model 1 head"):
        cc.training.train_in_turns(
            model, task, cc.training.TurnConfig(steps=120, settle=60, batch_size=512), progress=False
        )
    test, found = task.sample(4096, seed=5), cc.extract_graph(model, task, n_sequences=8192)
    assert float(cc.evaluate(model, test).mean()) > task.bayes_loss(test) + 0.05
    (head,) = found.heads
    (further,) = found.further_parents
    assert {head.last_key, further.last_key} == set(task.target_parents)
    assert cc.compare_graphs(task.graph, found).false == ()


def test_the_same_seed_gives_the_same_weights_and_steps_are_counted_through() -> None:
    task = cc.InContextTask(cc.ngram_graph(6, 2), d_vocab=2)
    config = cc.training.TurnConfig(steps=12, settle=4, batch_size=32, n_sequences=512, seed=3)
    runs = []
    for _ in range(2):
        model = cc.disentangled_transformer(2, 6, (2, 1), init_scale=1.0)  # what it comes with is overwritten
        record, turns = cc.training.train_in_turns(
            model, task, config, record=cc.RecordAt(steps=(0, 4, 7, 12)), progress=False
        )
        runs.append(model)
    assert torch.equal(runs[0].W_Q, runs[1].W_Q)
    assert record.steps == (0, 4, 7, 12)
    assert record.attention.shape[0] == len(record.recorded_losses) == 4
    assert [turn.start for turn in turns] == [0, 4]
    recorded, measured = record.attention[-1], cc.training.take_snapshot(runs[1], _last_batch(task, config)).attention
    torch.testing.assert_close(recorded[0], measured[0])
    torch.testing.assert_close(recorded[1, :, -1], measured[1, :, -1])  # the other rows are of a part of the batch


def _last_batch(task: cc.InContextTask, config: cc.training.TurnConfig) -> cc.Batch:
    """The batch on which the last state was measured: the one after the joint stage's own."""
    seed = int(np.random.SeedSequence((config.seed, 2)).generate_state(1)[0])
    n_joint = config.steps - 2 * config.settle
    return task.draws((seed, TRAINING_STREAM), n_joint * config.batch_size, config.batch_size)


def test_roots_are_left_alone_where_nothing_depends_on_anything() -> None:
    task = cc.InContextTask(cc.graph_from_parents([[]] * 6 + [[4, 5]]), d_vocab=2)
    model = cc.disentangled_transformer(2, 6, (2, 1))
    turns = [cc.training.take_turn(model, task.sample(4096, seed=head), head) for head in range(2)]
    assert [turn.last_key for turn in turns] == [None, None]
    assert model.W_Q.abs().max() == 0


def test_bad_turns_are_refused() -> None:
    assert_refused(lambda: cc.training.TurnConfig(steps=0), "steps must be at least 1", "0")
    assert_refused(lambda: cc.training.TurnConfig(match=0.0), "match must be positive", "0.0")
    assert_refused(lambda: cc.training.TurnConfig(seed=-1), "seed must be a non-negative integer", "-1")
    task = cc.InContextTask(cc.ngram_graph(6, 2), d_vocab=2)
    model = cc.disentangled_transformer(2, 6, (2, 1))
    assert_refused(
        lambda: cc.training.train_in_turns(model, task, cc.training.TurnConfig(steps=10, settle=5)),
        "settle x heads",
        "lower settle",
    )
    reduced = cc.reduced_transformer(2, 6, (2, 1))
    assert_refused(lambda: cc.training.train_in_turns(reduced, task), "disentangled models of two layers", "reduced")
    assert_refused(lambda: join_records([], cc.training.TurnConfig()), "at least one")
