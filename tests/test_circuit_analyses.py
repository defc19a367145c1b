"""circuit_proof.py and discovery_benchmark.py as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import analysis_module, assert_refused_in_one_line

ROOT = Path(__file__).resolve().parent.parent


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "analyses" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def benchmark_run(tmp_path_factory) -> tuple[Path, list[object]]:
    """One graph, planted and decoy, at the size of --quick."""
    out = tmp_path_factory.mktemp("benchmark")
    flags = ["--quick", "--quiet", "--graphs", "pairs", "--models", "planted", "decoy", "--out", out]
    done = run_script("discovery_benchmark.py", *flags, "--methods", "exact", "eap")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "planted  exact" in done.stdout
    return out, flags


def test_the_benchmark_writes_its_rows(benchmark_run, look_at_report):
    out, _ = benchmark_run
    rows = json.loads((out / "results.json").read_text())["rows"]
    promised = {"method", "graph", "model", "seed", "auroc", "auprc", "shd", "exact_parent_rate", "regret", "seconds"}
    assert all(promised <= set(row) for row in rows)
    assert [(row["model"], row["method"]) for row in rows] == [
        ("planted", "exact"), ("planted", "eap"), ("decoy", "exact"), ("decoy", "eap")
    ]  # fmt: skip
    assert (rows[0]["auroc"], rows[0]["exact_parent_rate"]) == (1.0, 1.0)
    assert rows[1]["auroc"] == 0.5
    assert (out / "figures" / "benchmark.png").stat().st_size > 10_000
    look_at_report(out / "report.html")


def test_a_second_run_does_only_what_is_missing(benchmark_run):
    out, flags = benchmark_run
    path = out / "results.json"
    results = json.loads(path.read_text())
    results["rows"] = results["rows"][:2]
    results["rows"][0]["seconds"] = 123.0  # a row that is not measured again keeps this
    path.write_text(json.dumps(results))
    assert run_script("discovery_benchmark.py", *flags, "--methods", "exact", "eap").returncode == 0
    rows = json.loads(path.read_text())["rows"]
    assert rows[0]["seconds"] == 123.0
    assert len(rows) == 4
    refused = run_script("discovery_benchmark.py", *flags, "--methods", "exact")
    assert refused.returncode == 2
    assert "choose another folder" in refused.stderr


BAD_FLAGS = [
    ("discovery_benchmark", ["--graphs", "circle"], "chain, pairs, forest, two-parent"),
    ("discovery_benchmark", ["--methods", "probe"], "exact, attention"),
    ("discovery_benchmark", ["--models", "grown"], "planted, trained, decoy"),
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


def test_bad_flags_are_answered_before_anything_heavy_is_imported(monkeypatch):
    """In an interpreter of their own, in which importing torch fails."""
    code = "import sys; sys.modules['torch'] = None; sys.path.insert(0, {!r}); import {} as it; sys.exit(it.main())"
    for name, flags, _ in BAD_FLAGS[0], BAD_FLAGS[7]:
        command = [sys.executable, "-c", code.format(str(ROOT / "analyses"), name), *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2, done.stderr


def test_the_scripts_know_every_method(monkeypatch):
    from causal_circuits import circuits

    assert analysis_module("discovery_benchmark", monkeypatch).METHODS == circuits.METHODS


def test_a_saved_planted_model_is_proved_and_written_down(tmp_path, look_at_report):
    import causal_circuits as cc

    graph = cc.chain_graph(10)
    cc.save_model(cc.plant_circuit(graph, d_vocab=3, readout_scale=2.0), tmp_path / "model")
    flags = ["--model", tmp_path / "model", "--graph", "chain", "--n-ctx", 10, "--quiet", "--out", tmp_path / "out"]
    done = run_script("circuit_proof.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "proved: these 9 edges are the circuit" in done.stdout
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["proof"]["proved"]
    assert results["encodes_graph"]
    assert all(check["passed"] for check in results["self_checks"])
    assert results["methods"][0]["method"] == "exact"
    assert results["methods"][0]["entries"]["auroc"] == 1.0
    for name in ("report.html", "circuit.json", "circuit.graphml", "circuit.csv", "figures/circuit.png"):
        assert (tmp_path / "out" / name).exists()
    look_at_report(tmp_path / "out" / "report.html")
    wrong = run_script("circuit_proof.py", "--model", tmp_path / "model", "--graph", "chain", "--n-ctx", 11)
    assert wrong.returncode == 2
    assert "it was built for (3, 10)" in wrong.stderr
