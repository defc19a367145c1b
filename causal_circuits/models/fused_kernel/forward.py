# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""From tokens to the loss: the last row of layer 0 for a chunk, then everything else sequence by sequence."""

import numpy as np

from causal_circuits.models.fused_kernel.arrays import CHUNK
from causal_circuits.models.fused_kernel.attention import exponentials, mix_rows, scores, softmax
from causal_circuits.models.fused_kernel.tiles import add_to, dot, multiply, scale_by, spread, write_block
from causal_circuits.simd.lanes import LANES, inlined
from causal_circuits.simd.vectors import fma, keep_first, load, splat, store


@inlined
def queries_of_layer_1(packed, chunk, token_row, tokens, start, n, sizes):
    """The last row of layer 0's pattern, its outputs, and the query that layer 1 makes of them: q = residual A2."""
    n_ctx, n_tok, m1, m2 = sizes.n_ctx, sizes.n_tok, sizes.m1, sizes.m2
    last = n_ctx - 1
    d0, d1 = sizes.d0, sizes.d1
    x, q, p_last = chunk.x, chunk.q, chunk.p_last
    for b in range(n):
        xb = b * sizes.wide_ctx
        for k in range(n_ctx):
            x[xb + k] = tokens[start + b, k]
        for h in range(m1):
            at = (b * m1 + h) * sizes.wide_ctx
            largest = scores(packed.a1, h, last, x, xb, token_row, sizes, p_last, at)
            z = exponentials(p_last, at, n_ctx, largest)
            for v in range(0, n_ctx, LANES):
                store(p_last, at + v, load(p_last, at + v) * z)
            write_block(p_last, at, x, xb, sizes, packed.one_hot, chunk.features, b * sizes.wide_features + h * d0)
        for m in range(m2):
            own, token, position = (m * CHUNK + b) * sizes.wide_q, m * d1 + x[xb + last], m * d1 + n_tok + last
            for v in range(0, d1, LANES):
                value = load(packed.a2, token * sizes.wide_d1 + v)
                store(q, own + v, value + load(packed.a2, position * sizes.wide_d1 + v))
    for m in range(m2):
        matrix = packed.a2[(m * d1 + d0) * sizes.wide_d1 :]
        features = chunk.features, sizes.wide_features
        multiply(features, n, sizes.dense, (matrix, sizes.wide_d1), d1, (q, sizes.wide_q), m * CHUNK * sizes.wide_q)


@inlined
def attend(packed, chunk, one, b, sizes):
    """Layer 0's pattern (its rows e^scores and their scale), what layer 1 sees through it, and layer 1's pattern."""
    n_ctx, n_tok, m1, m2 = sizes.n_ctx, sizes.n_tok, sizes.m1, sizes.m2
    d0, last = sizes.d0, n_ctx - 1
    x, xb, q, p_last = chunk.x, b * sizes.wide_ctx, chunk.q, chunk.p_last
    rows, scale, r, reached, p = one.rows, one.scale, one.r, one.reached, one.p
    for m in range(m2):
        qm = (m * CHUNK + b) * sizes.wide_q
        for v in range(0, n_ctx, LANES):
            store(p, m * sizes.wide_ctx + v, spread(q, qm, x, xb, n_tok, v))
            for h in range(m1):
                value = spread(q, qm + (1 + h) * d0, x, xb, n_tok, v)
                store(r, (m * m1 + h) * sizes.wide_ctx + v, keep_first(value, n_ctx - v, 0.0))
    for h in range(m1):
        at, to = h * sizes.wide_rows, h * sizes.wide_ctx
        for i in range(last):
            one.tops[i] = scores(packed.a1, h, i, x, xb, one.token_row, sizes, rows, at + i * sizes.wide_ctx)
        for i in range(last):
            scale[to + i] = exponentials(rows, at + i * sizes.wide_ctx, i + 1, one.tops[i])
        for v in range(0, n_ctx, LANES):
            store(rows, at + last * sizes.wide_ctx + v, load(p_last, (b * m1 + h) * sizes.wide_ctx + v))
        scale[to + last] = 1.0
        for m in range(m2):
            mh = (m * m1 + h) * sizes.wide_ctx
            for i in range(n_ctx):
                reached[mh + i] = dot(rows, at + i * sizes.wide_ctx, r, mh, i + 1)
            for v in range(0, n_ctx, LANES):
                through = load(reached, mh + v) * load(scale, to + v)
                store(reached, mh + v, through)
                add_to(p, m * sizes.wide_ctx + v, through)
    for m in range(m2):
        softmax(p, m * sizes.wide_ctx, n_ctx)


