"""Scripts and figures where the terminal is ASCII, the locale is C, paths are not ASCII, or the home is read-only."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from assertions import assert_refused
from matplotlib.figure import Figure

import causal_circuits as cc
from causal_circuits import figures, pages

UMLAUTS = "größe ∆"
ANALYSES = Path(__file__).resolve().parent.parent / "analyses"


RESULTS = """
import hashlib, runpy, sys, torch, causal_circuits as cc
from causal_circuits import circuits
from causal_circuits.storage import plain_values
def digest(value):
    return hashlib.sha256(repr(plain_values(value)).encode()).hexdigest()[:8]
for graph in (cc.chain_graph(8), cc.random_forest(10, seed=3), cc.ngram_graph(7, 2)):
    task = cc.InContextTask(graph, d_vocab=3, alpha=0.3)
    batch = task.sample(40, seed=0)
    decoy, model = cc.models.plant_decoy(graph, 3), cc.plant_circuit(graph, 3)
    print('numbers', [digest(p) for p in decoy.parameters()], digest(cc.knock_out_edges(model, batch)))
    found = cc.extract_graph(model, task, n_sequences=500)
    print('numbers', digest(found.candidates), list(found.edges))
    whole = circuits.circuit_model(model, batch)
    print('numbers', [digest(circuits.discover(whole, method).score) for method in circuits.METHODS], whole.edges)
    print('numbers', digest(circuits.oracle_frontier(whole, max_edges=5).masks))
    if cc.graphs.has_query(graph):
        g = cc.predicted_gradient(task).value
        print('numbers', digest(cc.recover_graph(batch).positions), digest(cc.compare_gradient(g, g, graph)))
*_, script, folder = sys.argv
sys.argv = [script, folder + "/data.npz", "--out", folder + "/out"]
runpy.run_path(script, run_name="__main__")
"""

ENVIRONMENTS = [  # the hash seeds are two under which a matching over named nodes came out differently
    {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "ascii", "HOME": "/dev/null"},
    # in the C locale file names are bytes, which Python holds as surrogates, and text files are ASCII by default
    {"PYTHONHASHSEED": "1", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
]


def printed_in(environment: dict[str, str], folder: Path) -> list[str]:
    """What RESULTS prints, and after it the script that it runs."""
    command = [sys.executable, "-c", RESULTS, ANALYSES / "recover_graph.py", folder]
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run(command, env=environment, capture_output=True, check=False, cwd=folder.parent)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode().splitlines()


def test_scripts_write_their_pages_anywhere_and_numbers_do_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    """Python orders sets of text anew in every process: what is matched, searched or drawn must not follow it."""
    folder, printed = tmp_path / UMLAUTS, []
    folder.mkdir()
    batch = cc.InContextTask(cc.chain_graph(5), d_vocab=3).sample(2000, seed=0)
    np.savez(folder / "data.npz", tokens=batch.tokens.numpy(), target_probs=batch.target_probs.numpy())
    for environment in ENVIRONMENTS:
        printed.append(printed_in(environment, folder))
        *_, told = printed[-1]
        assert UMLAUTS.encode("ascii", "backslashreplace").decode() in told or UMLAUTS in told
        assert UMLAUTS in (folder / "out" / "report.html").read_text(encoding="utf-8")
        assert (folder / "out" / "results.json").read_bytes().isascii()
        assert [path.name for path in tmp_path.iterdir()] == [UMLAUTS]
    numbers = [[line for line in lines if line.startswith("numbers")] for lines in printed]
    assert len(numbers[0]) == 14
    assert numbers[0] == numbers[1]


def drawn() -> Figure:
    return figures.plot_ablation([("L0H0", "mean", 0.98)])


@pytest.mark.parametrize(
    ("given", "stem"),
    [("x", "x"), ("x.png", "x"), ("x.svg", "x"), ("x.PNG", "x"), ("alpha_0.1", "alpha_0.1"), (UMLAUTS, UMLAUTS)],
)
def test_a_figure_is_two_files_whatever_ending_is_given(given: str, stem: str, tmp_path: Path) -> None:
    saved = pages.save_figure(drawn(), tmp_path / "new" / given)
    assert [path.name for path in saved] == [f"{stem}.png", f"{stem}.svg"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(path.name for path in saved)
    assert saved[0].read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in pages.figure_html(tmp_path / "new" / given, alt="a bar")
    assert saved[1].read_text() == pages.save_figure(drawn(), tmp_path / "again")[1].read_text()


def test_a_figure_of_another_format_is_refused_and_an_interrupted_one_leaves_the_earlier(tmp_path, monkeypatch) -> None:
    for name in ("x.pdf", "x.jpeg", "x.eps"):
        assert_refused(lambda name=name: pages.save_figure(drawn(), tmp_path / name), "PNG and SVG", name, "write x")
    earlier = [path.read_bytes() for path in pages.save_figure(drawn(), tmp_path / "x")]

    def interrupted(self: Figure, target: object, *given: object, **more: object) -> None:
        target.write("half of" if more["format"] == "svg" else b"half of")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pages.save_figure(drawn(), tmp_path / "x")
    assert [(tmp_path / name).read_bytes() for name in ("x.png", "x.svg")] == earlier
    assert len(list(tmp_path.iterdir())) == 2


def test_a_text_keeps_the_bytes_of_a_path_that_is_not_utf_8(tmp_path: Path) -> None:
    name = b"gr\xf6\xdfe"
    cc.storage.write_files(tmp_path, {"page.html": f"written to {os.fsdecode(name)}"})
    assert (tmp_path / "page.html").read_bytes() == b"written to " + name


def test_a_lock_whose_file_holds_anything_is_taken_and_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_bytes(b"\xff\xfe\x00" * 99)
    with cc.locks.exclusive_lock(tmp_path):
        assert (tmp_path / ".lock").read_text(encoding="utf-8").startswith(str(os.getpid()))
        (tmp_path / ".lock").write_bytes(b"\xff\xfe" * 99)
        assert_refused(lambda: cc.locks.exclusive_lock(tmp_path).__enter__(), "one process at a time")
