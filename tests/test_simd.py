"""Vectors inside kernels against numpy, and Philox against the published answers."""

import importlib
import math
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from causal_circuits.models.fused_kernel import batch
from causal_circuits.simd import columns, functions, integers, philox, vectors
from causal_circuits.simd.lanes import LANES
from causal_circuits.simd.sources import fingerprint
from causal_circuits.tasks import InContextTask
from causal_circuits.training import compiled


@numba.njit
def _apply(name, a, b, out):
    for v in range(0, len(a), LANES):
        x, y = vectors.load(a, v), vectors.load(b, v)
        if name == 0:
            vectors.store(out, v, x + y * 2.0 - 1.0)
        elif name == 1:
            vectors.store(out, v, functions.exp(x))
        elif name == 2:
            vectors.store(out, v, functions.log(x))
        elif name == 3:
            vectors.store(out, v, vectors.fma(3.0, x, y))
        elif name == 4:
            vectors.store(out, v, vectors.choose_less(x, y, x, vectors.splat(7.0)))
        elif name == 5:
            vectors.store(out, v, vectors.larger(x, y))
        elif name == 6:
            vectors.store(out, v, vectors.keep_first(x, 3, -1.0))
        elif name == 7:
            vectors.store(out, v, vectors.root(x))
        else:
            vectors.store(out, v, functions.exp_of_negative(x))


