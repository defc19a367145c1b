# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""Rows of attention: scores, softmax, mixing, and what the gradient of a pattern adds to the scores' table.

`sizes` is (n_ctx, n_tok, m1, m2): context, vocabulary, heads of layer 0 and of layer 1.
"""

import numpy as np

from causal_circuits.models.fused_kernel.tiles import MAX_ONE_HOT, add_to, by_token, padded
from causal_circuits.simd.functions import exp, look_up_in
from causal_circuits.simd.lanes import LANES, inlined
from causal_circuits.simd.vectors import fma, keep_first, larger, largest_of, load, splat, store, sum_of


@inlined
def scores(first, h, i, x, x_at, token_row, sizes, out, at):
    """Row i of layer 0's scores, head h, for keys 0 .. i, minus infinity up to whole vectors; returns the largest."""
    n_ctx, n_tok = sizes.n_ctx, sizes.n_tok
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
    n_ctx, n_tok = sizes.n_ctx, sizes.n_tok
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
