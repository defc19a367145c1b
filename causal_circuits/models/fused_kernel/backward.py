# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""From the loss back to every weight: sequence by sequence through both layers, dense products for a chunk."""

from causal_circuits.models.fused_kernel.arrays import CHUNK
from causal_circuits.models.fused_kernel.attention import differentiate_rows, four_rows_of_weights
from causal_circuits.models.fused_kernel.tiles import (
    PANEL,
    ROWS,
    add_four_rows,
    add_outer,
    add_to,
    by_token,
    dot,
    four_dots,
    multiply,
    panels,
    spread,
    write_block,
)
from causal_circuits.simd.lanes import LANES, inlined
from causal_circuits.simd.vectors import fma, keep_first, load, splat, store


@inlined
def reach_features(packed, chunk, one, b, sizes):
    """The gradient that reaches every feature from the logits."""
    wide = sizes.wide_features
    for v in range(0, sizes.n_features, LANES):
        store(one.d_features, v, splat(0.0))
    for s in range(0, sizes.n_tok, ROWS):
        at = b * sizes.wide_tok + s
        add_four_rows(chunk.d_logits, at, packed.w_t, s * wide, wide, sizes.n_features, one.d_features, 0)
    for v in range(0, sizes.dense, LANES):
        store(chunk.d_dense, b * sizes.wide_dense + v, load(one.d_features, v))


@inlined
def reach_pattern_of_layer_1(chunk, one, b, sizes):
    """What reaches layer 1's pattern: c, and p . dp, which is what its outputs have in common with their gradient."""
    n_ctx, n_tok, m1, m2, wide = sizes.n_ctx, sizes.n_tok, sizes.m1, sizes.m2, sizes.wide_ctx
    for m in range(m2):
        for block in range(1 + m1):
            o, at = sizes.d0 * ((1 + m1) * (1 + m) - 1 + block), (m * (1 + m1) + block) * wide
            for v in range(0, n_ctx, LANES):
                value = spread(one.d_features, o, chunk.x, b * wide, n_tok, v)
                store(one.c, at + v, keep_first(value, n_ctx - v, 0.0))
        first = m * (1 + m1) * wide
        inner = dot(one.p, m * wide, one.c, first, n_ctx)
        one.inner[m] = inner + dot(one.mixed, m * m1 * wide, one.c, first + wide, m1 * wide)
    for v in range(0, m2 * m1 * wide, LANES):
        store(one.mixed, v, splat(0.0))


@inlined
def add_pattern_gradient(one, d_pattern, sizes):
    """Add the gradient that reaches layer 0's pattern through layer 1: dP_h = p (x) c_h + dt (x) r_h."""
    n_ctx, m1, m2, n_blocks = sizes.n_ctx, sizes.m1, sizes.m2, 1 + sizes.m1
    for m in range(m2):
        for h in range(m1):
            seen, asked = (m * n_blocks + 1 + h) * sizes.wide_ctx, (m * m1 + h) * sizes.wide_ctx
            for i in range(n_ctx):
                through, back = one.p[m * sizes.wide_ctx + i], one.dt[m * sizes.wide_ctx + i]
                for v in range(0, i + 1, LANES):
                    value = fma(through, load(one.c, seen + v), load(one.r, asked + v) * back)
                    add_to(d_pattern, (h * n_ctx + i) * sizes.wide_ctx + v, value)


@inlined
def rows_again(packed, chunk, band, b, first, sizes):
    """A band of rows of layer 0's pattern, as it was on the way forward."""
    for h in range(sizes.m1):
        for i in range(first, min(first + sizes.band, sizes.n_ctx), ROWS):
            to = band.rows, h * sizes.wide_rows + (i - first) * sizes.wide_ctx, band.means, 0
            four_rows_of_weights(packed, h, i, chunk.x, b * sizes.wide_ctx, sizes, band.tables, *to)


@inlined
def pass_through_layer_1(one, band, m, first, sizes):
    """Dp = c_0 + sum_h P_h c_h and dt = p (dp - p.dp) of a band of rows."""
    n_ctx, m1, wide, block = sizes.n_ctx, sizes.m1, sizes.wide_ctx, m * (1 + sizes.m1) * sizes.wide_ctx
    end = min(first + sizes.band, n_ctx)
    for v in range(first, end, LANES):
        store(one.dt, m * wide + v, load(one.c, block + v) - one.inner[m])
    for h in range(m1):
        mh, seen = (m * m1 + h) * wide, block + (1 + h) * wide
        for i in range(first, end, ROWS):
            at = h * sizes.wide_rows + (i - first) * wide
            four_dots(band.rows, at, wide, one.c, seen, i + ROWS, one.passed, mh + i)
        for v in range(first, end, LANES):
            passed = load(one.passed, mh + v) * load(one.scale, h * wide + v)
            store(one.passed, mh + v, passed)
            add_to(one.dt, m * wide + v, passed)
    for v in range(first, end, LANES):
        store(one.dt, m * wide + v, load(one.dt, m * wide + v) * load(one.p, m * wide + v))


