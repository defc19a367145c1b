"""The frontier against brute force, proofs of true and of false circuits, scores against graphs, formation, export."""

import json
from dataclasses import replace
from functools import cache
from itertools import combinations
from math import comb
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import torch
from assertions import assert_refused
from hypothesis import given
from hypothesis import strategies as st
from test_circuits_evaluate import case

import causal_circuits as cc
from causal_circuits import circuits, figures
from causal_circuits.circuits.proof import _rivals

CHAIN = cc.chain_graph(8)


@cache
def planted() -> circuits.CircuitModel:
    task = cc.InContextTask(CHAIN, d_vocab=3, alpha=0.1)
    model = cc.plant_circuit(CHAIN, d_vocab=3, readout_scale=2.0)
    return circuits.circuit_model(model, task.sample(800, seed=1))


@cache
def proof_of_the_planted() -> circuits.CircuitProof:
    return circuits.prove_circuit(planted(), ~circuits.inert_edges(planted()), n_random=99)


# ---- the frontier


def test_the_frontier_is_the_minimum_over_all_circuits() -> None:
    """Every circuit of a model without a zero weight, two sequences, tried without any shortcut."""
    model, batch = case((1, 1), n=2)
    whole = circuits.circuit_model(model, batch, counterfactual="resample")
    free = (~circuits.inert_edges(whole)).nonzero()[:, 0]
    assert len(free) == 12  # resampled tokens leave the seven position edges without effect
    masks = torch.zeros(2**12, 19, dtype=torch.bool)
    masks[:, free] = (torch.arange(2**12)[:, None] >> torch.arange(12)) % 2 == 1
    costs, sizes = whole.costs(masks).mean(dim=-1), masks.sum(dim=-1)
    least = [float(costs[sizes <= size].min()) for size in range(20)]
    frontier = circuits.oracle_frontier(whole)
    assert frontier.exact
    assert frontier.n_circuits == 2**12 > frontier.n_evaluated
    assert frontier.cost.tolist() == pytest.approx(least, abs=1e-12)
    for size in range(20):
        assert whole.mean_cost(frontier.masks[size]) == pytest.approx(least[size], abs=1e-12)
        assert int(frontier.masks[size].sum()) <= size
    few = circuits.oracle_frontier(whole, max_edges=8)  # the eight that matter most, and what is found greedily
    best = sorted(sorted(free.tolist(), key=lambda edge: -float(whole.effects().abs()[edge]))[:8])
    among = masks[~masks[:, [edge for edge in range(19) if edge not in best]].any(dim=1)]
    of_eight, their_sizes = whole.costs(among).mean(dim=-1), among.sum(dim=-1)
    assert not few.exact
    assert (few.n_circuits, len(among)) == (2**8, 2**8)
    for size in range(20):
        assert least[size] - 1e-12 <= float(few.cost[size]) <= float(of_eight[their_sizes <= size].min()) + 1e-12
    assert few.floor <= float(few.cost.min())
    greedy = few.cost[-1] - whole.costs(whole.full[None]).mean()
    assert greedy <= 1e-12  # the whole model is among what is found greedily


@pytest.mark.parametrize("granularity", ["head", "slot"])
@pytest.mark.parametrize("name", ["chain", "pairs", "forest", "two parents"])
def test_the_planted_circuit_is_the_frontiers_optimum(name: str, granularity: str) -> None:
    """By the divergence, which is zero for the planted edges and positive without any one of them."""
    forest = cc.graph_from_parents([-1, 0, 0, -1, 3, 1, 3])
    graphs = {"chain": CHAIN, "pairs": cc.pairs_graph(8), "forest": forest, "two parents": cc.ngram_graph(7, order=2)}
    task = cc.InContextTask(graphs[name], d_vocab=3, alpha=0.1)
    model = cc.plant_circuit(task.graph, d_vocab=3, readout_scale=2.0)
    whole = circuits.circuit_model(model, task.sample(60), granularity=granularity, metric="kl_to_model")
    frontier, used = circuits.oracle_frontier(whole), ~circuits.inert_edges(whole)
    assert frontier.exact
    assert frontier.best_size == int(used.sum())
    assert frontier.masks[frontier.best_size].equal(used)
    assert float(frontier.cost[-1]) == pytest.approx(0.0, abs=1e-6)
    assert frontier.floor == float(frontier.cost.min())


