"""The scripts as a user runs them: what they write, and how they refuse."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from assertions import unchecked_types
from browser import NEEDS_BROWSER, hover_line, open_page, wait_until
from scripts import leave_pictures_out, numbers_of_a_process, run_analysis, run_without_torch

import causal_circuits as cc

ROOT = Path(__file__).resolve().parent.parent
FIGURE_9_GRAPH = [None, None, 0, 2, None, 1, None, None, 6, 5, None, 8, None, 10, None, None, 7, None, None]


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "analyses" / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)


@pytest.fixture(scope="module")
def chain_run(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """induction_head.py at a size that takes seconds."""
    out = tmp_path_factory.mktemp("chain")
    flags = ("--d-vocab", 4, "--n-ctx", 8, "--steps", 300, "--warm-start", "--seed", 1, "--out", out)
    return out, run_script("induction_head.py", *flags)


def test_the_run_ends_well_and_says_where_to_look(chain_run):
    out, done = chain_run
    assert done.returncode == 0, done.stderr
    assert "6 of 6 parents found, 0 false edges" in done.stdout
    assert str(out / "report.html") in done.stdout


def test_results_hold_every_promised_key(chain_run):
    out, _ = chain_run
    results = json.loads((out / "results.json").read_text())
    assert {"config", "versions", "loss", "graph", "heads", "ablation", "knock_out", "timing"} <= set(results)
    losses = ["entropy", "exact_bayes", "edge_posterior", "best_unigram", "uniform"]
    assert [results["loss"][name] for name in losses] == sorted(results["loss"][name] for name in losses)
    assert results["loss"]["test"] < results["loss"]["best_unigram"]
    graph = results["graph"]
    assert graph["parents"] == graph["found_parents"] == [None, 0, 1, 2, 3, 4, 5]
    assert (graph["edges"], graph["recovered"], graph["false_edges"], graph["exact"]) == (6, 6, 0, True)
    assert 0 < graph["min_parent_attention"] <= graph["mean_parent_attention"] <= 1
    assert [head["role"] for head in results["heads"]] == ["previous-token", "induction"]
    assert {(row["what"], row["method"]) for row in results["ablation"]} == {
        (head, method) for head in ("L0H0", "L1H0") for method in cc.ABLATION_METHODS
    }
    assert results["knock_out"]["effect_true_edges"] > results["knock_out"]["effect_other_entries"]
    assert results["timing"]["steps"] == 300
    assert results["config"]["seed"] == 1


def test_model_and_record_can_be_loaded_again(chain_run):
    out, _ = chain_run
    results = json.loads((out / "results.json").read_text())
    task = cc.InContextTask(cc.chain_graph(8), d_vocab=4, alpha=0.1)
    model = cc.load_model(out / "model")
    loss = float(cc.evaluate(model, task.sample(16_384, seed=(1, 2))).mean())
    assert loss == pytest.approx(results["loss"]["test"], abs=1e-6)
    assert len(cc.TrainingRecord.load(out / "record").losses) == 300


def test_the_page_holds_the_evidence_and_a_browser_shows_it(chain_run, look_at_report):
    out, _ = chain_run
    page = (out / "report.html").read_text()
    for title in ("Verdict", "The loss", "Attention on real sequences", "What breaks when an edge is cut"):
        assert title in page
    look_at_report(out / "report.html")


@NEEDS_BROWSER
def test_the_page_tells_the_numbers_of_an_edge(chain_run, browser):
    out, _ = chain_run
    with open_page(browser, out / "report.html") as page:
        hover_line(page, "[data-edge='0-1'] .around")
        told = "document.querySelector('.graph-view output').textContent"
        wait_until(page, f"{told}.startsWith('0 → 1, found and true')")
        for word in ("attention", "information", "effect", "p (Holm)"):
            assert word in page.evaluate(told)


def test_two_runs_with_one_seed_agree_in_every_number(tmp_path):
    outputs = []
    for name in ("first", "second"):
        flags = ("--d-vocab", 3, "--n-ctx", 5, "--steps", 40, "--seed", 7, "--quiet", "--out", tmp_path / name)
        assert numbers_of_a_process("causal_graph", "--graph", "chain", *flags) == 0
        results = json.loads((tmp_path / name / "results.json").read_text())
        del results["timing"], results["command"], results["config"]["out"]
        outputs.append(results)
    assert outputs[0] == outputs[1]


def test_a_figure_9_graph_is_recovered_with_its_roots(tmp_path, capsys, monkeypatch):
    parents = tmp_path / "parents.json"
    parents.write_text(json.dumps([-1 if parent is None else parent for parent in FIGURE_9_GRAPH]))
    leave_pictures_out(monkeypatch)
    flags = ["--parents", parents, "--steps", 400, "--warm-start", "--out", tmp_path / "out", "--quiet"]
    assert run_analysis("causal_graph", flags, monkeypatch) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    graph = json.loads((tmp_path / "out" / "results.json").read_text())["graph"]
    assert graph["found_parents"] == FIGURE_9_GRAPH
    alone = graph["attention_alone"]
    proposed = [c for c in graph["candidates"] if c["weight"] >= 0.5 and c["margin"] > 0]
    false = [[c["parent"], c["child"]] for c in proposed if FIGURE_9_GRAPH[c["child"]] != c["parent"]]
    assert alone == {"recovered": len(proposed) - len(false), "missing": [], "false": false}
    assert f"{alone['recovered']} of {graph['edges']} and {len(false)} false by attention alone" in printed.out
    assert "20,000 fresh sequences" in printed.out
    decided = {c["decided_by"] for c in graph["candidates"] if c["accepted"] or [c["parent"], c["child"]] in false}
    assert decided == {"information"}


BAD_FLAGS = {
    "unknown graph": (["--graph", "circle"], "chain, pairs, forest"),
    "one token": (["--d-vocab", "1"], "d_vocab must be an integer of at least 2"),
    "no position": (["--graph", "chain", "--n-ctx", "1"], "n_ctx must be an integer of at least 2"),
    "no edge": (["--graph", "chain", "--n-ctx", "2"], "nothing to recover"),
    "alpha zero": (["--alpha", "0"], "alpha must be positive"),
    "alpha NaN": (["--alpha", "nan"], "alpha must be positive"),
    "root probability": (["--root-probability", "1.5"], "root_probability must lie in [0, 1]"),
    "steps": (["--steps", "0"], "--steps must be at least 2"),
    "seed": (["--seed", "-1"], "--seed must be 0 or more"),
    "not a number": (["--steps", "many"], "invalid int value"),
    "unknown flag": (["--colour"], "unrecognized arguments"),
}
BAD_FILES = {
    "not JSON": ("{", "JSON file with a list"),
    "not a list": ('{"parents": [0]}', "holds a dict"),
    "empty": ("[]", "empty list"),
    "parent after child": ("[-1, 2, 0]", "a parent must precede its child: edge 2 -> 1"),
    "outside": ("[-1, 0, 99]", "a parent must lie in the context 0 .. 3: got 99"),
    "negative": ("[-1, 0, -2]", "got -2 at position 2"),
    "NaN": ("[-1, NaN]", "a parent must be an integer position"),
    "a float": ("[-1, 0.0]", "a parent must be an integer position"),
    "lists": ("[[], [0]]", "one parent a position"),
    "roots only": ("[-1, -1, -1]", "nothing to recover"),
}


@pytest.fixture(scope="module")
def causal_graph_script():
    """causal_graph.py as a module, so that refusals need no new process."""
    sys.path.insert(0, str(ROOT / "analyses"))
    specification = importlib.util.spec_from_file_location("causal_graph", ROOT / "analyses" / "causal_graph.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "analyses"))


def assert_refuses(script, flags, reason, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["causal_graph.py", *map(str, flags)])
    with unchecked_types(), pytest.raises(SystemExit) as stopped:
        script.main()
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert reason in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flags_end_in_one_line(case, causal_graph_script, tmp_path, capsys, monkeypatch):
    flags, reason = BAD_FLAGS[case]
    assert_refuses(causal_graph_script, [*flags, "--out", tmp_path / "out"], reason, capsys, monkeypatch)
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_parents_files_end_in_one_line(case, causal_graph_script, tmp_path, capsys, monkeypatch):
    text, reason = BAD_FILES[case]
    path = tmp_path / "parents.json"
    path.write_text(text)
    assert_refuses(causal_graph_script, ["--parents", path, "--out", tmp_path / "out"], reason, capsys, monkeypatch)


def test_a_missing_file_and_a_wrong_length_are_named(causal_graph_script, tmp_path, capsys, monkeypatch):
    missing = ["--parents", tmp_path / "no.json", "--out", tmp_path]
    assert_refuses(causal_graph_script, missing, "No such file", capsys, monkeypatch)
    (tmp_path / "parents.json").write_text("[-1, 0, 1]")
    short = ["--parents", tmp_path / "parents.json", "--n-ctx", 9, "--out", tmp_path]
    assert_refuses(causal_graph_script, short, "disagree", capsys, monkeypatch)


def test_an_output_folder_that_cannot_be_made_is_named_before_any_work(
    causal_graph_script, tmp_path, capsys, monkeypatch
):
    (tmp_path / "file").write_text("in the way")
    flags = ["--out", tmp_path / "file" / "out"]
    assert_refuses(causal_graph_script, flags, "--out must be a folder that can be written to", capsys, monkeypatch)


@pytest.mark.parametrize("script", ["induction_head", "causal_graph"])
def test_help_teaches_and_waits_for_nothing_heavy(script):
    done = run_without_torch(script, "--help")
    assert done.returncode == 0, done.stderr
    for word in ("Claim:", "--d-vocab", "--seed", "--out", "report.html"):
        assert word in done.stdout
