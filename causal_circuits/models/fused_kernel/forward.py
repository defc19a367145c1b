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
from causal_circuits.simd.functions import exp_of_negative
from causal_circuits.simd.lanes import LANES, inlined
from causal_circuits.simd.vectors import entry, inverse, keep_first, larger, largest_of, load, splat, store, sum_of


@inlined
def queries_of_layer_1(packed, chunk, table, tokens, member, start, n, sizes):
    """The last row of layer 0's pattern, its outputs, and the query that layer 1 makes of them: q = residual A2."""
    n_ctx, n_tok, m1, m2 = sizes.n_ctx, sizes.n_tok, sizes.m1, sizes.m2
    last = n_ctx - 1
    d0, d1 = sizes.d0, sizes.d1
    x, q, p_last = chunk.x, chunk.q, chunk.p_last
    for b in range(n):
        xb = b * sizes.wide_ctx
        for k in range(n_ctx):
            x[xb + k] = tokens[member, start + b, k]
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
def ask(chunk, one, b, sizes):
    """What layer 1 gives to each position as embedded, the first part of its scores, and to each as it was attended."""
    n_ctx, n_tok, m1, d0, wide = sizes.n_ctx, sizes.n_tok, sizes.m1, sizes.d0, sizes.wide_ctx
    x, xb, q = chunk.x, b * wide, chunk.q
    for m in range(sizes.m2):
        qm = (m * CHUNK + b) * sizes.wide_q
        for v in range(0, n_ctx, LANES):
            store(one.p, m * wide + v, spread(q, qm, x, xb, n_tok, v))
            for h in range(m1):
                value = spread(q, qm + (1 + h) * d0, x, xb, n_tok, v)
                store(one.r, (m * m1 + h) * wide + v, keep_first(value, n_ctx - v, 0.0))
    for v in range(0, sizes.m2 * m1 * wide, LANES):
        store(one.mixed, v, splat(0.0))


@inlined
def rows_of_layer_0(packed, chunk, one, band, b, first, sizes):
    """A band of rows of layer 0's pattern from `first` on, e^scores and their scale; layer 1's scores are added to."""
    n_ctx, m1, m2, wide = sizes.n_ctx, sizes.m1, sizes.m2, sizes.wide_ctx
    x, xb, end = chunk.x, b * wide, min(first + sizes.band, n_ctx)
    for h in range(m1):
        for i in range(first, end, ROWS):
            at = h * sizes.wide_rows + (i - first) * wide
            four_rows_of_weights(packed, h, i, x, xb, sizes, band.tables, band.rows, at, one.scale, h * wide + i)
            for m in range(m2):
                mh = (m * m1 + h) * wide
                four_dots(band.rows, at, wide, one.r, mh, i + ROWS, one.reached, mh + i)
        for v in range(first, end, LANES):
            z = keep_first(inverse(load(one.scale, h * wide + v)), n_ctx - v, 0.0)
            store(one.scale, h * wide + v, z)
            for m in range(m2):
                mh = (m * m1 + h) * wide
                through = load(one.reached, mh + v) * z
                store(one.reached, mh + v, through)
                add_to(one.p, m * wide + v, through)


@inlined
def mix_rows(one, band, m, first, sizes):
    """Add a band of rows to what head m of layer 1 brings together, each times e^(its score - the largest so far).

    When a larger score comes, what was added shrinks: Milakov & Gimelshein (2018), algorithm 3.
    """
    n_ctx, m1, wide = sizes.n_ctx, sizes.m1, sizes.wide_ctx
    end, top = min(first + sizes.band, n_ctx), splat(-np.inf)
    for v in range(first, end, LANES):
        scores = keep_first(load(one.p, m * wide + v), n_ctx - v, -np.inf)
        store(one.p, m * wide + v, scores)
        top = larger(scores, top)
    largest, total, number = largest_of(top), splat(0.0), m * wide + first // sizes.band
    if first > 0:
        before = entry(one.tops, number - 1)
        largest = max(largest, before)
        shrink = exp_of_negative(splat(before - largest))
        for h in range(m1):
            for v in range((m * m1 + h) * wide, (m * m1 + h) * wide + first, LANES):
                store(one.mixed, v, load(one.mixed, v) * shrink)
        total = load(one.totals, m * LANES) * shrink
    one.tops[number] = largest
    for v in range(first, end, LANES):
        weights = exp_of_negative(load(one.p, m * wide + v) - largest)
        store(one.p, m * wide + v, weights)
        total = total + weights
        for h in range(m1):
            store(band.through, h * wide + v, weights * load(one.scale, h * wide + v))
    store(one.totals, m * LANES, total)
    for h in range(m1):
        for i in range(first, end, ROWS):
            at = h * sizes.wide_rows + (i - first) * wide
            add_four_rows(band.through, h * wide + i, band.rows, at, wide, i + ROWS, one.mixed, (m * m1 + h) * wide)


@inlined
def settle(one, sizes):
    """What the bands left in units of their own: layer 1's pattern, and what it brings together of layer 0's."""
    n_ctx, m1, wide, band = sizes.n_ctx, sizes.m1, sizes.wide_ctx, sizes.band
    last = (n_ctx - 1) // band
    for m in range(sizes.m2):
        scale = np.float32(1.0) / sum_of(load(one.totals, m * LANES))
        for number in range(last + 1):
            shrink = (
                exp_of_negative(splat(entry(one.tops, m * wide + number) - entry(one.tops, m * wide + last))) * scale
            )
            for v in range(number * band, min((number + 1) * band, n_ctx), LANES):
                store(one.p, m * wide + v, load(one.p, m * wide + v) * shrink)
        for v in range(m * m1 * wide, (m + 1) * m1 * wide, LANES):
            store(one.mixed, v, load(one.mixed, v) * scale)


@inlined
def add_pattern(one, band, pattern, first, sizes):
    """Add a band of layer 0's pattern to the sum that a recording wants."""
    n_ctx, wide = sizes.n_ctx, sizes.wide_ctx
    for h in range(sizes.m1):
        for i in range(first, min(first + sizes.band, n_ctx)):
            for v in range(0, i + 1, LANES):
                value = load(band.rows, h * sizes.wide_rows + (i - first) * wide + v) * entry(one.scale, h * wide + i)
                add_to(pattern, (h * n_ctx + i) * wide + v, value)


@inlined
def write_outputs(chunk, one, b, m, sizes):
    """What head m of layer 1 brings together: a block as embedded, and one a head of layer 0."""
    m1, d0, wide, xb = sizes.m1, sizes.d0, sizes.wide_ctx, b * sizes.wide_ctx
    out = b * sizes.wide_features + d0 * ((1 + m1) * (1 + m) - 1)
    write_block(one.p, m * wide, chunk.x, xb, sizes, chunk.features, out)
    for h in range(m1):
        write_block(one.mixed, (m * m1 + h) * wide, chunk.x, xb, sizes, chunk.features, out + d0 * (1 + h))


@inlined
def logits_and_loss(packed, chunk, targets, member, start, b, sizes):
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
        total_target += targets[member, start + b, s]
        loss -= targets[member, start + b, s] * logits[at + s]
    loss += total_target * softmax(logits, at, n_tok)
    for s in range(n_tok):
        logits[at + s] = total_target * logits[at + s] - targets[member, start + b, s]
    return loss
