# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""Rows of attention: scores, softmax, mixing, and what the gradient of a pattern adds to the scores' table.

Four rows at a time share what is loaded for them.
"""

import numpy as np

from causal_circuits.models.fused_kernel.arrays import WIDEST_GAP
from causal_circuits.models.fused_kernel.tiles import ROWS, add_to
from causal_circuits.simd.columns import add_columns
from causal_circuits.simd.functions import IN_REGISTERS, exp_of_negative, look_up_in
from causal_circuits.simd.lanes import LANES, inlined
from causal_circuits.simd.vectors import (
    entry,
    fma,
    keep_first,
    larger,
    largest_of,
    load,
    splat,
    store,
    store_four_sums,
    sum_of,
)


@inlined
def factors_by_token(packed, h, i, token, sizes, table, at):
    """The factor that each token of a key stands for in row i of e^scores, as `look_up_in` wants it: see there."""
    n_tok, wide = sizes.n_tok, sizes.wide_tok
    t, p = (h * n_tok + token) * wide, (h * sizes.n_ctx + i) * wide
    for v in range(0, n_tok if n_tok > IN_REGISTERS else 0, LANES):
        store(table, at + v, load(packed.tt, t + v) * load(packed.pt, p + v))
    return load(packed.tt, t) * load(packed.pt, p), load(packed.tt, t + LANES) * load(packed.pt, p + LANES)


@inlined
def row_of_weights(packed, h, i, x, x_at, sizes, table, out, at):
    """Row i of e^scores, times a factor, zero for later keys; returns its sum."""
    n_tok, token, total = sizes.n_tok, entry(x, x_at + i), splat(0.0)
    if not entry(packed.gap, h) < WIDEST_GAP:
        return row_of_wide_scores(packed.a1, h, i, x, x_at, sizes, table, out, at)
    low, high = factors_by_token(packed, h, i, token, sizes, table, 0)
    t, p = (h * n_tok + token) * sizes.wide_ctx, (h * sizes.n_ctx + i) * sizes.wide_ctx
    for v in range(0, i + 1, LANES):
        value = look_up_in(low, high, table, 0, load(x, x_at + v), n_tok)
        value = value * load(packed.tp, t + v) * load(packed.pp, p + v)
        store(out, at + v, value)
        total = total + value
    return sum_of(total)


@inlined
def row_of_wide_scores(first, h, i, x, x_at, sizes, table, out, at):
    """`row_of_weights` without tables of exponentials: of scores minus their largest."""
    n_tok, d0 = sizes.n_tok, sizes.d0
    t, p = (h * d0 + entry(x, x_at + i)) * d0, (h * d0 + n_tok + i) * d0
    for v in range(0, n_tok, LANES):
        store(table, v, load(first, t + v) + load(first, p + v))
    low, high = load(table, 0), load(table, LANES)
    top, total = splat(-np.inf), splat(0.0)
    for v in range(0, i + 1, LANES):
        score = load(first, t + n_tok + v) + load(first, p + n_tok + v)
        score = score + look_up_in(low, high, table, 0, load(x, x_at + v), n_tok)
        score = keep_first(score, i + 1 - v, -np.inf)
        store(out, at + v, score)
        top = larger(score, top)
    largest = largest_of(top)
    for v in range(0, i + 1, LANES):
        value = exp_of_negative(load(out, at + v) - largest)
        store(out, at + v, value)
        total = total + value
    return sum_of(total)


@inlined
def four_rows_of_weights(packed, h, i, x, x_at, sizes, table, rows, at, totals, to):
    """`row_of_weights` for four rows from i on, and the sum of each; rows behind the last are copies of it."""
    last, n_tok, wide, stride = sizes.n_ctx - 1, sizes.n_tok, sizes.wide_tok, sizes.wide_ctx
    if not entry(packed.gap, h) < WIDEST_GAP:
        for j in range(ROWS):
            row = min(i + j, last)
            total = row_of_wide_scores(packed.a1, h, row, x, x_at, sizes, table, rows, at + j * stride)
            totals[to + j] = total
        return
    i1, i2, i3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)
    t0, t1, t2, t3 = entry(x, x_at + i), entry(x, x_at + i1), entry(x, x_at + i2), entry(x, x_at + i3)
    low0, high0 = factors_by_token(packed, h, i, t0, sizes, table, 0)
    low1, high1 = factors_by_token(packed, h, i1, t1, sizes, table, wide)
    low2, high2 = factors_by_token(packed, h, i2, t2, sizes, table, 2 * wide)
    low3, high3 = factors_by_token(packed, h, i3, t3, sizes, table, 3 * wide)
    s0, s1, s2, s3 = splat(0.0), splat(0.0), splat(0.0), splat(0.0)
    for v in range(0, i + ROWS, LANES):
        tokens, row = load(x, x_at + v), at + v
        tp, pp = h * n_tok * stride + v, h * sizes.n_ctx * stride + v
        e0 = look_up_in(low0, high0, table, 0, tokens, n_tok) * load(packed.tp, tp + t0 * stride)
        e1 = look_up_in(low1, high1, table, wide, tokens, n_tok) * load(packed.tp, tp + t1 * stride)
        e2 = look_up_in(low2, high2, table, 2 * wide, tokens, n_tok) * load(packed.tp, tp + t2 * stride)
        e3 = look_up_in(low3, high3, table, 3 * wide, tokens, n_tok) * load(packed.tp, tp + t3 * stride)
        e0, e1 = e0 * load(packed.pp, pp + i * stride), e1 * load(packed.pp, pp + i1 * stride)
        e2, e3 = e2 * load(packed.pp, pp + i2 * stride), e3 * load(packed.pp, pp + i3 * stride)
        store(rows, row, e0), store(rows, row + stride, e1)
        store(rows, row + 2 * stride, e2), store(rows, row + 3 * stride, e3)
        s0, s1, s2, s3 = s0 + e0, s1 + e1, s2 + e2, s3 + e3
    store_four_sums(totals, to, s0, s1, s2, s3)


@inlined
def softmax(scores, at, n):
    """In place, over n entries; zero up to whole vectors. Returns log of the sum of exponentials."""
    top = splat(-np.inf)
    for v in range(0, n, LANES):
        score = keep_first(load(scores, at + v), n - v, -np.inf)
        store(scores, at + v, score)
        top = larger(score, top)
    largest, total = largest_of(top), splat(0.0)
    for v in range(0, n, LANES):
        value = exp_of_negative(load(scores, at + v) - largest)
        store(scores, at + v, value)
        total = total + value
    scale = np.float32(1.0) / sum_of(total)
    for v in range(0, n, LANES):
        store(scores, at + v, load(scores, at + v) * scale)
    return largest - np.log(scale)


@inlined
def differentiate_rows(one, band, row, h, m, i, n_rows, sums, x, xb, sizes):
    """DS of rows from i on, a vector of them at most, through head m of layer 1, added up in all four tables of a head.

    `row` is where the first of them lies in the band. A square of them at a time is turned over: then it is a vector
    over queries for each key, and entries are added to those of the key's token instead of multiplied. `columns` is
    [token, query], as is `sums.pt`.
    """
    n_ctx, n_tok, m1, wide, columns = sizes.n_ctx, sizes.n_tok, sizes.m1, sizes.wide_ctx, band.columns
    c, r = (m * (1 + m1) + 1 + h) * wide, (m * m1 + h) * wide
    pp, tp = (h * n_ctx + i) * wide, h * n_tok * wide
    for s in range(n_tok):
        store(columns, s * LANES, splat(0.0))
    for j in range(n_rows, LANES):
        store(band.square, j * LANES, splat(0.0))
    for v in range(0, i + LANES, LANES):
        seen, asked = load(one.c, c + v), load(one.r, r + v)
        for j in range(n_rows):
            value = fma(entry(band.back, j), asked, splat(-entry(band.means, j)))
            value = fma(entry(band.through, j), seen, value) * load(band.rows, row + j * wide + v)
            store(band.square, j * LANES, value)
            add_to(sums.pp, pp + j * wide + v, value)
            add_to(sums.tp, tp + entry(x, xb + i + j) * wide + v, value)
        add_columns(band.square, 0, LANES, columns, 0, LANES, load(x, xb + v))
    for s in range(n_tok):
        add_to(sums.pt, (h * n_tok + s) * wide + i, load(columns, s * LANES))
    tokens = load(x, xb + i)
    for s in range(0, n_tok, LANES):
        add_columns(columns, s * LANES, LANES, sums.tt, h * n_tok * sizes.wide_tok + s, sizes.wide_tok, tokens)
