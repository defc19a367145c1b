"""Which small changes to the core modules would no test notice? A survivor is a missing test, or changes nothing.

    python tests/mutation/mutate.py                                    # 5 mutants of every core module, 25 CPU minutes
    python tests/mutation/mutate.py graphs tasks --each 20 --seed 3    # graphs.py and tasks/ alone
    python tests/mutation/mutate.py --list discovery/recover           # what could be changed there; runs nothing
    python tests/mutation/mutate.py --out mutants.json                 # written after every module
    python tests/mutation/mutate.py --again mutants.json               # only what survived there

The tree is copied to a temporary folder and changed only there: a comparison flipped, + and - or * and / exchanged, a
number moved by one, `not` or a sign taken away, and/or, min/max exchanged, a statement deleted, a return emptied. For
each mutant the test files that belong to its module run until the first failure; none is a survivor. This process
imports torch and TransformerLens once and forks for each mutant, so a mutant costs its tests and some 3 s.
Survivors that cannot change a result are listed, with the reason, in tests/mutation/equivalent.json.
Exit status 1 if a mutant survived that is not listed there.
"""

import argparse
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from mutants import Mutant, mutants_of

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")  # threads do not survive a fork

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.json")
NEEDED = ("causal_circuits", "analyses", "tests", "pyproject.toml")  # of the tree, by these tests
WARM = (
    "torch",
    "transformer_lens",
    "networkx",
    "scipy.stats",
    "hypothesis",
    "beartype",
    "jaxtyping",
    "safetensors",
)
# Module or folder -> its tests, the quickest first; the module's own doctests come before them.
TESTS = {
    "graphs": ("test_graphs", "test_heads", "test_discovery"),
    "tasks": ("test_tasks", "test_last_position", "test_generalization"),
    "information": (
        "test_information_parts",
        "test_information",
        "test_conditional_information",
        "test_dag_gradient",
        "test_comparison",
    ),
    "discovery": ("test_discovery_parts", "test_kernel_rows", "test_discovery", "test_several_heads", "test_recover"),
}
LEFT_OUT = ("tests/test_several_heads.py::test_a_quick_run_writes_what_it_promises",)  # a script, 8 s
MEMORY = 8 * 2**30


def modules_of(names: list[str]) -> list[str]:
    """The core modules that names (modules, folders or beginnings) stand for, without the .py."""
    package = ROOT / "causal_circuits"
    every = [path.relative_to(package).with_suffix("").as_posix() for path in sorted(package.rglob("*.py"))]
    core = [name for name in every if name.split("/")[0] in TESTS and not name.endswith("__init__")]
    chosen = [name for name in core if not names or any(name == n or name.startswith(f"{n}/") for n in names)]
    if not chosen:
        raise SystemExit(f"mutate.py: no core module is named {' '.join(names)}: choose from {' '.join(core)}")
    return chosen


def tests_of(module: str) -> list[str]:
    """What pytest is given for a module: its doctests, then its test files."""
    return [f"causal_circuits/{module}.py", *(f"tests/{name}.py" for name in TESTS[module.split("/")[0]])]


class FirstFailure:
    """A pytest plugin that writes down the first test that failed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def pytest_runtest_logreport(self, report: object) -> None:
        """Called by pytest after each phase of a test."""
        if report.failed and not self.path.exists():
            self.path.write_text(report.nodeid)


def run_tests(tests: list[str], folder: Path, seconds: int) -> int:
    """In the forked child: pytest's exit status, everything said going to a file."""
    import pytest

    with (folder / "said").open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    spent = int(time.process_time())  # by the imports before the fork
    resource.setrlimit(resource.RLIMIT_CPU, (spent + seconds, spent + seconds + 5))
    options = [f"--deselect={test}" for test in LEFT_OUT]
    options += ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # hypothesis is imported already
    return int(pytest.main([*tests, *options], plugins=[FirstFailure(folder / "failed")]))


def in_a_fork(tests: list[str], seconds: int) -> dict[str, object]:
    """What became of the tests: "passed", "failed", "slow" (CPU seconds) or "broken"; the first that failed."""
    with tempfile.TemporaryDirectory() as name:
        folder, deadline = Path(name), time.monotonic() + 30 * seconds  # a test may also wait for ever
        child = os.fork()
        if child == 0:
            try:
                os._exit(run_tests(tests, folder, seconds))
            except Exception:
                traceback.print_exc()
            finally:  # whatever happened: the child must not clean up after its parent
                os._exit(3)
        found = 0
        while not found:
            found, status, used = os.wait4(child, os.WNOHANG)
            if not found and time.monotonic() > deadline:
                os.killpg(child, signal.SIGXCPU)
            time.sleep(0.05)
        code, failed, said = os.waitstatus_to_exitcode(status), folder / "failed", folder / "said"
        outcome = {0: "passed", 1: "failed", -signal.SIGXCPU: "slow", -signal.SIGKILL: "slow"}.get(code, "broken")
        return {
            "outcome": outcome,
            "by": failed.read_text() if failed.exists() else "",
            "cpu_s": round(used.ru_utime + used.ru_stime, 1),
            "said": said.read_text()[-2000:] if said.exists() else "",
        }


def known_equivalent() -> dict[tuple[str, str, str, str], str]:
    """(module, text of the line, old, new) -> why it cannot change a result."""
    rows = json.loads(EQUIVALENT.read_text())
    return {(row["module"], row["text"], row["old"], row["new"]): row["why"] for row in rows}


