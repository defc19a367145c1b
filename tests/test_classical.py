"""Classical structure learning: mutual information against a plain count, Chow-Liu against every spanning tree."""

import json
from itertools import combinations
from math import log

import networkx as nx
import numpy as np
import pytest
import torch
from assertions import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from scripts import analysis_module, assert_refused_in_one_line, run_analysis

import causal_circuits as cc


def counted_information(column: list[int], other: list[int]) -> float:
    """Mutual information in nats, by counting pairs one at a time."""
    n, total = len(column), 0.0
    for a in set(column):
        for b in set(other):
            both = sum(x == a and y == b for x, y in zip(column, other, strict=True)) / n
            if both:
                total += both * log(both / (column.count(a) / n * other.count(b) / n))
    return total


def heaviest_spanning_tree(weights: np.ndarray) -> float:
    """The largest total weight over all spanning trees, by trying every set of n - 1 edges."""
    n, best = len(weights), -float("inf")
    for edges in combinations(list(combinations(range(n), 2)), n - 1):
        if nx.is_connected(nx.Graph(edges)) and len({node for edge in edges for node in edge}) == n:
            best = max(best, sum(weights[edge] for edge in edges))
    return best


@given(n=st.integers(1, 40), n_ctx=st.integers(1, 4), d_vocab=st.integers(2, 4), seed=st.integers(0, 99))
def test_mutual_information_is_counted_right(n: int, n_ctx: int, d_vocab: int, seed: int) -> None:
    tokens = torch.randint(d_vocab, (n, n_ctx), generator=torch.Generator().manual_seed(seed))
    columns = tokens.T.tolist()
    expected = [[counted_information(one, other) for other in columns] for one in columns]
    found = cc.pooled_mutual_information(tokens, d_vocab, chunk=7)
    assert np.allclose(found, expected, atol=1e-12)


def test_mutual_information_is_zero_for_constants_and_entropy_for_copies() -> None:
    column = torch.tensor([0, 1, 1, 2, 2, 2])
    found = cc.pooled_mutual_information(torch.stack([column, column, torch.zeros(6, dtype=torch.int64)], dim=1), 3)
    entropy = -sum(p * log(p) for p in (1 / 6, 2 / 6, 3 / 6))
    assert found[0, 1] == pytest.approx(entropy)
    assert np.allclose(found[2], 0.0)


@given(n=st.integers(2, 5), seed=st.integers(0, 999))
def test_chow_liu_is_the_heaviest_of_all_spanning_trees(n: int, seed: int) -> None:
    weights = np.random.default_rng(seed).random((n, n))
    weights = weights + weights.T
    tree = cc.chow_liu_tree(weights)
    assert tree.number_of_edges() == n - 1
    assert nx.is_connected(tree.to_undirected())
    assert all(parent < child for parent, child in tree.edges)
    assert sum(weights[edge] for edge in tree.edges) == pytest.approx(heaviest_spanning_tree(weights))


def test_chow_liu_refuses_what_is_no_matrix_of_numbers() -> None:
    assert_refused(lambda: cc.chow_liu_tree(np.zeros((2, 3))), "[n_ctx, n_ctx]", "[2, 3]")
    assert_refused(lambda: cc.chow_liu_tree(np.full((2, 2), np.nan)), "finite")


def test_with_one_kernel_the_classics_find_the_tree_and_pooled_prompts_hide_it() -> None:
    graph = cc.graph_from_parents([None, 0, 0, 1, 1, 2, 5])
    true = cc.latent_edges(graph)
    fixed = cc.InContextTask(graph, 3, kernels=cc.kernel_family("dirichlet 1", 1, 3, gamma=0.1, seed=3)[0])
    pooled = cc.InContextTask(graph, 3, alpha=0.1)
    found = {}
    for name, task in (("fixed", fixed), ("pooled", pooled)):
        tokens = task.sample(20_000, seed=1).tokens[:, :-1]
        found[name] = set(cc.chow_liu_tree(cc.pooled_mutual_information(tokens, 3)).edges)
    assert found["fixed"] == true
    assert len(found["pooled"] & true) <= 2


