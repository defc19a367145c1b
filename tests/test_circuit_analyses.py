"""circuit_proof.py and discovery_benchmark.py as a user runs them."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest
from scripts import analysis_module, assert_refused_in_one_line, run_analysis, run_without_torch

METHODS = ["--methods", "exact", "eap"]


def run_script(name: str, *flags: object) -> str:
    """What it prints, run in this process; it must end well."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(printed):
        assert run_analysis(name, flags, monkeypatch) == 0
    return printed.getvalue()


@pytest.fixture(scope="module")
def benchmark_run(tmp_path_factory) -> tuple[Path, list[object]]:
    """One graph, planted and decoy, at the size of --quick."""
    out = tmp_path_factory.mktemp("benchmark")
    flags = ["--quick", "--quiet", "--graphs", "pairs", "--models", "planted", "decoy", "--out", out]
    printed = run_script("discovery_benchmark", *flags, *METHODS)
    assert [line for line in printed.splitlines() if line.startswith("exact ") and "KL to the model" in line]
    return out, flags


QUESTIONS = {
    "exact": {(c, m) for c in ("zero", "mean", "resample", "permute") for m in ("loss", "kl_to_model")},
    "eap": {("zero", "loss"), ("mean", "loss"), ("resample", "loss"), ("permute", "loss"), ("pairs", "loss")},
}


def test_the_benchmark_writes_its_rows(benchmark_run, look_at_report):
    out, _ = benchmark_run
    rows = json.loads((out / "results.json").read_text())["rows"]
    for row in rows:
        if row["model"] == "decoy":  # told, never used to leave a model out
            assert row["recipe"] == "displaced"
            low, blind = row["excess_over_edge_posterior"] <= 0.05, row["attention_to_parents"] < 0.5
            assert row["is_decoy"] == (low and blind)
    assert all(row["optimum_found"] for row in rows if row["model"] == "planted")
    promised = {"method", "graph", "model", "seed", "auroc", "auprc", "shd", "exact_parent_rate", "regret", "seconds"}
    assert all(promised | {"counterfactual", "metric", "auroc_by_loss"} <= set(row) for row in rows)
    for kind in ("planted", "decoy"):
        for method, questions in QUESTIONS.items():
            asked = [(r["counterfactual"], r["metric"]) for r in rows if (r["model"], r["method"]) == (kind, method)]
            assert len(asked) == len(questions)
            assert set(asked) == questions
    for row in rows:
        assert (row["regret"] is None) == (
            (row["counterfactual"], row["metric"]) not in {("mean", "loss"), ("pairs", "loss")}
        )
    planted = {(r["method"], r["counterfactual"], r["metric"]): r for r in rows if r["model"] == "planted"}
    best = planted["exact", "zero", "kl_to_model"]
    assert (best["auroc"], best["exact_parent_rate"]) == (1.0, 1.0)
    assert best["auroc_by_loss"] == planted["exact", "zero", "loss"]["auroc"]
    for (_, counterfactual, _), row in planted.items():
        if counterfactual in ("mean", "resample", "pairs"):
            assert row["auroc"] == 0.5, "planted attention is the same on all tokens: every method is blind"
    assert (out / "figures" / "benchmark.png").stat().st_size > 10_000
    look_at_report(out / "report.html")


def test_the_verdict_follows_the_rows(benchmark_run, monkeypatch):
    """Rows that say the contrary turn every claim over."""
    page = analysis_module("benchmark_page", monkeypatch)
    rows = json.loads((benchmark_run[0] / "results.json").read_text())["rows"]
    trained = [row | {"model": "trained"} for row in rows if row["model"] == "decoy"]
    checks = page.verdict([*rows, *trained])
    assert len(checks) == 4
    assert not checks[-1].passed, "models as like as these are not told apart"
    wrong = [row | {"auroc": 0.6, "optimum_found": False} for row in rows]
    assert [check.passed for check in page.verdict(wrong)] == [False, False, False]
    (line,) = page.loss_lines([*rows, *trained])
    assert line.startswith("decoy: 1 models, none left out; their loss is +0.000 to +0.000 nats")


def test_a_second_run_does_only_what_is_missing(benchmark_run):
    out, flags = benchmark_run
    before = json.loads((out / "results.json").read_text())["rows"]
    (out / "units" / "unit_pairs_decoy_0.json").unlink()
    run_script("discovery_benchmark", *flags, *METHODS)
    rows = json.loads((out / "results.json").read_text())["rows"]
    half = len(rows) // 2
    assert rows[:half] == before[:half]  # to the measured second
    assert rows[half]["unit_cpu_seconds"] != before[half]["unit_cpu_seconds"]
    assert len(rows) == len(before)