def try_mutants(module: str, chosen: list[Mutant], tree: Path, seconds: int) -> list[dict[str, object]]:
    """A row for each mutant of a module; the file is put back after each."""
    path, reasons, rows = tree / "causal_circuits" / f"{module}.py", known_equivalent(), []
    source = path.read_text()
    for mutant in chosen:
        text = source.splitlines()[mutant.line - 1].strip()
        why = reasons.get((module, text, mutant.old, mutant.new))
        if why is not None:
            rows.append({"module": module, **asdict(mutant), "outcome": "equivalent", "why": why, "by": "", "cpu_s": 0})
            continue
        path.write_text(mutant.applied_to(source))
        found = in_a_fork(tests_of(module), seconds)
        path.write_text(source)
        found["outcome"] = "survived" if found["outcome"] == "passed" else found["outcome"]
        rows.append({"module": module, **asdict(mutant), **found})
        where = f"{module}.py:{mutant.line}"
        print(f"{found['outcome']:9} {where:34} {mutant.old!r} -> {mutant.new!r}"[:160], flush=True)
    return rows


def survivors_of(path: Path) -> dict[str, list[Mutant]]:
    """The mutants that survived an earlier run, by module, where the source still has them."""
    found: dict[str, list[Mutant]] = {}
    for row in json.loads(path.read_text())["mutants"]:
        if row["outcome"] == "survived":
            every = mutants_of((ROOT / "causal_circuits" / f"{row['module']}.py").read_text())
            same = [m for m in every if (m.line, m.old, m.new) == (row["line"], row["old"], row["new"])]
            found.setdefault(row["module"], []).extend(same)
    return found


def chosen_mutants(module: str, each: int, seed: int) -> list[Mutant]:
    """A sample of a module's mutants, in the order of its lines."""
    every = mutants_of((ROOT / "causal_circuits" / f"{module}.py").read_text())
    sample = random.Random(f"{seed} {module}").sample(every, min(each, len(every)))
    return sorted(sample, key=lambda mutant: (mutant.line, mutant.start, mutant.new))


def copied_tree(folder: Path) -> Path:
    """The files that the tests need."""
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(ROOT / name, folder / name)
    return folder


def warm_up(tree: Path) -> None:
    """Import what every child needs, but nothing of the package; from now on the copy is where we are."""
    os.chdir(tree)
    sys.path[:0] = [str(tree), str(tree / "tests")]
    for name in WARM:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    assert not any(name.startswith("causal_circuits") for name in sys.modules)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "modules", nargs="*", help="modules or folders of the core, e.g. graphs tasks discovery/recover"
    )
    parser.add_argument("--each", type=int, default=5, metavar="N", help="mutants a module (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="which mutants (default 0)")
    parser.add_argument("--list", action="store_true", help="print every mutant of the modules and stop")
    parser.add_argument("--again", type=Path, metavar="FILE", help="only the survivors of an earlier --out FILE")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write every mutant and what became of it as JSON")
    arguments = parser.parse_args()
    modules = modules_of(arguments.modules)
    if arguments.list:
        for module in modules:
            for mutant in mutants_of((ROOT / "causal_circuits" / f"{module}.py").read_text()):
                print(f"{module}.py:{mutant.line} {mutant.kind}: {mutant.old!r} -> {mutant.new!r}")
        return 0
    out = arguments.out.resolve() if arguments.out else None
    if arguments.again:
        chosen = survivors_of(arguments.again)
    else:
        chosen = {module: chosen_mutants(module, arguments.each, arguments.seed) for module in modules}
    rows, limits = [], {}
    with tempfile.TemporaryDirectory() as name:
        warm_up(copied_tree(Path(name)))
        for module, mutants in chosen.items():
            area = module.split("/")[0]
            if area not in limits:
                whole = in_a_fork([*(f"tests/{test}.py" for test in TESTS[area])], 600)
                if whole["outcome"] != "passed":
                    print(f"mutate.py: the tests of {area} fail without a change:\n{whole['said']}", file=sys.stderr)
                    return 2
                limits[area] = int(3 * whole["cpu_s"]) + 20
                print(f"{area}: tests take {whole['cpu_s']} CPU s; a mutant may take {limits[area]}", flush=True)
            rows += try_mutants(module, mutants, Path(name), limits[area])
            write_rows(rows, arguments.seed, out)
        os.chdir(ROOT)
    return report(rows, arguments.seed)


def write_rows(rows: list[dict[str, object]], seed: int, out: Path | None) -> None:
    """Every mutant so far, as JSON."""
    if out:
        kept = [{key: value for key, value in row.items() if key not in ("said", "start", "end")} for row in rows]
        out.write_text(json.dumps({"seed": seed, "mutants": kept}, indent=1) + "\n")


def report(rows: list[dict[str, object]], seed: int) -> int:
    """The table, and the exit status."""
    areas = sorted({str(row["module"]).split("/")[0] for row in rows})
    print(f"\n{'':14}mutants  killed  equivalent  survived")
    for area in [*areas, "all"]:
        counts = Counter(row["outcome"] for row in rows if area in ("all", str(row["module"]).split("/")[0]))
        n, survived, same = counts.total(), counts["survived"], counts["equivalent"]
        print(f"{area:14}{n:7} {n - survived - same:7} {same:11} {survived:9}")
    cpu_s = round(sum(float(row["cpu_s"]) for row in rows))
    print(f"seed {seed}, {cpu_s} CPU s")
    return 1 if any(row["outcome"] == "survived" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
