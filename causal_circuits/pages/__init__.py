"""Results as one self-contained HTML page: Jinja2 templates, style sheets and scripts stand as files in this folder.

Names are listed in `__init__.pyi`; what they need is imported with the first use of each. This folder is the one door
to Jinja2 and to CircuitsVis.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
