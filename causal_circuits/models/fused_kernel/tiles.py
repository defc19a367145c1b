# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""Dense products in tiles that fit the registers, and sums by token.

Arrays are flat and rows are padded to whole vectors (`simd.vectors`). A residual block of n_tok + n_ctx entries is
[token half | position half], as in the model; one-hot tokens are never written out: a block is read by indexing its
token half and written by summing over equal tokens.
"""

from causal_circuits.simd.functions import look_up_in
from causal_circuits.simd.lanes import LANES, inlined, shared
from causal_circuits.simd.vectors import fma, load, splat, store, sum_of

# Vocabularies up to this are summed by multiplying with one-hot rows, larger ones entry by entry.
MAX_ONE_HOT = 2 * LANES


@shared
def padded(n):
    """N rounded up to whole vectors."""
    return (n + LANES - 1) // LANES * LANES


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
def scale_by(values, at, factors, f_at, n, out):
    """The products values * factors of n entries, whole vectors at a time."""
    for v in range(0, n, LANES):
        store(out, v, load(values, at + v) * load(factors, f_at + v))


@inlined
def spread(values, at, x, x_at, n_tok, v):
    """values[x[k]] + values[n_tok + k] for the vector of positions from k = v: a block read by token and position."""
    table_low, table_high = load(values, at), load(values, at + LANES)
    return look_up_in(table_low, table_high, values, at, load(x, x_at + v), n_tok) + load(values, at + n_tok + v)


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
def write_block(values, at, x, x_at, sizes, one_hot, out, out_at):
    """A vector over positions as a residual block: summed by token, then as it is."""
    n_ctx, n_tok = sizes.n_ctx, sizes.n_tok
    by_token(values, at, x, x_at, n_ctx, n_tok, one_hot, out, out_at)
    for v in range(0, n_ctx, LANES):
        store(out, out_at + n_tok + v, load(values, at + v))


@inlined
def multiply(left, n_rows, n_k, right, n_columns, result, out_at):
    """out[c, :] += sum_k x[c, k] matrix[k, :], for rows c in fours and columns in vectors.

    Each matrix is a flat array and its stride; `out_at` is where the result's first row begins.
    """
    x, x_stride = left
    matrix, m_stride = right
    out, out_stride = result
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
def add_outer(left, n_k, right, n_columns, n_rows, result, out_at):
    """out[k, :] += sum_c x[c, k] y[c, :], for k in fours (out has rows to spare) and columns in vectors.

    Matrices as in `multiply`.
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
