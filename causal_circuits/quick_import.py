"""Import everything with the garbage collector paused; nothing else changes.

An import of torch, TransformerLens and this package makes some million objects and no garbage. Without looking through
them again and again, nor all at once afterwards, it takes a second less (benchmarks/start.py: 4.9 s where torch and
TransformerLens alone take 6.8, medians of five, in turn).
"""

import gc

_collecting = gc.isenabled()
gc.disable()
try:
    from causal_circuits import circuits, classical, films, generalization, heads, training
finally:
    if not gc.get_freeze_count():  # what was made is old: the collector need not look at all of it when it wakes
        gc.freeze()
        gc.unfreeze()
    if _collecting:
        gc.enable()

__all__ = ["circuits", "classical", "films", "generalization", "heads", "training"]
