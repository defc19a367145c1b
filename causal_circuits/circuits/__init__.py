"""Circuits as graphs: evaluate any of them exactly, discover them, test them, and hold them to the latent graph.

In the order in which one uses it: `circuit_graph` (what a model could use), `circuit_model` (the model as a function of
its circuit), `discover` (seven methods, one signature), `oracle_frontier` and `rank` (the best circuit of every size,
and how far a method is from it), `prove_circuit` (four criteria, one verdict), `entry_model` and `score_against_graph`
(attention entries against the true graph), `watch_formation` (all of it while training), `export_circuit`.

Names are listed in `__init__.pyi`, each imported with its first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
