"""Compiled kernels on disk: whatever has become of the files, a kernel computes what its source says."""

import importlib
import pickle
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from causal_circuits.simd.sources import fingerprint

ROOT = Path(__file__).parents[1]
KERNEL = """
from causal_circuits.simd.disk_cache import compile_kernel
from causal_circuits.simd.sources import made_from
from factor import FACTOR, FILE

def multiply(x):
    return FACTOR * x

kernel = compile_kernel(made_from(multiply, FILE))
found = kernel(3.0), sum(kernel.stats.cache_hits.values())
"""


class Kernels:
    """A kernel of a module that is imported anew, as a fresh process would: its result, and whether it was on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.factor = folder, 2
        (folder / "times.py").write_text(KERNEL)

    def run(self) -> tuple[float, int]:
        (self.folder / "factor.py").write_text(f"FACTOR, FILE = {self.factor}, __file__\n")
        for name in ("factor", "times"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        fingerprint.cache_clear()
        return importlib.import_module("times").found

    def file(self, ending: str) -> Path:
        (found,) = (self.folder / "__pycache__").glob(f"*.{ending}")
        return found


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of `factor`, which changes within a second
    return Kernels(tmp_path)


def damages(content: bytes) -> list[bytes]:
    """Truncated, with one bit changed (also among what numba would run), other content, other pickles."""
    random, size = Random(0), len(content)
    changed = []
    for place in [0, size - 1, *(random.randrange(size) for _ in range(12))]:
        one = bytearray(content)
        one[place] ^= 1 << random.randrange(8)
        changed.append(bytes(one))
    cut = [content[:length] for length in (0, 1, 31, 32, 33, size // 2, size - 32, size - 1)]
    return [*changed, *cut, bytes(size), b"garbage", pickle.dumps({}), pickle.dumps("0.68"), content + b"more"]


@pytest.mark.parametrize("ending", ["nbi", "nbc"])
def test_a_damaged_file_is_compiled_again_and_replaced(kernels: Kernels, ending: str) -> None:
    assert [kernels.run(), kernels.run()] == [(6.0, 0), (6.0, 1)]
    whole = kernels.file(ending).read_bytes()
    for damaged in damages(whole):
        kernels.file(ending).write_bytes(damaged)
        assert [kernels.run(), kernels.run()] == [(6.0, 0), (6.0, 1)]
    kernels.file(ending).unlink()
    assert [kernels.run(), kernels.run()] == [(6.0, 0), (6.0, 1)]


def test_what_an_earlier_source_has_left_is_not_taken_for_the_kernel(kernels: Kernels) -> None:
    """A process that dies between index and data leaves the index of the new source, and the old one's data."""
    assert kernels.run() == (6.0, 0)
    old = kernels.file("nbc").read_bytes()
    kernels.factor = 5
    assert [kernels.run(), kernels.run()] == [(15.0, 0), (15.0, 1)]
    (kernels.folder / "times.py").touch()
    newest = sorted((kernels.folder / "__pycache__").glob("*.nbc"))[-1]
    newest.write_bytes(old)
    assert [kernels.run(), kernels.run()] == [(15.0, 0), (15.0, 1)]


TWO_KERNELS = f"""
import sys, types, resource
module = sys.modules["causal_circuits"] = types.ModuleType("causal_circuits")  # without what it imports: no torch
module.__path__ = [{str(ROOT / "causal_circuits")!r}]
from causal_circuits.simd.disk_cache import compile_kernel
if "full" in sys.argv:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

def double(x):
    return 2 * x

def triple(x):
    return 3 * x

print(compile_kernel(double)(2), compile_kernel(triple)(2))
"""


@pytest.mark.parametrize("full", [False, True], ids=["no folder can be written to", "the disk is full"])
def test_kernels_that_cannot_be_kept_work_and_that_is_said_once(tmp_path: Path, full: bool) -> None:
    script = tmp_path / "two.py"
    script.write_text(TWO_KERNELS)
    if not full:  # what a read-only folder is to whoever may not write; root may
        (tmp_path / "__pycache__").write_text("not a folder")
    done = subprocess.run(
        [sys.executable, str(script), *(["full"] if full else [])],
        env={"HOME": "/dev/null", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "4 6\n"
    assert done.stderr.count("compiled kernels cannot be kept") == 1
    assert "NUMBA_CACHE_DIR" in done.stderr
    assert not full or not list((tmp_path / "__pycache__").glob("*.nb*"))
