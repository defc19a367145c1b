"""Import everything with the garbage collector paused; nothing else changes.

An import of torch, TransformerLens and this package makes some million objects and no garbage. Looking through them
again and again takes a tenth of the time.
"""

import gc

_collecting = gc.isenabled()
gc.disable()
try:
    from causal_circuits import circuits, classical, films, generalization, heads, training
finally:
    if _collecting:
        gc.enable()

__all__ = ["circuits", "classical", "films", "generalization", "heads", "training"]