def apply(name: int, a: np.ndarray, b: np.ndarray | None = None) -> np.ndarray:
    n = len(a)
    pad = np.ones(-(-n // LANES) * LANES, np.float32)
    first, second, out = pad.copy(), pad.copy(), pad.copy()
    first[:n] = a
    second[:n] = a if b is None else b
    _apply(name, first, second, out)
    return out[:n]


def test_lane_by_lane() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.normal(size=(2, 3 * LANES)).astype(np.float32)
    assert np.allclose(apply(0, a, b), a + 2 * b - 1, rtol=1e-6)
    assert np.allclose(apply(3, a, b), 3 * a + b, atol=1e-6)
    assert np.array_equal(apply(4, a, b), np.where(a < b, a, 7))
    assert np.array_equal(apply(5, a, b), np.maximum(a, b))
    assert np.array_equal(apply(6, a), np.where(np.arange(len(a)) % LANES < 3, a, -1))
    assert np.allclose(apply(7, np.abs(a)), np.sqrt(np.abs(a)), rtol=1e-6)


def test_exponential() -> None:
    x = np.linspace(-87, 88, 100_000).astype(np.float32)
    assert np.abs(apply(1, x) / np.exp(x.astype(np.float64)) - 1).max() < 3e-7
    ends = apply(1, np.array([-np.inf, -100, -87.5, 0.0, np.nan], np.float32))
    assert (ends[:4] == [0, 0, 0, 1]).all()
    assert np.isnan(ends[4])


def test_exponential_of_negative_numbers() -> None:
    x = np.linspace(-87.3, 0, 200_000).astype(np.float32)
    assert np.abs(apply(8, x) / np.exp(x.astype(np.float64)) - 1).max() < 1e-7
    below = np.linspace(-90, -87.3, 10_000).astype(np.float32)
    assert np.abs(apply(8, below) - np.exp(below.astype(np.float64))).max() < 1e-38
    ends = apply(8, np.array([-np.inf, -1e30, -100, -88, 0.0, np.nan], np.float32))
    assert (ends[:5] == [0, 0, 0, 0, 1]).all()
    assert np.isnan(ends[5])


def test_logarithm() -> None:
    x = np.concatenate([np.geomspace(1e-37, 1e37, 50_000), 1 + np.linspace(-0.3, 0.5, 50_000)]).astype(np.float32)
    expected = np.log(x.astype(np.float64))
    assert (np.abs(apply(2, x) - expected) <= 1.2e-7 * np.maximum(np.abs(expected), 0.3)).all()


@pytest.mark.parametrize("size", [1, LANES, LANES + 1, 2 * LANES, 2 * LANES + 1, 100])
def test_looking_up(size: int) -> None:
    @numba.njit
    def look_up(table, index, out, size):
        low, high = vectors.load(table, 0), vectors.load(table, LANES)
        vectors.store(out, 0, functions.look_up_in(low, high, table, 0, vectors.load(index, 0), size))

    generator = np.random.default_rng(size)
    table = generator.normal(size=size + 2 * LANES).astype(np.float32)
    index = generator.integers(size, size=LANES).astype(np.int32)
    out = np.empty(LANES, np.float32)
    look_up(table, index, out, size)
    assert np.array_equal(out, table[index])


def test_sums_maxima_and_counts() -> None:
    @numba.njit
    def reduce(a, bound):
        x = vectors.load(a, 0)
        return vectors.sum_of(x), vectors.largest_of(x), vectors.count_less(x, bound), vectors.any_less(x, bound)

    a = np.random.default_rng(1).normal(size=LANES).astype(np.float32)
    for bound in (-10.0, 0.0, 10.0):
        total, largest, count, some = reduce(a, bound)
        assert math.isclose(total, a.sum(), abs_tol=1e-5)
        assert largest == a.max()
        assert (count, some) == ((a < bound).sum(), (a < bound).any())


def test_four_sums_entries_and_lanes_of_equal_index() -> None:
    @numba.njit
    def compute(a, index, out, number):
        rows = vectors.load(a, 0), vectors.load(a, LANES), vectors.load(a, 2 * LANES), vectors.load(a, 3 * LANES)
        vectors.store_four_sums(out, 1, rows[0], rows[1], rows[2], rows[3])
        vectors.store(out, 8, vectors.where_equal(vectors.load(index, 0), number, rows[0]))
        return vectors.entry(a, 5), vectors.entry(index, 3)

    generator = np.random.default_rng(4)
    a = generator.normal(size=(4, LANES)).astype(np.float32)
    a[0, 0] = np.nan  # lanes that are not chosen do not count
    index, out = generator.integers(1, 3, LANES).astype(np.int32), np.full(8 + LANES, 7, np.float32)
    index[0] = 0
    assert compute(a.reshape(-1), index, out, 2) == (a.reshape(-1)[5], index[3])
    assert (out[[0, *range(5, 8)]] == 7).all()
    assert np.allclose(out[1:5], a.sum(axis=1), atol=1e-5, equal_nan=True)
    assert np.array_equal(out[8:], np.where(index == 2, a[0], 0))


def test_philox_gives_the_published_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """kat_vectors of Random123 (Salmon et al. 2011), philox4x32 with 7 and with 10 rounds."""
    ones = (0xFFFFFFFF,) * 4
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344)
    answers = {
        (7, (0, 0, 0, 0), (0, 0)): (0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48),
        (10, (0, 0, 0, 0), (0, 0)): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
        (10, ones, (0xFFFFFFFF, 0xFFFFFFFF)): (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        (10, pi, (0xA4093822, 0x299F31D0)): (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    }
    for (rounds, counter, key), expected in answers.items():
        monkeypatch.setattr(philox, "ROUNDS", rounds)
        words = philox.random_words(tuple(np.uint32(word) for word in counter), key)
        assert tuple(int(word) for word in words) == expected


@given(counter=st.tuples(*[st.integers(0, 2**32 - 1)] * 4), key=st.tuples(*[st.integers(0, 2**32 - 1)] * 2))
def test_compiled_philox_equals_the_one_in_numpy(counter: tuple, key: tuple) -> None:
    out = np.empty((4, LANES), np.int32)
    lanes = (counter[0] + np.arange(LANES, dtype=np.uint64)).astype(np.uint32)
    _draw(lanes.view(np.int32), np.array(counter, np.uint32), philox.vectors_of_key(key), out)
    expected = philox.random_words((lanes, *(np.uint32(word) for word in counter[1:])), key)
    assert np.array_equal(out.view(np.uint32), np.stack(expected))


@numba.njit
def _draw(lanes, counter, key, out):
    words = philox.random_vectors(
        vectors.load(lanes, 0),
        integers.repeat(counter[1]),
        integers.repeat(counter[2]),
        integers.repeat(counter[3]),
        key,
    )
    for word in range(4):
        vectors.store(out, word * LANES, words[word])


@numba.njit
def _add_columns(block, stride, table, table_stride, index):
    columns.add_columns(block, 0, stride, table, 0, table_stride, vectors.load(index, 0))


@pytest.mark.parametrize("seed", range(4))
def test_columns_are_added_to_the_rows_that_an_index_names(seed: int) -> None:
    """Against numpy's unbuffered sum, rows named once, several times and not at all, with numbers beside them."""
    generator = np.random.default_rng(seed)
    block = generator.normal(size=(LANES, LANES + 5)).astype(np.float32)
    table = generator.normal(size=(6, LANES + 3)).astype(np.float32)
    index = generator.integers(0, 6 if seed else 1, LANES).astype(np.int32)
    expected = table.astype(np.float64)
    np.add.at(expected[:, :LANES], index, block[:, :LANES].T.astype(np.float64))
    _add_columns(block.reshape(-1), block.shape[1], table.reshape(-1), table.shape[1], index)
    assert np.abs(table - expected).max() < 1e-5


@numba.njit
def _first(source, n, out):
    vectors.store_first(out, 0, n, vectors.load_first(source, 0, n))


@pytest.mark.parametrize("n", [-3, 0, 1, LANES - 1, LANES, LANES + 5])
def test_the_first_lanes_alone_are_read_and_written(n: int) -> None:
    source, out = np.arange(1.0, 2 * LANES + 1, dtype=np.float32), np.full(2 * LANES, -1.0, np.float32)
    _first(source, n, out)
    there = min(max(n, 0), LANES)
    assert (out[:there] == source[:there]).all()
    assert (out[there:] == -1.0).all()


@numba.njit
def _turn_over(source, stride, n_rows, n_columns, out, out_stride):
    columns.turn_over(source, 0, stride, n_rows, n_columns, out, 0, out_stride, 2.0)


@given(st.integers(1, LANES + 2), st.integers(1, LANES + 2))
def test_matrices_are_turned_over(n_rows: int, n_columns: int) -> None:
    """Every entry that is asked for, up to a square of vectors; everything else stays as it was."""
    source = np.random.default_rng(n_rows).normal(size=(n_rows, n_columns + 1)).astype(np.float32)
    out = np.full((n_columns, n_rows + 3), np.nan, np.float32)
    _turn_over(source.reshape(-1), n_columns + 1, n_rows, n_columns, out.reshape(-1), n_rows + 3)
    expected, rows, there = np.full_like(out, np.nan), min(n_rows, LANES), min(n_columns, LANES)
    expected[:there, :rows] = 2.0 * source[:rows, :there].T
    assert np.array_equal(out, expected, equal_nan=True)


KERNEL = """
import numba
from piece import piece
from causal_circuits.simd.sources import made_from

def double(x):
    return piece(x)

kernel = numba.njit(cache=True)(made_from(double, __file__, {piece!r}))
found = kernel(3.0), sum(kernel.stats.cache_hits.values())
"""


def test_a_kernel_on_disk_lives_as_long_as_all_that_it_was_made_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The piece stands in another file, which numba does not look at; the kernel's own file is never touched."""
    monkeypatch.syspath_prepend(tmp_path)
    piece = tmp_path / "piece.py"
    (tmp_path / "kernel.py").write_text(KERNEL.format(piece=str(piece)))
    results = []
    for factor in (2, 2, 5):
        piece.write_text(f"import numba\n\n@numba.njit\ndef piece(x):\n    return {factor} * x\n")
        for name in ("piece", "kernel"):
            sys.modules.pop(name, None)
        (tmp_path / "__pycache__" / f"piece.{sys.implementation.cache_tag}.pyc").unlink(missing_ok=True)
        importlib.invalidate_caches()
        fingerprint.cache_clear()
        results.append(importlib.import_module("kernel").found)
    assert results == [(6.0, 0), (6.0, 1), (15.0, 0)]


ROOT, FUSED = Path(__file__).parents[1], str(Path(batch.__file__).parent)
KERNELS = {
    "step": (lambda: batch.compiled().py_func, (FUSED,)),
    "step of given sizes": (lambda: batch.compiled_for((4, 3, 1, 1)).py_func, (FUSED,)),
    "adam": (lambda: compiled.compiled_adam().py_func, (compiled.__file__,)),
    "sum": (lambda: compiled.compiled_sum().py_func, (compiled.__file__,)),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_is_kept_under_its_sources_and_nothing_that_changes_by_itself(kernel: str) -> None:
    """What numba takes into its key: another kernel there would make every process compile anew."""
    function, files = KERNELS[kernel]
    values = [cell.cell_contents for cell in function().__closure__]
    assert fingerprint(*files) in values
    assert all(isinstance(value, int) for value in values)


SAMPLE = f"""
ROOT = {str(ROOT)!r}
import sys, types
for name in ("causal_circuits", "causal_circuits.tasks"):  # the packages without what they import: no torch
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [ROOT + "/" + name.replace(".", "/")]
import numpy as np
from causal_circuits.simd.lanes import LANES
from causal_circuits.simd.philox import vectors_of_key
from causal_circuits.tasks.compiled import sampler
from causal_circuits.tasks.draws import gamma_constants
alphas, tokens, targets = np.full(4, 0.1), np.empty((1, 8, 4), np.int64), np.empty((1, 8, 2), np.float32)
parents, degrees = np.array([[0], [0], [1], [0], [3]]), np.array([0, 1, 1, -1, 1])
plan = np.repeat(gamma_constants(alphas), LANES, axis=1), np.zeros(2, np.int64), parents[None], degrees[None], 1
sampler()(*plan, vectors_of_key((1, 2))[None], 0, tokens, targets)
assert np.allclose(targets.sum(axis=2), 1) and "torch" not in sys.modules
cells = {{name: cell.cell_contents for name, cell in zip(sampler().__code__.co_freevars, sampler().__closure__)}}
print(sum(cells["compiled"].stats.cache_hits.values()))
"""


def test_a_second_process_compiles_no_kernel(chain_task: InContextTask) -> None:
    """The sampler that this process compiles, or finds compiled, is loaded by a fresh one (with other hashes)."""
    chain_task.sample(8)
    done = subprocess.run([sys.executable, "-c", SAMPLE], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
