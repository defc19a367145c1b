"""The study of one circuit: a planted one is proved, a trained one watched over seeds."""

from pathlib import Path

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
    for name in ("report.html", "circuit.json", "circuit.graphml", "circuit.csv", "figures/circuit.png"):
        assert (tmp_path / "out" / name).exists()
    look_at_report(tmp_path / "out" / "report.html")
    with pytest.raises(ValueError, match=r"it was built for \(3, 10\)"):
        Config(**flags, n_ctx=11)


def test_a_model_trained_there_is_watched_over_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "RECORDED", 7)
    study = Config(graph="chain", n_ctx=6, steps=60, sequences=64, formation_seeds=2)
    done = cc.run(study, tmp_path, quiet=True)
    assert "median onset in steps, 2 seeds" in done.report.table()
    found = done.results["formation"]
    assert set(found["onset"]) == {"attention", "causal", "causal_minus_attention"}
    assert len(found["seeds"]) == 2
    assert len(found["information"]) == len(found["cells"]) == len(found["seeds"][1]["causal_onset"]) == 4
    assert "position -> L0H0.k" in found["circuit_onset"]
    assert (tmp_path / "figures" / "onsets.png").stat().st_size > 5_000
    again = cc.load_model(tmp_path / "model")
    assert bool((again.W_Q == done.rows["training 0"]["evidence"].model.W_Q).all())


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"steps": 1}, "--steps must be at least 2"),
        ({"sequences": 7}, "--sequences must be at least 64"),
        ({"formation_seeds": 0}, "--formation-seeds must be at least 1"),
        ({"decoy": True, "model": Path("somewhere")}, "choose one of them"),
        ({"graph": "circle"}, "chain, pairs, forest"),
        ({"model": Path("nowhere")}, "nowhere"),
    ],
)
def test_refuses_bad_flags(flags, reason):
    with pytest.raises(ValueError, match=reason):
        Config(**flags)
