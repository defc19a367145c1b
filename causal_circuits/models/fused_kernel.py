# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""The arithmetic of the fused step: loss and every gradient of a two-layer model, a few sequences at a time.

The formulas stand in `fused.py`. Arrays are flat and rows are padded to whole vectors (`simd.vectors`); a residual
block of n_tok + n_ctx entries is [token half | position half], as in the model. In the names, `sizes` is
(n_ctx, n_tok, m1, m2): context, vocabulary, heads of layer 0 and of layer 1.
"""

import numpy as np

from causal_circuits.simd.vectors import (
    LANES,
    exp,
    fma,
    inlined,
    keep_first,
    larger,
    largest_of,
    load,
    look_up_in,
    splat,
    store,
    sum_of,
)

MAX_ONE_HOT = (
    2 * LANES
)  # vocabularies up to this are summed by multiplying with one-hot rows, larger ones entry by entry
CHUNK = 16  # sequences whose dense products are done together: a multiple of 4, the height of a tile


@inlined
def padded(n):
    """N rounded up to whole vectors."""
    return (n + LANES - 1) // LANES * LANES


@inlined
def widths(sizes):
    """Widths of a block, of layer 1's residual, of its dense part (what heads wrote), and of the whole residual."""
    n_ctx, n_tok, m1, m2 = sizes
    d0 = n_ctx + n_tok
    return d0, d0 * (1 + m1), d0 * m1, d0 * (1 + m1) * (1 + m2)


@inlined
def by_token(values, at, x, x_at, n, n_tok, one_hot, out, out_at):
    """out[t] = sum of values[k] over k < n with x[k] = t; writes whole vectors, so up to LANES - 1 entries too many."""
    wide = padded(n_tok)
    if wide > MAX_ONE_HOT:
        for t in range(wide):
            out[out_at + t] = 0.0
        for k in range(n):
            out[out_at + x[x_at + k]] += values[at + k]
        return
    for v in range(0, n_tok, LANES):
        s0, s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        k = 0
        while k + 3 < n:
            s0 = fma(values[at + k], load(one_hot, x[x_at + k] * wide + v), s0)
            s1 = fma(values[at + k + 1], load(one_hot, x[x_at + k + 1] * wide + v), s1)
            s2 = fma(values[at + k + 2], load(one_hot, x[x_at + k + 2] * wide + v), s2)
            s3 = fma(values[at + k + 3], load(one_hot, x[x_at + k + 3] * wide + v), s3)
            k += 4
        while k < n:
            s0 = fma(values[at + k], load(one_hot, x[x_at + k] * wide + v), s0)
            k += 1
        store(out, out_at + v, (s0 + s1) + (s2 + s3))


@inlined
def spread(values, at, x, x_at, n_tok, v):
    """values[x[k]] + values[n_tok + k] for the vector of positions from k = v: a block read by token and position."""
    table_low, table_high = load(values, at), load(values, at + LANES)
    return look_up_in(table_low, table_high, values, at, load(x, x_at + v), n_tok) + load(values, at + n_tok + v)


@inlined
def add_to(out, at, value):
    """Add a vector to memory."""
    store(out, at, load(out, at) + value)


