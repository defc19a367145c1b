"""Does what would be released install and work, with the newest, the oldest and the fewest dependencies allowed?

    python tests/packaging/check_install.py                       # some 15 minutes, 3 GB of disk while it runs
    python tests/packaging/check_install.py --sets oldest --quick

Builds the sdist, and the wheel from the sdist. Then, for each set, in a new virtual environment and from folders that
hold no checkout: installs the wheel, asks pip whether all requirements are met, imports it (with its compiled core, or
without where that is expected), runs the main job of the
unpacked sdist (analyses/induction_head.py) in an empty folder, and quick tests of the sdist on what is installed.

    newest    whatever pip chooses today, but for torch: another version would bring gigabytes of CUDA
    oldest    constraints-oldest.txt: the lower bounds of pyproject.toml
    pure      constraints.txt, no extras, installed from the sdist with no C++ compiler on the PATH: in pure Python

Prints a table; exit status 1 if anything failed. For a maintainer, before a release: it needs the network and minutes,
so it is no test of the suite.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
TESTS = "graphs tasks models fused training interventions information display checkpoints discovery figures graph_view"
SMALL = "graphs models heads display packaging"  # need neither the compiled core nor a plot
IMPORTS = """
import json, sys
from importlib.metadata import distributions
from pathlib import Path
import causal_circuits, causal_circuits.figures, causal_circuits.circuits
folder = Path(causal_circuits.__file__).parent
assert str(folder).startswith(sys.prefix), f"imported from {folder}"
assert (folder / "py.typed").is_file(), "no py.typed"
assert causal_circuits.native.available() == (sys.argv[1] == "core"), "the compiled core is missing, or there"
print(json.dumps({d.metadata["Name"].lower(): d.version for d in distributions()}))
"""


@dataclass(frozen=True)
class DependencySet:
    """What one virtual environment gets: a file of constraints, extras of the package, other packages, its tests."""

    constraints: str
    extras: str
    also: tuple[str, ...]
    tests: str
    compiler: bool = True


SETS = {
    "newest": DependencySet("", "[test]", (), TESTS),
    "oldest": DependencySet("constraints-oldest.txt", "[test]", (), TESTS),
    "pure": DependencySet("constraints.txt", "", ("pytest", "hypothesis", "beartype", "scipy"), SMALL, compiler=False),
}


@dataclass(frozen=True)
class Step:
    """One thing tried: what came of it, and how long it took."""

    set: str
    name: str
    passed: bool
    result: str
    seconds: float


class StepFailed(Exception):
    """A command ended badly; what it said last."""


def run(command: Sequence[object], cwd: Path, **environment: str) -> str:
    """What a command prints, run without this checkout on the path."""
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    outside |= environment
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=outside, capture_output=True, text=True)
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise StepFailed("\n".join(said[-15:]))
    return done.stdout


def build(work: Path) -> tuple[Path, Path]:
    """The wheel, and the folder of the unpacked sdist that it was built from."""
    python = new_environment(work / "build")
    run([python, "-m", "pip", "install", "-q", "build"], work)
    run([python, "-m", "build", "-o", work / "dist", ROOT], work)
    (wheel,), (sdist,) = (work / "dist").glob("*.whl"), (work / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "sdist", filter="data")
    return wheel, next((work / "sdist").iterdir())


def check_contents(wheel: Path, sdist: Path) -> str:
    """The wheel holds every file of the package; the sdist every tracked file that is not hidden."""
    packed = set(zipfile.ZipFile(wheel).namelist())
    package = [path.relative_to(sdist).as_posix() for path in (sdist / "causal_circuits").rglob("*") if path.is_file()]
    tracked = run(["git", "ls-files"], ROOT).split()
    missing = sorted(set(package) - packed) + [name for name in tracked if not (sdist / name).exists()]
    if missing or "causal_circuits/py.typed" not in packed:
        raise StepFailed(f"missing: {missing or 'py.typed'}")
    return f"{len(packed)} files in the wheel, {len(tracked)} in the sdist"


def new_environment(folder: Path) -> Path:
    """The interpreter of a new virtual environment."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def install(python: Path, package: Path, chosen: DependencySet, torch: str, work: Path) -> str:
    """The wheel, or the sdist where no compiler is to be found, with its extras, under the set's constraints."""
    pins = ["-c", ROOT / chosen.constraints] if chosen.constraints else []
    what = [f"{package}{chosen.extras}", f"torch=={torch}", *chosen.also]
    hidden = {} if chosen.compiler else {"PATH": str(python.parent), "CC": "", "CXX": ""}
    run([python, "-m", "pip", "install", "-q", *pins, *what], work, **hidden)
    return run([python, "-m", "pip", "check"], work).strip()


