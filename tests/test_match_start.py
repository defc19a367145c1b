"""Several parents: the derivative of order k, what a start from matches writes, and the graphs that training keeps."""

import importlib

import numpy as np
import pytest
import torch
from assertions import assert_refused
from users import labels_of

import causal_circuits as cc
from causal_circuits.information import key_sets, match_gradient

MIXED = [[], [], [0, 1], [1], [0, 2], [], [2, 4], [3, 5], [1, 6], [0, 4, 7], [6, 8], [2, 9]]
FOURGRAM = [[], [], [], *([i - 3, i - 2, i - 1] for i in range(3, 11))]


@pytest.mark.parametrize(("k", "n_ctx", "d_vocab"), [(1, 8, 3), (2, 7, 3), (3, 6, 2)])
def test_the_derivative_of_order_k_is_the_centred_match_statistic(k: int, n_ctx: int, d_vocab: int) -> None:
    """Automatic differentiation of the model itself, against one pass over the data; and it points at the parents."""
    task = cc.InContextTask(cc.ngram_graph(n_ctx, k), d_vocab=d_vocab, alpha=0.3)
    batch, target, small = task.sample(4000 if k < 3 else 1000), tuple(range(n_ctx - k, n_ctx)), 1e-3
    model = cc.disentangled_transformer(d_vocab, n_ctx, (k, 1), dtype=torch.float64)
    cc.models.warm_readout(model, small)
    for head in range(k):
        for block in cc.models.match_blocks(model, head, by_copy=True):
            block.copy_(small * torch.eye(d_vocab))
    measured = cc.training.measured_match_gradient(model, batch, target)[:, :-1]  # the last row looks at the target's
    predicted = match_gradient(batch, target)[:, :-1] * small ** (k + 1)
    np.testing.assert_allclose(measured, predicted, atol=2e-3 * np.abs(predicted).max())
    child = n_ctx - 2
    assert key_sets(n_ctx - 1, k)[measured[:, child].argmax()].tolist() == list(range(child - k, child))


@pytest.mark.parametrize(("parents", "labels"), [(MIXED, False), (MIXED, True), (FOURGRAM, False)])
def test_a_start_from_matches_is_the_graph(parents: list[list[int]], labels: bool) -> None:
    """Of positions with as many parents as the target; the others' rows stay uniform. Labels do as well as laws."""
    task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=3)
    k, n_ctx, batch = len(task.target_parents), task.n_ctx, task.sample(10_000, seed=3)
    if labels:
        batch = cc.Batch(batch.tokens, labels_of(batch), d_vocab=3)
    model = cc.disentangled_transformer(3, n_ctx, (k, 1), init_scale=1.0)  # what it comes with is overwritten
    start = cc.training.start_from_matches(model, batch)
    assert start.target_parents == task.target_parents
    pattern = cc.mean_attention(model, batch.tokens[:8])[0, :k]
    assert pattern[:, -1].argmax(dim=1).tolist() == list(task.target_parents)
    for row in set(range(1, n_ctx - 1)) - set(task.target_parents):  # the matches of those hold their own token
        expected = parents[row] if len(parents[row]) == k else [-1] * k
        assert start.keys[:, row].tolist() == expected
        assert expected[0] < 0 or pattern[:, row].argmax(dim=1).tolist() == expected


def test_training_from_matches_keeps_the_graph_by_itself() -> None:
    task = cc.InContextTask(cc.ngram_graph(9, 2), d_vocab=3)
    model = cc.disentangled_transformer(3, 9, (2, 1))
    config = cc.TrainConfig.matched(300, match_start=8000)
    record = cc.train(model, task, config, record=cc.RecordAt(steps=(0,)), progress=False)
    found, test = cc.extract_graph(model, task, n_sequences=8000), task.sample(4096, seed=5)
    assert cc.compare_graphs(task.graph, found).false == ()
    assert {*found.edges, *found.inferred} == {*task.graph.edges}
    assert set(found.inferred) <= {(6, 8), (7, 8)}  # the last row has the target's parents to copy
    assert float(cc.evaluate(model, test).mean()) < task.bayes_loss(test) + 0.05
    assert record.attention[0, 0, 1, 5, 4] > 0.9  # the record shows what was written in