def test_a_folder_with_another_run_is_refused(benchmark_run, tmp_path, capsys, monkeypatch):
    _, flags = benchmark_run
    for other in (["--methods", "exact"], [*METHODS, "--steps", "201"]):
        assert_refused_in_one_line(
            "discovery_benchmark", [*flags, *other], "choose another folder", capsys, monkeypatch
        )
    (tmp_path / "results.json").write_text("{}")
    flags = [*flags[:-1], tmp_path, *METHODS]
    assert_refused_in_one_line("discovery_benchmark", flags, "--out must be empty", capsys, monkeypatch)


BAD_FLAGS = [
    ("discovery_benchmark", ["--graphs", "circle"], "chain, pairs, forest, two-parent"),
    ("discovery_benchmark", ["--methods", "probe"], "exact, attention"),
    ("discovery_benchmark", ["--models", "grown"], "planted, trained, adam, decoy"),
    ("discovery_benchmark", ["--seeds", "0"], "--seeds must be at least 1"),
    ("discovery_benchmark", ["--alpha", "0"], "--alpha must be positive"),
    ("discovery_benchmark", ["--max-edges", "31"], "--max-edges must lie in 1 .. 30"),
    ("discovery_benchmark", ["--d-vocab", "1"], "--d-vocab must be at least 2"),
    ("circuit_proof", ["--steps", "1"], "--steps must be at least 2"),
    ("circuit_proof", ["--sequences", "7"], "--sequences must be at least 64"),
    ("circuit_proof", ["--formation-seeds", "0"], "--formation-seeds must be at least 1"),
    ("circuit_proof", ["--decoy", "--model", "somewhere"], "choose one of them"),
    ("circuit_proof", ["--graph", "circle"], "chain, pairs, forest"),
    ("circuit_proof", ["--model", "nowhere"], "nowhere"),
]


@pytest.mark.parametrize(("name", "flags", "reason"), BAD_FLAGS)
def test_bad_flags_end_in_one_line(name, flags, reason, tmp_path, capsys, monkeypatch):
    assert_refused_in_one_line(name, [*flags, "--out", tmp_path], reason, capsys, monkeypatch)


def test_bad_flags_are_answered_before_anything_heavy_is_imported():
    for name, flags, reason in BAD_FLAGS[0], BAD_FLAGS[7]:
        done = run_without_torch(name, *flags)
        assert done.returncode == 2, done.stderr
        assert reason in done.stderr


def test_the_scripts_know_every_method(monkeypatch):
    from causal_circuits import circuits

    assert analysis_module("discovery_benchmark", monkeypatch).METHODS == circuits.METHODS


def test_a_saved_planted_model_is_proved_and_written_down(tmp_path, capsys, monkeypatch, look_at_report):
    import causal_circuits as cc

    graph = cc.chain_graph(10)
    cc.save_model(cc.plant_circuit(graph, d_vocab=3, readout_scale=2.0), tmp_path / "model")
    flags = ["--model", tmp_path / "model", "--graph", "chain", "--sequences", 512]
    flags += ["--quiet", "--out", tmp_path / "out", "--n-ctx"]
    assert "proved: these 9 edges meet all four criteria" in run_script("circuit_proof", *flags, 10)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["proof"]["proved"]
    assert results["encodes_graph"]
    assert results["formation"] is None
    assert all(check["passed"] for check in results["self_checks"])
    assert results["methods"][0]["method"] == "exact"
    assert results["methods"][0]["entries"]["auroc"] == 1.0
    for name in ("report.html", "circuit.json", "circuit.graphml", "circuit.csv", "figures/circuit.png"):
        assert (tmp_path / "out" / name).exists()
    look_at_report(tmp_path / "out" / "report.html")
    assert_refused_in_one_line("circuit_proof", [*flags, 11], "it was built for (3, 10)", capsys, monkeypatch)


def test_a_model_trained_there_is_watched_over_seeds(tmp_path, monkeypatch):
    monkeypatch.setattr(analysis_module("prove_one", monkeypatch), "RECORDED", 7)
    size = ["--graph", "chain", "--n-ctx", 6, "--steps", 60, "--sequences", 64, "--formation-seeds", 2]
    printed = run_script("circuit_proof", *size, "--quiet", "--out", tmp_path)
    assert "median onset in steps, 2 seeds" in printed
    found = json.loads((tmp_path / "results.json").read_text())["formation"]
    assert set(found["onset"]) == {"attention", "causal", "causal_minus_attention"}
    assert len(found["seeds"]) == 2
    assert len(found["information"]) == len(found["cells"]) == len(found["seeds"][1]["causal_onset"]) == 4
    assert "position -> L0H0.k" in found["circuit_onset"]
    assert (tmp_path / "figures" / "onsets.png").stat().st_size > 5_000
