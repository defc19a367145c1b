"""Causal graphs over the positions of a context: make, validate, compare.

A causal graph is a `networkx.DiGraph` whose nodes are the context positions ``0 .. n_ctx - 1`` and one more node,
``n_ctx``: the *target*, the token to be predicted. An edge goes parent -> child, and a parent precedes its child. A
node may have a "label", which figures show. `graph.graph["target"]` says that the last node is the target: the
functions here write it, and a graph without a query that does not say it brings a warning.

Two families (Nichani, Damian & Lee 2024, sections 2 and 6):

* **forests with a query.** The last context position is the *query*: it has no parents, its token is uniform, and it
  is the only parent of the target. Every other position has one parent or is a root.
* **general DAGs.** Positions have up to k parents, and so has the target.

Names are listed in `__init__.pyi`, each imported with its first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