def test_regret_is_zero_for_the_best_and_never_negative() -> None:
    frontier = circuits.oracle_frontier(planted())
    rankings = {}
    for method in circuits.METHODS:
        rankings[method] = circuits.rank(planted(), circuits.discover(planted(), method), frontier)
        assert (rankings[method].regret >= -1e-9).all()
        assert rankings[method].faithfulness[[0, -1]].tolist() == pytest.approx([0.0, 1.0])
    exact = rankings["exact"]
    assert float(exact.regret[9]) == pytest.approx(0.0, abs=1e-6)
    assert exact.mean_regret < min(rankings[name].mean_regret for name in ("attention", "eap", "eap_ig", "random"))
    better = frontier.with_circuits(planted(), planted().full[None])
    assert better.cost.equal(frontier.cost)
    slot = circuits.circuit_model(cc.plant_circuit(CHAIN, d_vocab=3), planted().batch, granularity="slot")
    assert_refused(lambda: circuits.rank(slot, circuits.discover(slot, "random"), frontier), "the same edges")
    assert_refused(lambda: circuits.oracle_frontier(planted(), max_edges=0), "1 .. 30", "0")


# ---- proof


def test_the_true_circuit_is_proved_and_false_ones_are_not() -> None:
    whole = planted()
    true = ~circuits.inert_edges(whole)
    proof = proof_of_the_planted()
    assert proof.proved, proof.verdict
    assert proof.interval[0] <= proof.faithfulness <= proof.interval[1]
    assert len(proof.circuit) == 9
    one_less, one_more = true.clone(), true.clone()
    one_less[whole.edges.index(("position", "L0H0.k"))] = False
    one_more[whole.edges.index(("token", "logits"))] = True
    proofs = {
        name: circuits.prove_circuit(whole, circuit, n_random=99)
        for name, circuit in {"one less": one_less, "one more": one_more, "everything": whole.full}.items()
    }
    failed = {name: [c.name for c in proof.criteria if not c.passed] for name, proof in proofs.items()}
    assert "faithful" in failed["one less"]
    assert failed["one more"] == ["minimal"]
    assert failed["everything"] == ["minimal", "sufficient"]  # no other circuit has its size
    assert "token -> logits" in proofs["one more"].verdict


@pytest.mark.parametrize("size", [1, 2, 17, 18])
def test_sufficiency_is_the_exact_rank_among_all_circuits_of_the_size(size: int) -> None:
    """Against itertools over every circuit as large: the number that cost no more, by the total."""
    model, batch = case((1, 1), n=40)
    whole = circuits.circuit_model(model, batch, metric="kl_to_model")
    picks = torch.randperm(19, generator=torch.Generator().manual_seed(size))[:size].tolist()
    own = torch.zeros(19, dtype=torch.bool)
    own[picks] = True
    every = torch.zeros(comb(19, size), 19, dtype=torch.bool)
    for row, edges in zip(every, combinations(range(19), size), strict=True):
        row[list(edges)] = True
    costs = whole.costs(every).mean(dim=-1)
    nothing, everything = whole.mean_cost(whole.empty), whole.mean_cost(whole.full)
    as_good = int((costs <= whole.mean_cost(own) + 1e-6 * (nothing - everything)).sum())
    proof = circuits.prove_circuit(whole, own, n_random=199, n_bootstrap=20)
    assert proof.n_rivals == len(proof.random_costs) == len(every) - 1
    assert proof.sufficiency_p == pytest.approx(as_good / len(every), abs=1e-12)
    assert proof.p_floor == pytest.approx(1 / len(every))
    others = costs[(every != own).any(dim=-1)]
    assert torch.allclose(proof.random_costs.sort().values, others.sort().values, atol=1e-9)
    sufficient = proof.criteria[-1]
    assert sufficient.testable == (len(every) >= 100)
    if not sufficient.testable:
        assert not sufficient.passed
        assert "cannot be tested at level 0.01" in sufficient.reason
        assert f"{len(every) - 1} other circuits" in sufficient.reason


