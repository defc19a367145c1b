"""Results as figures: matplotlib axes, CircuitsVis attention views, one self-contained HTML report.

This folder is the one door to matplotlib and to CircuitsVis. Figures compute nothing and change no global style.
Names are listed in `__init__.pyi`; what they need is imported with the first use of each.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
