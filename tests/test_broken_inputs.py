"""What people did to break graphs, tasks, batches, records and figures: the true answer, or one line that says why."""

import networkx as nx
import numpy as np
import pytest
import torch

import causal_circuits as cc
from causal_circuits import figures

GRAPH = cc.chain_graph(6)
TASK = cc.InContextTask(GRAPH, d_vocab=3)
BATCH = TASK.sample(64, seed=0)


def test_a_task_keeps_its_own_graph_and_prior() -> None:
    graph, alpha = cc.random_forest(6, seed=1), np.array([0.2, 0.4, 0.6])
    graph.nodes[0]["label"] = "rain"
    task, twin = (cc.InContextTask(graph, d_vocab=3, alpha=alpha) for _ in range(2))
    table = cc.BatchTask(BATCH, graph)
    before, edges = task.sample(8, seed=0), set(graph.edges)
    graph.remove_edges_from(list(graph.edges)[:-1])
    graph.add_edge(0, 4)
    alpha[:] = 5.0
    for kept in (task, table):
        assert set(kept.graph.edges) == edges
        assert kept.graph.graph == {"target": 6, "name": "forest"}
        assert kept.graph.nodes[0] == {"label": "rain"}
        with pytest.raises(nx.NetworkXError, match="Frozen graph"):
            kept.graph.add_edge(0, 3)
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


@pytest.mark.parametrize("target", [7, 2, None, "3"])
def test_a_target_that_is_not_the_last_node_is_refused_everywhere(target: object) -> None:
    wrong, right = nx.DiGraph([(0, 1), (2, 3)], target=target), nx.DiGraph([(0, 1), (2, 3)], target=3)
    for call in (
        lambda: cc.compare_graphs(wrong, right),
        lambda: cc.compare_graphs(right, wrong),
        lambda: cc.latent_edges(wrong),
        lambda: cc.has_query(wrong),
        lambda: cc.graph_parents(wrong),
        lambda: cc.validate_graph(wrong),
        lambda: cc.edge_auroc(torch.rand(3, 3), wrong),
    ):
        with pytest.raises(ValueError, match="the target must be the last node, 3"):
            call()


def test_edge_auroc_counts_the_last_row_where_it_stands_for_the_target() -> None:
    graph = cc.ngram_graph(4, order=2)
    generator = torch.Generator().manual_seed(0)
    score = torch.rand(4, 4, generator=generator)
    true = {(child if child < 4 else 3, parent) for parent, child in graph.edges if child != 3}
    edges = [float(score[cell]) for cell in true]
    others = [float(score[i, j]) for i in range(4) for j in range(i + 1) if (i, j) not in true]
    expected = np.mean([[a > b for b in others] for a in edges])
    assert cc.edge_auroc(score, graph) == pytest.approx(expected)
    score[-1] = torch.rand(4, generator=generator) - 5.0
    assert cc.edge_auroc(score, graph) < expected
    assert cc.edge_auroc(torch.diag(torch.ones(5), -1), GRAPH) == 1.0  # a query's row, which attends to 4, has no edge


def test_labels_over_a_vocabulary_that_fills_the_memory_are_refused() -> None:
    with pytest.raises(ValueError, match=r"make 2,000,000,002 numbers, more than .* from 0"):
        cc.Batch([[0, 2, 3], [3, 1, 10**9]], [1, 0])
    with pytest.raises(ValueError, match="more than"):
        cc.Batch([[0, 2, 3], [3, 1, 1]], [1, 0], d_vocab=10**12)


