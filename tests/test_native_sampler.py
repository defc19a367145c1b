"""The native sampler against its numpy twin: the same seed gives the same sequences, whatever the machine."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import causal_circuits as cc
from causal_circuits import native
from causal_circuits.tasks import draws
from causal_circuits.tasks.base import seed_sequence

DAG = [[], [0], [0, 1], [1], [], [2, 3], [0, 2, 3], [4, 6]]
TASKS = {
    "chain": cc.InContextTask(cc.chain_graph(20), d_vocab=10),
    "forest": cc.InContextTask(cc.random_forest(12, root_probability=0.4, seed=3), d_vocab=4, alpha=0.5),
    "one position": cc.InContextTask(cc.graph_from_parents([[], [0]]), d_vocab=3),
    "two tokens": cc.InContextTask(cc.chain_graph(9), d_vocab=2),
    "as many tokens as lanes": cc.InContextTask(cc.chain_graph(17), d_vocab=16, alpha=1.0),
    "more tokens than lanes": cc.InContextTask(cc.random_forest(12, seed=4), d_vocab=40, alpha=1.0),
    "alpha a row": cc.InContextTask(cc.chain_graph(6), d_vocab=3, alpha=[0.1, 1.0, 30.0]),
    "alpha an entry": cc.InContextTask(cc.chain_graph(6), d_vocab=2, alpha=[[0.2, 5.0], [0.1, 0.1]]),
    "large alpha": cc.InContextTask(cc.chain_graph(6), d_vocab=5, alpha=300.0),
    "tiny alpha": cc.InContextTask(cc.chain_graph(12), d_vocab=10, alpha=1e-3),
    "smallest alpha": cc.InContextTask(cc.random_forest(12, seed=4), d_vocab=3, alpha=1e-4),
    "parents": cc.InContextTask(cc.graph_from_parents(DAG), d_vocab=3, alpha=0.5),
    "parents, shared roots": cc.InContextTask(cc.graph_from_parents(DAG), d_vocab=3, alpha=0.5, roots="shared"),
    "uniform roots": cc.InContextTask(cc.chain_graph(8), d_vocab=7, roots="uniform"),
    "shared roots": cc.InContextTask(cc.chain_graph(8), d_vocab=7, roots="shared"),
}


def drawn(task: cc.InContextTask, n: int, seed: int = 0, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """By the native core, in one call."""
    tokens, targets = np.empty((n, task.n_ctx), np.int32), np.empty((n, task.d_vocab), np.float32)
    task.native_sampler().draw(draws.key_of(seed_sequence(seed)), first, tokens, targets)
    return tokens, targets


def drawn_in_numpy(task: cc.InContextTask, n: int, seed: int = 0, first: int = 0) -> tuple[np.ndarray, np.ndarray]:
    tokens, targets = np.empty((n, task.n_ctx), np.int32), np.empty((n, task.d_vocab), np.float32)
    task._fill_by_counting(draws.key_of(seed_sequence(seed)), {}, first, tokens, targets)
    return tokens, targets


def assert_the_same(task: cc.InContextTask, a: tuple, b: tuple) -> None:
    """But for a draw in some 100,000 that the last bit of a logarithm moves across a boundary.

    The logarithm of a gamma is log U / alpha plus what a rejection method gives it, whose error grows with alpha.
    """
    equal = (a[0] == b[0]).all(axis=1)
    assert equal.mean() > 1 - 3 / len(equal)
    alphas = np.concatenate([alpha.ravel() for alpha in task.alphas.values()])
    np.testing.assert_allclose(a[1][equal], b[1][equal], atol=max(3e-6, 1e-6 / alphas.min(), 1e-5 * alphas.max()))


@pytest.mark.parametrize("name", TASKS)
def test_a_seed_gives_the_sequences_that_numpy_draws(name: str) -> None:
    assert_the_same(TASKS[name], drawn(TASKS[name], 700, seed=3), drawn_in_numpy(TASKS[name], 700, seed=3))


@given(
    d_vocab=st.integers(2, 40),
    n_ctx=st.integers(2, 40),
    log_alpha=st.floats(-4, 2),
    n=st.integers(1, 70),
    first=st.integers(0, 2**40),
    seed=st.integers(0, 2**40),
)
def test_any_forest_is_drawn_as_numpy_draws_it(d_vocab, n_ctx, log_alpha, n, first, seed) -> None:
    task = cc.InContextTask(cc.random_forest(n_ctx, seed=seed % 99), d_vocab=d_vocab, alpha=10**log_alpha)
    assert_the_same(task, drawn(task, n, seed, first), drawn_in_numpy(task, n, seed, first))


@pytest.mark.parametrize("first", [2**32 - 7, 2**32, 5 * 2**32 - 20])
def test_a_place_is_a_64_bit_number(first: int) -> None:
    task = TASKS["chain"]
    tokens, targets = drawn(task, 60, first=first)
    assert_the_same(task, (tokens, targets), drawn_in_numpy(task, 60, first=first))
    assert not np.array_equal(tokens[20:], drawn(task, 40, first=(first + 20) % 2**32)[0])


@pytest.mark.parametrize(("d_vocab", "alpha"), [(2, 0.1), (20, 0.1), (40, 1.0), (3, 0.01), (10, 1e-3)])
def test_stationary_laws_are_exact(d_vocab: int, alpha: float) -> None:
    """numpy finds them in float64; 600 root tokens a sequence tell laws apart that differ by some 1e-5."""
    task = cc.InContextTask(cc.graph_from_parents([*[[]] * 600, [599]]), d_vocab=d_vocab, alpha=alpha)
    assert set(task.root_positions) == set(range(599))
    differ = drawn(task, 700)[0] != drawn_in_numpy(task, 700)[0]
    assert differ.mean() < 1e-5


ELSEWHERE = """
import importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("_native", sys.argv[1])
native = importlib.util.module_from_spec(spec)
spec.loader.exec_module(native)
print(native.instruction_set())
plans, found = np.load(sys.argv[2]), {}
for name in {key.split("|")[0] for key in plans}:
    *plan, key, tokens, targets = (plans[f"{name}|{part}"] for part in range(8))
    sampler = native.Sampler(*plan[:4], targets.shape[1], int(plan[4]))
    sampler.draw(tuple(map(int, key)), 0, tokens, targets)
    found[f"{name}|tokens"], found[f"{name}|targets"] = tokens, targets
