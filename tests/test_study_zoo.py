"""The zoo: what it says of a model is what was written into it, and survives the way to a file and back."""

import pytest
import torch

import causal_circuits as cc
from causal_circuits.studies import zoo
from causal_circuits.studies.zoo import Config

SIZES = {"d_vocab": 2, "n_ctx": 8, "alpha": 0.1, "steps": 2}


@pytest.fixture(scope="module")
def models() -> list[zoo.ZooModel]:
    """Planted and decoy, of a forest and of two parents."""
    graphs = ("forest", "two-parent")
    return [zoo.measure(graph, kind, 0, **SIZES) for graph in graphs for kind in ("planted", "decoy")]


def graph_of(models: list[zoo.ZooModel]) -> zoo.Method:
    """A method that was told the graphs."""
    graphs = {id(one.model): torch.from_numpy(cc.graphs.edge_entries(one.task.graph)[0]) for one in models}
    return lambda model, batch: graphs[id(model)].float()


def test_a_method_that_knows_the_graph_is_right_on_planted_models_and_wrong_on_decoys(models) -> None:
    table = zoo.score_method(graph_of(models), models, sequences=8).set_index("kind")
    assert (table.auroc_graph == 1.0).all()
    assert (table.loc["planted", "auroc_used"] == 1.0).all()
    assert (table.loc["decoy", "auroc_used"] < 0.5).all()


def test_the_study_writes_models_that_come_back_with_their_truth(tmp_path, look_at_report) -> None:
    flags = {"graphs": ("pairs",), "models": ("planted", "decoy", "trained"), "steps": 2}
    done = cc.run(Config.quickly(**flags), tmp_path, quiet=True)
    assert [check.passed for check in done.report.checks] == [True, True]
    tokens = cc.InContextTask(cc.pairs_graph(8), d_vocab=3).sample(16).tokens
    found = zoo.load_zoo(tmp_path / "models")
    assert len(found) == 3
    for loaded in found:
        kept = next(one for one in done.rows.values() if one.name == loaded.name)
        assert loaded.model(tokens).equal(kept.model(tokens))
        assert loaded.about == kept.about
        assert loaded.circuit == kept.circuit
        assert loaded.knock_out.nan_to_num(-1.0).equal(kept.knock_out.nan_to_num(-1.0))  # NaN: no entry
        assert cc.compare_graphs(kept.task.graph, loaded.task.graph).exact
        assert (loaded.used is None) == (kept.used is None) == (loaded.about["kind"] == "trained")
        assert loaded.used is None or loaded.used.equal(kept.used)
    look_at_report(tmp_path / "report.html")


def test_the_card_scores_a_method_as_it_says(tmp_path, models) -> None:
    zoo.write_zoo(tmp_path, models)
    card = (tmp_path / "README.md").read_text()
    code = "\n".join(line[4:] for line in card.splitlines() if line.startswith("    "))
    scope: dict[str, object] = {}
    exec(code.replace("zoo.score_method", "table = zoo.score_method"), scope)
    assert scope["table"].kind.tolist() == ["decoy", "planted"] * 2


def test_the_check_fails_where_cutting_misses_an_entry(models) -> None:
    wrong = [zoo.ZooModel(**{**vars(one), "used": ~one.used}) for one in models]
    assert not any(check.passed for check in zoo.make_checks(wrong))
