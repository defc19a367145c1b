"""Disentangled transformers as HookedTransformers.

Axes used throughout, in TransformerLens's words:

* ``batch``: sequences; ``pos``, ``query_pos``, ``key_pos``: context positions 0 .. n_ctx - 1
* ``head_index``: heads of one layer; ``d_vocab``: tokens; ``d_model``: coordinates of the residual stream
* ``n_ctx``: context length; d_block = d_vocab + n_ctx is the width of one [token | position] copy

This folder is the one door to `transformer_lens`, which is imported when the first model is built.

Names are listed in `__init__.pyi`, each imported with its first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
