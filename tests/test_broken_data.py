"""Data and numbers that look usable and are not: refused, or said, and never taken for evidence."""

import numpy as np
import pytest
import torch
from assertions import assert_refused
from users import labels_of

import causal_circuits as cc
from causal_circuits.discovery.user_data import read_data

CHAIN = cc.chain_graph(6)
TASK = cc.InContextTask(CHAIN, d_vocab=3)


@pytest.mark.parametrize(("n_original", "times"), [(100, 10), (1000, 3), (2500, 2)])
@pytest.mark.parametrize("n_single", [0, 1, 40])
@pytest.mark.parametrize("form", ["labels", "half"])
def test_copies_are_found_beside_rows_that_occur_once(n_original: int, times: int, n_single: int, form: str) -> None:
    batch = TASK.sample(n_original + n_single, seed=1)
    rows = np.concatenate([np.tile(np.arange(n_original), times), n_original + np.arange(n_single)])
    targets = labels_of(batch) if form == "labels" else batch.target_probs.half()
    found = cc.recover_graph(batch.tokens[rows], targets[rows])
    assert found.n_independent <= n_original + n_single
    assert any("copies" in warning for warning in found.warnings)


def test_laws_tell_copies_of_short_contexts_that_chance_repeats() -> None:
    batch = cc.InContextTask(cc.chain_graph(4), d_vocab=2).sample(2501, seed=1)
    rows = np.concatenate([np.tile(np.arange(2500), 2), [2500]])
    assert read_data(batch.tokens[rows], batch.target_probs[rows], None).n_independent <= 2501


def test_means_with_one_row_copied_often_are_worth_few_rows() -> None:
    batch = TASK.sample(501, seed=3)
    rows = np.concatenate([np.zeros(500, dtype=int), np.arange(1, 501)])
    worth = read_data(batch.tokens[rows], batch.target_probs[rows], None).n_independent
    assert worth == pytest.approx(1000**2 / (500**2 + 500), abs=0.5)


@pytest.mark.parametrize(
    ("n_ctx", "d_vocab", "alpha"), [(4, 2, 1.0), (4, 2, 0.1), (3, 2, 0.1), (6, 3, 1.0), (6, 5, 0.1)]
)
@pytest.mark.parametrize("n", [200, 5000])
def test_fresh_sequences_are_no_copies(n_ctx: int, d_vocab: int, alpha: float, n: int) -> None:
    task = cc.InContextTask(cc.chain_graph(n_ctx - 1), d_vocab=d_vocab, alpha=alpha)
    for seed in range(2):
        batch = task.sample(n, seed=seed)
        for targets in (labels_of(batch, seed), batch.target_probs, batch.target_probs.half()):
            vocabulary = d_vocab if targets.ndim == 1 else None
            assert read_data(batch.tokens, targets, vocabulary).n_independent == n


def test_fresh_sequences_of_one_deterministic_kernel_in_order_of_the_query_are_no_copies() -> None:
    cycle = np.roll(np.eye(3), 1, axis=1)
    batch = cc.InContextTask(CHAIN, d_vocab=3, transition_matrices=cycle[None]).sample(3000, seed=0)
    order = batch.tokens[:, -1].argsort()
    for targets in (batch.target_probs, labels_of(batch)):
        assert read_data(batch.tokens[order], targets[order], 3).n_independent == 3000


def test_probabilities_in_bfloat16_are_probabilities() -> None:
    batch = cc.InContextTask(CHAIN, d_vocab=16).sample(2000, seed=0)
    exact, rounded = batch.target_probs, batch.target_probs.bfloat16()
    found, expected = (cc.tasks.cross_entropy(probs, exact) for probs in (rounded, exact))
    torch.testing.assert_close(found, expected, atol=4e-3, rtol=0)


PADDED = torch.tensor([[-1, 0, 1, 0], [0, 1, 1, 0]])
LAWS = torch.full((2, 2), 0.5)
VARYING = {
    "ragged lists": lambda: cc.Batch([[0, 1, 1], [1, 0]], [1, 0]),
    "arrays of arrays": lambda: cc.recover_graph(np.array([np.zeros(3, int), np.zeros(2, int)], dtype=object), [1, 0]),
    "nested tensors": lambda: cc.Batch(
        torch.nested.nested_tensor([PADDED[0], PADDED[1, 1:]], layout=torch.jagged), LAWS
    ),
    "masked arrays": lambda: cc.Batch(np.ma.masked_array(PADDED.abs(), mask=PADDED < 0), LAWS),
    "padded tokens": lambda: cc.evaluate(cc.disentangled_transformer(2, 4), cc.Batch(PADDED, LAWS)),
    "padded labels": lambda: cc.Batch(PADDED.abs(), PADDED, d_vocab=2),
    "padded tables": lambda: cc.BatchTask(cc.Batch(PADDED, LAWS)),
    "attention masks": lambda: cc.mean_attention(cc.disentangled_transformer(2, 4), PADDED, attention_mask=PADDED >= 0),
}


@pytest.mark.parametrize("kind", VARYING)
def test_sequences_of_different_lengths_are_refused_with_what_to_do(kind: str) -> None:
    assert_refused(VARYING[kind], "sequences are not padded: cut them to one length, or make a batch for each length")
