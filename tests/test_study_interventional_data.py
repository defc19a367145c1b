"""The study of interventional data: a small run, forests that are open, and each check made to fail once."""

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import causal_circuits as cc
from causal_circuits.studies.interventional_data import MODELS, Config, checks
from causal_circuits.studies.interventional_data.measure import METHODS, both_ways, gradient, open_forest
from causal_circuits.studies.tables import SHARE, interval_text, make_graph


def test_the_gradient_tells_the_direction_that_the_experiment_left_open(tmp_path, look_at_report):
    study = Config.quickly(d_vocab=(2,), steps=20)
    (row,) = cc.run(study, tmp_path, quiet=True).results["forests"]
    alone, all_set = row["points"]
    assert alone["gradient, fading"] == alone["gradient, told where"] == 0.5
    assert all_set["gradient, fading"] == all_set["gradient, told where"] == 1.0
    assert all_set["gradient into"] < 0.2 < 1.0 < all_set["gradient out of"]
    look_at_report(tmp_path / "report.html")


@pytest.mark.parametrize("seed", range(5))
def test_every_open_edge_has_one_end_set_and_another_root_would_turn_it(seed):
    skeleton = make_graph("forest", 12, root_probability=0.2, seed=seed)
    parents, edges, set_at = open_forest(skeleton, np.random.default_rng(seed))
    assert nx.is_isomorphic(
        nx.Graph(cc.latent_edges(skeleton)), nx.Graph(cc.latent_edges(cc.graph_from_parents(parents)))
    )
    assert edges
    for parent, child in edges:
        assert parents[child] == parent
        assert (parent in set_at) != (child in set_at)
    children = [child for _, child in edges]
    assert len(children) == len(set(children))  # paths from roots: turned, they are a forest too


def test_two_trees_of_one_skeleton_have_one_law_with_two_tokens_and_another_with_three():
    """The law of a star's tokens and target as a root's, and as a leaf's: exact sums over a few matrices."""
    for d_vocab, equal in ((2, True), (3, False)):
        matrices = np.random.default_rng(0).dirichlet(np.ones(d_vocab), size=(4, d_vocab))
        laws = cc.tasks.stationary_law(matrices)
        star = np.einsum("na,nab,nac,nad->nabcd", laws, matrices, matrices, matrices)
        from_leaf = np.einsum("nb,nba,nac,nad->nabcd", laws, matrices, matrices, matrices)
        assert np.allclose(star, from_leaf, atol=1e-6) == equal


def test_the_gradient_of_both_orders_is_that_of_sequences_turned():
    batch = cc.InContextTask(cc.chain_graph(5), d_vocab=3).sample(500)
    turned = cc.Batch(batch.tokens[:, [3, 2, 1, 0, 4]], batch.target_probs)
    assert np.allclose(gradient(turned), gradient(batch)[::-1, ::-1])
    forward, _ = both_ways(gradient(batch), [(0, 1)])
    assert forward == pytest.approx(float(cc.information.estimate_gradient(*vars(batch).values()).value[1, 0]))


POINT = {"d_vocab": 2, **dict.fromkeys(METHODS["both orders"], 0.5), **dict.fromkeys(METHODS["fading"], 0.5)}
POINT |= {f"{name}, AUROC": 0.5 for name in MODELS}
SET = POINT | {"share": 1.0, "gradient, fading": 1.0, "gradient, told where": 1.0, "attention, fading": 1.0}


@pytest.mark.parametrize(
    ("d_vocab", "alone", "all_set", "states"),
    [
        (2, {}, {}, ["passed", "passed", "passed"]),
        (2, {"attention, both orders": 0.9}, {}, ["failed", "passed", "passed"]),
        (2, {}, {"gradient, fading": 0.9}, ["passed", "failed", "passed"]),
        (2, {}, {"attention, fading": 0.9}, ["passed", "passed", "refuted"]),
        (3, {"gradient, both orders": 1.0}, {}, ["passed", "passed", "passed"]),
        (3, {"gradient, both orders": 0.9}, {}, ["failed", "passed", "passed"]),
    ],
)
def test_each_check_can_fail(d_vocab, alone, all_set, states):
    points = pd.DataFrame([POINT | {"share": 0.0} | alone, SET | all_set]).assign(d_vocab=d_vocab)
    assert [check.state for check in checks(points)] == states


def test_intervals_of_shares_lie_between_0_and_1():
    points = pd.DataFrame([POINT | {"share": 0.0, "attention, both orders": right} for right in (0.1, 0.9, 1.0)])
    assert "attention, both orders 0.667 [0.000, 1.000]" in checks(points.assign(d_vocab=3))[0].evidence
    assert interval_text((0.1, 0.9, 1.0)) != interval_text((0.1, 0.9, 1.0), SHARE) == "0.667 [0.000, 1.000]"
