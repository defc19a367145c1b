"""What judging heads must get right: planted heads, swapped rows, a last row that looks elsewhere; and the script."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import oracles
import pytest
import torch
from scripts import analysis_module, assert_refused_in_one_line, run_analysis

import causal_circuits as cc
from causal_circuits.discovery.several_heads import judge_heads

MIXED = [[], [], [0, 1], [0], [1, 2], [0, 2, 3], [3, 4], [], [2, 6], [5, 6], [4, 8]]


def planted_attention(task: cc.InContextTask) -> torch.Tensor:
    """[head, query, key]: head h on parent number h where a row has as many as the target; uniform elsewhere."""
    n_ctx, target = task.n_ctx, task.target_parents
    attention = torch.ones(len(target), n_ctx, n_ctx).tril()
    attention /= attention.sum(dim=-1, keepdim=True)
    for row in [*range(n_ctx - 1), n_ctx]:
        above = cc.parents_of(task.graph, row)
        for head, parent in enumerate(above if len(above) == len(target) else ()):
            attention[head, min(row, n_ctx - 1)] = 0.0
            attention[head, min(row, n_ctx - 1), parent] = 1.0
    return attention


def judged(task: cc.InContextTask, attention: torch.Tensor) -> tuple[set[tuple[int, int]], list]:
    """The accepted edges and the heads' reports."""
    batch = task.sample(8192, seed=3)
    found, reports, _ = judge_heads(attention, batch.tokens, batch.target_probs, range(len(attention)), 0.5, 0.01)
    return {(c.parent, c.child) for c in found if c.accepted}, reports


def trigram() -> cc.InContextTask:
    return cc.InContextTask(cc.ngram_graph(12, 2), d_vocab=4)


def test_swapped_rows_keep_their_edges() -> None:
    task = trigram()
    straight = planted_attention(task)
    swapped = straight.clone()
    swapped[:, [4, 7]] = straight.flip(0)[:, [4, 7]]
    edges, _ = judged(task, straight)
    assert judged(task, swapped)[0] == edges
    assert {(2, 4), (3, 4), (5, 7), (6, 7)} <= edges <= set(task.graph.edges)


def test_a_head_stands_for_what_its_rows_go_with_when_its_last_row_looks_elsewhere() -> None:
    task = trigram()
    attention = planted_attention(task)
    everything, _ = judged(task, attention)
    attention[1, -1] = 0.0
    attention[1, -1, 6] = 1.0
    edges, reports = judged(task, attention)
    assert reports[1].last_key == 11
    assert reports[1].last_weight == 0
    assert edges == everything - {(11, 12)}


def test_rows_of_roots_and_of_other_kernels_are_no_edges_wherever_they_look() -> None:
    task = cc.InContextTask(cc.graph_from_parents(MIXED), d_vocab=5)
    attention = planted_attention(task)
    others = [row for row in range(1, task.n_ctx - 1) if len(MIXED[row]) != 2]
    for row, key in itertools.product(others, range(3)):
        hard = attention.clone()
        hard[:, row] = 0.0
        hard[:, row, min(key, row - 1)] = 1.0
        assert judged(task, hard)[0] <= set(task.graph.edges)


def test_subset_predictors_equal_plain_counting() -> None:
    task = cc.InContextTask(cc.graph_from_parents(MIXED), d_vocab=3)
    tokens = task.sample(16, seed=1).tokens
    for which in ((), (0,), (1,), (0, 1)):
        expected = [oracles.subset_counts(MIXED, 3, row, which, 0.4) for row in tokens.tolist()]
        torch.testing.assert_close(cc.subset_predictor(task, tokens, which, 0.4), torch.tensor(expected).double())


def test_the_reduced_model_with_two_heads_equals_plain_loops() -> None:
    generator = torch.Generator().manual_seed(0)
    a1, a2 = torch.randn(2, 5, 5, generator=generator).double(), torch.randn(2, 3, 3, generator=generator).double()
    model = cc.reduced_transformer(3, 5, (2, 1), dtype=torch.float64)
    with torch.no_grad():
        for head in range(2):
            model.blocks[0].attn.W_Q[head, 3:8, :5] = a1[head]
            cc.models.match_blocks(model, head)[0].copy_(a2[head])
    tokens = torch.randint(3, (8, 5), generator=generator)
    expected = [oracles.reduced_forward_of_heads(a1, a2, row, 3) for row in tokens]
    torch.testing.assert_close(cc.models.log_probs(model, tokens).exp() - 1e-9, torch.stack(expected))


