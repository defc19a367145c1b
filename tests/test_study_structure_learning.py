"""The study of structure learning: its methods against plain counts, noise as control, checks that can fail."""

import importlib.util
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch

import causal_circuits as cc
from causal_circuits.studies import structure_learning as study
from causal_circuits.studies.structure_learning import Config, graph_of, make_batches, methods, score


def noise_table(seed: int, n: int = 1000, n_ctx: int = 9) -> methods.Table:
    """Uniform tokens, and laws of the next token that have nothing to do with them."""
    tokens = torch.randint(3, (n, n_ctx), generator=torch.Generator().manual_seed(seed + 1000))
    targets = torch.from_numpy(np.random.default_rng(seed).dirichlet(np.ones(3), size=n)).float()
    return methods.Table.of(cc.Batch(tokens, targets), seed=seed)


@pytest.mark.parametrize("method", ["INFORMATION", "INFORMATION_GIVEN", "COVARIANCE", "GRADIENT", "GRADIENT_LAWS"])
def test_independent_tokens_have_no_edges(method: str) -> None:
    """The negative control: on noise each test accepts anything in at most 5% of 20 tables."""
    accepted = 0
    for seed in range(20):
        table = noise_table(seed)
        found = methods.find_edges(getattr(methods, method), table, level=0.05, steps=1, seed=0)
        accepted += found.graph.number_of_edges() > 1  # beside that from query to target
    assert accepted <= 4  # P(more than 4 of 20 at .05) = .003


@pytest.mark.parametrize("method", ["ATTENTION", "ATTENTION_LAWS", "GRADIENT", "COVARIANCE", "INFORMATION_GIVEN"])
def test_on_noise_true_edges_are_proposed_by_chance_alone(method: str) -> None:
    """A method that sees more than the table, say fresh sequences of the graph, proposes 8 of 8 here.

    A random earlier position is a given parent with probability 1 / child: hits over tables against the mean and the
    variance of as many such draws. The first row has one choice and is left out.
    """
    graph, n_tables = cc.random_forest(10, root_probability=0.0, seed=1), 12
    true = {(parent, child) for parent, child in cc.latent_edges(graph) if child > 1}
    hits = 0
    for seed in range(n_tables):
        table = noise_table(seed, n=400, n_ctx=10)
        found = methods.find_edges(getattr(methods, method), table, level=0.05, steps=60, seed=seed)
        hits += len(true & found.proposed)
    mean = n_tables * sum(1 / child for _, child in true)
    spread = (n_tables * sum((1 - 1 / child) / child for _, child in true)) ** 0.5
    assert abs(hits - mean) < 4 * spread
    assert mean + 4 * spread < n_tables * len(true)  # the test can fail


def test_training_sees_its_table_and_nothing_else() -> None:
    """The table of another graph, handed over in the name of this one, gives the other graph."""
    there = cc.InContextTask(cc.graph_from_parents([None, 0, 0, 0, 0, 0]), 3, alpha=0.1)
    table = methods.Table.of(there.sample(3000, seed=2), seed=0)
    found = methods.find_edges(methods.ATTENTION, table, level=0.05, steps=100, seed=0)
    assert found.proposed == cc.latent_edges(there.graph)


def test_the_covariance_is_counted_right() -> None:
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


def test_information_given_query_and_label_is_that_of_the_groups() -> None:
    """Chain rule: I(x_i; x_j, z) = I(x_i; z) + I(x_i; x_j | z), with z = (query, label) as one variable of 9 values."""
    table = methods.Table.of(cc.InContextTask(cc.chain_graph(5), 3).sample(400, seed=4), seed=1)
    z = table.query_and_label[:, 0] * 3 + table.query_and_label[:, 1]
    given = methods.information_given_query_and_label(table)
    for i, j in ((2, 1), (3, 0)):
        x_i, x_j = table.positions[:, i], table.positions[:, j]
        joint = cc.classical.pooled_mutual_information(torch.stack([x_i, z * 3 + x_j], dim=1), 27)[0, 1]
        alone = cc.classical.pooled_mutual_information(torch.stack([x_i, z], dim=1), 9)[0, 1]
        assert given[i, j] == pytest.approx(joint - alone, abs=1e-12)


@pytest.mark.parametrize(("setting", "found"), [(study.POOLED, True), (study.NOISE, False)])
def test_of_two_parents_matches_find_the_edges_and_first_order_methods_do_not(setting, found) -> None:
    graph = graph_of(0, 2)
    table = methods.Table.of(make_batches(graph, 2, 3000, 3, 0.1, (0, 0))[setting], seed=0, k=2)
    scores = {}
    for name in (methods.MATCHES, methods.MATCHES_LAWS, methods.ONE_MATCH, methods.LABEL_GIVEN, methods.CHOW_LIU):
        of_table = methods.find_edges(name, table, level=0.05, steps=1, seed=0)
        scores[name] = score(graph, of_table.proposed, set(of_table.graph.edges), 2)
    assert scores[methods.MATCHES_LAWS]["false_edges"] == scores[methods.MATCHES]["false_edges"] == 0
    assert (scores[methods.MATCHES_LAWS]["edges_found"] > 0.9 * scores[methods.CHOW_LIU]["edges"]) == found
    for name in (methods.ONE_MATCH, methods.LABEL_GIVEN, methods.CHOW_LIU):
        assert scores[name]["edges_found"] < 0.7 * scores[name]["edges"]