def test_rivals_are_drawn_without_repetition() -> None:
    """Whatever the size and the number asked for: all different, of one size, none the circuit itself."""
    for size in range(1, 20):
        own = torch.zeros(19, dtype=torch.bool)
        own[:size] = True
        for n in (99, 170, 500):
            rivals = _rivals(own, n, torch.Generator().manual_seed(0))
            assert len(rivals) == min(n, comb(19, size) - 1)
            assert len({tuple(rival.tolist()) for rival in rivals}) == len(rivals)
            assert (rivals.sum(dim=-1) == size).all()
            assert not (rivals == own).all(dim=-1).any()
    large = torch.arange(5000) < 2500  # more circuits than a float can count
    assert _rivals(large, 5, torch.Generator().manual_seed(0)).sum(dim=-1).tolist() == [2500] * 5


def test_a_circuit_that_fails_nothing_but_what_cannot_be_tested_is_undecided() -> None:
    """A level so strict that 18 rivals, or none, cannot reach it: neither proved nor refuted."""
    proof = proof_of_the_planted()
    assert proof.proved
    untested = replace(proof.criteria[-1], passed=False, testable=False, reason="sufficiency cannot be tested")
    undecided = replace(proof, criteria=(*proof.criteria[:-1], untested))
    assert not undecided.proved
    assert undecided.verdict == "undecided: sufficiency cannot be tested"
    both = replace(undecided, criteria=(replace(proof.criteria[0], passed=False), *undecided.criteria[1:]))
    assert both.verdict.startswith("not proved: ")


def test_a_circuit_with_a_stand_in_outside_is_not_complete() -> None:
    """Two heads that do the same: one of them is half the story, and knock-outs within it show that."""
    model = cc.plant_circuit(CHAIN, d_vocab=3, n_heads=(1, 2))
    block = model.blocks[1].attn.W_Q.data
    block[1] = block[0]
    named = cc.models.slots(model)
    model.unembed.W_U.data[named["L1H1.token"].slice] = model.W_U[named["L1H0.token"].slice]
    model.unembed.W_U.data /= 2
    whole = circuits.circuit_model(model, planted().batch[:250])
    both = circuits.prove_circuit(whole, ~circuits.inert_edges(whole), n_random=99)
    half = circuits.prove_circuit(
        whole, [edge for edge in both.circuit if not any("L1H1" in node for node in edge)], n_random=99
    )
    passed = {criterion.name: criterion.passed for criterion in half.criteria}
    assert not passed["complete"]
    assert half.incompleteness > 3 * both.incompleteness


def test_unprovable_requests_are_named() -> None:
    whole = planted()
    assert_refused(lambda: circuits.prove_circuit(whole, []), "at least one edge")
    assert_refused(lambda: circuits.prove_circuit(whole, whole.full, n_random=10), "n_random", "10")
    untrained = circuits.circuit_model(cc.disentangled_transformer(3, 8), planted().batch)
    assert_refused(lambda: circuits.prove_circuit(untrained, untrained.full), "nothing is at stake")


# ---- scores against the graph


def slow_scores(score: torch.Tensor, graph: nx.DiGraph, cells: set[tuple[int, int]], rows: range) -> dict[str, float]:
    """Pair by pair and edge by edge, for scores without ties."""
    entries = [(i, j) for i in rows for j in range(i + 1)]
    yes, no = [float(score[c]) for c in entries if c in cells], [float(score[c]) for c in entries if c not in cells]
    ordered = sorted(entries, key=lambda cell: -float(score[cell]))
    precisions = [sum(c in cells for c in ordered[: k + 1]) / (k + 1) for k, c in enumerate(ordered) if c in cells]
    drawn = set(ordered[: len(cells)])
    children = sorted({i for i, _ in cells})
    exact = 0
    for i in children:
        own = {j for k, j in cells if k == i}
        best = sorted(range(i + 1), key=lambda j: -float(score[i, j]))[: len(own)]
        exact += set(best) == own
    return {
        "auroc": float(np.mean([a > b for a in yes for b in no])),
        "auprc": float(np.mean(precisions)),
        "shd": float(len(drawn ^ cells)),
        "exact_parent_rate": exact / len(children),
    }


