"""Results as figures: matplotlib axes, and CircuitsVis attention views of models.

Figures compute nothing and change no global style.
Names are listed in `__init__.pyi`; what they need is imported with the first use of each.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