def test_trained_heads_of_two_parents_are_told_that_there_is_no_query(monkeypatch) -> None:
    """They start from matches and are confirmed by them; with a query supposed, 3 of 22 edges were."""
    monkeypatch.setattr(cc.TrainConfig, "matched", partial(cc.TrainConfig.matched, 1000))  # the default, in fewer steps
    graph = graph_of(0, 2)
    table = methods.Table.of(make_batches(graph, 2, 5000, 3, 0.1, (0, 0))[study.POOLED], seed=0, k=2)
    found = methods.find_edges(methods.ATTENTION, table, level=0.05, steps=1, seed=0)
    scores = score(graph, found.proposed, set(found.graph.edges), 2)
    assert scores["edges_found"] > 0.7 * scores["edges"]
    assert scores["false_edges"] == 0


def test_chance_is_that_of_random_choices() -> None:
    """Hits of k random earlier positions a row, over many draws."""
    graph, rng = graph_of(1, 2), np.random.default_rng(0)
    children = sorted({child for _, child in graph.edges if child < 20})
    hits = []
    for _ in range(2000):
        chosen = {(int(j), child) for child in children for j in rng.choice(child, 2, replace=False)}
        expected = score(graph, chosen, set(), 2)
        hits.append(expected["parents_proposed"])
    assert np.mean(hits) == pytest.approx(expected["parents_by_chance"], rel=0.05)
    assert np.var(hits) == pytest.approx(expected["variance_by_chance"], rel=0.15)


def test_labels_are_drawn_from_the_targets() -> None:
    targets = torch.tensor([[0.7, 0.2, 0.1]]).repeat(20_000, 1)
    drawn = methods.Table.of(cc.Batch(torch.zeros(20_000, 2, dtype=torch.int64), targets), seed=0).labels.target_probs
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.allclose(drawn.sum(dim=1), torch.ones(20_000))
    assert torch.allclose(drawn.mean(dim=0), targets[0], atol=4.5 * (0.25 / 20_000) ** 0.5)


def test_runs_without_pc_and_says_so(tmp_path, capsys, monkeypatch, look_at_report) -> None:
    monkeypatch.setattr("causal_circuits.studies.structure_learning.methods.load_pc", lambda: None)
    results = cc.run(Config.quickly(sizes=(2000,)), tmp_path, quiet=True).results
    assert "causal-learn is not installed" in capsys.readouterr().err
    assert "not installed" in results["pc"]
    assert {row["method"] for row in results["rows"]} == set(methods.METHODS) - {methods.PC, methods.PC_NODES}
    for row in results["rows"]:
        assert row["shd"] == row["edges"] - row["edges_found"] + row["false_edges"]
    at_most = {(row["setting"], row["method"]): row for row in results["summary"] if row["sequences"] == 2000}
    for method in (methods.GRADIENT, methods.GRADIENT_LAWS, methods.COVARIANCE):
        assert at_most[study.POOLED, method]["parents_proposed"] == 18
    for method, least in ((methods.GRADIENT, 15), (methods.GRADIENT_LAWS, 18), (methods.ATTENTION, 15)):
        row = at_most[study.POOLED, method]
        assert row["edges_found"] >= least  # labels are noisier
        assert row["false_edges"] == 0
    assert at_most[study.POOLED, methods.CHOW_LIU]["edges_found"] <= 1
    assert at_most[study.FIXED, methods.CHOW_LIU]["edges_found"] == 18
    assert at_most[study.NOISE, methods.ATTENTION]["parents_proposed"] < 9  # 3.6 by chance
    look_at_report(tmp_path / "report.html")


def test_the_verdict_on_pc_follows_its_false_edges() -> None:
    row = {"sequences": 1000, "edges": 10, "edges_found": 10, "parents_proposed": 10, "parents_by_chance": 2.0}
    for false, passes in ((161, True), (3, False)):
        totals = pd.DataFrame(
            row | {"variance_by_chance": 1.0, "setting": setting, "method": method, "false_edges": false}
            for setting in study.SETTINGS
            for method in methods.METHODS
        )
        checks = [check for check in study.make_checks(totals) if "does not tell edges" in check.claim]
        assert [check.passed for check in checks] == [passes, passes]
        assert f"and {false} pairs that are none" in checks[0].evidence


def test_pc_finds_the_skeleton_of_one_matrix_where_it_is_installed() -> None:
    pc = methods.load_pc()
    assert (pc is None) == (importlib.util.find_spec("causallearn") is None)  # an optional extra
    graph = cc.graph_from_parents([None, 0, 0, 1, None, 4])
    task = cc.InContextTask(
        graph, 3, transition_matrices=cc.tasks.matrix_family("dirichlet 1", 1, 3, gamma=0.1, seed=3)[0]
    )
    assert pc is None or pc(task.sample(5000, seed=1).tokens[:, :-1].numpy(), 0.01) == cc.latent_edges(graph)