def planted_distance(n_ctx: int) -> float:
    """Mean distance, in total variation, of what the planted heads attend to from the edge posterior, for a 3-gram."""
    graph = cc.ngram_graph(n_ctx, 2)
    task = cc.InContextTask(graph, d_vocab=2, alpha=1.0)
    test = task.sample(512, seed=0)
    model = cc.plant_circuit(graph, 2, readout_scale=1.0)
    attended = (
        cc.models.logits(model, test.tokens).detach().double()
    )  # with this read-out: the share attended to each token
    return float((attended - task.bayes_predictor(test.tokens)).abs().sum(dim=1).mean() / 2)


def test_planted_heads_approach_the_edge_posterior_as_the_context_grows() -> None:
    distance = [planted_distance(n_ctx) for n_ctx in (16, 64, 192)]
    assert distance[0] > 2 * distance[1] > 4 * distance[2]


def test_a_quick_run_writes_what_it_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, look_at_report: Callable[[Path], None]
) -> None:
    flags = ("--n-ctx", 8, "--d-vocab", 3, "--steps", 400, "--seeds", 2, "--quick", "--quiet", "--out", tmp_path)
    assert run_analysis("multi_head", flags, monkeypatch) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert {"loss", "graph", "heads", "turns", "knock_out", "single_head", "timing", "command", "versions"} <= set(
        results
    )
    parents = [[], [], *([(i - 1) // 2, i - 1] for i in range(2, 9))]
    assert results["graph"]["parents"] == parents
    assert len(results["graph"]["found_parents"]) == 9
    assert results["graph"]["edges"] == sum(map(len, parents))
    assert results["loss"]["test"] == pytest.approx(
        results["loss"]["edge_posterior"] + results["loss"]["excess_over_edge_posterior"]
    )
    repeats = results["single_head"]["repeats"]
    assert [repeat["seed"] for repeat in repeats] == [0, 1]
    assert repeats[0]["excess"] == results["loss"]["excess_over_edge_posterior"]
    assert repeats[0]["single_excess"] == results["single_head"]["excess_over_edge_posterior"]
    assert repeats[0]["single_excess"] != repeats[1]["single_excess"]
    look_at_report(tmp_path / "report.html")


def test_every_missing_edge_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted model carries the target's kernel only; with a row put wrong, that one was not learned."""
    findings = analysis_module("multi_head_findings", monkeypatch)
    task = cc.InContextTask(cc.graph_from_parents(MIXED), d_vocab=3)
    model, data = cc.plant_circuit(task.graph, 3, n_heads=(3, 1)), task.sample(8192, seed=1)
    position = cc.slots(model)["position"].slice
    with torch.no_grad():
        for head in range(2):
            model.blocks[0].attn.W_Q[head, position, position][6] = 0.0  # the row of 6, parents 3 and 4
    found = cc.extract_graph(model, task, batch=data)
    attention = cc.mean_attention(model, data.tokens[:512])[0, :2]
    alone, given = findings.information_of_true_parents(task, data)
    missing = findings.explain_missing(task, model, found, attention, alone, given, data)
    assert {(m.parent, m.child) for m in missing} == set(task.graph.edges) - set(found.edges)
    for m in missing:
        if len(MIXED[m.child]) != 2:
            assert m.explained
            assert "independent" in m.reason
        if m.child == 6 and m.parent != task.target_parents[0]:
            assert not m.explained
            assert "was not learned" in m.reason
            assert m.loss_if_carried < 0
    assert {m.child for m in missing if not m.explained} == {6}


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--ngram", 1), "--ngram must be at least 2"),
        (("--n-ctx", 2), "--n-ctx must be at least 3"),
        (("--heads", "0,1"), "at least one head in each layer"),
        (("--heads", "two"), "two integers such as 2,1"),
        (("--seed", -1), "--seed must be 0 or more"),
        (("--seeds", 0), "--seeds must be at least 1"),
        (("--steps", 3), "--steps must be at least 2 for each of 2 heads"),
        (("--parents", "missing.json"), "readable file"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags, reason, capsys, monkeypatch) -> None:
    assert_refused_in_one_line("multi_head", flags, reason, capsys, monkeypatch)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSON file"),
        ("[1, 2]", "list of lists"),
        ("[[], [], [1, 1]]", "named once"),
        ("[[], [], [1, 0]]", "named in order"),
        ("[[], [2], [0, 1]]", "must lie in the context"),
        (json.dumps([[]] * 12 + [list(range(12))]), "use fewer parents or tokens"),
    ],
)
def test_bad_parents_files_are_refused_in_one_line(content, reason, tmp_path, capsys, monkeypatch) -> None:
    path = tmp_path / "parents.json"
    path.write_text(content)
    assert_refused_in_one_line("multi_head", ("--parents", path), reason, capsys, monkeypatch)