@inlined
def add_pattern(one, pattern, sizes):
    """Add layer 0's pattern to the sum that a recording wants."""
    n_ctx, m1 = sizes.n_ctx, sizes.m1
    for h in range(m1):
        for i in range(n_ctx):
            for v in range(0, i + 1, LANES):
                value = load(one.rows, h * sizes.wide_rows + i * sizes.wide_ctx + v) * one.scale[h * sizes.wide_ctx + i]
                add_to(pattern, (h * n_ctx + i) * sizes.wide_ctx + v, value)


@inlined
def write_outputs(weights, one, chunk, x_at, one_hot, sizes, out, out_at):
    """What weights [n_ctx] over layer 1's keys bring together: a block as embedded, and one a head of layer 0."""
    n_ctx, m1, d0 = sizes.n_ctx, sizes.m1, sizes.d0
    values, at = weights
    write_block(values, at, chunk.x, x_at, sizes, one_hot, out, out_at)
    for h in range(m1):
        scale_by(values, at, one.scale, h * sizes.wide_ctx, n_ctx, one.mixing)
        mix_rows(one.mixing, one.rows, h * sizes.wide_rows, n_ctx, sizes.wide_ctx, one.mixed)
        write_block(one.mixed, 0, chunk.x, x_at, sizes, one_hot, out, out_at + d0 * (1 + h))


@inlined
def logits_and_loss(packed, chunk, targets, start, b, sizes):
    """The loss of a sequence; its logits' gradient, softmax(logits) - target, takes their place."""
    n_ctx, n_tok = sizes.n_ctx, sizes.n_tok
    last = n_ctx - 1
    features, fb, w, token = chunk.features, b * sizes.wide_features, packed.w, chunk.x[b * sizes.wide_ctx + last]
    logits, at = chunk.d_logits, b * sizes.wide_tok
    for v in range(0, n_tok, LANES):
        s0 = load(w, token * sizes.wide_tok + v) + load(w, (n_tok + last) * sizes.wide_tok + v)
        s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0)
        f = 0
        while f + 3 < sizes.n_features:
            o = (sizes.d0 + f) * sizes.wide_tok + v
            s0 = fma(features[fb + f], load(w, o), s0)
            s1 = fma(features[fb + f + 1], load(w, o + sizes.wide_tok), s1)
            s2 = fma(features[fb + f + 2], load(w, o + 2 * sizes.wide_tok), s2)
            s3 = fma(features[fb + f + 3], load(w, o + 3 * sizes.wide_tok), s3)
            f += 4
        while f < sizes.n_features:
            s0 = fma(features[fb + f], load(w, (sizes.d0 + f) * sizes.wide_tok + v), s0)
            f += 1
        store(logits, at + v, (s0 + s1) + (s2 + s3))
    loss, total_target = 0.0, np.float32(0.0)
    for s in range(n_tok):
        total_target += targets[start + b, s]
        loss -= targets[start + b, s] * logits[at + s]
    loss += total_target * softmax(logits, at, n_tok)
    for s in range(n_tok):
        logits[at + s] = total_target * logits[at + s] - targets[start + b, s]
    return loss
