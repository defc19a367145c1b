"""The scripts about information as a user runs them, and the figures that they draw."""

import importlib
import io
import json
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scripts import run_without_torch

import causal_circuits as cc
from causal_circuits import figures

ROOT = Path(__file__).resolve().parent.parent
PARENTS = [None, 0, 1, None, 3, 0, None]


def run_script(name: str, *arguments: object) -> subprocess.CompletedProcess:
    """Run a script's main() in this process, where torch is loaded already."""
    with pytest.MonkeyPatch.context() as monkeypatch, redirect_stdout(io.StringIO()) as out:
        monkeypatch.syspath_prepend(str(ROOT / "analyses"))
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
        with redirect_stderr(io.StringIO()) as error:
            try:
                with importlib.import_module("command_line").CLAIMED:
                    code = importlib.import_module(name).main()
            except SystemExit as ended:
                code = ended.code
    return subprocess.CompletedProcess([], code, out.getvalue(), error.getvalue())


def assert_one_line_refusal(done: subprocess.CompletedProcess, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    for word in words:
        assert word in done.stderr


@pytest.fixture(scope="module")
def batch() -> cc.Batch:
    return cc.InContextTask(cc.graph_from_parents(PARENTS), d_vocab=3, alpha=0.1).sample(4000, seed=0)


@pytest.fixture(scope="module")
def recovery(tmp_path_factory, batch) -> tuple[Path, subprocess.CompletedProcess]:
    folder = tmp_path_factory.mktemp("recovery")
    np.savez_compressed(folder / "data.npz", tokens=batch.tokens, target_probs=batch.target_probs, other=np.zeros(3))
    return folder, run_script("recover_graph", folder / "data.npz", "--out", folder / "out", "--quiet")


def test_recovery_writes_the_graph_and_a_page(recovery, look_at_report):
    folder, done = recovery
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "4 edges, 3 roots, 0 undecided" in done.stdout
    results = json.loads((folder / "out" / "results.json").read_text())
    graph = results["graph"]
    assert graph["found_parents"] == [*PARENTS, None]
    for ends in (0, -1):  # the first position and the query have no candidate
        assert graph["p_values"][ends] is graph["weights"][ends] is None
    for parent, p_value, weight in zip(PARENTS[1:], graph["p_values"][1:-1], graph["weights"][1:-1], strict=True):
        assert (p_value < 0.05) == (parent is not None)
        assert weight == pytest.approx(float(parent is not None), abs=0.3)
    assert results["data"]["n_sequences"] == 4000
    assert {"command", "config", "versions", "timing", "warnings", "positions"} <= set(results)
    page = (folder / "out" / "report.html").read_text()
    assert "The causal graph behind these sequences" in page
    look_at_report(folder / "out" / "report.html")
    assert not list((folder / "out").glob("*.part"))


def test_labels_in_safetensors_are_read_too(tmp_path, batch):
    labels = torch.multinomial(batch.target_probs, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    save_file({"tokens": batch.tokens.to(torch.int32), "labels": labels}, tmp_path / "data.safetensors")
    done = run_script("recover_graph", tmp_path / "data.safetensors", "--out", tmp_path / "out", "--quiet")
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["graph"]["found_parents"] == [*PARENTS, None]
    assert results["data"]["targets"] == "labels"


def write_lying_header(path: Path) -> None:
    """An .npz whose tokens claim 2^40 entries and hold none."""
    header = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1099511627776, 2), }"
    header += b" " * (118 - len(header)) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tokens.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
        archive.writestr("labels.npy", b"")


def write_broken_header(path: Path) -> None:
    """An .npz whose tokens have a header that is no Python literal."""
    header = (b"{'descr': '<i8', (" + b" " * 99)[:117] + b"\n"
    for_tokens = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tokens.npy", for_tokens)
        archive.writestr("labels.npy", b"")


def write_flipped_bytes(path: Path) -> None:
    """An .npz whose compressed tokens are damaged in the middle."""
    tokens = np.random.default_rng(0).integers(0, 3, (2000, 7))
    np.savez_compressed(path, tokens=tokens, labels=tokens[:, 0])
    whole = bytearray(path.read_bytes())
    whole[1000:1100] = bytes(100)
    path.write_bytes(whole)


