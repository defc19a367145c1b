"""Are the sampler's kernels clean under sanitizers, and right on machines that this one is not?

    python tests/native/check_native.py sanitizers     # g++ or clang++: address, undefined behaviour, threads
    python tests/native/check_native.py aarch64        # needs `pip install ziglang` and Debian's qemu-user-static

For every instruction set that can be run, `draw.cpp` and the kernel become a program; what it draws from the tasks of
test_native_sampler must be what numpy draws. Exit status 1 if a program fails or draws something else.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["CAUSAL_CIRCUITS_PURE"] = "1"  # the installed core is not what is tested

from test_native_sampler import TASKS, assert_the_same, drawn_in_numpy  # noqa: E402

import causal_circuits as cc  # noqa: E402
from causal_circuits.tasks import draws  # noqa: E402
from causal_circuits.tasks.base import seed_sequence  # noqa: E402

N, FIRST, SEED = 35, 2**32 - 9, 5  # not a multiple of any vector's lanes; across the carry of a place
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ("-std=gnu++17", "-g", "-ffp-contract=fast", "-w", "-pthread", f"-I{ROOT / 'src' / 'native'}")
INSTRUCTIONS = {
    "baseline": (),
    "avx2": ("-mavx2", "-mfma", "-mbmi", "-mbmi2"),
    "avx512": ("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma", "-mbmi", "-mbmi2"),
}


def plan_file(task: cc.InContextTask, path: Path) -> None:
    """What `draw.cpp` reads."""
    constants, first_row, parents, degrees, roots = task._sampling_plan
    n_rows = constants.shape[1] // task.d_vocab
    size = np.array([task.n_ctx, task.d_vocab, n_rows, parents.shape[1], roots, N], np.int32)
    key, first = np.array(draws.key_of(seed_sequence(SEED)), np.uint32), np.array([FIRST], np.int64)
    path.write_bytes(b"".join(array.tobytes() for array in (size, key, first, constants, first_row, parents, degrees)))


def check(name: str, compile_command: list[str], run_with: list[str]) -> bool:
    """Compile, draw from every task, compare; says what came of it."""
    with TemporaryDirectory() as folder:
        program, plan, drawn = (Path(folder) / name for name in ("draw", "plan", "drawn"))
        sources = [str(ROOT / "src" / "native" / "sampler.cpp"), str(Path(__file__).with_name("draw.cpp"))]
        subprocess.run([*compile_command, *FLAGS, *sources, "-o", str(program)], check=True)
        for task in TASKS.values():
            plan_file(task, plan)
            done = subprocess.run([*run_with, program, plan, drawn], capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: {task}: status {done.returncode}\n{done.stderr[-2000:]}")
                return False
            data, n_tokens = drawn.read_bytes(), N * task.n_ctx
            tokens = np.frombuffer(data, np.int32, n_tokens).reshape(N, task.n_ctx)
            targets = np.frombuffer(data, np.float32, offset=4 * n_tokens).reshape(N, task.d_vocab)
            assert_the_same(task, (tokens, targets), drawn_in_numpy(task, N, SEED, FIRST))
    print(f"{name}: {len(TASKS)} tasks as numpy draws them", flush=True)
    return True


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sanitizers", "aarch64"))
    parser.add_argument("--qemu", default="qemu-aarch64-static", help="runs programs for aarch64 (default %(default)s)")
    options = parser.parse_args()
    if options.what == "aarch64":
        zig = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-O3"]
        return 0 if check("aarch64", [*zig, "-DKERNELS_NAMESPACE=baseline"], [options.qemu]) else 1
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    passed = True
    for instructions, flags in INSTRUCTIONS.items():
        if not flags or f"{instructions} " in known.replace("avx512vl ", "avx512 "):
            for sanitizers in ("address,undefined", "thread"):
                command = [COMPILER, "-O1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", *flags]
                command.append(f"-DKERNELS_NAMESPACE={instructions}")
                passed &= check(f"{instructions}, {sanitizers}", command, [])
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