# ---- the comparison


@pytest.fixture
def methods(monkeypatch):
    return analysis_module("structure_methods", monkeypatch)


def noise_table(methods, seed: int, n: int = 1000, n_ctx: int = 9) -> object:
    """Uniform tokens, and laws of the next token that have nothing to do with them."""
    tokens = torch.randint(3, (n, n_ctx), generator=torch.Generator().manual_seed(seed + 1000))
    targets = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(3), size=n)).float()
    return methods.Table.of(cc.Batch(tokens, targets), seed=seed)


@pytest.mark.parametrize("method", ["INFORMATION", "INFORMATION_GIVEN", "COVARIANCE", "GRADIENT", "GRADIENT_LAWS"])
def test_independent_tokens_have_no_edges(methods, method: str) -> None:
    """The negative control: on noise each test accepts anything in at most 5% of 40 tables."""
    accepted = 0
    for seed in range(40):
        table = noise_table(methods, seed)
        found = methods.find_edges(getattr(methods, method), table, level=0.05, steps=1, seed=0, pc=None)
        accepted += found.graph.number_of_edges() > 1  # beside that from query to target
    assert accepted <= 6  # P(more than 6 of 40 at .05) = .003


@pytest.mark.parametrize("method", ["ATTENTION", "ATTENTION_LAWS", "GRADIENT", "COVARIANCE", "INFORMATION_GIVEN"])
def test_on_noise_true_edges_are_proposed_by_chance_alone(methods, method: str) -> None:
    """A method that sees more than the table, say fresh sequences of the graph, proposes 8 of 8 here.

    A random earlier position is a given parent with probability 1 / child: hits over tables against the mean and the
    variance of as many such draws. The first row has one choice and is left out.
    """
    graph, n_tables = cc.random_forest(10, root_probability=0.0, seed=1), 12
    true = {(parent, child) for parent, child in cc.latent_edges(graph) if child > 1}
    hits = 0
    for seed in range(n_tables):
        table = noise_table(methods, seed, n=400, n_ctx=10)
        found = methods.find_edges(getattr(methods, method), table, level=0.05, steps=60, seed=seed, pc=None)
        hits += len(true & found.proposed)
    mean = n_tables * sum(1 / child for _, child in true)
    spread = (n_tables * sum((1 - 1 / child) / child for _, child in true)) ** 0.5
    assert abs(hits - mean) < 4 * spread
    assert mean + 4 * spread < n_tables * len(true)  # the test can fail


def test_training_sees_its_table_and_nothing_else(methods) -> None:
    """The table of another graph, handed over in the name of this one, gives the other graph."""
    there = cc.InContextTask(cc.graph_from_parents([None, 0, 0, 0, 0, 0]), 3, alpha=0.1)
    table = methods.Table.of(there.sample(3000, seed=2), seed=0)
    found = methods.find_edges(methods.ATTENTION, table, level=0.05, steps=100, seed=0, pc=None)
    assert found.proposed == cc.latent_edges(there.graph)


def test_the_covariance_is_counted_right(methods) -> None:
    """Against a plain loop over sequences, and on the pair that it is largest for."""
    task = cc.InContextTask(cc.graph_from_parents([None, 0, 1, 0]), 3, alpha=0.1)
    table = methods.Table.of(task.sample(500, seed=3), seed=1)
    proposed, _ = methods.by_covariance(table, level=0.05)
    rows = torch.cat([table.positions, table.query_and_label], dim=1).tolist()
    for child in range(1, 4):
        values = []
        for key in range(child):
            both = sum(row[child] == row[-1] and row[key] == row[-2] for row in rows) / 500
            alone = sum(row[child] == row[-1] for row in rows) * sum(row[key] == row[-2] for row in rows) / 500**2
            values.append(both - alone)
        assert (int(np.argmax(values)), child) in proposed


