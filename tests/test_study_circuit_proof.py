"""The study of one circuit: a planted one is proved, a trained one watched over seeds."""

import json
from functools import partial

import pytest

import causal_circuits as cc
from causal_circuits.studies.circuit_proof import Config, measure


def test_a_saved_planted_model_is_proved_and_written_down(tmp_path, look_at_report):
    cc.save_model(cc.plant_circuit(cc.chain_graph(10), d_vocab=3, readout_scale=2.0), tmp_path / "model")
    flags = {"model": tmp_path / "model", "graph": "chain", "sequences": 512}
    done = cc.run(Config(**flags, n_ctx=10), tmp_path / "out", quiet=True)
    assert "proved: these 9 edges meet all four criteria" in done.report.table()
    results = done.results
    assert results["proof"]["proved"]
    assert results["encodes_graph"]
    assert results["formation"] is None
    assert all(check["passed"] for check in results["self_checks"])
    assert results["methods"][0]["method"] == "exact"
    assert results["methods"][0]["entries"]["auroc"] == 1.0
    for name in ("report.html", "circuit.json", "figures/circuit.png"):
        assert (tmp_path / "out" / name).exists()
    look_at_report(tmp_path / "out" / "report.html")
    with pytest.raises(ValueError, match=r"it was built for \(3, 10\)"):
        Config(**flags, n_ctx=11)


def test_a_model_trained_there_is_watched_over_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RECORDED", 7)
    study = Config(graph="chain", n_ctx=6, steps=60, sequences=64, formation_seeds=2)
    done = cc.run(study, tmp_path, quiet=True)
    assert "median onset in steps (95% over seeds)" in done.report.table()
    found = done.results["formation"]
    assert set(found["onset"]) == {"attention", "causal", "causal_minus_attention"}
    assert len(found["seeds"]) == 2
    assert len(found["information"]) == len(found["cells"]) == len(found["seeds"][1]["causal_onset"]) == 4
    assert "position -> L0H0.k" in found["circuit_onset"]
    assert (tmp_path / "figures" / "onsets.svg").stat().st_size > 5_000
    again = cc.load_model(tmp_path / "model")
    assert bool((again.W_Q == done.rows["training 0"]["evidence"].model.W_Q).all())


@pytest.mark.parametrize("plant", [cc.plant_circuit, cc.models.plant_decoy])
def test_two_parents_stand_where_planted_and_fall_in_a_decoy_of_the_same_loss(tmp_path, monkeypatch, plant):
    monkeypatch.setattr(measure, "ENUMERATED_OF_SEVERAL", 6)
    monkeypatch.setattr(cc.circuits, "METHODS", ("exact",))
    monkeypatch.setattr(cc.circuits, "prove_circuit", partial(cc.circuits.prove_circuit, n_random=99, n_bootstrap=50))
    parents = [[], [], [0, 1], [1, 2], [0, 2], [2, 3], [1, 4], [], [], [], [], [], [10, 11]]
    (tmp_path / "parents.json").write_text(json.dumps(parents))
    model = plant(cc.graph_from_parents(parents), d_vocab=2, readout_scale=2.0)
    cc.save_model(model, tmp_path / "model")
    study = Config(model=tmp_path / "model", parents=tmp_path / "parents.json", d_vocab=2, sequences=512)
    results, planted = cc.run(study, quiet=True).results, plant is cc.plant_circuit
    assert results["config"]["parents"] == parents
    assert all(check["passed"] for check in results["self_checks"])
    assert results["loss"]["whole"] < 0.55  # of log 2 = .69, by either model
    assert results["encodes_graph"] == planted
    kept = {(row["claim"], row["where"]): row["recovered"] for row in results["scrubbing"]}
    assert (kept["both", "children"] > 0.9) == planted


def test_heads_may_copy_parents_in_another_order():
    """Two heads of a planted model change places: the hypothesis holds if it names them so, and only then."""
    task = cc.InContextTask(cc.ngram_graph(7, 2), d_vocab=2)
    model, batch = cc.plant_circuit(task.graph, d_vocab=2), task.sample(256)
    for weights in (model.blocks[0].attn.W_Q, model.blocks[0].attn.W_K):
        weights.data = weights.data.flip(0)
    heads = measure.copying_heads(cc.mean_attention(model, batch.tokens)[0], task)
    assert heads == [1, 0]
    kept = [cc.scrub_hypothesis(model, batch, task, "copy", heads=order).recovered for order in (heads, None)]
    assert kept[0] == pytest.approx(1.0, abs=1e-4)
    assert kept[1] < 0.9