def import_it(python: Path, work: Path, core: str) -> str:
    """The versions that were imported with it; `core` says whether its compiled core must be there."""
    found = json.loads(run([python, "-c", IMPORTS, core], work).splitlines()[-1])
    names = ("torch", "transformer-lens", "numpy", "networkx", "matplotlib", "jaxtyping", "safetensors")
    return ", ".join(f"{name} {found.get(name, 'missing')}" for name in names)


def main_job(python: Path, sdist: Path, steps: int | None, folder: Path) -> str:
    """Run analyses/induction_head.py in an empty folder: it must find the whole chain and leave its report."""
    folder.mkdir()
    flags = ["--quiet", "--out", "here", *(["--steps", steps] if steps else [])]
    run([python, sdist / "analyses" / "induction_head.py", *flags], folder)
    found = json.loads((folder / "here" / "results.json").read_text())
    graph, loss = found["graph"], found["loss"]
    said = f"{graph['recovered']} of {graph['edges']} parents, {graph['false_edges']} false"
    if not graph["exact"] or not (folder / "here" / "report.html").is_file():
        raise StepFailed(said if not graph["exact"] else f"{said}, but no report")
    return f"{said}; test loss {loss['test']:.4f}; {found['timing']['path']} path"


def run_tests(python: Path, sdist: Path, names: str) -> str:
    """Tests of the sdist against the installed package (not the copy that lies beside them)."""
    files = [f"tests/test_{name}.py" for name in names.split()]
    said = run([python.parent / "pytest", "-o", "pythonpath=", "-p", "no:cacheprovider", *files], sdist)
    return said.splitlines()[-1].strip("= ")


def attempt(steps: list[Step], where: str, name: str, act: Callable[[], str]) -> bool:
    """Take a step, note what came of it, say so."""
    began = time.perf_counter()
    try:
        passed, result = True, act()
    except (StepFailed, OSError, KeyError, StopIteration) as error:
        passed, result = False, f"{type(error).__name__}: {error}"
    steps.append(Step(where, name, passed, result, round(time.perf_counter() - began, 1)))
    print(f"{where:9} {name:9} {'ok  ' if passed else 'FAIL'} {steps[-1].seconds:6.1f} s  {result}", flush=True)
    return passed


def check_set(name: str, wheel: Path, sdist: Path, options: argparse.Namespace, work: Path, steps: list[Step]) -> None:
    """Everything that is tried in one environment; without an install nothing else is."""
    chosen, folder = SETS[name], work / name
    folder.mkdir()
    python = folder / "venv" / "bin" / "python"

    def installed() -> str:
        package = wheel if chosen.compiler else sdist
        return install(new_environment(folder / "venv"), package, chosen, options.torch, folder)

    if attempt(steps, name, "install", installed):
        attempt(steps, name, "import", lambda: import_it(python, folder, "core" if chosen.compiler else "pure"))
        few = 300 if options.quick else None
        attempt(steps, name, "main job", lambda: main_job(python, sdist, few, folder / "empty"))
        tests = "graphs packaging" if options.quick else chosen.tests
        attempt(steps, name, "tests", lambda: run_tests(python, sdist, tests))


def pinned_torch() -> str:
    """The version that constraints.txt names."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return next(line.removeprefix("torch==") for line in lines if line.startswith("torch=="))


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="default all")
    parser.add_argument("--torch", default=pinned_torch(), help="its version in every set (default %(default)s)")
    parser.add_argument("--quick", action="store_true", help="300 training steps and a few tests")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what the table shows as JSON")
    options = parser.parse_args()
    steps: list[Step] = []
    with TemporaryDirectory(prefix="check-install-") as name:
        work = Path(name)
        wheel, sdist = build(work)
        attempt(steps, "build", "contents", lambda: check_contents(wheel, sdist))
        for chosen in options.sets:
            check_set(chosen, wheel, sdist, options, work, steps)
            run(["rm", "-rf", work / chosen], work)  # a gigabyte each
    if options.out:
        options.out.write_text(json.dumps([asdict(step) for step in steps], indent=2) + "\n")
    return 0 if all(step.passed for step in steps) else 1


if __name__ == "__main__":
    sys.exit(main())