@inlined
def multiply(x, x_stride, n_rows, n_k, matrix, m_stride, n_columns, out, out_stride, out_at):
    """out[c, :] += sum_k x[c, k] matrix[k, :], for rows c in fours and columns in vectors."""
    for c in range(0, n_rows, 4):
        x0, o0 = c * x_stride, c * out_stride + out_at
        x1, x2, x3 = x0 + x_stride, x0 + 2 * x_stride, x0 + 3 * x_stride
        o1, o2, o3 = o0 + out_stride, o0 + 2 * out_stride, o0 + 3 * out_stride
        v = 0
        while v + LANES < n_columns:
            w = v + LANES
            a0, a1, a2, a3 = load(out, o0 + v), load(out, o1 + v), load(out, o2 + v), load(out, o3 + v)
            b0, b1, b2, b3 = load(out, o0 + w), load(out, o1 + w), load(out, o2 + w), load(out, o3 + w)
            for k in range(n_k):
                a, b = load(matrix, k * m_stride + v), load(matrix, k * m_stride + w)
                f0, f1, f2, f3 = splat(x[x0 + k]), splat(x[x1 + k]), splat(x[x2 + k]), splat(x[x3 + k])
                a0, a1, a2, a3 = fma(f0, a, a0), fma(f1, a, a1), fma(f2, a, a2), fma(f3, a, a3)
                b0, b1, b2, b3 = fma(f0, b, b0), fma(f1, b, b1), fma(f2, b, b2), fma(f3, b, b3)
            store(out, o0 + v, a0), store(out, o1 + v, a1), store(out, o2 + v, a2), store(out, o3 + v, a3)
            store(out, o0 + w, b0), store(out, o1 + w, b1), store(out, o2 + w, b2), store(out, o3 + w, b3)
            v += 2 * LANES
        if v < n_columns:
            a0, a1, a2, a3 = load(out, o0 + v), load(out, o1 + v), load(out, o2 + v), load(out, o3 + v)
            for k in range(n_k):
                a = load(matrix, k * m_stride + v)
                a0, a1 = fma(x[x0 + k], a, a0), fma(x[x1 + k], a, a1)
                a2, a3 = fma(x[x2 + k], a, a2), fma(x[x3 + k], a, a3)
            store(out, o0 + v, a0), store(out, o1 + v, a1), store(out, o2 + v, a2), store(out, o3 + v, a3)


@inlined
def add_outer(x, x_stride, n_k, y, y_stride, n_columns, n_rows, out, out_stride, out_at):
    """out[k, :] += sum_c x[c, k] y[c, :], for k in fours (out has rows to spare) and columns in vectors."""
    for k in range(0, n_k, 4):
        o0 = out_at + k * out_stride
        o1, o2, o3 = o0 + out_stride, o0 + 2 * out_stride, o0 + 3 * out_stride
        v = 0
        while v + LANES < n_columns:
            w = v + LANES
            a0, a1, a2, a3 = load(out, o0 + v), load(out, o1 + v), load(out, o2 + v), load(out, o3 + v)
            b0, b1, b2, b3 = load(out, o0 + w), load(out, o1 + w), load(out, o2 + w), load(out, o3 + w)
            for c in range(n_rows):
                a, b, at = load(y, c * y_stride + v), load(y, c * y_stride + w), c * x_stride + k
                f0, f1, f2, f3 = splat(x[at]), splat(x[at + 1]), splat(x[at + 2]), splat(x[at + 3])
                a0, a1, a2, a3 = fma(f0, a, a0), fma(f1, a, a1), fma(f2, a, a2), fma(f3, a, a3)
                b0, b1, b2, b3 = fma(f0, b, b0), fma(f1, b, b1), fma(f2, b, b2), fma(f3, b, b3)
            store(out, o0 + v, a0), store(out, o1 + v, a1), store(out, o2 + v, a2), store(out, o3 + v, a3)
            store(out, o0 + w, b0), store(out, o1 + w, b1), store(out, o2 + w, b2), store(out, o3 + w, b3)
            v += 2 * LANES
        if v < n_columns:
            a0, a1, a2, a3 = load(out, o0 + v), load(out, o1 + v), load(out, o2 + v), load(out, o3 + v)
            for c in range(n_rows):
                a, at = load(y, c * y_stride + v), c * x_stride + k
                a0, a1 = fma(x[at], a, a0), fma(x[at + 1], a, a1)
                a2, a3 = fma(x[at + 2], a, a2), fma(x[at + 3], a, a3)
            store(out, o0 + v, a0), store(out, o1 + v, a1), store(out, o2 + v, a2), store(out, o3 + v, a3)


