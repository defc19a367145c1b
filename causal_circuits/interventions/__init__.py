"""Break a model on purpose and see what its loss says: ablation, knock-out, patching, causal scrubbing.

Every function gives the model back as it was - hooks, weights, gradients, settings - also after an exception, and works
on any HookedTransformer whose prediction is read at the last position. Effects are losses in nats unless another
`metric` is asked for, paired sequence by sequence with the untouched run.

Names are listed in `__init__.pyi`, each imported with its first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
