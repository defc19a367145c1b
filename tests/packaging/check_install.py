"""Does what would be released install and work, with the newest, the oldest and the fewest dependencies allowed?

    make release                                                  # some 15 minutes, 3 GB of disk while it runs
    python tests/packaging/check_install.py --sets oldest --quick

Builds the sdist, and the wheel from the sdist. Then, for each set, in a new virtual environment and from folders that
hold no checkout: installs, asks pip whether all requirements are met, imports (with the compiled core, or without),
runs the main job of the unpacked sdist in an empty folder, and quick tests of the sdist on what is installed.

    newest    whatever pip chooses today, but for torch: another version would bring gigabytes of CUDA
    oldest    constraints-oldest.txt: the lower bounds of pyproject.toml
    pure      constraints.txt, no extras, installed from the sdist with no C++ compiler on the PATH: in pure Python

For a maintainer, before a release: it needs the network and minutes, so it is no test of the suite. The first command
that fails ends it.
"""

import argparse
import json
import os
import subprocess
import tarfile
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
SETS = {"newest": "", "oldest": "constraints-oldest.txt", "pure": "constraints.txt"}
TESTS = "graphs tasks models fused training interventions information display checkpoints discovery figures graph_view"
PURE_TESTS = "graphs models heads display packaging"  # need neither the compiled core nor a plot
WHAT_IS_INSTALLED = ("--confcutdir=tests", "-o", "pythonpath=", "-p", "no:cacheprovider")  # not the sources beside
NO_CORE = ("-W", "ignore:causal_circuits was installed without its compiled core:RuntimeWarning")  # said once
PURE_EXTRAS = ("pytest", "hypothesis")
IMPORTS = """
import sys
from pathlib import Path
import causal_circuits, causal_circuits.figures, causal_circuits.circuits
folder = Path(causal_circuits.__file__).parent
assert str(folder).startswith(sys.prefix), f"imported from {folder}"
assert (folder / "py.typed").is_file(), "no py.typed"
assert causal_circuits.native.available() == (sys.argv[1] != "pure"), "the compiled core is missing, or there"
"""


def run(command: Sequence[object], cwd: Path, **environment: str) -> None:
    """Run a command without this checkout on the path."""
    outside = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run([str(part) for part in command], cwd=cwd, env=outside | environment, check=True)


def new_environment(folder: Path) -> Path:
    """The interpreter of a new virtual environment."""
    venv.create(folder, with_pip=True)
    return folder / "bin" / "python"


def build(work: Path) -> tuple[Path, Path, Path]:
    """The wheel, the sdist that it was built from, and the sdist unpacked."""
    python = new_environment(work / "build")
    run([python, "-m", "pip", "install", "-q", "build"], work)
    run([python, "-m", "build", "-o", work / "dist", ROOT], work)
    (wheel,), (sdist,) = (work / "dist").glob("*.whl"), (work / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(work / "sdist", filter="data")
    return wheel, sdist, next((work / "sdist").iterdir())


def check_contents(wheel: Path, unpacked: Path) -> None:
    """The wheel holds every file of the package, the sdist every tracked file."""
    packed = zipfile.ZipFile(wheel).namelist()
    package = [path.relative_to(unpacked).as_posix() for path in (unpacked / "causal_circuits").rglob("*.*")]
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    missing = sorted(set(package) - set(packed)) + [name for name in tracked if not (unpacked / name).exists()]
    assert not missing, f"not packed: {missing}"


def install(python: Path, name: str, wheel: Path, sdist: Path) -> None:
    """The wheel, or the sdist where no compiler is to be found, under the constraints of the set."""
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    constraints = ["-c", ROOT / SETS[name]] if SETS[name] else [pin for pin in pins if pin.startswith("torch==")]
    hidden = {"PATH": str(python.parent), "CC": "", "CXX": ""} if name == "pure" else {}
    what = [sdist, *PURE_EXTRAS] if name == "pure" else [f"{wheel}[test]"]
    run([python, "-m", "pip", "install", "-q", *constraints, *what], python.parent, **hidden)
    run([python, "-m", "pip", "check"], python.parent)


def main_job(python: Path, unpacked: Path, steps: Sequence[str], folder: Path) -> None:
    """Run analyses/induction_head.py in an empty folder: it must find the whole chain and leave its report."""
    folder.mkdir()
    run([python, unpacked / "analyses" / "induction_head.py", "--quiet", "--out", "here", *steps], folder)
    graph = json.loads((folder / "here" / "results.json").read_text())["graph"]
    assert graph["exact"], f"{graph['recovered']} of {graph['edges']} parents, {graph['false_edges']} false"
    assert (folder / "here" / "report.html").is_file()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="default all")
    parser.add_argument("--quick", action="store_true", help="300 training steps and a few tests")
    options = parser.parse_args()
    with TemporaryDirectory(prefix="check-install-") as folder:
        wheel, sdist, unpacked = build(Path(folder))
        check_contents(wheel, unpacked)
        for name in options.sets:
            work = Path(folder) / name
            python = new_environment(work)
            install(python, name, wheel, sdist)
            run([python, "-c", IMPORTS, name], work)
            main_job(python, unpacked, ["--steps", "300"] if options.quick else [], work / "empty")
            names = "graphs packaging" if options.quick else PURE_TESTS if name == "pure" else TESTS
            files = [f"tests/test_{name}.py" for name in names.split()]
            run([python.parent / "pytest", *WHAT_IS_INSTALLED, *(NO_CORE if name == "pure" else ()), *files], unpacked)
            print(f"{name}: installs and works", flush=True)
            run(["rm", "-rf", work], Path(folder))  # a gigabyte each


if __name__ == "__main__":
    main()