def test_token_counts_of_tokens_beyond_the_targets_are_refused() -> None:
    batch = cc.Batch([[0, 5], [1, 1]], [[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(ValueError, match=r"tokens must be integers in 0 \.\. 1: got .* \[0, 5\]"):
        cc.best_unigram_loss(batch)


def test_batches_compare_and_hash_as_objects() -> None:
    assert BATCH == BATCH
    assert cc.Batch(BATCH.tokens, BATCH.target_probs) != BATCH
    assert BATCH[:3] != BATCH
    assert len({BATCH, BATCH, BATCH[:3]}) == 2


def test_tensors_of_every_kind_are_data_or_refused_in_one_line() -> None:
    tokens, probs = torch.ones(2, 2, dtype=torch.int64), torch.full((2, 2), 0.5)
    with pytest.raises(ValueError, match=r"^tokens must be a dense tensor: got torch.sparse_coo; give .*to_dense"):
        cc.Batch(tokens.to_sparse(), probs)
    with pytest.raises(ValueError, match=r"^target_probs must be a dense tensor: got torch.sparse_coo"):
        cc.Batch(tokens, probs.to_sparse())
    assert not cc.Batch(tokens, probs.clone().requires_grad_()).target_probs.requires_grad
    kernel = torch.tensor([[0.2, 0.8], [0.7, 0.3]])
    expected = cc.InContextTask(GRAPH, d_vocab=2, kernels=kernel).identity()
    for same in (kernel.clone().requires_grad_(), kernel.to_sparse()):
        assert cc.InContextTask(GRAPH, d_vocab=2, kernels=same).identity() == expected


def test_alpha_row_by_row_as_lists_arrays_or_tensors() -> None:
    rows = [[0.1, 0.2], [0.3, 0.4]]
    for alpha in (rows, np.array(rows), torch.tensor(rows, dtype=torch.float64, requires_grad=True), tuple(rows)):
        np.testing.assert_array_equal(cc.InContextTask(GRAPH, d_vocab=2, alpha=alpha).alphas[1], rows)
    shared = [cc.InContextTask(GRAPH, d_vocab=2, alpha=alpha, roots="shared") for alpha in (rows, torch.tensor(rows))]
    assert torch.equal(shared[0].sample(4).tokens, shared[1].sample(4).tokens)
    with pytest.raises(ValueError, match="alpha must be a number"):
        cc.InContextTask(GRAPH, d_vocab=2, alpha=[[0.1, 0.2], [0.3]])


class _Bare(cc.Task):
    def draws(self, seed, first, n):
        return TASK.draws(seed, first, n)


def test_a_task_says_what_it_lacks_and_how_to_give_it() -> None:
    with pytest.raises(ValueError, match=r"how many tokens there are: _Bare has no d_vocab; set it$"):
        _Bare().sample(3)
    bare = _Bare()
    bare.d_vocab = 3
    with pytest.raises(ValueError, match=r"_Bare has neither graph nor n_ctx; set n_ctx, or graph if it is known$"):
        bare.sample(3)
    bare.graph = GRAPH
    assert torch.equal(bare.sample(3).tokens, TASK.sample(3).tokens)
    model, config = cc.disentangled_transformer(3, 6), cc.TrainConfig.joint(2, batch_size=8)
    with pytest.raises(ValueError, match="_Bare has no d_vocab"):
        cc.train(model, _Bare(), config)
    assert len(cc.train(model, bare, config).losses) == 2


@pytest.mark.parametrize(
    "draws", [lambda self, n: BATCH, lambda self, seed, n: BATCH, lambda self, seed, first, n, *, more: BATCH]
)
def test_draws_of_another_signature_are_refused_when_the_class_is_made(draws: object) -> None:
    with pytest.raises(TypeError, match=r"^Other.draws must take \(self, seed, first, n\), in this order: got draws\("):
        type("Other", (cc.Task,), {"draws": draws})


def test_draws_may_take_more_than_it_is_given() -> None:
    for draws in (lambda self, seed, first, n, more=1: BATCH, lambda *given: BATCH, staticmethod(lambda *given: BATCH)):
        assert len(type("Other", (cc.Task,), {"draws": draws, "graph": GRAPH, "d_vocab": 3})().sample(64)) == 64


@pytest.mark.parametrize(
    ("n_losses", "steps", "n_recorded", "reason"),
    [
        (9, (0, 9), 3, r"recorded_losses must be one for each of its 2 steps: got \[3\]"),
        (9, (0, 9), 1, r"recorded_losses must be one for each of its 2 steps: got \[1\]"),
        (9, (-1, 9), 2, r"steps must be 0 or more: got -1"),
    ],
)
def test_parts_of_a_record_that_do_not_fit_are_refused(
    n_losses: int, steps: tuple[int, ...], n_recorded: int, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        cc.TrainingRecord(torch.rand(n_losses), steps, torch.rand(n_recorded), None, None)


def test_records_and_snapshots_compare_as_objects() -> None:
    first, second = (cc.TrainingRecord(torch.ones(9), (0, 9), torch.ones(2), None, None) for _ in range(2))
    assert first == first != second
    assert "TrainingRecord" in first._repr_html_()
    snapshots = [cc.take_snapshot(cc.plant_circuit(GRAPH, d_vocab=3), BATCH) for _ in range(2)]
    assert snapshots[0] == snapshots[0] != snapshots[1]


def test_a_file_is_no_saved_record(tmp_path) -> None:
    file = tmp_path / "a.py"
    file.write_text("")
    with pytest.raises(ValueError, match=r"a saved record is a folder with record\.json"):
        cc.TrainingRecord.load(file)


@pytest.mark.parametrize("empty", [{}, {"gap": []}])
def test_plots_of_no_points_are_refused(empty: dict) -> None:
    with pytest.raises(ValueError, match="needs at least one point"):
        figures.plot_scaling(empty, {}, ylabel="nats")
    with pytest.raises(ValueError, match="needs at least one point"):
        figures.plot_curves(empty, xlabel="step", ylabel="nats")


@pytest.mark.parametrize("diverging", [False, True])
def test_a_matrix_with_nothing_to_draw_is_refused(diverging: bool) -> None:
    matrix = np.where(np.tri(4, dtype=bool), np.nan, 1.0)  # numbers above the diagonal only
    with pytest.raises(ValueError, match="needs a finite entry on or below its diagonal"):
        figures.plot_matrix(matrix, diverging=diverging)
    matrix[2, 1] = 0.5
    figures.plot_matrix(matrix, diverging=diverging)


def test_files_without_a_name_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"a report is written to a file: got the folder .*report\.html"):
        figures.write_report(tmp_path, title="A chain", verdict=[], sections=[], meta={})
    figure = figures.plot_ablation([("L0H0", "mean", 0.98)])
    for stem in ("", ".", "..", ".png", str(tmp_path / ".svg")):
        with pytest.raises(ValueError, match=r"a figure's files need a name: .*figure"):
            figures.save_figure(figure, stem)
    assert not list(tmp_path.iterdir())
