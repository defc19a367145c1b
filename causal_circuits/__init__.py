"""causal_circuits: watch a transformer learn a causal graph, and prove that it did.

A plugin on TransformerLens for "How Transformers Learn Causal Structure with Gradient Descent" (Nichani, Damian & Lee,
ICML 2024). In the order in which data flows::

    graphs -> tasks -> models -> training -> heads / discovery / interventions / information -> figures

Names are listed in `__init__.pyi`, for type checkers too, and imported with the first use of each; TransformerLens,
whose import takes seconds, comes with the first model.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__version__ = "0.1.0"
