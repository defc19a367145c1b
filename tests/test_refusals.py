"""Mistakes that no other test makes: each is named in one message, with the rule, the value and what to do."""

import os
import signal
from collections.abc import Callable

import networkx as nx
import numpy as np
import pytest
import torch
from assertions import assert_refused
from interrupted import CONFIG, new_model
from users import users_model

import causal_circuits as cc
from causal_circuits import circuits, figures, pages
from causal_circuits.display import table_text
from causal_circuits.interventions.measure import other_positions
from causal_circuits.tasks import subset_loss

GRAPH = cc.chain_graph(6)
TASK = cc.InContextTask(GRAPH, d_vocab=4, alpha=0.3)
BATCH = TASK.sample(64, seed=0)
X, Y = BATCH.tokens, BATCH.target_probs
THREE = cc.InContextTask(GRAPH, d_vocab=3).sample(64, seed=0)
PLANTED = cc.plant_circuit(GRAPH, d_vocab=3)
TWO_IN_DEGREES = cc.graph_from_parents([None, 0, (0, 1), (1, 2)])
NAN = float("nan")


def halves(n: int, in_degree: int) -> np.ndarray:
    return np.full((n, *[2] * in_degree, 2), 0.5)


def unequal_kernels() -> object:
    kernels = {1: halves(3, 1), 2: halves(4, 2)}
    return cc.InContextTask(TWO_IN_DEGREES, d_vocab=2, transition_matrices=kernels).sample(5)


def patched(model: object, metric: object) -> object:
    return cc.patch_activations(model, THREE.tokens, THREE.tokens.flip(0), metric)


def paths_through_mlps() -> object:
    model = cc.models.ordinary_transformer(4, 6, d_model=4, d_mlp=8)
    return cc.patch_paths(model, X, X.flip(0), lambda log_probs: log_probs.sum())


def record_of(n_losses: int, steps: tuple[int, ...], n_recorded: int) -> object:
    return cc.TrainingRecord(torch.rand(n_losses), steps, torch.rand(n_recorded), None, None)


class BareTask(cc.Task):
    def draws(self, seed, first, n):
        return TASK.draws(seed, first, n)


def bounded(rows: object) -> object:
    return cc.tasks.bounded_below(np.array(rows), 0.1)


def cut(metric: object) -> object:
    return cc.knock_out_edges(PLANTED, THREE, metric=metric)


