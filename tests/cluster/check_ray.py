"""Studies on a Ray cluster of several nodes on this machine, undisturbed and disturbed: some three minutes.

    pip install -c constraints.txt -e ".[test,ray]" && python -m pytest -p no:cacheprovider tests/cluster/check_ray.py

Not in the suite: nodes take seconds to start.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster
from toy_study import Config

import causal_circuits as cc
from causal_circuits.running import CellError

TESTS = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(TESTS.parent)])  # of the nodes' workers, too
NUMBERS = tuple(range(1, 25))
pytestmark = pytest.mark.filterwarnings("default")  # Ray's own


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without cores, two nodes of two cores each; this process connects when it runs a study."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=2)  # of 1 or 2 cells
    yield made
    ray.shutdown()
    made.shutdown()


def assert_equal_cells(folder: Path, expected: Path) -> None:
    """Every file of a cell, byte for byte; of the JSON all but the seconds, and the checksum that covers them."""
    for part in ("json", "safetensors"):
        names = [path.name for path in sorted(expected.glob(f"cells/*.{part}"))]
        assert [path.name for path in sorted(folder.glob(f"cells/*.{part}"))] == names
        for name in names:
            one, other = ((of / "cells" / name).read_bytes() for of in (folder, expected))
            if part == "json":
                one, other = (without_seconds(json.loads(content)) for content in (one, other))
            assert one == other, name


def without_seconds(head: dict) -> dict:
    return {name: value for name, value in head.items() if name not in ("seconds", "own sha256")}


def n_kept(folder: Path) -> int:
    return len(list(folder.glob("cells/*.json")))


def driver(address: str, folder: Path, flags: str, before: str = "") -> subprocess.Popen:
    """A process that runs the study on a cluster."""
    call = f"cc.run(Config({flags}), {str(folder)!r}, ray={address!r}, quiet=True)"
    code = f"import causal_circuits as cc\nfrom pathlib import Path\nfrom toy_study import Config\n{before}\n{call}"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)


def assert_ends(process: subprocess.Popen, status: int = 0, said: str = "") -> None:
    told = process.communicate(timeout=300)[1]
    assert process.returncode == status, told
    assert said in told


def wait_until(true: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def flags(tmp_path: Path) -> dict:
    """Cells of .3 s which log what they did; the same run on this machine alone is in `here`."""
    flags = {"numbers": NUMBERS, "wait": 0.3, "log": tmp_path / "log"}
    cc.run(Config(**flags), tmp_path / "here", processes=2, quiet=True)
    (tmp_path / "log").unlink()
    return flags


def logged(tmp_path: Path) -> Counter:
    return Counter((tmp_path / "log").read_text().split())


def as_text(flags: dict) -> str:
    return f"numbers={flags['numbers']}, wait={flags['wait']}, log=Path({str(flags['log'])!r})"


def test_undisturbed_every_cell_is_measured_once_and_equal(cluster, flags, tmp_path):
    done = cc.run(Config(**flags), tmp_path / "there", ray=cluster.address, quiet=True)
    assert len(done.rows) == len(NUMBERS)
    assert set(logged(tmp_path).values()) == {1}
    assert_equal_cells(tmp_path / "there", tmp_path / "here")
    assert not list(tmp_path.glob("there/cells/*.scratch"))
    assert not ray.is_initialized()


@pytest.mark.parametrize(
    "study",
    [
        cc.studies.two_stage.Config.quickly(figure_9=1, steps=(20, 20)),
        cc.studies.sample_complexity.Config.quickly(n_ctx=(10,), sizes=(100, 1000)),
        cc.studies.learnability.Config.quickly(steps=300),
    ],
    ids=lambda study: study.program(),
)
def test_cells_of_real_studies_have_the_bytes_of_this_process(cluster, tmp_path, study):
    cc.run(study, tmp_path / "here", quiet=True)
    cc.run(study, tmp_path / "there", ray=cluster.address, quiet=True)
    assert_equal_cells(tmp_path / "there", tmp_path / "here")


def kill_a_worker(cluster: Cluster) -> None:
    workers = [p for p in psutil.process_iter(["cmdline"]) if "ray::_measure_pack" in " ".join(p.info["cmdline"] or ())]
    workers[0].kill()


def remove_a_node(cluster: Cluster) -> None:
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)


@pytest.mark.parametrize("disturb", [kill_a_worker, remove_a_node])
def test_a_worker_or_a_node_is_lost(cluster, flags, tmp_path, disturb):
    process = driver(cluster.address, tmp_path / "there", as_text(flags))
    wait_until(lambda: n_kept(tmp_path / "there") >= 4)
    before, kept = logged(tmp_path), [path.stem for path in tmp_path.glob("there/cells/*.json")]
    disturb(cluster)
    assert_ends(process)
    after = logged(tmp_path)
    assert [n for n in kept if after[n.removeprefix("number_")] != before[n.removeprefix("number_")]] == []
    assert_equal_cells(tmp_path / "there", tmp_path / "here")


def test_the_driver_is_killed_and_the_same_command_goes_on(cluster, flags, tmp_path):
    first = driver(cluster.address, tmp_path / "there", as_text(flags))
    wait_until(lambda: n_kept(tmp_path / "there") >= 4)
    first.send_signal(signal.SIGKILL)
    assert_ends(first, -signal.SIGKILL)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("there/cells/*.json")}
    second = driver(cluster.address, tmp_path / "there", as_text(flags))
    assert_ends(second)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert_equal_cells(tmp_path / "there", tmp_path / "here")


def test_a_cell_that_raises_and_cells_that_never_end_leave_the_others(cluster, tmp_path):
    flags = {"numbers": NUMBERS[:8], "bad": 2, "deaf": 3}
    with pytest.raises(CellError, match="2 of 8 cells raised") as caught:
        cc.run(Config(**flags), tmp_path / "deaf", ray=cluster.address, limit_s=1, quiet=True)
    assert "number 2" in str(caught.value)
    assert "2 is bad: asked for" in str(caught.value)
    assert "number 3" in str(caught.value)
    assert n_kept(tmp_path / "deaf") == 6
    with pytest.raises(CellError, match=r"1 of 1 cells raised: .*TimeoutError: not done within --limit-s 0\.5"):
        cc.run(Config(numbers=(1,), wait=60), tmp_path / "slow", ray=cluster.address, limit_s=0.5, quiet=True)


def test_a_full_disk_stops_the_driver_and_keeps_what_is_there(cluster, tmp_path):
    cc.run(Config(numbers=(1, 2, 3), size=10_000), tmp_path / "here", quiet=True)
    full = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"cc.run(Config(numbers=(1,), size=10_000), {str(tmp_path / 'there')!r}, quiet=True)\n"
        "import causal_circuits.running as running, causal_circuits.storage as storage\n"
        "keep = running.write_checked\n"
        "def limited(*given):\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
        "    keep(*given)\n"
        "running.write_checked = limited"
    )
    process = driver(cluster.address, tmp_path / "there", "numbers=(1, 2, 3), size=10_000", full)
    assert_ends(process, 1, "File too large")
    assert n_kept(tmp_path / "there") == 1
    assert not list(tmp_path.rglob("*.part"))
    cc.run(Config(numbers=(1, 2, 3), size=10_000), tmp_path / "there", ray=cluster.address, quiet=True)
    assert_equal_cells(tmp_path / "there", tmp_path / "here")


def test_a_worker_with_other_instructions_is_refused_by_name(cluster, tmp_path):
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node)
    cluster.add_node(num_cpus=1, env_vars={"CAUSAL_CIRCUITS_KERNELS": "baseline"})
    with pytest.raises(ValueError, match=r"the worker on .* has instructions baseline, torch .*, this process .*"):
        cc.run(Config(numbers=(1, 2)), tmp_path, ray=cluster.address, quiet=True)
    assert n_kept(tmp_path) == 0


def test_a_cluster_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"--ray 127.0.0.1:1: no cluster"):
        cc.run(Config(numbers=(1, 2)), tmp_path, ray="127.0.0.1:1", quiet=True)
