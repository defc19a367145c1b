# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""The arrays that a batch is differentiated with: weights in rows of whole vectors, sums over the batch, scratch.

A batch is worked through a chunk of sequences at a time; nothing that grows with the batch is kept.
"""

from collections import namedtuple

import numpy as np

from causal_circuits.models.fused_kernel.tiles import PANEL, ROWS, padded, panels
from causal_circuits.simd.functions import exp_of_negative
from causal_circuits.simd.lanes import LANES, inlined, shared
from causal_circuits.simd.vectors import keep_first, load, store

# Sequences whose dense products are done together: a multiple of 4, the height of a tile.
CHUNK = 16
# A vector that starts at the last entry of a row, and one more, still lie in the array.
SPARE = 4 * LANES
# Of the exponentials that layer 0's tables hold, three are multiplied. A row's largest product cannot be smaller than
# e^-gap; were it, what matters beside it might underflow, and exponentials are taken of whole scores.
WIDEST_GAP = 60.0
# Numbers in a line of the cache, where arrays begin.
LINE = 16

# Context, vocabulary, heads of layer 0 and 1; widths of a block, of layer 1's residual, of its dense part (what heads
# wrote), of the whole residual, of all of it but a block; and, wide_*, from row to row of each kind of array.
Sizes = namedtuple(
    "Sizes",
    "n_ctx n_tok m1 m2 d0 d1 dense d_model n_features "
    "wide_ctx wide_tok wide_d1 wide_dense wide_features wide_q wide_rows",
)
# a1 [m1, d0, d0]; pp, tp, pt and tt, its exponentials by (query, key), each named by position or token, so that the
# largest of a row is 1, pp zero above the diagonal; gap [m1], see WIDEST_GAP: a1 is there only if it is wider, and then
# the tables are not read. a2 [m2, d1, d1] and a2_t, its rows that heads wrote transposed, in panels, see
# `tiles.multiply`; w [d0, n_tok], the embedding's rows of W_U; w_t [n_tok, n_features], the others transposed.
Packed = namedtuple("Packed", "a1 pp tp pt tt gap a2 a2_t w w_t")
# Gradients of layer 0's scores by (query, key) as above, pt [token, query]; of a2, w, w_t; the pattern, and its.
Sums = namedtuple("Sums", "pp tp pt tt a2 w w_t pattern d_pattern")
# Of every sequence of a chunk: tokens, features (the residual but for the embedding), layer 1's queries, then what
# reaches them; the last row of layer 0's pattern; what reaches the logits and that row's outputs.
Chunk = namedtuple("Chunk", "x features q p_last d_logits d_dense")
# Of one sequence, in the notation of `fused.py`: e^scores and 1 / their sums; r, P r, p; c, P c, dt; p and dt times
# that scale; what passes; of a vector of rows, the scores' gradients, by key [query, key] and by token [token, query].
Scratch = namedtuple(
    "Scratch", "rows scale r reached p c passed dt through back d_features means mixed tables block columns"
)
Room = namedtuple("Room", "packed sums chunk one")


@shared
def all_sizes(four):
    """What n_ctx, n_tok, m1, m2 come to; writing a block may run over its end, so two kinds have a vector more."""
    n_ctx, n_tok, m1, m2 = four
    d0 = n_ctx + n_tok
    d1, dense, d_model = d0 * (1 + m1), d0 * m1, d0 * (1 + m1) * (1 + m2)
    features, q = padded(d_model - d0) + LANES, padded(d1) + LANES
    rows = padded(n_ctx) * padded(n_ctx)
    wide = padded(n_ctx), padded(n_tok), padded(d1), padded(dense), features, q, rows
    return Sizes(n_ctx, n_tok, m1, m2, d0, d1, dense, d_model, d_model - d0, *wide)


def allocate(four: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Memory for any number of batches, one after the other: float32 numbers and int32 tokens, see `carve`."""
    _, n_numbers, n_tokens = carve(np.empty(0, np.float32), np.empty(0, np.int32), all_sizes(four))
    numbers = np.zeros(n_numbers + LINE, np.float32)
    start = -(numbers.ctypes.data // numbers.itemsize) % LINE
    return numbers[start:], np.zeros(n_tokens, np.int32)


@shared
def take(memory, at, n):
    """N elements of memory from `at` on and some to spare, and where the next array begins."""
    end = at + (n + SPARE + LINE - 1) // LINE * LINE
    return memory[at:end], end


@shared
def carve(numbers, tokens, sizes):
    """A `Room` in two pieces of memory that were zero at first, and how much of each it takes.

    What pads a row stays zero; sums over rows in fours have rows to spare.
    """
    n_ctx, n_tok, m1, m2 = sizes.n_ctx, sizes.n_tok, sizes.m1, sizes.m2
    d0, d1, at = sizes.d0, sizes.d1, 0
    a1, at = take(numbers, at, m1 * d0 * d0)
    pp, at = take(numbers, at, m1 * n_ctx * sizes.wide_ctx)
    tp, at = take(numbers, at, m1 * n_tok * sizes.wide_ctx)
    pt, at = take(numbers, at, m1 * n_ctx * sizes.wide_tok)
    tt, at = take(numbers, at, m1 * n_tok * sizes.wide_tok)
    gap, at = take(numbers, at, m1)
    a2, at = take(numbers, at, m2 * d1 * panels(d1))
    a2_t, at = take(numbers, at, m2 * d1 * panels(sizes.dense))
    w, at = take(numbers, at, d0 * sizes.wide_tok)
    w_t, at = take(numbers, at, sizes.wide_tok * sizes.wide_features)
    packed = Packed(a1, pp, tp, pt, tt, gap, a2, a2_t, w, w_t)
    pp, at = take(numbers, at, (m1 * n_ctx + ROWS) * sizes.wide_ctx)
    tp, at = take(numbers, at, m1 * n_tok * sizes.wide_ctx)
    pt, at = take(numbers, at, m1 * n_tok * sizes.wide_ctx)
    tt, at = take(numbers, at, m1 * n_tok * sizes.wide_tok)
    d_a2, at = take(numbers, at, m2 * (d1 + ROWS) * sizes.wide_d1)
    d_w, at = take(numbers, at, d0 * sizes.wide_tok)
    d_w_t, at = take(numbers, at, (n_tok + ROWS) * sizes.wide_features)
    pattern, at = take(numbers, at, m1 * n_ctx * sizes.wide_ctx)
    d_pattern, at = take(numbers, at, m1 * n_ctx * sizes.wide_ctx)
    sums = Sums(pp, tp, pt, tt, d_a2, d_w, d_w_t, pattern, d_pattern)
    x, n_tokens = take(tokens, 0, CHUNK * sizes.wide_ctx)
    features, at = take(numbers, at, CHUNK * sizes.wide_features)
    q, at = take(numbers, at, m2 * CHUNK * sizes.wide_q)
    p_last, at = take(numbers, at, CHUNK * m1 * sizes.wide_ctx)
    d_logits, at = take(numbers, at, CHUNK * sizes.wide_tok)
    d_dense, at = take(numbers, at, CHUNK * sizes.wide_dense)
    chunk = Chunk(x, features, q, p_last, d_logits, d_dense)
    rows, at = take(numbers, at, m1 * sizes.wide_rows)
    scale, at = take(numbers, at, m1 * sizes.wide_ctx)
    r, at = take(numbers, at, m2 * m1 * sizes.wide_ctx)
    reached, at = take(numbers, at, m2 * m1 * sizes.wide_ctx)
    p, at = take(numbers, at, m2 * sizes.wide_ctx)
    c, at = take(numbers, at, m2 * (1 + m1) * sizes.wide_ctx)
    passed, at = take(numbers, at, m2 * m1 * sizes.wide_ctx)
    dt, at = take(numbers, at, m2 * sizes.wide_ctx)
    through, at = take(numbers, at, sizes.wide_ctx)
    back, at = take(numbers, at, sizes.wide_ctx)
    d_features, at = take(numbers, at, sizes.wide_features)
    means, at = take(numbers, at, sizes.wide_ctx)
    mixed, at = take(numbers, at, sizes.wide_ctx)
    tables, at = take(numbers, at, ROWS * sizes.wide_tok)
    block, at = take(numbers, at, LANES * sizes.wide_ctx)
    columns, at = take(numbers, at, LANES * sizes.wide_tok)
    whole = rows, scale, r, reached, p, c, passed, dt, through, back, d_features, means, mixed
    one = Scratch(*whole, tables, block, columns)
    return Room(packed, sums, chunk, one), at, n_tokens


@inlined
def exponentials(first, h, row, start, n, out, at):
    """e^(weight - largest) of n weights of a row, zero up to whole vectors; returns largest - smallest."""
    low, high = np.float32(np.inf), -np.float32(np.inf)
    for k in range(n):
        weight = first[h, row, start + k]
        out[at + k] = weight
        low, high = min(low, weight), max(high, weight)
    for v in range(0, n, LANES):
        store(out, at + v, keep_first(exp_of_negative(load(out, at + v) - high), n - v, 0.0))
    return high - low


@inlined
def pack_scores(first, h, packed, sizes):
    """The exponentials of layer 0's weights; if their tables are too wide, the weights as they are."""
    n_ctx, n_tok, d0 = sizes.n_ctx, sizes.n_tok, sizes.d0
    by_position = by_token = np.float32(0.0)
    for i in range(n_ctx):
        row = h * n_ctx + i
        exponentials(first, h, n_tok + i, n_tok, i + 1, packed.pp, row * sizes.wide_ctx)
        spread = exponentials(first, h, n_tok + i, 0, n_tok, packed.pt, row * sizes.wide_tok)
        by_position = max(by_position, spread)
    for t in range(n_tok):
        row = h * n_tok + t
        spread = exponentials(first, h, t, n_tok, n_ctx, packed.tp, row * sizes.wide_ctx)
        spread += exponentials(first, h, t, 0, n_tok, packed.tt, row * sizes.wide_tok)
        by_token = max(by_token, spread)
    packed.gap[h] = by_position + by_token
    if not packed.gap[h] < WIDEST_GAP:
        for row in range(d0):
            for d in range(d0):
                packed.a1[(h * d0 + row) * d0 + d] = first[h, row, d]


@inlined
def pack(weights, packed, sizes):
    """The weights as the kernel reads them."""
    first, second, unembed = weights
    n_tok, m1, m2 = sizes.n_tok, sizes.m1, sizes.m2
    d0, d1, dense = sizes.d0, sizes.d1, sizes.dense
    a2, a2_t = packed.a2, packed.a2_t
    for h in range(m1):
        pack_scores(first, h, packed, sizes)
    for m in range(m2):
        for start in range(0, d1, PANEL):
            panel = d1 * (m * panels(d1) + start)
            for row in range(d1):
                for d in range(min(PANEL, d1 - start)):
                    a2[panel + row * PANEL + d] = second[m, row, start + d]
        for start in range(0, dense, PANEL):
            panel = d1 * (m * panels(dense) + start)
            for d in range(d1):
                for row in range(min(PANEL, dense - start)):
                    a2_t[panel + d * PANEL + row] = second[m, d0 + start + row, d]
    for s in range(n_tok):
        for row in range(d0):
            packed.w[row * sizes.wide_tok + s] = unembed[row, s]
        for row in range(d0, sizes.d_model):
            packed.w_t[s * sizes.wide_features + row - d0] = unembed[row, s]


@inlined
def clear(sums):
    """Back to zero, before the first sequence of a batch."""
    for array in (sums.pp, sums.tp, sums.pt, sums.tt, sums.a2, sums.w, sums.w_t, sums.pattern, sums.d_pattern):
        array[:] = 0.0


@inlined
def unpack(sums, gradients, watched, share, sizes):
    """The sums times `share`, without the padding."""
    g_first, g_second, g_unembed = gradients
    n_ctx, n_tok, m1, m2 = sizes.n_ctx, sizes.n_tok, sizes.m1, sizes.m2
    for h in range(m1):
        for i in range(n_ctx):
            for k in range(n_ctx):
                g_first[h, n_tok + i, n_tok + k] = sums.pp[(h * n_ctx + i) * sizes.wide_ctx + k] * share
                if watched.size > 0:
                    at = (h * n_ctx + i) * sizes.wide_ctx + k
                    watched[0, h, i, k] = sums.pattern[at] * share
                    watched[1, h, i, k] = sums.d_pattern[at] * share if k <= i else 0.0
            for s in range(n_tok):
                g_first[h, n_tok + i, s] = sums.pt[(h * n_tok + s) * sizes.wide_ctx + i] * share
                g_first[h, s, n_tok + i] = sums.tp[(h * n_tok + s) * sizes.wide_ctx + i] * share
        for s in range(n_tok):
            for t in range(n_tok):
                g_first[h, s, t] = sums.tt[(h * n_tok + s) * sizes.wide_tok + t] * share
    for m in range(m2):
        for row in range(sizes.d1):
            for d in range(sizes.d1):
                g_second[m, row, d] = sums.a2[(m * (sizes.d1 + ROWS) + row) * sizes.wide_d1 + d] * share
    for s in range(n_tok):
        for row in range(sizes.d0):
            g_unembed[row, s] = sums.w[row * sizes.wide_tok + s] * share
        for row in range(sizes.d0, sizes.d_model):
            g_unembed[row, s] = sums.w_t[s * sizes.wide_features + row - sizes.d0] * share
