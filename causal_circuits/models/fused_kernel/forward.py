# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""From tokens to the loss: the last row of layer 0 for a chunk, then everything else sequence by sequence."""

import numpy as np

from causal_circuits.models.fused_kernel.arrays import CHUNK
from causal_circuits.models.fused_kernel.attention import four_rows_of_weights, row_of_weights, softmax
from causal_circuits.models.fused_kernel.tiles import (
    PANEL,
    ROWS,
    add_four_rows,
    add_to,
    four_dots,
    multiply,
    panels,
    spread,
    write_block,
)
from causal_circuits.simd.lanes import LANES, inlined
from causal_circuits.simd.vectors import entry, inverse, keep_first, load, splat, store


@inlined
def queries_of_layer_1(packed, chunk, table, tokens, start, n, sizes):
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
            z = np.float32(1.0) / row_of_weights(packed, h, last, x, xb, sizes, table, p_last, at)
            for v in range(0, n_ctx, LANES):
                store(p_last, at + v, load(p_last, at + v) * z)
            write_block(p_last, at, x, xb, sizes, chunk.features, b * sizes.wide_features + h * d0)
        for m in range(m2):
            own = (m * CHUNK + b) * sizes.wide_q
            for v in range(0, d1, PANEL):
                panel = d1 * (m * panels(d1) + v)
                token, position = panel + x[xb + last] * PANEL, panel + (n_tok + last) * PANEL
                store(q, own + v, load(packed.a2, token) + load(packed.a2, position))
                store(q, own + v + LANES, load(packed.a2, token + LANES) + load(packed.a2, position + LANES))
    for m in range(m2):
        features = chunk.features, sizes.wide_features
        matrix = packed.a2, m * d1 * panels(d1) + d0 * PANEL, d1 * PANEL
        multiply(features, n, sizes.dense, matrix, d1, (q, sizes.wide_q), m * CHUNK * sizes.wide_q)


@inlined
def attend(packed, chunk, one, b, sizes):
    """Layer 0's pattern (its rows e^scores and their scale), what layer 1 sees through it, and layer 1's pattern."""
    n_ctx, n_tok, m1, m2 = sizes.n_ctx, sizes.n_tok, sizes.m1, sizes.m2
    d0, wide = sizes.d0, sizes.wide_ctx
    x, xb, q = chunk.x, b * sizes.wide_ctx, chunk.q
    rows, scale, r, reached, p = one.rows, one.scale, one.r, one.reached, one.p
    for m in range(m2):
        qm = (m * CHUNK + b) * sizes.wide_q
        for v in range(0, n_ctx, LANES):
            store(p, m * wide + v, spread(q, qm, x, xb, n_tok, v))
            for h in range(m1):
                value = spread(q, qm + (1 + h) * d0, x, xb, n_tok, v)
                store(r, (m * m1 + h) * wide + v, keep_first(value, n_ctx - v, 0.0))
    for h in range(m1):
        for i in range(0, n_ctx, ROWS):
            at = h * sizes.wide_rows + i * wide
            four_rows_of_weights(packed, h, i, x, xb, sizes, one.tables, rows, at, scale, h * wide + i)
            for m in range(m2):
                four_dots(rows, at, wide, r, (m * m1 + h) * wide, i + ROWS, reached, (m * m1 + h) * wide + i)
        for v in range(0, n_ctx, LANES):
            z = keep_first(inverse(load(scale, h * wide + v)), n_ctx - v, 0.0)
            store(scale, h * wide + v, z)
            for m in range(m2):
                mh = (m * m1 + h) * wide
                through = load(reached, mh + v) * z
                store(reached, mh + v, through)
                add_to(p, m * wide + v, through)
    for m in range(m2):
        softmax(p, m * wide, n_ctx)


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
def write_outputs(chunk, one, b, m, sizes):
    """What head m of layer 1 brings together: a block as embedded, and one a head of layer 0."""
    n_ctx, m1, d0, wide, x_at = sizes.n_ctx, sizes.m1, sizes.d0, sizes.wide_ctx, b * sizes.wide_ctx
    out = b * sizes.wide_features + d0 * ((1 + m1) * (1 + m) - 1)
    write_block(one.p, m * wide, chunk.x, x_at, sizes, chunk.features, out)
    for h in range(m1):
        for v in range(0, n_ctx, LANES):
            store(one.through, v, load(one.p, m * wide + v) * load(one.scale, h * wide + v))
            store(one.mixed, v, splat(0.0))
        for i in range(0, n_ctx, ROWS):
            at = h * sizes.wide_rows + i * wide
            add_four_rows(one.through, i, one.rows, at, wide, i + ROWS, one.mixed, 0)
        write_block(one.mixed, 0, chunk.x, x_at, sizes, chunk.features, out + d0 * (1 + h))


@inlined
def logits_and_loss(packed, chunk, targets, start, b, sizes):
    """The loss of a sequence; its logits' gradient, softmax(logits) - target, takes their place."""
    n_tok, last = sizes.n_tok, sizes.n_ctx - 1
    logits, at, token = chunk.d_logits, b * sizes.wide_tok, entry(chunk.x, b * sizes.wide_ctx + last)
    wide, features = sizes.wide_features, b * sizes.wide_features
    for s in range(0, n_tok, ROWS):
        four_dots(packed.w_t, s * wide, wide, chunk.features, features, sizes.n_features, logits, at + s)
    for v in range(0, n_tok, LANES):
        add_to(logits, at + v, load(packed.w, token * sizes.wide_tok + v))
        add_to(logits, at + v, load(packed.w, (n_tok + last) * sizes.wide_tok + v))
    loss, total_target = 0.0, np.float32(0.0)
    for s in range(n_tok):
        total_target += targets[start + b, s]
        loss -= targets[start + b, s] * logits[at + s]
    loss += total_target * softmax(logits, at, n_tok)
    for s in range(n_tok):
        logits[at + s] = total_target * logits[at + s] - targets[start + b, s]
    return loss
