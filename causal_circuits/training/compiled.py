# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""What a fused run does between two gradients, compiled: add up what the threads found, and Adam.

The weights are so few that torch's bookkeeping costs ten times as much. Both keep the interpreter's lock, which a run's
other threads ask for between two pieces of work: to give it away and wait for it again takes longer than the
arithmetic. This file needs numba.
"""

from functools import cache

import numpy as np

from causal_circuits.simd.disk_cache import compile_kernel
from causal_circuits.simd.lanes import LANES
from causal_circuits.simd.sources import made_from
from causal_circuits.simd.vectors import fma, inverse, load, root, splat, store, sum_of

KERNEL = {"error_model": "numpy", "_nrt": False}


@cache
def compiled_sum():  # numba's dispatcher has no useful static type
    """`add_up`, compiled."""
    return compile_kernel(made_from(add_up, __file__), **KERNEL)


@cache
def compiled_adam():
    """`adam`, compiled."""
    return compile_kernel(made_from(adam, __file__), **KERNEL)


def add_up(parts, out):
    """Write the sum of rows [part, n] of whole vectors to `out`, [n]; return the sum of all: a number if all are."""
    total, n = splat(0.0), out.size
    for v in range(0, n, LANES):
        value = load(parts, v)
        for part in range(1, len(parts)):
            value = value + load(parts, part * n + v)
        store(out, v, value)
        total = total + value
    return sum_of(total)


def adam(weights, gradient, mean, square, keep, decay, rate, to_mean, to_square, scale, epsilon):
    """One step in place on flat float32 arrays of whole vectors: Kingma & Ba (2015), algorithm 1.

    Epsilon and weight decay are torch's.

    Args:
        mean, square: running means of the gradient and of its square.
        keep: what of a weight is left by decoupled weight decay (AdamW): 1 - learning rate * decay.
        decay: added to the gradient for each unit of weight (Adam's own weight decay).
        rate: learning rate / (1 - beta1^t).
        to_mean, to_square: 1 - beta1 and 1 - beta2.
        scale: 1 / sqrt(1 - beta2^t).
    """
    keep, decay, rate, to_mean = np.float32(keep), np.float32(decay), np.float32(rate), np.float32(to_mean)
    to_square, scale, epsilon = np.float32(to_square), np.float32(scale), np.float32(epsilon)
    for v in range(0, weights.size, LANES):
        w = load(weights, v) * keep
        g = fma(w, decay, load(gradient, v))
        m, s = load(mean, v), load(square, v)
        m = fma(g - m, to_mean, m)
        s = fma(g * g - s, to_square, s)
        store(mean, v, m)
        store(square, v, s)
        store(weights, v, fma(m * inverse(fma(root(s), scale, splat(epsilon))), -rate, w))