def test_information_given_query_and_label_is_that_of_the_groups(methods) -> None:
    """Chain rule: I(x_i; x_j, z) = I(x_i; z) + I(x_i; x_j | z), with z = (query, label) as one variable of 9 values."""
    table = methods.Table.of(cc.InContextTask(cc.chain_graph(5), 3).sample(400, seed=4), seed=1)
    z = table.query_and_label[:, 0] * 3 + table.query_and_label[:, 1]
    given = methods.information_given_query_and_label(table)
    for i, j in ((2, 1), (3, 0)):
        x_i, x_j = table.positions[:, i], table.positions[:, j]
        joint = cc.pooled_mutual_information(torch.stack([x_i, z * 3 + x_j], dim=1), 27)[0, 1]
        alone = cc.pooled_mutual_information(torch.stack([x_i, z], dim=1), 9)[0, 1]
        assert given[i, j] == pytest.approx(joint - alone, abs=1e-12)


def test_labels_are_drawn_from_the_targets(methods) -> None:
    targets = torch.tensor([[0.7, 0.2, 0.1]]).repeat(20_000, 1)
    drawn = methods.with_labels(cc.Batch(torch.zeros(20_000, 2, dtype=torch.int64), targets), seed=0).target_probs
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(drawn.sum(dim=1), torch.ones(20_000))
    assert torch.allclose(drawn.mean(dim=0), targets[0], atol=4.5 * (0.25 / 20_000) ** 0.5)


def test_structure_learning_says_if_pc_is_missing_and_runs_the_rest(
    tmp_path, capsys, monkeypatch, methods, look_at_report
) -> None:
    monkeypatch.setattr(methods, "load_pc", lambda: None)
    flags = ["--quick", "--quiet", "--out", tmp_path]
    assert run_analysis("structure_learning", flags, monkeypatch) == 0
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert "causal-learn is not installed" in printed.err
    results = json.loads((tmp_path / "results.json").read_text())
    assert "not installed" in results["pc"]
    assert {row["method"] for row in results["rows"]} == set(methods.METHODS) - {methods.PC, methods.PC_NODES}
    for row in results["rows"]:
        assert row["shd"] == row["edges"] - row["edges_found"] + row["false_edges"]
    at_most = {(row["setting"], row["method"]): row for row in results["summary"] if row["sequences"] == 2000}
    for method in (methods.GRADIENT, methods.GRADIENT_LAWS, methods.COVARIANCE):
        assert at_most["pooled prompts", method]["parents_proposed"] == 18
    for method, least in ((methods.GRADIENT, 15), (methods.GRADIENT_LAWS, 18), (methods.ATTENTION, 15)):
        row = at_most["pooled prompts", method]
        assert row["edges_found"] >= least  # labels are noisier
        assert row["false_edges"] == 0
    assert at_most["pooled prompts", methods.CHOW_LIU]["edges_found"] <= 1
    assert at_most["one fixed kernel", methods.CHOW_LIU]["edges_found"] == 18
    assert at_most["pure noise", methods.ATTENTION]["parents_proposed"] < 9  # 3.6 by chance
    look_at_report(tmp_path / "report.html")


def test_pc_finds_the_skeleton_of_one_kernel_where_it_is_installed(methods) -> None:
    pc = methods.load_pc()
    try:
        import causallearn  # noqa: F401
    except ImportError:
        assert pc is None
    else:
        graph = cc.graph_from_parents([None, 0, 0, 1, None, 4])
        task = cc.InContextTask(graph, 3, kernels=cc.kernel_family("dirichlet 1", 1, 3, gamma=0.1, seed=3)[0])
        assert pc(task.sample(5000, seed=1).tokens[:, :-1].numpy(), 0.01) == cc.latent_edges(graph)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--sizes", "5"], "--sizes must be at least 10"),
        (["--level", "0"], "--level must lie between 0 and 1"),
        (["--graphs", "0"], "--graphs must be at least 1"),
        (["--d-vocab", "1"], "d_vocab must be an integer of at least 2"),
    ],
)
def test_structure_learning_refuses_in_one_line(flags, reason, tmp_path, capsys, monkeypatch) -> None:
    assert_refused_in_one_line("structure_learning", [*flags, "--out", tmp_path], reason, capsys, monkeypatch)