np.savez(sys.argv[3], **found)
"""


@pytest.mark.parametrize("instructions", ["avx512", "avx2", "baseline"])
def test_every_instruction_set_draws_the_same(instructions: str, tmp_path) -> None:
    """AVX2 and AVX-512 to the bit; without their fused multiply-add a last bit may differ."""
    key = draws.key_of(seed_sequence(8))
    empty = {name: drawn(task, 500, seed=8) for name, task in TASKS.items()}
    plans = {
        f"{name}|{part}": np.asarray(array)
        for name, task in TASKS.items()
        for part, array in enumerate([*task._sampling_plan, key, *(np.zeros_like(a) for a in empty[name])])
    }
    np.savez(tmp_path / "plans.npz", **plans)
    command = [sys.executable, "-c", ELSEWHERE, native.core().__file__, tmp_path / "plans.npz", tmp_path / "found.npz"]
    environment = {**os.environ, "CAUSAL_CIRCUITS_KERNELS": instructions}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:  # this machine does not have them, and says so
        assert "CAUSAL_CIRCUITS_KERNELS names instructions that this machine can run" in done.stderr
        assert instructions != "baseline"
        return
    assert done.stdout.strip() == instructions
    found = np.load(tmp_path / "found.npz")
    for name, task in TASKS.items():
        there = found[f"{name}|tokens"], found[f"{name}|targets"]
        assert_the_same(task, there, empty[name])
        if "avx" in instructions and "avx" in native.core().instruction_set():
            assert np.array_equal(there[0], empty[name][0])
            assert np.array_equal(there[1], empty[name][1])


def plan_of(task: cc.InContextTask, **changed: object) -> list[object]:
    names = ("constants", "first_row", "parents", "degrees", "roots")
    plan = {**dict(zip(names, task._sampling_plan, strict=True)), **changed}
    return [*(plan[name] for name in names[:4]), task.d_vocab, plan["roots"]]


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"constants": np.zeros((5, 9))}, "constants must be a C-contiguous array of float32"),
        ({"constants": np.zeros((5, 9), np.float32)}, "alpha"),
        ({"constants": np.full((5, 9), np.nan, np.float32)}, "finite"),
        ({"constants": np.ones((5, 8), np.float32)}, "rows"),
        ({"first_row": np.array([0, -1], np.int32)}, "first_row"),
        ({"parents": np.full((5, 1), 4, np.int32)}, "precede"),
        ({"parents": np.zeros((5, 2), np.int32)[:, :1]}, "C-contiguous"),
        ({"degrees": np.full(5, 2, np.int32)}, "degrees"),
        ({"roots": 4}, "roots"),
    ],
)
def test_a_plan_that_would_read_foreign_memory_is_refused(changed: dict, says: str) -> None:
    task = cc.InContextTask(cc.chain_graph(4), d_vocab=3)
    native.core().Sampler(*plan_of(task))
    with pytest.raises(ValueError, match=says):
        native.core().Sampler(*plan_of(task, **changed))


@pytest.mark.parametrize(
    ("tokens", "targets", "says"),
    [
        (np.zeros((7, 4), np.int64), np.zeros((7, 3), np.float32), r"tokens must be .* int32 \[n, 4\]: got .*int64"),
        (np.zeros((7, 5), np.int32), np.zeros((7, 3), np.float32), "tokens"),
        (np.zeros((7, 8), np.int32)[:, ::2], np.zeros((7, 3), np.float32), "tokens"),
        (np.zeros((7, 4), np.int32), np.zeros((6, 3), np.float32), r"targets must be .* float32 \[7, 3\]"),
        (np.zeros((7, 4), np.int32), np.zeros((7, 3)), "targets"),
        (np.frombuffer(bytes(7 * 16), np.int32).reshape(7, 4), np.zeros((7, 3), np.float32), "writable"),
    ],
)
def test_arrays_of_other_shapes_types_or_strides_are_refused(tokens, targets, says: str) -> None:
    sampler = cc.InContextTask(cc.chain_graph(4), d_vocab=3).native_sampler()
    with pytest.raises(ValueError, match=says):
        sampler.draw((1, 2), 0, tokens, targets)


def test_other_threads_run_while_it_draws() -> None:
    """The interpreter's lock is released: this thread counts on while another is in one call of the core."""
    task, counted = cc.InContextTask(cc.chain_graph(200), d_vocab=10), 0
    thread = threading.Thread(target=drawn, args=(task, 100_000))
    thread.start()
    while thread.is_alive():
        counted += 1
    assert counted > 1000


def test_without_the_core_it_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    monkeypatch.delenv("CAUSAL_CIRCUITS_PURE", raising=False)
    native._warn.cache_clear()
    task = cc.InContextTask(cc.chain_graph(3), d_vocab=2)
    task.sample(100)
    with pytest.warns(RuntimeWarning, match="without its compiled core"):
        slow = task.sample(native.SAID_FROM + 1, seed=2)
    task.sample(native.SAID_FROM + 1)
    monkeypatch.undo()
    fast = task.sample(native.SAID_FROM + 1, seed=2)
    assert (slow.tokens != fast.tokens).double().mean() < 1e-4
    torch.testing.assert_close(slow.target_probs, fast.target_probs, atol=1e-5, rtol=1e-4)
