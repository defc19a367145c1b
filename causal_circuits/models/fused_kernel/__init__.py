"""The arithmetic of the fused step, for numba: loss and every gradient of a two-layer model, a few sequences at a time.

The formulas stand in `fused.py`. `batch` is the loop; `forward` and `backward` are its steps, `attention` rows of
attention, `tiles` dense products and sums by token, `arrays` what all of them work on. Importing this needs numba.
"""

from causal_circuits.models.fused_kernel.arrays import allocate
from causal_circuits.models.fused_kernel.batch import compiled, compiled_for
from causal_circuits.simd.memory import KeptPerThread

__all__ = ["compiled", "compiled_for", "memory"]

memory = KeptPerThread(allocate)
