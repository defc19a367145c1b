"""Sequences have one door: what `draws` gives is what is trained on, sampled, and named in a checkpoint."""

from collections import Counter

import numpy as np
import pytest
import torch
from assertions import assert_refused
from hypothesis import given
from hypothesis import strategies as st

import causal_circuits as cc
from causal_circuits.training.steps import TRAINING_STREAM

KERNELS = np.array([[0.7, 0.2, 0.1], [0.05, 0.05, 0.9], [0.3, 0.6, 0.1]])
KINDS = {
    "chain": cc.InContextTask(cc.chain_graph(6), 3),
    "forest": cc.InContextTask(cc.random_forest(6, seed=3), 3, alpha=0.5),
    "two parents": cc.InContextTask(cc.ngram_graph(6, 2), 3, roots="shared"),
    "kernels": cc.InContextTask(cc.chain_graph(6), 3, transition_matrices=KERNELS),
    "tiny alpha": cc.InContextTask(cc.chain_graph(6), 3, alpha=1e-3),
}


class Watched(cc.Task):
    """Another task's sequences, every call of `draws` written down; token t of the first sequence is `mark`."""

    def __init__(self, task: cc.InContextTask, mark: int | None = None) -> None:
        self.task, self.graph, self.d_vocab, self.mark = task, task.graph, task.d_vocab, mark
        self.calls: list[tuple[object, int, int]] = []

    def draws(self, seed, first, n):
        self.calls.append((seed, first, n))
        batch = self.task.draws(seed, first, n)
        if self.mark is None:
            return batch
        return cc.Batch(torch.full_like(batch.tokens, self.mark), batch.target_probs)

    def identity(self):
        return {"of": dict(self.task.identity()), "mark": self.mark}


class Nameless(Watched):
    identity = cc.Task.identity


def losses(task: cc.Task, *, double: bool = False, config: cc.TrainConfig | None = None, **options) -> torch.Tensor:
    n_heads = (len(task.target_parents), 1)
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, n_heads)
    model = model.double() if double else model
    config = config or cc.TrainConfig.joint(5, batch_size=40, seed=3)
    return cc.train(model, task, config, progress=False, **options).losses


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 511, 513, 1300])
def test_a_sample_is_the_beginning_of_the_stream(kind: str, n: int) -> None:
    task = KINDS[kind]
    sampled, drawn = task.sample(n, seed=(4, n)), task.draws((4, n), 0, n)
    assert torch.equal(sampled.tokens, drawn.tokens)
    assert torch.equal(sampled.target_probs, drawn.target_probs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("double", [False, True], ids=["fused", "structured"])
def test_any_task_is_trained_on_its_draws(kind: str, double: bool) -> None:
    """Seen twice: `draws` is called for every step, and a wrapped task is trained exactly as the wrapped one."""
    watched = Watched(KINDS[kind])
    assert torch.equal(losses(watched, double=double), losses(KINDS[kind], double=double))
    places = {(first, n) for seed, first, n in watched.calls if tuple(seed) == (3, TRAINING_STREAM)}
    assert {(40 * step, 40) for step in range(5)} <= places


def test_a_second_door_is_refused_when_the_class_is_made() -> None:
    with pytest.raises(TypeError, match=r"draws alone: Second overrides sample.*override draws"):
        type("Second", (cc.Task,), {"sample": lambda self, n, seed=0: None})
    for ours in (cc.InContextTask, cc.BatchTask):
        with pytest.raises(TypeError, match=r"final.*subclass cc.Task and override draws"):
            type("Sub", (ours,), {})
    with pytest.raises(TypeError, match="abstract"):
        type("Empty", (cc.Task,), {})()


class Wrong(cc.Task):
    graph, d_vocab = cc.chain_graph(4), 2

    def __init__(self, batch: object) -> None:
        self.batch = batch

    def draws(self, seed, first, n):
        return self.batch


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        (None, "got NoneType"),
        (cc.Batch(torch.zeros(3, 4, dtype=torch.int64), torch.full((3, 2), 0.5)), "n=8 sequences: got 3"),
        (cc.Batch(torch.full((8, 4), 2), torch.full((8, 2), 0.5)), "integers in 0 .. 1"),
        (cc.Batch(torch.zeros(8, 5, dtype=torch.int64), torch.full((8, 2), 0.5)), "n_ctx=4"),
        (cc.Batch(torch.zeros(8, 4, dtype=torch.int64), torch.full((8, 2), 0.6)), "probabilities"),
    ],
)
def test_draws_that_do_not_fit_are_refused_before_anything_reads_them(batch: object, reason: str) -> None:
    """A token out of the vocabulary would make compiled code read foreign memory."""
    config = cc.TrainConfig.joint(2, batch_size=8)
    assert_refused(lambda: Wrong(batch).sample(8), "Wrong.draws must return a Batch", reason)
    assert_refused(lambda: losses(Wrong(batch), config=config), "Wrong.draws must return a Batch", reason)


