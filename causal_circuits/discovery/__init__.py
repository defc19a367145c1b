"""Read causal graphs back out: from layer 0's attention, or from sequences alone, with a confidence for each edge.

Names are listed in `__init__.pyi`, each imported with its first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