@inlined
def back_through_layer_0(chunk, one, band, sums, b, m, first, sizes):
    """DS = P (dP - rowsum) of a band of rows, added up by query and key, each by position and token.

    On the way, what dt brings together through each head of layer 0 is added up.
    """
    n_ctx, m1, wide = sizes.n_ctx, sizes.m1, sizes.wide_ctx
    for h in range(m1):
        mh = (m * m1 + h) * wide
        for i in range(first, min(first + sizes.band, n_ctx), LANES):
            end, at = min(n_ctx - i, LANES), h * sizes.wide_rows + (i - first) * wide
            z = load(one.scale, h * wide + i)
            through, back = load(one.p, m * wide + i) * z, load(one.dt, m * wide + i) * z
            store(band.means, 0, fma(through, load(one.passed, mh + i), back * load(one.reached, mh + i)))
            store(band.through, 0, through), store(band.back, 0, back)
            for j in range(0, end, ROWS):
                add_four_rows(band.back, j, band.rows, at + j * wide, wide, i + j + ROWS, one.mixed, mh)
            differentiate_rows(one, band, at, h, m, i, end, sums, chunk.x, b * wide, sizes)


@inlined
def write_queries(chunk, one, b, sizes):
    """What reaches layer 1's query takes its place."""
    m1, m2, wide, xb = sizes.m1, sizes.m2, sizes.wide_ctx, b * sizes.wide_ctx
    for m in range(m2):
        own = (m * CHUNK + b) * sizes.wide_q
        write_block(one.dt, m * wide, chunk.x, xb, sizes, chunk.q, own)
        for h in range(m1):
            write_block(one.mixed, (m * m1 + h) * wide, chunk.x, xb, sizes, chunk.q, own + (1 + h) * sizes.d0)
        for d in range(sizes.d1, sizes.wide_d1):
            chunk.q[own + d] = 0.0


@inlined
def add_dense_products(packed, chunk, sums, n, sizes):
    """Gradients of A2 and W_U from a chunk, and what reaches the outputs of layer 0's last row."""
    n_tok, m2, last = sizes.n_tok, sizes.m2, sizes.n_ctx - 1
    d0, d1, dense = sizes.d0, sizes.d1, sizes.dense
    features, d_logits = (chunk.features, sizes.wide_features), (chunk.d_logits, sizes.wide_tok)
    for m in range(m2):
        q, first_row = chunk.q[m * CHUNK * sizes.wide_q :], m * (d1 + ROWS)
        back = packed.a2_t, m * d1 * panels(dense), d1 * PANEL
        multiply((q, sizes.wide_q), n, d1, back, dense, (chunk.d_dense, sizes.wide_dense), 0)
        d_a2 = sums.a2, sizes.wide_d1
        add_outer(features, dense, (q, sizes.wide_q), d1, n, d_a2, (first_row + d0) * sizes.wide_d1)
        for b in range(n):
            token = chunk.x[b * sizes.wide_ctx + last]
            for v in range(0, d1, LANES):
                value = load(q, b * sizes.wide_q + v)
                add_to(sums.a2, (first_row + token) * sizes.wide_d1 + v, value)
                add_to(sums.a2, (first_row + n_tok + last) * sizes.wide_d1 + v, value)
    add_outer(d_logits, n_tok, features, sizes.n_features, n, (sums.w_t, sizes.wide_features), 0)
    for b in range(n):
        token = chunk.x[b * sizes.wide_ctx + last]
        for v in range(0, n_tok, LANES):
            add_to(sums.w, token * sizes.wide_tok + v, load(chunk.d_logits, b * sizes.wide_tok + v))
            add_to(sums.w, (n_tok + last) * sizes.wide_tok + v, load(chunk.d_logits, b * sizes.wide_tok + v))


@inlined
def back_through_last_rows(chunk, band, sums, n, watched, sizes):
    """What reaches layer 0's last row, whose outputs made the query, added up like that of the other rows."""
    n_ctx, n_tok, m1 = sizes.n_ctx, sizes.n_tok, sizes.m1
    d0, last = sizes.d0, n_ctx - 1
    x, p_last, row = chunk.x, chunk.p_last, band.through
    for b in range(n):
        xb = b * sizes.wide_ctx
        token = x[xb + last]
        for h in range(m1):
            at = (b * m1 + h) * sizes.wide_ctx
            for v in range(0, n_ctx, LANES):
                value = spread(chunk.d_dense, b * sizes.wide_dense + h * d0, x, xb, n_tok, v)
                store(row, v, keep_first(value, n_ctx - v, 0.0))
            for v in range(0, n_ctx if watched else 0, LANES):
                add_to(sums.d_pattern, (h * n_ctx + last) * sizes.wide_ctx + v, load(row, v))
            inner = dot(p_last, at, row, 0, n_ctx)
            for v in range(0, n_ctx, LANES):
                value = load(p_last, at + v) * (load(row, v) - inner)
                store(row, v, value)
                add_to(sums.pp, (h * n_ctx + last) * sizes.wide_ctx + v, value)
                add_to(sums.tp, (h * n_tok + token) * sizes.wide_ctx + v, value)
            by_token(row, 0, x, xb, n_ctx, n_tok, band.tables, 0)
            for s in range(n_tok):
                sums.pt[(h * n_tok + s) * sizes.wide_ctx + last] += band.tables[s]
            for v in range(0, n_tok, LANES):
                add_to(sums.tt, (h * n_tok + token) * sizes.wide_tok + v, load(band.tables, v))
