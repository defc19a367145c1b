"""`recover_graph`: the graph behind a user's file, and how files that hold none are refused."""

import io
import json

import numpy as np
import pytest
import torch
from assertions import assert_refused
from safetensors.torch import save_file

import causal_circuits as cc
from causal_circuits.studies.recover_graph import Config

PARENTS = [None, 0, 1, None, 3, 0, None]


@pytest.fixture(scope="module")
def batch() -> cc.Batch:
    return cc.InContextTask(cc.graph_from_parents(PARENTS), d_vocab=3, alpha=0.1).sample(4000, seed=0)


def test_recovery_writes_the_graph_and_a_page(tmp_path, batch, look_at_report):
    np.savez_compressed(tmp_path / "data.npz", tokens=batch.tokens, target_probs=batch.target_probs, other=np.zeros(3))
    done = cc.run(Config(data=tmp_path / "data.npz"), tmp_path / "out", quiet=True)
    assert "4 edges, 3 roots, 0 undecided" in done.report.table()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    graph = results["graph"]
    assert graph["found_parents"] == [*PARENTS, None]
    for ends in (0, -1):  # the first position and the query have no candidate
        assert graph["p_values"][ends] is graph["weights"][ends] is None
    for parent, p_value, weight in zip(PARENTS[1:], graph["p_values"][1:-1], graph["weights"][1:-1], strict=True):
        assert (p_value < 0.05) == (parent is not None)
        assert weight == pytest.approx(float(parent is not None), abs=0.3)
    assert results["data"]["n_sequences"] == 4000
    assert {"command", "config", "versions", "timing", "warnings", "positions"} <= set(results)
    assert "The causal graph behind these sequences" in (tmp_path / "out" / "report.html").read_text()
    look_at_report(tmp_path / "out" / "report.html")


def test_another_content_of_the_file_is_measured_again(tmp_path, batch):
    """The same name, other sequences: the cell that was kept is not used."""
    for parents in (PARENTS, [None, 0, 1, 2, 3, 4, 5]):
        data = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=3, alpha=0.1).sample(4000, seed=0)
        np.savez(tmp_path / "data.npz", tokens=data.tokens, target_probs=data.target_probs)
        done = cc.run(Config(data=tmp_path / "data.npz"), tmp_path / "out", quiet=True)
        assert done.results["graph"]["found_parents"] == [*parents, None]


def test_labels_in_safetensors_are_read_too(tmp_path, batch):
    labels = torch.multinomial(batch.target_probs, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    save_file({"tokens": batch.tokens.to(torch.int32), "labels": labels}, tmp_path / "data.safetensors")
    results = cc.run(Config(data=tmp_path / "data.safetensors"), quiet=True).results
    assert results["graph"]["found_parents"] == [*PARENTS, None]
    assert results["data"]["targets"] == "labels"


TOKENS, LABELS, LAWS = np.zeros((2, 3), int), np.zeros(2, int), np.full((2, 2), 0.5)
BAD_ARRAYS = {
    "labels that are laws": ({"tokens": TOKENS, "labels": LAWS}, ("labels must be [sequences]", "target_probs")),
    "laws that are labels": ({"tokens": TOKENS, "target_probs": np.zeros(2)}, ("[sequences, d_vocab]",)),
    "a wrapped negative": ({"tokens": np.full((2, 3), 2**64 - 1, np.uint64), "labels": LABELS}, ("[-1, -1]",)),
    "other names": ({"x": np.zeros(3)}, ("tokens", "holds x")),
    "both targets": ({"tokens": TOKENS, "labels": LABELS, "target_probs": LAWS}, ("leave one out",)),
    "objects": ({"tokens": np.array([[1], [1, 2]], dtype=object), "labels": LABELS}, ("tokens",)),
    "text": ({"tokens": np.array([["a", "b"]]), "labels": np.zeros(1, int)}, ("must be an array of numbers",)),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_are_no_sequences_are_refused(tmp_path, name):
    arrays, words = BAD_ARRAYS[name]
    np.savez(tmp_path / "data.npz", **arrays)
    assert_refused(lambda: Config(data=tmp_path / "data.npz"), *words)


def with_a_hole() -> bytes:
    """An .npz whose compressed tokens are damaged in the middle."""
    tokens = np.random.default_rng(0).integers(0, 3, (2000, 7))
    np.savez_compressed(file := io.BytesIO(), tokens=tokens, labels=tokens[:, 0])
    return file.getvalue()[:1000] + bytes(100) + file.getvalue()[1100:]


@pytest.mark.parametrize("content", [b"", b"no archive", with_a_hole(), None], ids=range(4))
def test_files_that_are_damaged_or_missing_are_refused(tmp_path, content):
    """Damaged arrays within an archive: test_untrusted_files."""
    if content is not None:
        (tmp_path / "data.npz").write_bytes(content)
    assert_refused(lambda: Config(data=tmp_path / "data.npz"), "readable", "data.npz")


def test_other_kinds_of_files_and_bad_levels_are_refused(tmp_path):
    assert_refused(lambda: Config(data=tmp_path / "data.csv"), ".npz", ".safetensors")
    assert_refused(lambda: Config(data=tmp_path / "data.npz", level=2.0), "--level must lie in (0, 1)")


def test_a_graph_of_two_parents_is_recovered_from_a_file(tmp_path, look_at_report) -> None:
    parents = [[], [], *([(i - 1) // 2, i - 1] for i in range(2, 11))]
    batch = cc.InContextTask(cc.graph_from_parents(parents), d_vocab=4).sample(8000, seed=0)
    np.savez(tmp_path / "data.npz", tokens=batch.tokens, target_probs=batch.target_probs)
    results = cc.run(Config(data=tmp_path / "data.npz", max_parents=2), tmp_path / "out", quiet=True).results
    assert results["graph"]["found_parents"] == parents[:-1]
    assert results["graph"]["target_parents"] == parents[-1]
    assert results["graph"]["edges"] == 16
    look_at_report(tmp_path / "out" / "report.html")
