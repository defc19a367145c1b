"""The main job, `induction_head` and `causal_graph`: what it finds and writes, what it refuses, how it goes on."""

import json
import re
import signal
from pathlib import Path

import pytest
from assertions import assert_refused

import causal_circuits as cc
from causal_circuits import studies
from causal_circuits.storage import plain_values
from causal_circuits.studies.recover_and_prove import make_checks, make_results
from causal_circuits.studies.recover_and_prove.evidence import edge_facts
from causal_circuits.studies.recover_and_prove.measure import measure

FIGURE_9_GRAPH = [None, None, 0, 2, None, 1, None, None, 6, 5, None, 8, None, 10, None, None, 7, None, None]
SMALL = {"d_vocab": 3, "n_ctx": 6, "steps": 60, "seed": 4}


@pytest.fixture(scope="module")
def chain_run(tmp_path_factory) -> cc.running.Run:
    """induction_head at a size that takes seconds."""
    config = studies.induction_head.Config(d_vocab=4, n_ctx=8, steps=300, warm_start=True, seed=1)
    return cc.run(config, tmp_path_factory.mktemp("chain"), quiet=True)


def numbers(study: object, scratch: Path | None = None) -> dict:
    """Every number of the job, without page and times."""
    found = make_results(measure(**study.cells()[0].settings, scratch=scratch, progress=False))
    del found["timing"]
    return plain_values(found)


def all_keys(values: object) -> set[str]:
    """The keys of JSON values, at any depth."""
    below = values.values() if isinstance(values, dict) else values if isinstance(values, list) else ()
    return set(values if isinstance(values, dict) else ()).union(*map(all_keys, below))


def test_results_hold_every_promised_key(chain_run):
    results = json.loads((chain_run.folder / "results.json").read_text())
    assert results == json.loads(json.dumps(plain_values(chain_run.results)))
    table = (Path(__file__).parents[1] / "analyses/README.md").read_text().partition("## results.json")[2]
    for key, told in re.findall(r"^\| `(\w+)` \| (.*) \|$", table, flags=re.MULTILINE):
        assert set(re.findall(r"`(\w+)`", told)) <= all_keys(results[key]), key
    losses = [results["loss"][n] for n in ("entropy", "exact_bayes", "edge_posterior", "best_unigram", "uniform")]
    assert losses == sorted(losses)
    assert results["loss"]["test"] < results["loss"]["best_unigram"]
    graph = results["graph"]
    assert graph["parents"] == graph["found_parents"] == [None, 0, 1, 2, 3, 4, 5]
    assert (graph["edges"], graph["recovered"], graph["false_edges"], graph["exact"]) == (6, 6, 0, True)
    assert 0 < graph["min_parent_attention"] <= graph["mean_parent_attention"] <= 1
    assert [head["role"] for head in results["heads"]] == ["previous-token", "induction"]
    assert {(row["what"], row["method"]) for row in results["ablation"]} == {
        (head, method) for head in ("L0H0", "L1H0") for method in cc.interventions.ABLATION_METHODS
    }
    assert results["knock_out"]["effect_true_edges"] > results["knock_out"]["effect_other_entries"]
    assert results["timing"]["steps"] == 300
    assert results["config"]["seed"] == 1
    assert "6 of 6 parents, 0 false edges" in chain_run.report.table()


def test_model_and_record_can_be_loaded_again(chain_run):
    task = cc.InContextTask(cc.chain_graph(8), d_vocab=4, alpha=0.1)
    model = cc.load_model(chain_run.folder / "model")
    loss = float(cc.evaluate(model, task.sample(16_384, seed=(1, 2))).mean())
    assert loss == pytest.approx(chain_run.results["loss"]["test"], abs=1e-6)
    assert len(cc.TrainingRecord.load(chain_run.folder / "record").losses) == 300


def test_the_page_holds_the_evidence_and_a_browser_shows_it(chain_run, look_at_report):
    page = (chain_run.folder / "report.html").read_text()
    for title in ("Verdict", "The graph while it forms", "Attention on sequences", "What breaks when an edge is cut"):
        assert title in page
    assert (chain_run.folder / "figures" / "graph.svg").is_file()
    look_at_report(chain_run.folder / "report.html")


def test_an_edge_has_its_numbers_beside_it(chain_run):
    findings = chain_run.rows["training"]
    facts = edge_facts(findings)
    assert set(facts) == {(i, i + 1) for i in range(6)}
    assert set(facts[0, 1]) == {"attention", "effect of cutting it (nats)", "information", "p (Holm)"}
    assert facts[2, 3]["attention"] == findings.parent_attention[2]


def test_checks_fail_for_an_untrained_model():
    """Two steps teach nothing: no check may pass that says something was learned."""
    study = studies.induction_head.Config(**SMALL | {"steps": 2})
    findings = measure(**study.cells()[0].settings, scratch=None, progress=False)
    assert not any(check.passed for check in make_checks(findings))


def test_a_figure_9_graph_is_recovered_with_its_roots(tmp_path):
    parents = tmp_path / "parents.json"
    parents.write_text(json.dumps([-1 if parent is None else parent for parent in FIGURE_9_GRAPH]))
    study = studies.causal_graph.Config(parents=parents, steps=400, warm_start=True)
    graph = numbers(study)["graph"]
    assert graph["found_parents"] == FIGURE_9_GRAPH
    alone = graph["attention_alone"]
    proposed = [c for c in graph["candidates"] if c["weight"] >= 0.5 and c["margin"] > 0]
    false = [[c["parent"], c["child"]] for c in proposed if FIGURE_9_GRAPH[c["child"]] != c["parent"]]
    assert alone == {"recovered": len(proposed) - len(false), "missing": [], "false": false}
    decided = {c["decided_by"] for c in graph["candidates"] if c["accepted"] or [c["parent"], c["child"]] in false}
    assert decided == {"information"}


def test_a_training_that_was_interrupted_goes_on_to_the_same_numbers(tmp_path, monkeypatch):
    study, train, seen = studies.induction_head.Config(**SMALL), cc.train, []

    def pressed(*given: object, on_record: object, **options: object) -> cc.TrainingRecord:
        def watch(step: int, model: object) -> None:
            on_record(step, model)
            seen.append(step)
            if len(seen) == 5:
                signal.raise_signal(signal.SIGINT)

        return train(*given, **options, on_record=watch)

    whole = numbers(study)
    monkeypatch.setattr(cc, "train", pressed)
    with pytest.raises(KeyboardInterrupt, match="interrupted at step"):
        numbers(study, tmp_path)
    assert list(tmp_path.glob("step_*.json"))
    assert numbers(study, tmp_path) == whole
    assert seen == sorted(set(seen))  # no step twice


BAD_FILES = [
    ("{", "JSON file with a list"),
    ('{"parents": [0]}', "holds something else"),
    ("[]", "empty list"),
    ("[-1, 2, 0]", "a parent must precede its child: edge 2 -> 1"),
    ("[-1, NaN]", "a parent must be an integer position"),
    ("[[], [0]]", "one parent a position"),
    ("[-1, -1, -1]", "nothing to recover"),
    ("[-1, 0, 1]", "disagree: its parents make n_ctx 4"),
]


@pytest.mark.parametrize(("text", "reason"), BAD_FILES)
def test_bad_parents_files_are_refused(text, reason, tmp_path):
    path, n_ctx = tmp_path / "parents.json", 9 if "disagree" in reason else None
    path.write_text(text)
    assert_refused(lambda: studies.causal_graph.Config(parents=path, n_ctx=n_ctx), reason)
