# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""The gradient of a batch: a chunk of sequences forward and back at a time, sums over all of them."""

from collections.abc import Callable
from functools import cache
from inspect import unwrap  # numba compiles the function itself, not a run-time type check around it
from os.path import dirname

import numba

from causal_circuits.models.fused_kernel.arrays import (
    CHUNK,
    all_sizes,
    carve,
    clear,
    pack,
    unpack,
)
from causal_circuits.models.fused_kernel.backward import (
    add_dense_products,
    add_pattern_gradient,
    back_through_last_rows,
    back_through_layer_0,
    back_through_layer_1,
    reach_features,
)
from causal_circuits.models.fused_kernel.forward import (
    add_pattern,
    attend,
    logits_and_loss,
    queries_of_layer_1,
    write_outputs,
)
from causal_circuits.simd.lanes import FLAGS, inlined
from causal_circuits.simd.sources import fingerprint, made_from


def batch_gradient(tokens, targets, weights, gradients, watched, share, memory, four):
    """Fill `gradients` with those of `share` times the loss summed over a batch; return the summed loss.

    Args:
        tokens, targets: [batch, n_ctx] and [batch, n_tok].
        weights: A1 [m1, d0, d0], A2 [m2, d1, d1] and W_U [d_model, n_tok].
        gradients: three arrays of the same shapes.
        watched: [2, m1, n_ctx, n_ctx], layer 0's pattern summed over the batch times `share` and the gradient that
            reaches it; or anything empty.
        share: one over the number of sequences that the loss is a mean of.
        memory: `arrays.allocate(four)`, a thread's own.
        four: n_ctx, n_tok, m1, m2.
    """
    sizes = all_sizes(four)
    packed, sums, chunk, one = carve(memory[0], memory[1], sizes)[0]
    pack(weights, packed, sizes)
    clear(sums)
    loss = 0.0
    for start in range(0, len(tokens), CHUNK):
        n = min(CHUNK, len(tokens) - start)
        queries_of_layer_1(packed, chunk, one.tables, tokens, start, n, sizes)
        for b in range(n):
            attend(packed, chunk, one, b, sizes)
            if watched.size > 0:
                add_pattern(one, sums.pattern, sizes)
            for m in range(sizes.m2):
                write_outputs(chunk, one, b, m, sizes)
            loss += logits_and_loss(packed, chunk, targets, start, b, sizes)
            reach_features(packed, chunk, one, b, sizes)
            back_through_layer_1(chunk, one, b, sizes)
            if watched.size > 0:
                add_pattern_gradient(one, sums.d_pattern, sizes)
            back_through_layer_0(chunk, one, sums, b, sizes)
        add_dense_products(packed, chunk, sums, n, sizes)
        back_through_last_rows(chunk, one, sums, n, watched.size > 0, sizes)
    unpack(sums, gradients, watched, share, sizes)
    return loss


_gradient = inlined(batch_gradient)
FOLDER = dirname(__file__)
KERNEL = {"nogil": True, "cache": True, "error_model": "numpy", "_nrt": False}


@cache
def compiled() -> Callable[..., float]:
    """`batch_gradient` for all sizes."""
    return numba.njit(**KERNEL, fastmath=set(FLAGS))(made_from(batch_gradient, FOLDER))


@cache
def compiled_for(four: tuple[int, int, int, int]) -> Callable[..., float]:
    """`batch_gradient` without its last argument: sizes become constants, so loops are unrolled and sums folded."""
    n_ctx, n_tok, m1, m2 = four
    sources = fingerprint(FOLDER)

    def frozen(tokens, targets, weights, gradients, watched, share, memory):
        sources  # noqa: B018  # see `simd.sources`
        return _gradient(tokens, targets, weights, gradients, watched, share, memory, (n_ctx, n_tok, m1, m2))

    return numba.njit(**KERNEL)(unwrap(frozen))
