"""Training: a task, a model and a recipe in; a TrainingRecord out. One loop for single models and for ensembles.

The step is computed by the native core where it applies (two layers, float32, CPU, no hook attached), by the
structured forward with autograd everywhere else. Both give the same gradients.

Names are listed in `__init__.pyi`, each imported with its first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
