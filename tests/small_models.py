"""Fixtures: small graphs, tasks and models, and one browser. What is loaded with them takes seconds (see conftest).

Libraries are imported before the package: while jaxtyping's hook imports a module of ours, Python looks for bytecode
under jaxtyping's name, so that whatever is imported from there is compiled from its source, 3,000 files in 10 s.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.animation  # noqa: F401  # first, see above
import networkx as nx
import pytest
import scipy.stats  # noqa: F401
import torch
import transformer_lens  # noqa: F401
from browser import CHROMIUM, assert_report_is_sound, running_browser
from hypothesis import settings

import causal_circuits as cc

if TYPE_CHECKING:
    from playwright.sync_api import Browser

torch.set_num_threads(1)
settings.register_profile("causal_circuits", deadline=None, derandomize=True, max_examples=25, database=None)
settings.load_profile("causal_circuits")

FORK = [None, 0, 0, 1, None, 4]  # a root with two children, a grandchild, a second tree; n_ctx 7


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
def browser() -> "Iterator[Browser]":
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
