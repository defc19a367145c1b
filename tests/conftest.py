"""Fixtures: small graphs, tasks and models, and one browser; which files go first."""

from __future__ import annotations

import gc
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx
import pytest
from browser import CHROMIUM, assert_report_is_sound, running_browser
from hypothesis import settings

import causal_circuits as cc  # nothing is loaded before its first use

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# With --dist loadfile a worker takes whole files: the long ones first, so that none is left over for one worker alone.
LONG = ["attachments", "notebooks", "environments", "several_parents", "resume", "recover", "circuits_proof", "running"]
LONG += ["study_reproduce_paper", "study_structure_learning", "study_circuit_proof", "interventions", "docs", "imports"]
FORK = [None, 0, 0, 1, None, 4]  # a root with two children, a grandchild, a second tree; n_ctx 7

collect_ignore = ["cluster"]  # needs Ray: make cluster
if importlib.metadata.version("transformer-lens") < "4":
    collect_ignore += ["test_bridges.py"]  # TransformerLens 3.9's bridges are refused: test_imports

settings.register_profile("causal_circuits", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("causal_circuits")


def pytest_configure(config: pytest.Config) -> None:
    """Libraries are imported before the package: within jaxtyping's hook Python would not find their bytecode.

    The process that only hands out files to others does without.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # xdist would begin with the files of most tests
    if config.getoption("dist", "no") != "no" and config.getoption("tx", None):
        return
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait actively take the other worker's core
    for library in ("torch", "transformer_lens", "matplotlib.animation", "scipy.stats"):
        importlib.import_module(library)
    sys.modules["torch"].set_num_threads(1)
    gc.freeze()  # a million objects and no garbage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a file, and among the others, everything stays in its order."""
    place = {f"test_{name}": at for at, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


@pytest.fixture(scope="session", autouse=True)
def coarse_figures() -> None:
    """PNGs of a third of the resolution, which take half of the time."""
    importlib.import_module("causal_circuits.pages.rendering").PNG_DPI = 50


@pytest.fixture
def fork() -> nx.DiGraph:
    """A forest over 7 positions with two trees, a fork and a chain of three."""
    return cc.graph_from_parents(FORK)


@pytest.fixture
def fork_task(fork: nx.DiGraph) -> cc.InContextTask:
    """The fork with three tokens."""
    return cc.InContextTask(fork, d_vocab=3, alpha=0.5)


@pytest.fixture
def chain_task() -> cc.InContextTask:
    """A Markov chain over 6 positions with four tokens."""
    return cc.InContextTask(cc.chain_graph(6), d_vocab=4, alpha=0.3)


@pytest.fixture
def random_model() -> cc.models.HookedTransformer:
    """Two heads, then one, with normal weights, over the chain task's tokens and positions."""
    return cc.disentangled_transformer(4, 6, (2, 1), init_scale=0.5, seed=3)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One headless Chromium for all tests that look at pages."""
    with running_browser() as running:
        yield running


@pytest.fixture
def look_at_report(request: pytest.FixtureRequest) -> Callable[[Path], None]:
    """Checks a report in the browser; where there is none (never in CI, see test_browser.py) only its size."""

    def look(path: Path) -> None:
        assert path.stat().st_size < 6_000_000
        if CHROMIUM is not None:
            assert_report_is_sound(request.getfixturevalue("browser"), path)

    return look
