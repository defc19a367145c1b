"""The study of unlearned edges: changed graphs, explanations beside their control, predictions that can fail."""

import numpy as np
import pytest

import causal_circuits as cc
from causal_circuits.studies import unlearned_edges
from causal_circuits.studies.unlearned_edges import measure


@pytest.mark.parametrize(
    ("parents", "parent", "child", "changed"),  # what each variant makes the parents of some positions
    [
        (
            *([-1, -1, 0, 1, -1, 1, -1, 4], 1, 5),
            {
                "earlier siblings made roots": {3: -1},
                "as many strangers made roots": {2: -1},
                "siblings moved behind": {3: -1, 6: 1},
                "parent given a parent": {1: 0},
                # no child moved forward: 4, the only root between sibling and child, has a child of its own
            },
        ),
        (
            *([-1, 0, -1, 0, 2, 2, 2, -1, 0, -1], 0, 8),
            {
                "earlier siblings made roots": {1: -1, 3: -1},
                "as many strangers made roots": {4: -1, 5: -1},
                "child moved forward": {7: 0, 8: -1},
                # no siblings moved behind: two siblings, one free position there
            },
        ),
    ],
)
def test_changed_graphs_change_what_their_names_say(parents, parent, child, changed):
    made = {"as it is": (parents, None, child), "roots uniform": (parents, "uniform", child)}
    for name, new in changed.items():
        where = 7 if name == "child moved forward" else child
        made[name] = ([new.get(i, old) for i, old in enumerate(parents)], None, where)
    assert measure.variants(parents, parent, child) == made


def test_the_targets_are_later_children_in_figure_9():
    known = measure.measure_figure_9()
    assert len(known) == 182
    assert sum(edge["unlearned"] for edge in known) == len(measure.TARGETS)


def changed_rows(freed: dict[str, int], n: int = 8) -> list[dict]:
    """Rows in which each variant frees that many of n edges, the first ones."""
    return [
        {"variant": v, "graph": g, "parent": 0, "of_child": 5, "child": 5, "block_attention": 0.9 if g < k else 0.1}
        for v, k in freed.items()
        for g in range(n)
    ]


@pytest.mark.parametrize(
    ("freed", "control", "holds"),
    [(8, 0, True), (5, 0, True), (4, 0, False), (8, 8, False), (0, 0, False), (0, 8, False)],
)
def test_an_explanation_holds_only_beyond_its_control(freed, control, holds):
    names = {"as it is": 0, "as many strangers made roots": control, "roots uniform": freed}
    state, _, said = unlearned_edges.judged("roots uniform", unlearned_edges.by_variant(changed_rows(names)))
    assert state == ("passed" if holds else "undecided")
    assert said.startswith("holds" if holds else "not shown")
    assert f"frees {freed} of 8, no change or the control {control}" in said


def caused(unlearned: list[bool], causes: list[float], forests: int = 5) -> list[dict]:
    """Edges of some forests with one cause."""
    return [
        {"forest": i % forests, "unlearned": u, "causes": {"cause": c, "later child of a root": 0.0}}
        for i, (u, c) in enumerate(zip(unlearned, causes, strict=True))
    ]


def test_a_cause_that_fits_where_it_was_found_and_nowhere_else_is_not_said_to_predict():
    unlearned = [i % 4 == 0 for i in range(100)]
    fits = [float(u) for u in unlearned]
    noise = list(np.random.default_rng(3).random(100))
    for there, holds in ((fits, True), (noise, False)):
        groups = {"Figure 9": caused(unlearned, fits), "new forests": caused(unlearned, there)}
        check = unlearned_edges.best_prediction(unlearned_edges.predictions(groups, seed=0, n_boot=200))
        assert check.passed is holds
        assert check.evidence.endswith("it predicts them" if holds else "it is not shown to predict them")


def test_the_pull_on_an_edge_is_minus_the_gradient():
    """Where layer 1 matches and the read-out copies, an edge that is not learned is pulled up."""
    task = cc.InContextTask(cc.graph_from_parents([None, 0, None, 2, 0]), d_vocab=3, alpha=0.1)
    model = cc.models.warm_start(cc.disentangled_transformer(3, task.n_ctx), 2.0)
    found = measure.sibling_gradients(model, task.graph, task.sample(1024, seed=0), parent=0, child=4)
    assert found["gradient_as_trained"] > 0


def test_counts_what_it_trained(tmp_path, look_at_report):
    found = cc.run(unlearned_edges.Config.quickly(seed=2), tmp_path, quiet=True).results
    rows = {row["variant"]: row for row in found["rows"]}
    assert {"as it is", "earlier siblings made roots", "roots uniform", "as many strangers made roots"} <= set(rows)
    assert all(row["curve"][-1] == [20, row["block_attention"]] for row in rows.values())
    assert rows["as it is"]["gradient_as_trained"] != rows["as it is"]["gradient_sibling_uniform"]
    assert "| as it is | 0.08 (never) | 0 of 1 |" in found["section"]
    assert all(edge["unlearned"] == (edge["block_attention"] <= 0.5) for edge in found["edges"])
    assert {row["forests"] for row in found["predictions"]} == {"Figure 9", "new forests"}
    assert (tmp_path / "figures" / "unlearned_edges.svg").is_file()
    assert "frees 0 of 1" in (tmp_path / "report.html").read_text()
    look_at_report(tmp_path / "report.html")
