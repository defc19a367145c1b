# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""From the loss back to every weight: sequence by sequence through both layers, dense products for a chunk."""

from causal_circuits.models.fused_kernel.arrays import CHUNK
from causal_circuits.models.fused_kernel.attention import add_rows_by_token
from causal_circuits.models.fused_kernel.forward import write_outputs
from causal_circuits.models.fused_kernel.tiles import add_outer, add_to, by_token, dot, multiply, spread
from causal_circuits.simd.lanes import LANES, inlined
from causal_circuits.simd.vectors import fma, keep_first, load, splat, store


@inlined
def reach_features(packed, chunk, one, b, sizes):
    """The gradient that reaches every feature from the logits."""
    n_tok = sizes.n_tok
    d_logits, at, w_t = chunk.d_logits, b * sizes.wide_tok, packed.w_t
    for v in range(0, sizes.n_features, LANES):
        even, odd = splat(0.0), splat(0.0)
        s = 0
        while s + 1 < n_tok:
            even = fma(d_logits[at + s], load(w_t, s * sizes.wide_features + v), even)
            odd = fma(d_logits[at + s + 1], load(w_t, (s + 1) * sizes.wide_features + v), odd)
            s += 2
        if s < n_tok:
            even = fma(d_logits[at + s], load(w_t, s * sizes.wide_features + v), even)
        store(one.d_features, v, even + odd)
    for v in range(0, sizes.dense, LANES):
        store(chunk.d_dense, b * sizes.wide_dense + v, load(one.d_features, v))


@inlined
def back_through_layer_1(packed, chunk, one, b, sizes):
    """Dp = c_0 + sum_h P_h c_h and dt = p (dp - p.dp); what dt brings together takes the place of the query."""
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
            for j in range(n_ctx):
                at = h * sizes.wide_rows + j * sizes.wide_ctx
                passed[mh + j] = dot(one.rows, at, c, (m * n_blocks + 1 + h) * sizes.wide_ctx, j + 1)
            for v in range(0, n_ctx, LANES):
                through = load(passed, mh + v) * load(one.scale, h * sizes.wide_ctx + v)
                store(passed, mh + v, through)
                add_to(dt, m * sizes.wide_ctx + v, through)
        inner = dot(p, m * sizes.wide_ctx, dt, m * sizes.wide_ctx, n_ctx)
        for v in range(0, n_ctx, LANES):
            value = load(p, m * sizes.wide_ctx + v) * (load(dt, m * sizes.wide_ctx + v) - inner)
            store(dt, m * sizes.wide_ctx + v, value)
        own = (m * CHUNK + b) * sizes.wide_q
        write_outputs((dt, m * sizes.wide_ctx), one, chunk, xb, packed.one_hot, sizes, chunk.q, own)
        for d in range(sizes.d1, sizes.wide_d1):
            chunk.q[own + d] = 0.0


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
def back_through_layer_0(packed, chunk, one, sums, b, sizes):
    """DS = P (dP - rowsum) takes the place of e^scores and is added up by query and key, each by position and token."""
    n_ctx, n_tok, m1, m2 = sizes.n_ctx, sizes.n_tok, sizes.m1, sizes.m2
    n_blocks = 1 + m1
    x, xb, rows, r, c, p, dt, means = chunk.x, b * sizes.wide_ctx, one.rows, one.r, one.c, one.p, one.dt, one.means
    for h in range(m1):
        for v in range(0, n_ctx, LANES):
            store(means, v, splat(0.0))
        for m in range(m2):
            mh, mc = (m * m1 + h) * sizes.wide_ctx, m * sizes.wide_ctx
            for v in range(0, n_ctx, LANES):
                seen, asked = load(p, mc + v) * load(one.passed, mh + v), load(dt, mc + v) * load(one.reached, mh + v)
                add_to(means, v, seen + asked)
        for i in range(n_ctx):
            at, row, by_query = h * sizes.wide_rows + i * sizes.wide_ctx, h * n_ctx + i, h * n_tok + x[xb + i]
            through, back, z = p[i], dt[i], one.scale[h * sizes.wide_ctx + i]
            for v in range(0, i + 1, LANES):
                value = fma(back, load(r, h * sizes.wide_ctx + v), splat(-means[i]))
                value = fma(through, load(c, (1 + h) * sizes.wide_ctx + v), value)
                for m in range(1, m2):
                    value = fma(p[m * sizes.wide_ctx + i], load(c, (m * n_blocks + 1 + h) * sizes.wide_ctx + v), value)
                    value = fma(dt[m * sizes.wide_ctx + i], load(r, (m * m1 + h) * sizes.wide_ctx + v), value)
                value = value * (load(rows, at + v) * z)
                store(rows, at + v, value)
                add_to(sums.pp, row * sizes.wide_ctx + v, value)
                add_to(sums.tp, by_query * sizes.wide_ctx + v, value)
        add_rows_by_token(rows, h * sizes.wide_rows, x, xb, h, sizes, one.columns, sums.pt, sums.tt)


@inlined
def add_dense_products(packed, chunk, sums, n, sizes):
    """Gradients of A2 and W_U from a chunk, and what reaches the outputs of layer 0's last row."""
    n_ctx, n_tok, m2 = sizes.n_ctx, sizes.n_tok, sizes.m2
    last = n_ctx - 1
    d0, d1, dense = sizes.d0, sizes.d1, sizes.dense
    features, d_logits = (chunk.features, sizes.wide_features), (chunk.d_logits, sizes.wide_tok)
    for m in range(m2):
        q, first_row = chunk.q[m * CHUNK * sizes.wide_q :], m * (d1 + 4)
        back = packed.a2_t[m * d1 * sizes.wide_dense :], sizes.wide_dense
        multiply((q, sizes.wide_q), n, d1, back, dense, (chunk.d_dense, sizes.wide_dense), 0)
        d_a2 = sums.a2, sizes.wide_d1
        add_outer(features, dense, (q, sizes.wide_q), d1, n, d_a2, (first_row + d0) * sizes.wide_d1)
        for b in range(n):
            token = chunk.x[b * sizes.wide_ctx + last]
            for v in range(0, d1, LANES):
                value = load(q, b * sizes.wide_q + v)
                add_to(sums.a2, (first_row + token) * sizes.wide_d1 + v, value)
                add_to(sums.a2, (first_row + n_tok + last) * sizes.wide_d1 + v, value)
    add_outer(features, sizes.n_features, d_logits, n_tok, n, (sums.w, sizes.wide_tok), d0 * sizes.wide_tok)
    for b in range(n):
        token = chunk.x[b * sizes.wide_ctx + last]
        for v in range(0, n_tok, LANES):
            add_to(sums.w, token * sizes.wide_tok + v, load(chunk.d_logits, b * sizes.wide_tok + v))
            add_to(sums.w, (n_tok + last) * sizes.wide_tok + v, load(chunk.d_logits, b * sizes.wide_tok + v))


@inlined
def back_through_last_rows(packed, chunk, one, sums, n, watched, sizes):
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
            by_token(mixed, 0, x, xb, n_ctx, n_tok, packed.one_hot, one.token_row, 0)
            for s in range(n_tok):
                sums.pt[(h * n_tok + s) * sizes.wide_ctx + last] += one.token_row[s]
            for v in range(0, n_tok, LANES):
                add_to(sums.tt, (h * n_tok + token) * sizes.wide_tok + v, load(one.token_row, v))
