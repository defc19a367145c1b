"""Disentangled transformers as HookedTransformers; the one door to `transformer_lens`, opened by the first model built.

Axes, in TransformerLens's words: ``batch`` sequences; ``pos``, ``query_pos``, ``key_pos`` context positions from 0;
``head_index`` heads of one layer; ``d_vocab`` tokens; ``d_model`` coordinates of the residual stream; ``n_ctx`` context
length; d_block = d_vocab + n_ctx is the width of one [token | position] copy.

Names are listed in `__init__.pyi`, each imported with its first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
