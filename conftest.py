"""What the examples in docstrings take for granted; `help(causal_circuits)` says so."""

from tempfile import TemporaryDirectory
from typing import Any

import pytest


@pytest.fixture(autouse=True, scope="session")
def running_example(doctest_namespace: dict[str, Any]) -> None:
    """The usual imports, and a planted chain."""
    import numpy as np
    import torch

    import causal_circuits as cc

    task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3), task.sample(64, seed=0)
    doctest_namespace |= {"cc": cc, "np": np, "torch": torch, "TemporaryDirectory": TemporaryDirectory}
    doctest_namespace |= {"task": task, "model": model, "batch": batch}