def test_two_heads_of_layer_1_part_and_predict_better_than_one() -> None:
    """They start with one pattern but for its strength, and from two strengths W_U can tell how many keys match."""
    task, excess = cc.InContextTask(cc.ngram_graph(9, 2), d_vocab=3), dict[int, float]()
    test = task.sample(8192, seed=5)
    for readers in (1, 2):
        model = cc.disentangled_transformer(3, 9, (2, readers))
        cc.train(model, task, cc.TrainConfig.matched(600, match_start=8000), progress=False)
        excess[readers] = float(cc.evaluate(model, test).mean()) - task.bayes_loss(test)
    strong, weak = cc.mean_attention(model, test.tokens[:2048])[1]
    assert float((strong - weak)[-1].abs().max()) > 0.02
    assert excess[2] < excess[1] - 0.002


def test_several_heads_and_a_target_without_a_query_start_from_matches() -> None:
    default = importlib.import_module("causal_circuits.training.loop")._default_config
    trigram, chain = (cc.InContextTask(graph, d_vocab=2) for graph in (cc.ngram_graph(6, 2), cc.chain_graph(6)))
    settings = ((trigram, (2, 1)), (trigram, (1, 1)), (chain, (2, 1)))
    starts = [default(cc.disentangled_transformer(2, 6, heads), task).match_start for task, heads in settings]
    assert starts == [20_000, None, None]


def test_nothing_is_written_in_where_nothing_depends_on_anything() -> None:
    task = cc.InContextTask(cc.graph_from_parents([[]] * 6 + [[4, 5]]), d_vocab=2)
    model = cc.disentangled_transformer(2, 6, (2, 1))
    config = cc.TrainConfig.matched(2, batch_size=8)
    with pytest.warns(UserWarning, match="matches any target's parents"):
        cc.train(model, task, config, progress=False)
    assert cc.training.start_from_matches(model, task.sample(4096)).target_parents == ()


def test_a_table_without_a_graph_is_trained_from_matches_and_frozen_weights_are_overwritten_too() -> None:
    table = cc.InContextTask(cc.ngram_graph(6, 2), d_vocab=2).sample(500)
    config = cc.TrainConfig.matched(2, batch_size=8)
    frozen, model = (cc.disentangled_transformer(2, 6, (2, 1), init_scale=scale) for scale in (1.0, 0.0))
    cc.train(model, cc.BatchTask(table, has_query=False), config, progress=False)
    frozen.blocks[0].attn.W_Q.requires_grad_(False)
    frozen.unembed.W_U.requires_grad_(False)
    fresh = cc.disentangled_transformer(2, 6, (2, 1))
    for own in (frozen, fresh):
        cc.training.start_from_matches(own, table)
    assert all(torch.equal(own, other) for own, other in zip(frozen.parameters(), fresh.parameters(), strict=True))


def test_bad_starts_are_refused() -> None:
    assert_refused(lambda: cc.TrainConfig(match_start=9, warm_start=1.0), "give one of them", "both write")
    task = cc.InContextTask(cc.ngram_graph(6, 2), d_vocab=2)
    config = cc.TrainConfig.matched(2)
    assert_refused(lambda: cc.train(cc.reduced_transformer(2, 6, (2, 1)), task, config), "disentangled", "reduced")
    planted = cc.plant_circuit(task.graph, 2)
    assert_refused(lambda: cc.train(planted, task, config), "would overwrite", "plant_circuit")
    everywhere, model = cc.tasks.MarkovTask(n_ctx=6, d_vocab=2), cc.disentangled_transformer(2, 6, (2, 1))
    assert_refused(lambda: cc.train(model, everywhere, config), "after the last position", "match_start=None")
    assert_refused(lambda: cc.TrainConfig.matched(2, relative_positions=True), "positions, not distances")
    assert_refused(lambda: match_gradient(task.sample(9), (5, 4)), "in order", "(5, 4)")
    assert_refused(lambda: cc.training.measured_match_gradient(planted, task.sample(9), (5,)), "a head for each", "2")
