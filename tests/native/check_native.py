"""Are the compiled kernels clean under sanitizers, right on other machines, and do they leave nothing to the linker?

    python tests/native/check_native.py sanitizers     # g++ or clang++: address, undefined behaviour, threads
    python tests/native/check_native.py aarch64        # needs `pip install ziglang` and Debian's qemu-user-static
    python tests/native/check_native.py symbols        # functions that several instruction sets would share

For every instruction set that can be run, `draw.cpp` and `train.cpp` become programs with the kernels. What the first
draws from the tasks of test_native_sampler must be what numpy draws; the gradients of the second must be those of
float64 autograd. Exit status 1 if a program fails or its numbers are others.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from assertions import assert_close, by_autograd, draw, reduced  # noqa: E402
from test_native_sampler import TASKS, assert_the_same, drawn_in_numpy  # noqa: E402

import causal_circuits as cc  # noqa: E402
from causal_circuits.models.fused import live_weights, sizes_of  # noqa: E402
from causal_circuits.models.layout import layout_of  # noqa: E402
from causal_circuits.tasks import draws  # noqa: E402
from causal_circuits.tasks.base import seed_sequence  # noqa: E402

N, FIRST, SEED = 35, 2**32 - 9, 5  # not a multiple of any vector's lanes; across the carry of a place
KERNEL_SOURCES = ("kernels", "sampler", "step", "reduced", "optimizer")
TRAINING_SOURCES = (*KERNEL_SOURCES, "trainer")


TRAININGS = [  # vocabularies of one vector, two, many; two parts; long contexts
    *(
        (cc.disentangled_transformer(d_vocab, n_ctx, n_heads, init_scale=0.3, seed=1), batch)
        for n_ctx, d_vocab, n_heads, batch in [
            (7, 3, (1, 1), 130),
            (5, 19, (2, 1), 9),
            (9, 40, (1, 2), 33),
            (17, 6, (3, 3), 2),
            (150, 3, (1, 1), 3),
        ]
    ),
    *((reduced(d_vocab, n_ctx), batch) for n_ctx, d_vocab, batch in [(7, 3, 130), (21, 19, 9), (9, 40, 33)]),
]
COMPILER = os.environ.get("CXX", "g++")
FLAGS = ("-std=gnu++17", "-g", "-ffp-contract=fast", "-w", "-pthread", f"-I{ROOT / 'src' / 'native'}")
RELEASE = ("-O3", "-DNDEBUG", "-fPIC", "-fno-math-errno", "-fno-trapping-math")  # as in CMakeLists.txt
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
    """Compile both programs, run them, compare; says what came of it."""
    return check_sampler(name, compile_command, run_with) & check_training(name, compile_command, run_with)


def check_sampler(name: str, compile_command: list[str], run_with: list[str]) -> bool:
    """Draw from every task; says what came of it."""
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


def check_training(name: str, compile_command: list[str], run_with: list[str]) -> bool:
    """Differentiate at sizes that take every way through the kernels; says what came of it."""
    with TemporaryDirectory() as folder:
        program, given, found = (Path(folder) / name for name in ("train", "given", "found"))
        sources = [str(ROOT / "src" / "native" / f"{source}.cpp") for source in TRAINING_SOURCES]
        command = [*compile_command, *FLAGS, *sources, str(Path(__file__).with_name("train.cpp")), "-o", str(program)]
        subprocess.run(command, check=True)
        for model, batch in TRAININGS:
            layout = layout_of(model)
            tokens, targets = draw(layout.d_vocab, layout.n_ctx, batch)
            size = np.array([*sizes_of(model), layout.kind == "reduced", batch], np.int32)
            weights = [weight.contiguous().numpy() for weight in live_weights(model)]
            arrays = (size, *weights, tokens.numpy().astype(np.int32), targets.numpy())
            given.write_bytes(b"".join(array.tobytes() for array in arrays))
            done = subprocess.run([*run_with, program, given, found], capture_output=True, text=True)
            if done.returncode:
                print(f"{name}: training {layout}: status {done.returncode}\n{done.stderr[-2000:]}")
                return False
            numbers, place = torch.from_numpy(np.fromfile(found, np.float32)), 0
            for expected in by_autograd(model, tokens, targets)[0]:
                assert_close(numbers[place : place + expected.numel()], expected.flatten(), 2e-5)
                place += expected.numel()
            assert place == len(numbers)
    print(f"{name}: {len(TRAININGS)} trainings as float64 autograd", flush=True)
    return True


def check_symbols() -> bool:
    """Whether every function that the linker may take from any object file has the name of its instruction set.

    Of a function of the standard library that two sets compile, the linker keeps one: with the wrong one, a machine
    without AVX-512 meets its instructions in a kernel that it was to run.
    """
    passed = True
    with TemporaryDirectory() as folder:
        for instructions, flags in INSTRUCTIONS.items():
            for source in KERNEL_SOURCES:
                compiled = Path(folder) / "kernel.o"
                command = [COMPILER, *RELEASE, *FLAGS, *flags, f"-DKERNELS_NAMESPACE={instructions}"]
                subprocess.run([*command, "-c", ROOT / "src" / "native" / f"{source}.cpp", "-o", compiled], check=True)
                listed = subprocess.run(["nm", "-C", compiled], check=True, capture_output=True, text=True).stdout
                shared = [
                    line[19:] for line in listed.splitlines() if line[17] in "Wu" and f"{instructions}::" not in line
                ]
                for name in shared:
                    print(f"{instructions}, {source}.cpp: the linker may take {name} for another set's")
                passed &= not shared
    if passed:
        print("the functions of every instruction set have its name")
    return passed


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sanitizers", "aarch64", "symbols"))
    parser.add_argument("--qemu", default="qemu-aarch64-static", help="runs programs for aarch64 (default %(default)s)")
    options = parser.parse_args()
    os.environ["CAUSAL_CIRCUITS_PURE"] = "1"  # the installed core is not what is tested
    if options.what == "symbols":
        return 0 if check_symbols() else 1
    if options.what == "aarch64":
        zig = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl", "-O3"]
        return 0 if check("aarch64", [*zig, "-DKERNELS_NAMESPACE=baseline"], [options.qemu]) else 1
    known = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    sets = [name for name in INSTRUCTIONS if f"{name} " in f"baseline {known.replace('avx512vl ', 'avx512 ')}"]
    passed = True
    # Threads are started in one place, whatever the instructions; loads and stores differ.
    for name, sanitizers in [*((name, "address,undefined") for name in sets), (sets[-1], "thread")]:
        command = [COMPILER, "-O1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", *INSTRUCTIONS[name]]
        passed &= check(f"{name}, {sanitizers}", [*command, f"-DKERNELS_NAMESPACE={name}"], [])
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
