"""causal_circuits: watch a transformer learn a causal graph, and prove that it did.

A plugin on TransformerLens for "How Transformers Learn Causal Structure with Gradient Descent" (Nichani, Damian & Lee,
ICML 2024). In the order in which data flows::

    graphs -> tasks -> models -> training -> information / heads / discovery / interventions / circuits -> studies

What a notebook needs daily stands in front, as `cc.train` (`__init__.pyi` lists these names, each imported with its
first use); everything else is in a module: `cc.information`, `cc.training`, `cc.circuits`, ... TransformerLens, whose
import takes seconds, comes with the first model.

Examples take for granted `import causal_circuits as cc`, numpy as `np`, `torch`, `tempfile.TemporaryDirectory` and,
where they make no other, a chain and its planted circuit::

    task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    model, batch = cc.plant_circuit(task.graph, d_vocab=3), task.sample(64, seed=0)
"""

import importlib
import warnings

import lazy_loader

from causal_circuits._moved import MOVED

_front, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """A name of the front door; one that moved to its room warns until the next release."""
    if name not in MOVED:
        return _front(name)
    room, _, new = MOVED[name].partition(".")
    warnings.warn(f"causal_circuits.{name} is causal_circuits.{room}.{new} now", DeprecationWarning, stacklevel=2)
    return getattr(importlib.import_module(f"causal_circuits.{room}"), new)