REFUSED: dict[str, tuple[Callable[[], object], tuple[str, ...]]] = {
    # tasks
    "alpha in words": (lambda: cc.InContextTask(GRAPH, 3, alpha="much"), ("alpha must be a number", "array", "'much'")),
    "no alpha": (lambda: cc.InContextTask(GRAPH, 3, alpha=[]), ("alpha", "[]")),
    "unequal numbers of matrices": (unequal_kernels, ("equally many",)),
    "parent that the target has not": (lambda: subset_loss(TASK, TASK.sample(2), (1,)), ("0 .. 0", "[1]")),
    "task without tokens": (lambda: BareTask().sample(3), ("how many tokens there are", "BareTask has no d_vocab")),
    "matrix of other sums": (lambda: bounded([[3.0, 3.0], [3.0, 3.0]]), ("sum to 1", "6")),
    "negative matrix": (lambda: bounded([[2.0, -1], [0, 1]]), ("sum to 1", "-1")),
    "no matrix": (lambda: bounded(np.ones((0, 2, 2))), ("[0, 2, 2]",)),
    # batches
    "targets of another vocabulary": (lambda: cc.Batch(X[:3], torch.full((3, 2), 0.5)).check(4, 6), ("[3, 4]",)),
    "vocabulary that fills the memory": (lambda: cc.Batch([[0, 2], [3, 1]], [1, 0], d_vocab=10**12), ("more than",)),
    "sparse tokens": (lambda: cc.Batch(X.to_sparse(), Y), ("tokens must be a dense tensor", "to_dense")),
    "sparse targets": (lambda: cc.Batch(X, Y.to_sparse()), ("target_probs must be a dense tensor",)),
    "tokens from 1": (lambda: cc.Batch([[1, 2, 3, 4]], [1], d_vocab=4), ("0 .. 3", "[1, 4]", "counted from 1")),
    "labels beyond d_vocab": (lambda: cc.Batch([[0, 1]], [5], d_vocab=3), ("labels", "0 .. 2", "5")),
    "d_vocab that is not the width": (lambda: cc.Batch(THREE.tokens, THREE.target_probs, 5), ("3", "got 5")),
    # numbers
    "unigram": (lambda: cc.tasks.unigram(X, 4, NAN), ("pseudo_count", "nan")),
    "subset": (lambda: cc.tasks.subset_predictor(TASK, X, [0], 0.0), ("pseudo_count", "0.0")),
    "logits": (lambda: cc.tasks.cross_entropy(Y.log(), Y), ("probs", "softmax")),
    "sums": (lambda: cc.tasks.cross_entropy(2 * Y, Y), ("sum to 1", "2")),
    "targets": (lambda: cc.tasks.cross_entropy(Y, Y - 1), ("target_probs", "sum to 1")),
    "one exact": (lambda: cc.reference_losses(TASK, BATCH, n_exact=1), ("n_exact=1", "at least 2")),
    "one sequence": (lambda: cc.reference_losses(TASK, BATCH[:1]), ("batch of 1", "at least 2")),
    "onsets at fewer steps": (lambda: circuits.onset((0,), torch.rand(3, 2)), ("steps", "got 1", "[3, 2]")),
    # models
    "a metric of all sequences": (
        lambda: cut(lambda found: found.mean()),
        ("one number a sequence", "float32 tensor []"),
    ),
    "a metric that is a plain number": (lambda: cut(lambda found: 0.5), ("metric", "one number a sequence", "0.5")),
    "a number a sequence": (lambda: patched(PLANTED, lambda found: found[:, 0]), ("one number for all", "[64]")),
    "tokens to look at": (lambda: cc.films.sequence_attention(PLANTED, torch.arange(6)), ("0 .. 2", "[0, 5]")),
    "tokens to predict from": (lambda: cc.log_probs(PLANTED, THREE.tokens + 2), ("0 .. 2", "[2, 4]")),
    "negative tokens": (lambda: cc.mean_attention(PLANTED, THREE.tokens - 1), ("0 .. 2", "[-1, 1]")),
    "tokens of a counterfactual": (
        lambda: circuits.circuit_model(PLANTED, THREE, counterfactual=THREE.tokens + 5),
        ("0 .. 2", "[5, 7]"),
    ),
    "targets narrower than outputs": (
        lambda: cc.evaluate(users_model(d_vocab_out=5), THREE),
        ("d_vocab_out", "[64, 5]"),
    ),
    "reduced model of two last heads": (lambda: cc.reduced_transformer(3, 6, (1, 2)), ("one head in layer 1",)),
    "paths through an MLP": (paths_through_mlps, ("MLPs", "patch_activations")),
    "permuting one position": (lambda: other_positions(3, 1, seed=0), ("at least 2", "got 3 of 1")),
    "more recorded losses than steps": (lambda: record_of(9, (0, 9), 3), ("recorded_losses must have a row", "[3]")),
    # figures
    "scaling of nothing": (lambda: figures.plot_scaling({"gap": []}, {}, ylabel="nats"), ("at least one point",)),
    "curves of nothing": (lambda: figures.plot_curves({}, xlabel="step", ylabel="nats"), ("at least one point",)),
    "bars of nothing": (lambda: figures.plot_ablation([]), ("at least one result",)),
    "matrix of nothing": (lambda: figures.plot_matrix(np.full((4, 4), NAN)), ("a finite entry on or below",)),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_mistake_is_named(case: str) -> None:
    call, words = REFUSED[case]
    assert_refused(call, *words)


@pytest.mark.parametrize(
    "draws", [lambda self, n: BATCH, lambda self, seed, n: BATCH, lambda self, seed, first, n, *, more: BATCH]
)
def test_draws_of_another_signature_are_refused_when_the_class_is_made(draws: object) -> None:
    with pytest.raises(TypeError, match=r"^Other.draws must take \(self, seed, first, n\), in this order: got draws\("):
        type("Other", (cc.Task,), {"draws": draws})


def test_a_task_of_ones_own_needs_tokens_and_a_graph_or_a_length() -> None:
    bare = BareTask()
    bare.d_vocab = 4
    assert_refused(lambda: bare.sample(3), "BareTask has neither graph nor n_ctx; set n_ctx, or graph")
    bare.graph = GRAPH
    assert torch.equal(bare.sample(3).tokens, TASK.sample(3).tokens)


def test_files_without_a_name_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(
        lambda: pages.write_report(tmp_path, title="A chain", verdict=[], sections=[], meta={}),
        "a report is written to a file: got the folder",
        "report.html",
    )
    figure = figures.plot_ablation([("L0H0", "mean", 0.98)])
    for stem in ("", ".", "..", ".png", str(tmp_path / ".svg")):
        assert_refused(lambda stem=stem: pages.save_figure(figure, stem), "a figure's files need a name", "figure")
    (tmp_path / "a.py").touch()
    assert_refused(lambda: cc.TrainingRecord.load("a.py"), "a saved record is a folder with record.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.py"]


def test_a_table_of_nothing_says_so() -> None:
    assert table_text([]) == table_text([{}]) == "no rows"


def test_a_task_keeps_its_own_graph_and_prior() -> None:
    graph, alpha = cc.random_forest(6, seed=1), np.array([0.2, 0.4, 0.6])
    task, twin = (cc.InContextTask(graph, d_vocab=3, alpha=alpha) for _ in range(2))
    before, edges = task.sample(8, seed=0), set(graph.edges)
    graph.remove_edges_from(list(graph.edges)[:-1])
    alpha[:] = 5.0
    assert set(task.graph.edges) == edges
    with pytest.raises(nx.NetworkXError, match="Frozen graph"):
        task.graph.add_edge(0, 3)
    for later in (task, twin):  # one has sampled before the change, the other not
        assert torch.equal(later.sample(8, seed=0).tokens, before.tokens)
    assert task.identity() == twin.identity() != cc.InContextTask(graph, d_vocab=3, alpha=alpha).identity()


def test_an_edge_is_not_taken_for_the_given_one_where_nothing_says_so() -> None:
    true, found = nx.DiGraph([(0, 1), (2, 3)]), nx.DiGraph([(0, 1)])
    found.add_nodes_from([2, 3])
    with pytest.warns(UserWarning, match=r"may be the target or a position.*graph_from_digraph"):
        assert cc.compare_graphs(true, found).missing == ((2, 3),)
    assert cc.compare_graphs(true, true).exact
    true.graph["target"] = 3
    assert cc.compare_graphs(true, found).exact


def test_priors_and_kernels_may_be_lists_arrays_or_tensors_of_any_kind() -> None:
    rows = [[0.1, 0.2], [0.3, 0.4]]
    for alpha in (rows, np.array(rows), torch.tensor(rows, dtype=torch.float64, requires_grad=True), tuple(rows)):
        np.testing.assert_array_equal(cc.InContextTask(GRAPH, d_vocab=2, alpha=alpha).alphas[1], rows)
    kernel = torch.tensor([[0.2, 0.8], [0.7, 0.3]])
    expected = cc.InContextTask(GRAPH, d_vocab=2, transition_matrices=kernel).identity()
    for same in (kernel.clone().requires_grad_(), kernel.to_sparse()):
        assert cc.InContextTask(GRAPH, d_vocab=2, transition_matrices=same).identity() == expected
    assert not cc.Batch(X, Y.clone().requires_grad_()).target_probs.requires_grad


def test_a_second_ctrl_c_stops_at_once(tmp_path) -> None:
    """Without a checkpoint of the step at hand, and with Python's own handler back."""
    before = signal.getsignal(signal.SIGINT)

    def press_twice(step: int, model: object) -> None:
        if step == 10:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    kept, record = cc.Checkpoints(tmp_path, every=4), cc.RecordAt((10,))
    with pytest.raises(KeyboardInterrupt) as stopped:
        cc.train(new_model(), TASK, CONFIG, record=record, on_record=press_twice, checkpoints=kept)
    assert str(stopped.value) == ""
    assert cc.training.restore_checkpoint(new_model(), tmp_path) == 8
    assert signal.getsignal(signal.SIGINT) is before