@given(st.integers(0, 10_000), st.sampled_from(["forest", "two parents"]))
def test_scores_against_the_graph_equal_the_slow_count(seed: int, kind: str) -> None:
    graph = cc.random_forest(7, 0.3, seed=seed) if kind == "forest" else cc.ngram_graph(6, order=2)
    if not cc.latent_edges(graph):
        return
    n_ctx = graph.number_of_nodes() - 1
    score = torch.randn(n_ctx, n_ctx, generator=torch.Generator().manual_seed(seed))
    last = n_ctx - 1
    cells = {(child, parent) for parent, child in graph.edges if child < last}
    if kind == "two parents":  # the last row is read for the target
        cells |= {(last, parent) for parent in graph.predecessors(n_ctx)}
    expected = slow_scores(score, graph, cells, range(last if kind == "forest" else n_ctx))
    found = circuits.score_against_graph(score, graph)
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value), name
    assert found.auroc == pytest.approx(cc.edge_auroc(score, graph))
    if kind == "forest":
        assert found.auroc_children == pytest.approx(cc.edge_auroc(score, graph, children_only=True), nan_ok=True)


def test_ties_are_worth_what_guessing_is() -> None:
    scores = circuits.score_against_graph(torch.zeros(8, 8), CHAIN)
    n_entries = sum(range(1, 8))
    assert scores.auroc == 0.5
    assert scores.auprc == pytest.approx(6 / n_entries)
    assert scores.shd == pytest.approx(2 * (6 - 36 / n_entries))
    assert scores.exact_parent_rate == 0.0


def test_scores_that_do_not_fit_are_named() -> None:
    assert_refused(lambda: circuits.score_against_graph(torch.zeros(7, 7), CHAIN), "[7, 7]", "n_ctx 8")
    assert_refused(lambda: circuits.score_against_graph(torch.full((8, 8), torch.nan), CHAIN), "found NaN")
    roots = cc.graph_from_parents([None, None, None])
    assert_refused(lambda: circuits.score_against_graph(torch.zeros(4, 4), roots), "no edge between")


# ---- trained models and decoys


def test_a_decoy_is_told_from_a_model_that_learned_the_graph() -> None:
    """Figure 9's graph 0, chosen for it: Adam at .1 from zero reaches the edge posterior's loss by other entries."""
    parents = [-1, -1, 0, 2, -1, 1, -1, -1, 6, 5, -1, 8, -1, 10, -1, -1, 7, -1, -1]
    task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=3, alpha=0.1)
    recipes = {"trained": cc.TrainConfig.warm(300), "decoy": cc.TrainConfig.joint(800, 0.1)}
    test, rates = task.sample(2000, seed=3), {}
    for name, recipe in recipes.items():
        model = cc.disentangled_transformer(3, 20)
        cc.train(model, task, recipe, record=cc.RecordAt(steps=()), progress=False)
        assert float(cc.evaluate(model, test).mean()) < task.bayes_loss(test) + 0.02
        scores = circuits.score_against_graph(cc.knock_out_edges(model, test).effect, task.graph)
        rates[name] = (scores.exact_parent_rate, scores.auroc)
    assert rates["trained"][0] >= 0.9
    assert rates["decoy"][0] <= 0.5
    assert rates["trained"][1] > rates["decoy"][1] + 0.2


def test_formation_ends_where_training_ends() -> None:
    """What is measured at the last step is what the trained model is; runs with other data end elsewhere."""
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=0.1)
    models, batch = [cc.disentangled_transformer(3, 6) for _ in range(2)], task.sample(400, seed=1)
    runs = [
        circuits.watch_formation(
            model,
            task,
            cc.TrainConfig.warm(120, batch_size=256, seed=seed),
            record=cc.RecordAt(steps=(0, 10, 120)),
            batch=batch,
            progress=False,
        )
        for seed, model in enumerate(models)
    ]
    assert not torch.allclose(runs[0].effect, runs[1].effect, atol=1e-4)
    for model, found in zip(models, runs, strict=True):
        cut = cc.knock_out_edges(model, batch, metric="kl_to_model")
        assert found.steps == (0, 10, 120)
        assert found.cells == ((1, 0), (2, 1), (3, 2), (4, 3))
        for row, (i, j) in enumerate(found.cells):
            assert float(found.effect[-1, row]) == pytest.approx(float(cut.effect[0, i, j]), abs=1e-6)
            share = cut.effect[0, i, j] / cut.effect[0, i, : i + 1].sum()
            assert float(found.share[-1, row]) == pytest.approx(float(share), abs=1e-4)
            assert float(found.attention[-1, row]) == pytest.approx(float(cut.attention[0, i, j]), abs=1e-6)
        assert found.circuit_effect.shape == (3, 19)
        assert found.circuit_onset.shape == (19,)
        assert set(found.attention_onset.tolist()) <= {0.0, 10.0, 120.0}
        assert len(found.record.losses) == 120


