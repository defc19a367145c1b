# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""The gradient of a batch: a chunk of sequences forward and back at a time, sums over all of them.

The chunk's dense products are done together. Through the patterns its sequences go in groups: each by itself while its
rows fit the cache, otherwise all through one band of rows, then the next (`arrays.KEPT`).
"""

from collections.abc import Callable
from functools import cache
from inspect import unwrap  # numba compiles the function itself, not a run-time type check around it
from os.path import dirname

from causal_circuits.models.fused_kernel.arrays import CHUNK, all_sizes, carve, clear, pack, scratch_of, unpack
from causal_circuits.models.fused_kernel.backward import (
    add_dense_products,
    add_pattern_gradient,
    back_through_last_rows,
    back_through_layer_0,
    pass_through_layer_1,
    reach_features,
    reach_pattern_of_layer_1,
    rows_again,
    write_queries,
)
from causal_circuits.models.fused_kernel.forward import (
    add_pattern,
    ask,
    logits_and_loss,
    mix_rows,
    queries_of_layer_1,
    rows_of_layer_0,
    settle,
    write_outputs,
)
from causal_circuits.simd.disk_cache import compile_kernel
from causal_circuits.simd.lanes import FLAGS, inlined
from causal_circuits.simd.sources import fingerprint, made_from


def batch_gradient(tokens, targets, weights, gradients, watched, share, losses, memory, four):
    """Fill `losses` with `share` times the loss of each member summed over its batch, `gradients` with its gradients.

    Args:
        tokens, targets: [member, batch, n_ctx] and [member, batch, n_tok].
        weights: A1 [m1, d0, d0], A2 [m2, d1, d1] and W_U [d_model, n_tok], each [member, entry]; rows may be longer.
        gradients: three arrays of the same shapes.
        watched: [member, 2, m1, n_ctx, n_ctx], layer 0's pattern summed over the batch times `share` and the gradient
            that reaches it; or anything empty.
        share: one over the number of sequences that the loss is a mean of.
        losses: [member], float64.
        memory: `arrays.allocate(four)`, a thread's own.
        four: n_ctx, n_tok, m1, m2.
    """
    sizes = all_sizes(four)
    room = carve(memory[0], memory[1], sizes)[0]
    packed, sums, chunk, band = room.packed, room.sums, room.chunk, room.band
    for member in range(len(tokens)):
        pack(weights, member, packed, sizes)
        clear(sums, watched.size > 0)
        loss = 0.0
        for start in range(0, tokens.shape[1], CHUNK):
            n = min(CHUNK, tokens.shape[1] - start)
            queries_of_layer_1(packed, chunk, band.tables, tokens, member, start, n, sizes)
            for begin in range(0, n, sizes.group):
                end = min(begin + sizes.group, n)
                for b in range(begin, end):
                    ask(chunk, scratch_of(room, b - begin, sizes), b, sizes)
                for first in range(0, sizes.n_ctx, sizes.band):  # forward, a band of rows after the other
                    for b in range(begin, end):
                        one = scratch_of(room, b - begin, sizes)
                        rows_of_layer_0(packed, chunk, one, band, b, first, sizes)
                        if watched.size > 0:
                            add_pattern(one, band, sums.pattern, first, sizes)
                        for m in range(sizes.m2):
                            mix_rows(one, band, m, first, sizes)
                for b in range(begin, end):  # to the loss, and back to what layer 1 brings together
                    one = scratch_of(room, b - begin, sizes)
                    settle(one, sizes)
                    for m in range(sizes.m2):
                        write_outputs(chunk, one, b, m, sizes)
                    loss += logits_and_loss(packed, chunk, targets, member, start, b, sizes)
                    reach_features(packed, chunk, one, b, sizes)
                    reach_pattern_of_layer_1(chunk, one, b, sizes)
                for first in range(0, sizes.n_ctx, sizes.band):  # back through the bands
                    for b in range(begin, end):
                        one = scratch_of(room, b - begin, sizes)
                        if sizes.group > 1:
                            rows_again(packed, chunk, band, b, first, sizes)
                        for m in range(sizes.m2):
                            pass_through_layer_1(one, band, m, first, sizes)
                            back_through_layer_0(chunk, one, band, sums, b, m, first, sizes)
                for b in range(begin, end):
                    one = scratch_of(room, b - begin, sizes)
                    if watched.size > 0:
                        add_pattern_gradient(one, sums.d_pattern, sizes)
                    write_queries(chunk, one, b, sizes)
            add_dense_products(packed, chunk, sums, n, sizes)
            back_through_last_rows(chunk, band, sums, n, watched.size > 0, sizes)
        unpack(sums, member, gradients, watched, share, sizes)
        losses[member] = loss * share


_gradient = inlined(batch_gradient)
FOLDER = dirname(__file__)
KERNEL = {"nogil": True, "error_model": "numpy", "_nrt": False}


@cache
def compiled() -> Callable[..., None]:
    """`batch_gradient` for all sizes."""
    return compile_kernel(made_from(batch_gradient, FOLDER), **KERNEL, fastmath=set(FLAGS))


@cache
def compiled_for(four: tuple[int, int, int, int]) -> Callable[..., None]:
    """`batch_gradient` without its last argument: sizes become constants, so loops are unrolled and sums folded."""
    n_ctx, n_tok, m1, m2 = four
    sources = fingerprint(FOLDER)

    def frozen(tokens, targets, weights, gradients, watched, share, losses, memory):
        sources  # noqa: B018  # see `simd.sources`
        return _gradient(tokens, targets, weights, gradients, watched, share, losses, memory, (n_ctx, n_tok, m1, m2))

    return compile_kernel(unwrap(frozen), **KERNEL)