@inlined
def scores(first, h, i, x, x_at, token_row, sizes, out, at):
    """Row i of layer 0's scores, head h, for keys 0 .. i, minus infinity up to whole vectors; returns the largest."""
    n_ctx, n_tok = sizes[0], sizes[1]
    d0 = n_ctx + n_tok
    by_query_token, by_query_position = (h * d0 + x[x_at + i]) * d0, (h * d0 + n_tok + i) * d0
    for v in range(0, n_tok, LANES):
        store(token_row, v, load(first, by_query_token + v) + load(first, by_query_position + v))
    low, high = load(token_row, 0), load(token_row, LANES)
    by_query_token += n_tok
    by_query_position += n_tok
    top = splat(-np.inf)
    for v in range(0, i + 1, LANES):
        score = load(first, by_query_token + v) + load(first, by_query_position + v)
        score = score + look_up_in(low, high, token_row, 0, load(x, x_at + v), n_tok)
        score = keep_first(score, i + 1 - v, -np.inf)
        store(out, at + v, score)
        top = larger(score, top)
    return largest_of(top)


@inlined
def exponentials(rows, at, n, largest):
    """exp(entry - largest) of n entries in place, whole vectors at a time; returns 1 / their sum."""
    total = splat(0.0)
    for v in range(0, n, LANES):
        value = exp(load(rows, at + v) - largest)
        store(rows, at + v, value)
        total = total + value
    return np.float32(1.0) / sum_of(total)


@inlined
def dot(a, a_at, b, b_at, n):
    """The inner product of n entries, whole vectors at a time."""
    total = splat(0.0)
    for v in range(0, n, LANES):
        total = fma(load(a, a_at + v), load(b, b_at + v), total)
    return sum_of(total)


@inlined
def softmax(scores, at, n):
    """In place, over n entries; zero up to whole vectors. Returns log of the sum of exponentials."""
    top = splat(-np.inf)
    for v in range(0, n, LANES):
        score = keep_first(load(scores, at + v), n - v, -np.inf)
        store(scores, at + v, score)
        top = larger(score, top)
    largest = largest_of(top)
    scale = exponentials(scores, at, n, largest)
    for v in range(0, n, LANES):
        store(scores, at + v, load(scores, at + v) * scale)
    return largest - np.log(scale)


@inlined
def mix_rows(weights, rows, at, n, stride, out):
    """Out = sum_j weights[j] rows[j, :], rows being causal: row j ends at entry j."""
    for v in range(0, n, LANES):
        s0, s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        j, row = v, at + v * stride + v
        while j + 3 < n:
            s0, s1 = fma(weights[j], load(rows, row), s0), fma(weights[j + 1], load(rows, row + stride), s1)
            s2 = fma(weights[j + 2], load(rows, row + 2 * stride), s2)
            s3 = fma(weights[j + 3], load(rows, row + 3 * stride), s3)
            j, row = j + 4, row + 4 * stride
        while j < n:
            s0 = fma(weights[j], load(rows, row), s0)
            j, row = j + 1, row + stride
        store(out, v, (s0 + s1) + (s2 + s3))


