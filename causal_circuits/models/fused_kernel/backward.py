# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""From the loss back to every weight: sequence by sequence through both layers, dense products for a chunk."""

from causal_circuits.models.fused_kernel.arrays import CHUNK
from causal_circuits.models.fused_kernel.attention import add_block_by_token, differentiate_rows
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
def back_through_layer_1(chunk, one, b, sizes):
    """Dp = c_0 + sum_h P_h c_h and dt = p (dp - p.dp); dt as embedded takes the place of the query's first block."""
    n_ctx, n_tok, m1, m2 = sizes.n_ctx, sizes.n_tok, sizes.m1, sizes.m2
    n_blocks = 1 + m1
    x, xb, c, passed, p, dt = chunk.x, b * sizes.wide_ctx, one.c, one.passed, one.p, one.dt
    for m in range(m2):
        for block in range(n_blocks):
            o = sizes.d0 * (n_blocks * (1 + m) - 1 + block)
            for v in range(0, n_ctx, LANES):
                value = spread(one.d_features, o, x, xb, n_tok, v)
                store(c, (m * n_blocks + block) * sizes.wide_ctx + v, keep_first(value, n_ctx - v, 0.0))
        for v in range(0, n_ctx, LANES):
            store(dt, m * sizes.wide_ctx + v, load(c, m * n_blocks * sizes.wide_ctx + v))
        for h in range(m1):
            mh = (m * m1 + h) * sizes.wide_ctx
            for i in range(0, n_ctx, ROWS):
                at, seen = h * sizes.wide_rows + i * sizes.wide_ctx, (m * n_blocks + 1 + h) * sizes.wide_ctx
                four_dots(one.rows, at, sizes.wide_ctx, c, seen, i + ROWS, passed, mh + i)
            for v in range(0, n_ctx, LANES):
                through = load(passed, mh + v) * load(one.scale, h * sizes.wide_ctx + v)
                store(passed, mh + v, through)
                add_to(dt, m * sizes.wide_ctx + v, through)
        inner = dot(p, m * sizes.wide_ctx, dt, m * sizes.wide_ctx, n_ctx)
        for v in range(0, n_ctx, LANES):
            value = load(p, m * sizes.wide_ctx + v) * (load(dt, m * sizes.wide_ctx + v) - inner)
            store(dt, m * sizes.wide_ctx + v, value)
        own = (m * CHUNK + b) * sizes.wide_q
        write_block(dt, m * sizes.wide_ctx, x, xb, sizes, chunk.q, own)


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
def back_through_layer_0(chunk, one, sums, b, sizes):
    """DS = P (dP - rowsum), one head of layer 1 after the other, added up by query and key, each by position and token.

    On the way, what dt brings together through each head of layer 0 takes the place of the rest of the query.
    """
    n_ctx, m1, m2, wide = sizes.n_ctx, sizes.m1, sizes.m2, sizes.wide_ctx
    x, xb = chunk.x, b * wide
    for m in range(m2):
        own = (m * CHUNK + b) * sizes.wide_q
        for h in range(m1):
            mh = (m * m1 + h) * wide
            for v in range(0, n_ctx, LANES):
                z = load(one.scale, h * wide + v)
                through, back = load(one.p, m * wide + v) * z, load(one.dt, m * wide + v) * z
                store(one.means, v, fma(through, load(one.passed, mh + v), back * load(one.reached, mh + v)))
                store(one.through, v, through), store(one.back, v, back), store(one.mixed, v, splat(0.0))
            for i in range(0, n_ctx, LANES):
                end = min(n_ctx - i, LANES)
                for j in range(i, i + end, ROWS):
                    at = h * sizes.wide_rows + j * wide
                    add_four_rows(one.back, j, one.rows, at, wide, j + ROWS, one.mixed, 0)
                differentiate_rows(one, h, m, i, end, sums, x, xb, sizes)
                add_block_by_token(one, h, i, sums, x, xb, sizes)
            write_block(one.mixed, 0, x, xb, sizes, chunk.q, own + (1 + h) * sizes.d0)
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
def back_through_last_rows(chunk, one, sums, n, watched, sizes):
    """What reaches layer 0's last row, whose outputs made the query, added up like that of the other rows."""
    n_ctx, n_tok, m1 = sizes.n_ctx, sizes.n_tok, sizes.m1
    d0, last = sizes.d0, n_ctx - 1
    x, p_last, mixed = chunk.x, chunk.p_last, one.mixed
    for b in range(n):
        xb = b * sizes.wide_ctx
        token = x[xb + last]
        for h in range(m1):
            at = (b * m1 + h) * sizes.wide_ctx
            for v in range(0, n_ctx, LANES):
                value = spread(chunk.d_dense, b * sizes.wide_dense + h * d0, x, xb, n_tok, v)
                store(mixed, v, keep_first(value, n_ctx - v, 0.0))
            for v in range(0, n_ctx if watched else 0, LANES):
                add_to(sums.d_pattern, (h * n_ctx + last) * sizes.wide_ctx + v, load(mixed, v))
            inner = dot(p_last, at, mixed, 0, n_ctx)
            for v in range(0, n_ctx, LANES):
                value = load(p_last, at + v) * (load(mixed, v) - inner)
                store(mixed, v, value)
                add_to(sums.pp, (h * n_ctx + last) * sizes.wide_ctx + v, value)
                add_to(sums.tp, (h * n_tok + token) * sizes.wide_ctx + v, value)
            by_token(mixed, 0, x, xb, n_ctx, n_tok, one.tables, 0)
            for s in range(n_tok):
                sums.pt[(h * n_tok + s) * sizes.wide_ctx + last] += one.tables[s]
            for v in range(0, n_tok, LANES):
                add_to(sums.tt, (h * n_tok + token) * sizes.wide_tok + v, load(one.tables, v))