def test_information_of_edges_is_equal_and_their_pull_is_not() -> None:
    """All edges of a stationary chain carry the same information; row i's softmax divides it among i + 1 positions."""
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=0.1)
    config = cc.TrainConfig.joint(1, 0.01, batch_size=8)
    found = circuits.watch_formation(
        cc.disentangled_transformer(3, 6), task, config, batch=task.sample(20), progress=False
    )
    assert torch.allclose(found.information, found.information[:1].expand(4), rtol=1e-6)
    g = cc.chi_squared_information(task).value
    for cell, (i, j) in enumerate(found.cells):
        row = g[i, : i + 1]
        assert float(found.pull[cell]) == pytest.approx(float((row[j] - row.mean()) / (i + 1)), rel=1e-9)


def test_onsets_are_half_way() -> None:
    steps, nan = (0, 10, 100), float("nan")
    curves = torch.tensor([[0.5, 0.0, 0.2, 0.0], [0.6, 0.9, 0.9, 0.0], [1.0, 1.0, 0.1, 0.0]])
    assert circuits.onset(steps, curves)[:2].tolist() == [100.0, 10.0]  # .6 is nearer to the start than to the end
    assert circuits.onset(steps, curves)[2:].isnan().all()  # ends lower than it began, or never moves
    found = circuits.onset_interval([torch.tensor([10.0, 20.0, nan]), torch.tensor([30.0, 50.0, 40.0])])
    assert (found.mean, found.low, found.high) == (30.0, 20.0, 40.0)
    assert found.never == pytest.approx(1 / 6)
    half = circuits.onset_interval([torch.tensor([10.0, nan]), torch.tensor([30.0, 50.0])])
    assert (half.mean, half.never) == (40.0, 0.25)  # the first run's median has none
    assert circuits.onset_interval([torch.tensor([nan])]).never == 1.0
    assert_refused(lambda: circuits.onset_interval([]), "at least one run")


# ---- export and figures


def test_exports_hold_the_same_circuit(tmp_path: Path) -> None:
    whole, true = planted(), ~circuits.inert_edges(planted())
    found = [circuits.discover(whole, method) for method in ("exact", "eap")]
    proof = proof_of_the_planted()
    circuits.export_circuit(tmp_path / "out" / "circuit.json", whole, true, found, proof)
    kept = {edge for edge, keep in zip(whole.edges, true.tolist(), strict=True) if keep}
    content = json.loads((tmp_path / "out" / "circuit.json").read_text())
    assert {(row["sender"], row["reader"]) for row in content["edges"] if row["in_circuit"]} == kept
    assert content["proof"]["faithfulness"] == pytest.approx(proof.faithfulness)
    for discovery in found:
        assert [row[discovery.method] for row in content["edges"]] == discovery.score.tolist()
    assert_refused(lambda: cc.storage.plain_values(object()), "numbers, text, tensors")


def test_figures_draw_what_they_are_given() -> None:
    whole, true = planted(), ~circuits.inert_edges(planted())
    drawn = figures.plot_circuit(whole.graph, true)
    assert {text.get_text() for text in drawn.texts} >= set(whole.graph.nodes)
    assert "in the circuit (9)" in [text.get_text() for text in drawn.get_legend().get_texts()]
    frontier = circuits.oracle_frontier(whole)
    ranking = circuits.rank(whole, circuits.discover(whole, "exact"), frontier)
    lines = figures.plot_frontier(frontier, [ranking]).lines
    assert np.allclose(lines[0].get_ydata(), frontier.cost)
    assert np.allclose(lines[1].get_ydata(), ranking.cost)
    scores = (("exact", 1.0), ("exact", 0.5), ("eap", 0.25))
    rows = [{"method": method, "model": "planted", "auroc": auroc} for method, auroc in scores]
    ax = figures.plot_benchmark({"zero": rows}).axes[0]
    assert ax.images[0].get_array().tolist() == [[0.75], [0.25]]
    assert [text.get_text() for text in ax.texts] == ["0.75\n≥ 0.50", "0.25\n≥ 0.25"]
    assert_refused(lambda: figures.plot_benchmark({}), "at least one row")