@pytest.mark.parametrize(("first", "n"), [(-1, 3), (0, 0), (0, True), (0, -2)])
@pytest.mark.parametrize("task", [KINDS["chain"], cc.BatchTask(KINDS["chain"].sample(5))], ids=["prior", "table"])
def test_impossible_places_are_refused(task: cc.Task, first: int, n: int) -> None:
    assert_refused(lambda: task.draws(0, first, n), "must be an integer")


def test_checkpoints_know_the_task(tmp_path) -> None:
    kept, config = cc.Checkpoints(tmp_path, every=2), cc.TrainConfig.joint(5, batch_size=8)
    first = losses(Watched(KINDS["chain"], mark=1), config=config, checkpoints=kept)
    again = losses(Watched(KINDS["chain"], mark=1), config=config, checkpoints=kept)
    assert torch.equal(first, again)
    for other in (Watched(KINDS["chain"], mark=2), Watched(KINDS["forest"], mark=1), KINDS["chain"]):
        with pytest.raises(cc.training.CheckpointError, match=r"of another run: members.*task"):
            losses(other, config=config, checkpoints=kept)


def test_a_task_without_an_identity_is_refused_checkpoints_by_name(tmp_path) -> None:
    task, kept = Nameless(KINDS["chain"]), cc.Checkpoints(tmp_path)
    assert_refused(lambda: losses(task, checkpoints=kept), "Nameless can have no checkpoints", "define identity()")
    task.identity = lambda: {"when": {1, 2}}
    assert_refused(lambda: losses(task, checkpoints=kept), "Nameless.identity() must return JSON values")


def rows(batch: cc.Batch) -> list[tuple[float, ...]]:
    return [tuple(row) for row in torch.cat([batch.tokens, batch.target_probs], dim=1).tolist()]


@given(size=st.integers(1, 12), first=st.integers(0, 40), n=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_table_is_drawn_epoch_by_epoch(size: int, first: int, n: int, seed: int) -> None:
    """Against a slow list of places: every epoch holds each row once, in its own order, however the stream is cut."""
    table = KINDS["chain"].sample(size, seed=seed)
    task = cc.BatchTask(table)
    whole = rows(task.draws(seed, 0, first + n))
    assert whole[first:] == rows(task.draws(seed, first, n))
    for epoch in range((first + n) // size):
        assert Counter(whole[epoch * size : (epoch + 1) * size]) == Counter(rows(table))


def test_a_sample_of_a_table_has_no_copies_and_more_than_all_is_refused() -> None:
    table = cc.Batch(torch.arange(40 * 6).reshape(40, 6) // 6 % 3, torch.eye(40))
    task = cc.BatchTask(table)
    assert len(set(rows(task.sample(40, seed=3)))) == 40
    assert_refused(lambda: task.sample(41), "40 sequences", "p-values false", "at most 40")
    assert len(task.sample_at_most(1000)) == 40


def test_tools_work_with_a_table_or_name_what_is_missing() -> None:
    prior = cc.InContextTask(cc.chain_graph(6), 3)
    model, table = cc.plant_circuit(prior.graph, 3), prior.sample(300, seed=5)
    bare, known = cc.BatchTask(table), cc.BatchTask(table, prior.graph)
    assert set(cc.extract_graph(model, bare).nodes) == set(range(7))
    assert [head.role for head in cc.detect_induction_heads(model, known)] == ["previous-token", "induction"]
    assert_refused(lambda: cc.detect_induction_heads(model, bare), "causal graph", "BatchTask(batch, graph=graph)")
    assert_refused(lambda: cc.scrub_hypothesis(model, table, bare), "causal graph", "BatchTask(batch, graph=graph)")
    cut = cc.knock_out_edges(model, table, task=bare, metric="loss")
    assert torch.isfinite(cut.effect[0][1, 0])
    assert_refused(lambda: cc.knock_out_edges(model, table, task=bare, metric="kl_to_posterior"), "prior", "BatchTask")
    for needs_prior in (
        lambda: cc.tasks.edge_posterior(known, table.tokens),
        lambda: cc.tasks.exact_bayes(known, table.tokens),
        lambda: cc.reference_losses(known, table),
        lambda: cc.chi_squared_information(known),
        lambda: cc.predicted_gradient(known),
        lambda: cc.information.finite_context_gradient(known),
        lambda: cc.circuits.watch_formation(model, known),
    ):
        assert_refused(needs_prior, "InContextTask", "BatchTask")


def test_a_table_that_does_not_fit_its_graph_is_refused() -> None:
    table = KINDS["chain"].sample(5)
    assert_refused(lambda: cc.BatchTask(table, cc.chain_graph(7)), "a node for each position", "7: got 8")
    assert_refused(lambda: cc.BatchTask(table, has_query=False).target_parents, "causal graph")
