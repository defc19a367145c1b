"""The study of several heads: its numbers and page, missing edges, what a graph is worth, bad graphs."""

import json

import pytest
import torch

import causal_circuits as cc
from causal_circuits.studies.multi_head import Config, measure

MIXED = [[], [], [0, 1], [0], [1, 2], [0, 2, 3], [3, 4], [], [2, 6], [5, 6], [4, 8]]


def test_a_quick_run_writes_what_it_promises(tmp_path, look_at_report):
    results = cc.run(Config.quickly(n_ctx=8, d_vocab=3, steps=400, seeds=2), tmp_path, quiet=True).results
    parents = [[], [], *([(i - 1) // 2, i - 1] for i in range(2, 9))]
    assert results["graph"]["parents"] == parents
    assert len(results["graph"]["found_parents"]) == 9
    assert results["graph"]["edges"] == sum(map(len, parents))
    loss, single = results["loss"], results["single_head"]
    assert loss["test"] == pytest.approx(loss["edge_posterior"] + loss["excess_over_edge_posterior"])
    assert [repeat["seed"] for repeat in single["repeats"]] == [0, 1]
    assert single["repeats"][0]["excess"] == loss["excess_over_edge_posterior"]
    assert single["repeats"][0]["single_excess"] == single["excess_over_edge_posterior"]
    assert single["repeats"][0]["single_excess"] != single["repeats"][1]["single_excess"]
    model = cc.load_model(tmp_path / "model")
    test = measure.Setting(parents, 3, 0.1, (2, 1), 40, 0, quick=True, read=False).test
    assert float(cc.evaluate(model, test).mean()) == pytest.approx(loss["test"])
    assert len(cc.TrainingRecord.load(tmp_path / "record").losses) == 40
    look_at_report(tmp_path / "report.html")


def test_every_missing_edge_says_why():
    """A planted model carries the target's transition matrix only; with a row put wrong, that one was not learned."""
    task = cc.InContextTask(cc.graph_from_parents(MIXED), d_vocab=3)
    model, data = cc.plant_circuit(task.graph, 3, n_heads=(3, 1)), task.sample(8192, seed=1)
    position = cc.models.slots(model)["position"].slice
    with torch.no_grad():
        for head in range(2):
            model.blocks[0].attn.W_Q[head, position, position][6] = 0.0  # the row of 6, parents 3 and 4
    found = cc.extract_graph(model, task, batch=data)
    attention = cc.mean_attention(model, data.tokens[:512])[0, :2]
    missing = measure.explain_missing(task, model, found, attention, data)
    assert {(m["parent"], m["child"]) for m in missing} == set(task.graph.edges) - set(found.edges)
    kinds = {(m["parent"], m["child"]): m["kind"] for m in missing}
    assert {kinds[edge] for edge in kinds if len(MIXED[edge[1]]) != 2} == {"another matrix"}
    assert kinds[3, 6] == "not learned"
    assert all(m["loss_if_carried"] < 0 for m in missing if m["kind"] == "not learned")
    assert {m["child"] for m in missing if not m["explained"]} == {6}


@pytest.mark.parametrize(
    ("change", "keys", "kind"), [(-0.1, (3, 4), "not learned"), (0.1, (3, 4), "decoy"), (0.0, (1, 2), "not needed")]
)
def test_a_row_that_leaves_its_parents_is_named_by_what_returning_would_cost(change, keys, kind):
    assert measure.kind_of_row(change, 0.01, torch.eye(6)[list(keys)], above=(1, 2)) == kind


def test_a_graph_is_worth_little_where_positions_are_draws_from_the_targets_law():
    """Twelve positions have the target's own parents: their tokens, counted, predict about as well as the graph."""
    draws, apart = ([[], [], *[[0, 1]] * 12, [0, 1]], [[], [], *([i - 2, i - 1] for i in range(2, 15))])
    worth = []
    for parents in (draws, apart):
        task = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=3)
        worth.append(measure.without_graph(task, task.sample(2000)))
    assert worth[0]["direct_draws"] == list(range(2, 14))
    assert worth[1]["direct_draws"] == []
    assert worth[0]["graph_is_worth"] < 0.02 < 0.2 < worth[1]["graph_is_worth"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSON file"),
        ("[1, 2]", "list of lists"),
        ("[[], [0], [1], [], [3]]", "one parent at most"),
        (json.dumps([[]] * 12 + [list(range(12))]), "use fewer parents or tokens"),
        (json.dumps(MIXED), "disagree: its parents make n_ctx 10"),
    ],
)
def test_bad_parents_files_are_refused(content, reason, tmp_path):
    (tmp_path / "parents.json").write_text(content)
    with pytest.raises(ValueError, match=reason):
        Config(parents=tmp_path / "parents.json", n_ctx=9 if "disagree" in reason else None)