@inlined
def add_rows_by_token(rows, at, stride, x, x_at, h, sizes, one_hot, sums, by_position, by_both):
    """Sum each row of score gradients over keys by the key's token; add it to the two tables with token columns."""
    n_ctx, n_tok = sizes[0], sizes[1]
    wide = padded(n_tok)
    if wide > MAX_ONE_HOT:
        for i in range(n_ctx):
            by_token(rows, at + i * stride, x, x_at, i + 1, n_tok, one_hot, sums, 0)
            for v in range(0, n_tok, LANES):
                add_to(by_position, (h * n_ctx + i) * wide + v, load(sums, v))
                add_to(by_both, (h * n_tok + x[x_at + i]) * wide + v, load(sums, v))
        return
    for v in range(0, n_tok, LANES):
        for i in range(0, n_ctx, 4):  # rows are padded to a multiple of four; the spare ones are zero
            r0 = at + i * stride
            r1, r2, r3 = r0 + stride, r0 + 2 * stride, r0 + 3 * stride
            s0, s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
            for k in range(min(i + 4, n_ctx)):
                hot = load(one_hot, x[x_at + k] * wide + v)
                s0, s1 = fma(rows[r0 + k], hot, s0), fma(rows[r1 + k], hot, s1)
                s2, s3 = fma(rows[r2 + k], hot, s2), fma(rows[r3 + k], hot, s3)
            o = (h * n_ctx + i) * wide + v
            add_to(by_position, o, s0)
            add_to(by_both, (h * n_tok + x[x_at + i]) * wide + v, s0)
            if i + 1 < n_ctx:
                add_to(by_position, o + wide, s1)
                add_to(by_both, (h * n_tok + x[x_at + i + 1]) * wide + v, s1)
            if i + 2 < n_ctx:
                add_to(by_position, o + 2 * wide, s2)
                add_to(by_both, (h * n_tok + x[x_at + i + 2]) * wide + v, s2)
            if i + 3 < n_ctx:
                add_to(by_position, o + 3 * wide, s3)
                add_to(by_both, (h * n_tok + x[x_at + i + 3]) * wide + v, s3)


@inlined
def write_block(values, at, x, x_at, sizes, one_hot, out, out_at):
    """A vector over positions as a residual block: summed by token, then as it is."""
    n_ctx, n_tok = sizes[0], sizes[1]
    by_token(values, at, x, x_at, n_ctx, n_tok, one_hot, out, out_at)
    for v in range(0, n_ctx, LANES):
        store(out, out_at + n_tok + v, load(values, at + v))


@inlined
def scale_by(values, at, factors, f_at, n, out):
    """The products values * factors of n entries, whole vectors at a time."""
    for v in range(0, n, LANES):
        store(out, v, load(values, at + v) * load(factors, f_at + v))


