# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""Dense products in tiles that fit the registers, and sums by token.

Arrays are flat and rows are padded to whole vectors (`simd.vectors`). A residual block of n_tok + n_ctx entries is
[token half | position half], as in the model; one-hot tokens are never written out: a block is read by indexing its
token half and written by summing over equal tokens.
"""

from causal_circuits.simd.functions import look_up_in
from causal_circuits.simd.lanes import LANES, inlined, shared
from causal_circuits.simd.vectors import entry, fma, load, splat, store, store_four_sums, sum_of, where_equal

# Vocabularies up to this are summed token by token, a vector of positions at a time, larger ones position by position.
FEW_TOKENS = 2 * LANES
# Rows that are worked on together: they share what they have in common.
ROWS = 4
# Columns of a matrix that lie together, row by row, to be multiplied with.
PANEL = 2 * LANES


@shared
def padded(n):
    """N rounded up to whole vectors."""
    return (n + LANES - 1) // LANES * LANES


@shared
def panels(n):
    """N rounded up to whole panels."""
    return (n + PANEL - 1) // PANEL * PANEL


@inlined
def add_to(out, at, value):
    """Add a vector to memory."""
    store(out, at, load(out, at) + value)


@inlined
def dot(a, a_at, b, b_at, n):
    """The inner product of n entries, whole vectors at a time."""
    total = splat(0.0)
    for v in range(0, n, LANES):
        total = fma(load(a, a_at + v), load(b, b_at + v), total)
    return sum_of(total)


@inlined
def four_dots(rows, at, stride, vector, v_at, n, out, to):
    """The inner products of four rows with the first n entries of a vector, whole vectors at a time."""
    s0, s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    for v in range(0, n, LANES):
        value, row = load(vector, v_at + v), at + v
        s0, s1 = fma(load(rows, row), value, s0), fma(load(rows, row + stride), value, s1)
        s2 = fma(load(rows, row + 2 * stride), value, s2)
        s3 = fma(load(rows, row + 3 * stride), value, s3)
    store_four_sums(out, to, s0, s1, s2, s3)


@inlined
def add_four_rows(weights, w_at, rows, at, stride, n, out, to):
    """Add n entries of four rows, each times its weight."""
    w0, w1, w2, w3 = entry(weights, w_at), entry(weights, w_at + 1), entry(weights, w_at + 2), entry(weights, w_at + 3)
    for v in range(0, n, LANES):
        row = at + v
        a = fma(w0, load(rows, row), load(out, to + v))
        b = fma(w3, load(rows, row + 3 * stride), w2 * load(rows, row + 2 * stride))
        store(out, to + v, fma(w1, load(rows, row + stride), a) + b)


@inlined
def spread(values, at, x, x_at, n_tok, v):
    """values[x[k]] + values[n_tok + k] for the vector of positions from k = v: a block read by token and position."""
    table_low, table_high = load(values, at), load(values, at + LANES)
    return look_up_in(table_low, table_high, values, at, load(x, x_at + v), n_tok) + load(values, at + n_tok + v)


@inlined
def by_token(values, at, x, x_at, n, n_tok, out, out_at):
    """out[t] = sum of values[k] over k < n with x[k] = t; writes up to LANES - 1 entries too many.

    What pads the values to whole vectors must be zero.
    """
    if n_tok > FEW_TOKENS:
        for t in range(n_tok):
            out[out_at + t] = 0.0
        for k in range(n):
            out[out_at + entry(x, x_at + k)] += entry(values, at + k)
        return
    for t in range(0, n_tok, ROWS):
        s0, s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
        for v in range(0, n, LANES):
            tokens, value = load(x, x_at + v), load(values, at + v)
            s0, s1 = s0 + where_equal(tokens, t, value), s1 + where_equal(tokens, t + 1, value)
            s2, s3 = s2 + where_equal(tokens, t + 2, value), s3 + where_equal(tokens, t + 3, value)
        store_four_sums(out, out_at + t, s0, s1, s2, s3)


@inlined
def write_block(values, at, x, x_at, sizes, out, out_at):
    """A vector over positions as a residual block: summed by token, then as it is."""
    n_ctx, n_tok = sizes.n_ctx, sizes.n_tok
    by_token(values, at, x, x_at, n_ctx, n_tok, out, out_at)
    for v in range(0, n_ctx, LANES):
        store(out, out_at + n_tok + v, load(values, at + v))


@inlined
def multiply(left, n_rows, n_k, right, n_columns, result, out_at):
    """out[c, :] += sum_k x[c, k] matrix[k, :], a panel of columns at a time and, within it, rows c in fours.

    Left and result are a flat array and its stride; `out_at` is where the result's first row begins. The matrix is in
    panels, [panel, k, PANEL], so that memory is read from one end to the other: given as an array, where its first row
    begins, and from panel to panel.
    """
    x, x_stride = left
    matrix, m_at, m_stride = right
    out, out_stride = result
    for v in range(0, n_columns, PANEL):
        w, panel = v + LANES, m_at + v // PANEL * m_stride
        for c in range(0, n_rows, 4):
            x0, o0 = c * x_stride, c * out_stride + out_at
            x1, x2, x3 = x0 + x_stride, x0 + 2 * x_stride, x0 + 3 * x_stride
            o1, o2, o3 = o0 + out_stride, o0 + 2 * out_stride, o0 + 3 * out_stride
            if w < n_columns:
                a0, a1, a2, a3 = load(out, o0 + v), load(out, o1 + v), load(out, o2 + v), load(out, o3 + v)
                b0, b1, b2, b3 = load(out, o0 + w), load(out, o1 + w), load(out, o2 + w), load(out, o3 + w)
                for k in range(n_k):
                    a, b = load(matrix, panel + k * PANEL), load(matrix, panel + k * PANEL + LANES)
                    f0, f1, f2, f3 = entry(x, x0 + k), entry(x, x1 + k), entry(x, x2 + k), entry(x, x3 + k)
                    a0, a1, a2, a3 = fma(f0, a, a0), fma(f1, a, a1), fma(f2, a, a2), fma(f3, a, a3)
                    b0, b1, b2, b3 = fma(f0, b, b0), fma(f1, b, b1), fma(f2, b, b2), fma(f3, b, b3)
                store(out, o0 + v, a0), store(out, o1 + v, a1), store(out, o2 + v, a2), store(out, o3 + v, a3)
                store(out, o0 + w, b0), store(out, o1 + w, b1), store(out, o2 + w, b2), store(out, o3 + w, b3)
            else:
                a0, a1, a2, a3 = load(out, o0 + v), load(out, o1 + v), load(out, o2 + v), load(out, o3 + v)
                for k in range(n_k):
                    a = load(matrix, panel + k * PANEL)
                    a0, a1 = fma(entry(x, x0 + k), a, a0), fma(entry(x, x1 + k), a, a1)
                    a2, a3 = fma(entry(x, x2 + k), a, a2), fma(entry(x, x3 + k), a, a3)
                store(out, o0 + v, a0), store(out, o1 + v, a1), store(out, o2 + v, a2), store(out, o3 + v, a3)


@inlined
def add_outer(left, n_k, right, n_columns, n_rows, result, out_at):
    """out[k, :] += sum_c x[c, k] y[c, :], for k in fours (out has rows to spare) and columns in vectors.

    Matrices are flat arrays and their strides; `out_at` is where the result's first row begins.
    """
    x, x_stride = left
    y, y_stride = right
    out, out_stride = result
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
                f0, f1, f2, f3 = entry(x, at), entry(x, at + 1), entry(x, at + 2), entry(x, at + 3)
                a0, a1, a2, a3 = fma(f0, a, a0), fma(f1, a, a1), fma(f2, a, a2), fma(f3, a, a3)
                b0, b1, b2, b3 = fma(f0, b, b0), fma(f1, b, b1), fma(f2, b, b2), fma(f3, b, b3)
            store(out, o0 + v, a0), store(out, o1 + v, a1), store(out, o2 + v, a2), store(out, o3 + v, a3)
            store(out, o0 + w, b0), store(out, o1 + w, b1), store(out, o2 + w, b2), store(out, o3 + w, b3)
            v += 2 * LANES
        if v < n_columns:
            a0, a1, a2, a3 = load(out, o0 + v), load(out, o1 + v), load(out, o2 + v), load(out, o3 + v)
            for c in range(n_rows):
                a, at = load(y, c * y_stride + v), c * x_stride + k
                a0, a1 = fma(entry(x, at), a, a0), fma(entry(x, at + 1), a, a1)
                a2, a3 = fma(entry(x, at + 2), a, a2), fma(entry(x, at + 3), a, a3)
            store(out, o0 + v, a0), store(out, o1 + v, a1), store(out, o2 + v, a2), store(out, o3 + v, a3)