BAD_FILES = {
    "a broken header": (write_broken_header, ("tokens", "not a readable .npy array")),
    "flipped bytes": (write_flipped_bytes, ("not a readable .npz",)),
    "labels that are laws": (
        lambda path: np.savez(path, tokens=np.zeros((2, 3), int), labels=np.full((2, 2), 0.5)),
        ("labels must be [sequences]", "target_probs"),
    ),
    "laws that are labels": (
        lambda path: np.savez(path, tokens=np.zeros((2, 3), int), target_probs=np.zeros(2)),
        ("target_probs must be [sequences, d_vocab]",),
    ),
    "a wrapped negative": (
        lambda path: np.savez(path, tokens=np.full((2, 3), 2**64 - 1, np.uint64), labels=np.zeros(2, int)),
        ("18446744073709551615", "negative"),
    ),
    "missing": (lambda path: None, ("readable file",)),
    "not an archive": (lambda path: path.write_bytes(b"no archive"), ("not a readable .npz",)),
    "empty": (lambda path: path.write_bytes(b""), ("not a readable .npz",)),
    "other names": (lambda path: np.savez(path, x=np.zeros(3)), ("tokens", "holds x")),
    "both targets": (
        lambda path: np.savez(
            path, tokens=np.zeros((2, 2), int), labels=np.zeros(2, int), target_probs=np.zeros((2, 2))
        ),
        ("leave one out",),
    ),
    "objects": (
        lambda path: np.savez(path, tokens=np.array([[1], [1, 2]], dtype=object), labels=np.zeros(2, int)),
        ("Python objects",),
    ),
    "a lying header": (write_lying_header, ("GiB",)),
    "tokens off the vocabulary": (
        lambda path: np.savez(path, tokens=np.full((2, 3), 7), target_probs=np.full((2, 2), 0.5)),
        ("vocabulary 0 .. 1",),
    ),
    "empty arrays": (
        lambda path: np.savez(path, tokens=np.zeros((0, 3), int), labels=np.zeros(0, int)),
        ("not empty",),
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files_are_refused_in_one_line(tmp_path, name):
    write, words = BAD_FILES[name]
    write(tmp_path / "data.npz")
    done = run_script("recover_graph", tmp_path / "data.npz", "--out", tmp_path, "--quiet")
    assert_one_line_refusal(done, *words)


@pytest.mark.parametrize("name", ["results.json", "report.html", "figures"])
def test_what_is_in_the_way_of_the_results_is_said_beforehand(tmp_path, name, batch):
    np.savez(tmp_path / "data.npz", tokens=batch.tokens, target_probs=batch.target_probs)
    (tmp_path / "figures").touch() if name == "figures" else (tmp_path / name).mkdir()
    done = run_script("recover_graph", tmp_path / "data.npz", "--out", tmp_path, "--quiet")
    assert_one_line_refusal(done, name, "in the way")


def test_a_negative_seed_is_refused():
    assert_one_line_refusal(run_script("recover_graph", "data.npz", "--seed", -1), "--seed must be 0 or more")


def test_a_file_of_another_kind_is_refused_before_anything_heavy_is_loaded(tmp_path):
    assert_one_line_refusal(run_without_torch("recover_graph", tmp_path / "data.csv"), ".npz", ".safetensors")


def test_figures_of_a_recovery_show_every_position(batch):
    found = cc.recover_graph(batch.tokens[:400], batch.target_probs[:400], level=1e-4)
    assert found.undecided
    ax = figures.plot_recovery(found)
    drawn = np.concatenate([line.get_xdata() for line in ax.lines[2:]])
    assert sorted(drawn) == list(range(1, 7))
    arcs = figures.plot_recovered_graph(found)
    question_marks = [text for text in arcs.texts if text.get_text() == "?"]
    assert len(question_marks) == len(found.undecided)


def test_gradient_vs_information_marks_edges_and_the_line_of_equality():
    task = cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=1.0)
    g = cc.predicted_gradient(task, n_kernels=64)
    ax = figures.plot_gradient_vs_information(g.value, g.value, task.graph, g.standard_error, title="correlation 1")
    others, edges = (collection.get_offsets() for collection in ax.collections[1::2])
    assert (len(others), len(edges)) == (6, 4)
    np.testing.assert_allclose(edges[:, 0], edges[:, 1])
    assert [text.get_text() for text in ax.get_legend().get_texts()][1:] == ["true edges (4)", "measured = predicted"]


def test_agreement_lines_in_a_group_share_their_colour():
    series = {
        name: ([10, 100], [0.5, value]) for name, value in (("a g", 0.8), ("a G", 1.0), ("b g", 0.7), ("b G", 1.1))
    }
    ax = figures.plot_agreement(series, "n_ctx", "slope", group_size=2)
    colours = [line.get_color() for line in ax.lines[1:]]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    with pytest.raises(ValueError, match="at least one series"):
        figures.plot_agreement({}, "x", "y")