def batch_gradient(tokens, targets, weights, gradients, attention, share, sizes):
    """Fill `gradients` with those of `share` times the loss summed over a batch; return the summed loss.

    Args:
        tokens, targets: [batch, n_ctx] and [batch, n_tok].
        weights: A1 [m1, d0, d0], A2 [m2, d1, d1] and W_U [d_model, n_tok].
        gradients: three arrays of the same shapes.
        attention: [m1, n_ctx, n_ctx], layer 0's pattern summed over the batch times `share`; or anything empty.
        share: one over the number of sequences that the loss is a mean of.
        sizes: (n_ctx, n_tok, m1, m2).
    """
    first, second, unembed = weights
    n_ctx, n_tok, m1, m2 = sizes
    d0, d1, dense, d_model = widths(sizes)
    n_blocks, last, n_features = 1 + m1, n_ctx - 1, d_model - d0
    wide_ctx, wide_tok, wide_d1 = padded(n_ctx), padded(n_tok), padded(d1)
    wide_dense = padded(dense)
    wide_features, wide_q = padded(n_features) + LANES, wide_d1 + LANES  # writing a block may run over its end
    n_batch, spare = len(tokens), 4 * LANES
    # ---- weights with rows of whole vectors
    a1 = np.zeros(m1 * d0 * d0 + spare, np.float32)
    for h in range(m1):
        for row in range(d0):
            for d in range(d0):
                a1[(h * d0 + row) * d0 + d] = first[h, row, d]
    a2, a2_t = np.zeros(m2 * d1 * wide_d1 + spare, np.float32), np.zeros(m2 * d1 * wide_dense + spare, np.float32)
    for m in range(m2):
        for row in range(d1):
            for d in range(d1):
                a2[(m * d1 + row) * wide_d1 + d] = second[m, row, d]
        for row in range(dense):
            for d in range(d1):
                a2_t[(m * d1 + d) * wide_dense + row] = second[m, d0 + row, d]
    w, w_t = np.zeros(d_model * wide_tok + spare, np.float32), np.zeros(n_tok * wide_features + spare, np.float32)
    for row in range(d_model):
        for s in range(n_tok):
            w[row * wide_tok + s] = unembed[row, s]
            if row >= d0:
                w_t[s * wide_features + row - d0] = unembed[row, s]
    one_hot = np.zeros(n_tok * wide_tok + spare if wide_tok <= MAX_ONE_HOT else spare, np.float32)
    if wide_tok <= MAX_ONE_HOT:
        for s in range(n_tok):
            one_hot[s * wide_tok + s] = 1.0
    # ---- sums over the batch
    loss = 0.0
    d_pp, d_tp = np.zeros(m1 * n_ctx * wide_ctx, np.float32), np.zeros(m1 * n_tok * wide_ctx, np.float32)
    d_pt, d_tt = np.zeros(m1 * n_ctx * wide_tok, np.float32), np.zeros(m1 * n_tok * wide_tok, np.float32)
    a2_rows = d1 + 4  # add_outer fills rows in fours
    d_a2 = np.zeros(m2 * a2_rows * wide_d1, np.float32)
    d_w = np.zeros((d_model + 4) * wide_tok, np.float32)
    wants_attention = attention.size > 0
    pattern = np.zeros(m1 * n_ctx * wide_ctx if wants_attention else LANES, np.float32)
    # ---- scratch of a chunk, and of one sequence
    x = np.zeros(CHUNK * wide_ctx + spare, np.int32)
    features = np.zeros(CHUNK * wide_features + spare, np.float32)
    q = np.zeros(m2 * CHUNK * wide_q + spare, np.float32)
    p_last = np.zeros(CHUNK * m1 * wide_ctx + spare, np.float32)
    d_logits, d_dense = np.zeros(CHUNK * wide_tok + spare, np.float32), np.zeros(CHUNK * wide_dense + spare, np.float32)
    wide_rows = (n_ctx + 3) // 4 * 4 * wide_ctx
    rows, scale = np.zeros(m1 * wide_rows + spare, np.float32), np.zeros(m1 * wide_ctx + spare, np.float32)
    r, reached = np.zeros(m2 * m1 * wide_ctx + spare, np.float32), np.zeros(m2 * m1 * wide_ctx + spare, np.float32)
    c, passed = np.zeros(m2 * n_blocks * wide_ctx + spare, np.float32), np.zeros(m2 * m1 * wide_ctx + spare, np.float32)
    tops, mixing, means = np.zeros(wide_ctx, np.float32), np.zeros(wide_ctx, np.float32), np.zeros(wide_ctx, np.float32)
    token_row = np.zeros(wide_tok + spare, np.float32)
    p, dt = np.zeros(m2 * wide_ctx + spare, np.float32), np.zeros(m2 * wide_ctx + spare, np.float32)
    d_features = np.zeros(wide_features + spare, np.float32)
    mixed = np.zeros(wide_ctx + spare, np.float32)

    for start in range(0, n_batch, CHUNK):
        n = min(CHUNK, n_batch - start)
        # ---- the last row of layer 0, which decides layer 1's query
        for b in range(n):
            xb, fb = b * wide_ctx, b * wide_features
            for k in range(n_ctx):
                x[xb + k] = tokens[start + b, k]
            for h in range(m1):
                at = (b * m1 + h) * wide_ctx
                largest = scores(a1, h, last, x, xb, token_row, sizes, p_last, at)
                z = exponentials(p_last, at, n_ctx, largest)
                for v in range(0, n_ctx, LANES):
                    store(p_last, at + v, load(p_last, at + v) * z)
                write_block(p_last, at, x, xb, sizes, one_hot, features, fb + h * d0)
            for m in range(m2):
                own, token, position = (m * CHUNK + b) * wide_q, m * d1 + x[xb + last], m * d1 + n_tok + last
                for v in range(0, d1, LANES):
                    store(q, own + v, load(a2, token * wide_d1 + v) + load(a2, position * wide_d1 + v))
        for m in range(m2):
            multiply(
                features,
                wide_features,
                n,
                dense,
                a2[(m * d1 + d0) * wide_d1 :],
                wide_d1,
                d1,
                q,
                wide_q,
                m * CHUNK * wide_q,
            )
        # ---- sequence by sequence, forward and back to the query
        for b in range(n):
            xb, fb = b * wide_ctx, b * wide_features
            for m in range(m2):
                qm = (m * CHUNK + b) * wide_q
                for v in range(0, n_ctx, LANES):
                    store(p, m * wide_ctx + v, spread(q, qm, x, xb, n_tok, v))
                    for h in range(m1):
                        value = spread(q, qm + (1 + h) * d0, x, xb, n_tok, v)
                        store(r, (m * m1 + h) * wide_ctx + v, keep_first(value, n_ctx - v, 0.0))
            for h in range(m1):
                at, to = h * wide_rows, h * wide_ctx
                for i in range(last):
                    tops[i] = scores(a1, h, i, x, xb, token_row, sizes, rows, at + i * wide_ctx)
                for i in range(last):
                    scale[to + i] = exponentials(rows, at + i * wide_ctx, i + 1, tops[i])
                for v in range(0, n_ctx, LANES):
                    store(rows, at + last * wide_ctx + v, load(p_last, (b * m1 + h) * wide_ctx + v))
                scale[to + last] = 1.0
                for m in range(m2):
                    mh = (m * m1 + h) * wide_ctx
                    for i in range(n_ctx):
                        reached[mh + i] = dot(rows, at + i * wide_ctx, r, mh, i + 1)
                    for v in range(0, n_ctx, LANES):
                        through = load(reached, mh + v) * load(scale, to + v)
                        store(reached, mh + v, through)
                        add_to(p, m * wide_ctx + v, through)
            if wants_attention:
                for h in range(m1):
                    for i in range(n_ctx):
                        for v in range(0, i + 1, LANES):
                            value = load(rows, h * wide_rows + i * wide_ctx + v) * scale[h * wide_ctx + i]
                            add_to(pattern, (h * n_ctx + i) * wide_ctx + v, value)
            for m in range(m2):
                softmax(p, m * wide_ctx, n_ctx)
                o = fb + d0 * (n_blocks * (1 + m) - 1)
                write_block(p, m * wide_ctx, x, xb, sizes, one_hot, features, o)
                for h in range(m1):
                    scale_by(p, m * wide_ctx, scale, h * wide_ctx, n_ctx, mixing)
                    mix_rows(mixing, rows, h * wide_rows, n_ctx, wide_ctx, mixed)
                    write_block(mixed, 0, x, xb, sizes, one_hot, features, o + d0 * (1 + h))
            # logits, loss, and the gradient that reaches every feature
            for v in range(0, n_tok, LANES):
                s0 = load(w, x[xb + last] * wide_tok + v) + load(w, (n_tok + last) * wide_tok + v)
                s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0)
                f = 0
                while f + 3 < n_features:
                    o = (d0 + f) * wide_tok + v
                    s0 = fma(features[fb + f], load(w, o), s0)
                    s1 = fma(features[fb + f + 1], load(w, o + wide_tok), s1)
                    s2 = fma(features[fb + f + 2], load(w, o + 2 * wide_tok), s2)
                    s3 = fma(features[fb + f + 3], load(w, o + 3 * wide_tok), s3)
                    f += 4
                while f < n_features:
                    s0 = fma(features[fb + f], load(w, (d0 + f) * wide_tok + v), s0)
                    f += 1
                store(d_logits, b * wide_tok + v, (s0 + s1) + (s2 + s3))
            total_target = np.float32(0.0)
            for s in range(n_tok):
                total_target += targets[start + b, s]
                loss -= targets[start + b, s] * d_logits[b * wide_tok + s]
            loss += total_target * softmax(d_logits, b * wide_tok, n_tok)
            for s in range(n_tok):
                d_logits[b * wide_tok + s] = total_target * d_logits[b * wide_tok + s] - targets[start + b, s]
            for v in range(0, n_features, LANES):
                even, odd = splat(0.0), splat(0.0)
                s = 0
                while s + 1 < n_tok:
                    even = fma(d_logits[b * wide_tok + s], load(w_t, s * wide_features + v), even)
                    odd = fma(d_logits[b * wide_tok + s + 1], load(w_t, (s + 1) * wide_features + v), odd)
                    s += 2
                if s < n_tok:
                    even = fma(d_logits[b * wide_tok + s], load(w_t, s * wide_features + v), even)
                store(d_features, v, even + odd)
            for v in range(0, dense, LANES):
                store(d_dense, b * wide_dense + v, load(d_features, v))
            # layer 1 backward
            for m in range(m2):
                for block in range(n_blocks):
                    o = d0 * (n_blocks * (1 + m) - 1 + block)
                    for v in range(0, n_ctx, LANES):
                        value = spread(d_features, o, x, xb, n_tok, v)
                        store(c, (m * n_blocks + block) * wide_ctx + v, keep_first(value, n_ctx - v, 0.0))
                for v in range(0, n_ctx, LANES):
                    store(dt, m * wide_ctx + v, load(c, m * n_blocks * wide_ctx + v))
                for h in range(m1):
                    mh = (m * m1 + h) * wide_ctx
                    for j in range(n_ctx):
                        at = h * wide_rows + j * wide_ctx
                        passed[mh + j] = dot(rows, at, c, (m * n_blocks + 1 + h) * wide_ctx, j + 1)
                    for v in range(0, n_ctx, LANES):
                        through = load(passed, mh + v) * load(scale, h * wide_ctx + v)
                        store(passed, mh + v, through)
                        add_to(dt, m * wide_ctx + v, through)
                inner = dot(p, m * wide_ctx, dt, m * wide_ctx, n_ctx)
                for v in range(0, n_ctx, LANES):
                    value = load(p, m * wide_ctx + v) * (load(dt, m * wide_ctx + v) - inner)
                    store(dt, m * wide_ctx + v, value)
                own = (m * CHUNK + b) * wide_q
                write_block(dt, m * wide_ctx, x, xb, sizes, one_hot, q, own)
                for h in range(m1):
                    scale_by(dt, m * wide_ctx, scale, h * wide_ctx, n_ctx, mixing)
                    mix_rows(mixing, rows, h * wide_rows, n_ctx, wide_ctx, mixed)
                    write_block(mixed, 0, x, xb, sizes, one_hot, q, own + d0 * (1 + h))
                for d in range(d1, wide_d1):
                    q[own + d] = 0.0
            # layer 0 backward: score gradients take the place of the pattern
            for h in range(m1):
                for v in range(0, n_ctx, LANES):
                    store(means, v, splat(0.0))
                for m in range(m2):
                    mh, mc = (m * m1 + h) * wide_ctx, m * wide_ctx
                    for v in range(0, n_ctx, LANES):
                        add_to(
                            means, v, load(p, mc + v) * load(passed, mh + v) + load(dt, mc + v) * load(reached, mh + v)
                        )
                for i in range(n_ctx):
                    at, row, by_query = h * wide_rows + i * wide_ctx, h * n_ctx + i, h * n_tok + x[xb + i]
                    through, back, z = p[i], dt[i], scale[h * wide_ctx + i]
                    for v in range(0, i + 1, LANES):
                        value = fma(back, load(r, h * wide_ctx + v), splat(-means[i]))
                        value = fma(through, load(c, (1 + h) * wide_ctx + v), value)
                        for m in range(1, m2):
                            value = fma(p[m * wide_ctx + i], load(c, (m * n_blocks + 1 + h) * wide_ctx + v), value)
                            value = fma(dt[m * wide_ctx + i], load(r, (m * m1 + h) * wide_ctx + v), value)
                        value = value * (load(rows, at + v) * z)
                        store(rows, at + v, value)
                        add_to(d_pp, row * wide_ctx + v, value)
                        add_to(d_tp, by_query * wide_ctx + v, value)
                add_rows_by_token(rows, h * wide_rows, wide_ctx, x, xb, h, sizes, one_hot, token_row, d_pt, d_tt)
        # ---- dense products of the chunk: gradients of A2, W_U, and of the last row of layer 0
        for m in range(m2):
            qm = q[m * CHUNK * wide_q :]
            multiply(qm, wide_q, n, d1, a2_t[m * d1 * wide_dense :], wide_dense, dense, d_dense, wide_dense, 0)
            add_outer(features, wide_features, dense, qm, wide_q, d1, n, d_a2, wide_d1, (m * a2_rows + d0) * wide_d1)
            for b in range(n):
                for v in range(0, d1, LANES):
                    value = load(qm, b * wide_q + v)
                    add_to(d_a2, (m * a2_rows + x[b * wide_ctx + last]) * wide_d1 + v, value)
                    add_to(d_a2, (m * a2_rows + n_tok + last) * wide_d1 + v, value)
        add_outer(features, wide_features, n_features, d_logits, wide_tok, n_tok, n, d_w, wide_tok, d0 * wide_tok)
        for b in range(n):
            xb = b * wide_ctx
            for v in range(0, n_tok, LANES):
                add_to(d_w, x[xb + last] * wide_tok + v, load(d_logits, b * wide_tok + v))
                add_to(d_w, (n_tok + last) * wide_tok + v, load(d_logits, b * wide_tok + v))
            for h in range(m1):
                at = (b * m1 + h) * wide_ctx
                for v in range(0, n_ctx, LANES):
                    value = spread(d_dense, b * wide_dense + h * d0, x, xb, n_tok, v)
                    store(mixed, v, keep_first(value, n_ctx - v, 0.0))
                inner = dot(p_last, at, mixed, 0, n_ctx)
                for v in range(0, n_ctx, LANES):
                    value = load(p_last, at + v) * (load(mixed, v) - inner)
                    store(mixed, v, value)
                    add_to(d_pp, (h * n_ctx + last) * wide_ctx + v, value)
                    add_to(d_tp, (h * n_tok + x[xb + last]) * wide_ctx + v, value)
                by_token(mixed, 0, x, xb, n_ctx, n_tok, one_hot, token_row, 0)
                for v in range(0, n_tok, LANES):
                    add_to(d_pt, (h * n_ctx + last) * wide_tok + v, load(token_row, v))
                    add_to(d_tt, (h * n_tok + x[xb + last]) * wide_tok + v, load(token_row, v))
    # ---- without the padding
    g_first, g_second, g_unembed = gradients
    for h in range(m1):
        for i in range(n_ctx):
            for k in range(n_ctx):
                g_first[h, n_tok + i, n_tok + k] = d_pp[(h * n_ctx + i) * wide_ctx + k] * share
                if wants_attention:
                    attention[h, i, k] = pattern[(h * n_ctx + i) * wide_ctx + k] * share
            for s in range(n_tok):
                g_first[h, n_tok + i, s] = d_pt[(h * n_ctx + i) * wide_tok + s] * share
                g_first[h, s, n_tok + i] = d_tp[(h * n_tok + s) * wide_ctx + i] * share
        for s in range(n_tok):
            for t in range(n_tok):
                g_first[h, s, t] = d_tt[(h * n_tok + s) * wide_tok + t] * share
    for m in range(m2):
        for row in range(d1):
            for d in range(d1):
                g_second[m, row, d] = d_a2[(m * a2_rows + row) * wide_d1 + d] * share
    for row in range(d_model):
        for s in range(n_tok):
            g_unembed[row, s] = d_w[row * wide_tok + s] * share
    return loss


inlined_batch_gradient = inlined(batch_gradient)
