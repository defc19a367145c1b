# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""Rows of attention: scores, softmax, mixing, and what the gradient of a pattern adds to the scores' table.

`sizes` is (n_ctx, n_tok, m1, m2): context, vocabulary, heads of layer 0 and of layer 1.
"""

import numpy as np

from causal_circuits.models.fused_kernel.tiles import add_to
from causal_circuits.simd.columns import add_columns
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
def add_rows_by_token(rows, at, x, x_at, h, sizes, columns, by_position, by_both):
    """Sum each row of score gradients over keys by the key's token; add it to the two tables that name keys so.

    Turned over, a block of rows is a vector over queries for each key: entries are added and not multiplied. `columns`
    and `by_position` are [token, query].
    """
    n_ctx, n_tok, wide = sizes.n_ctx, sizes.n_tok, sizes.wide_ctx
    for v in range(0, n_tok * wide, LANES):
        store(columns, v, splat(0.0))
    for k in range(0, n_ctx, LANES):
        tokens = load(x, x_at + k)
        for i in range(k, n_ctx, LANES):  # rows are padded to whole vectors; the spare ones are zero
            add_columns(rows, at + i * wide + k, wide, columns, i, wide, tokens)
    for v in range(0, n_tok * wide, LANES):
        add_to(by_position, h * n_tok * wide + v, load(columns, v))
    for i in range(0, n_ctx, LANES):
        tokens = load(x, x_at + i)
        for s in range(0, n_tok, LANES):
            add_columns(columns, s * wide + i, wide, by_both, h * n_tok * sizes.wide_tok + s, sizes.wide_tok, tokens)
