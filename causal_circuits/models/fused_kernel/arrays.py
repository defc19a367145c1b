# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""The arrays that a batch is differentiated with: weights in rows of whole vectors, sums over the batch, scratch.

A batch is worked through a chunk of sequences at a time; nothing that grows with the batch is kept.
"""

from collections import namedtuple

import numpy as np

from causal_circuits.models.fused_kernel.tiles import PANEL, ROWS, padded, panels
from causal_circuits.simd.columns import turn_over
from causal_circuits.simd.functions import exp_of_negative
from causal_circuits.simd.lanes import LANES, inlined, shared
from causal_circuits.simd.vectors import keep_first, larger, largest_of, load, load_first, splat, store, store_first

# Sequences whose dense products are done together: a multiple of 4, the height of a tile.
CHUNK = 16
# Contexts up to this: a sequence's rows of attention stay in the cache until it has been differentiated. Of longer
# ones only a band of rows is at hand, for one sequence of the chunk after the other, and computed again on the way
# back: that takes less time than to fetch them from memory, with the tables that a band is made of and added to.
KEPT, BAND = 512, LANES
# A vector that starts at the last entry of a row, and one more, still lie in the array.
SPARE = 4 * LANES
# Of the exponentials that layer 0's tables hold, three are multiplied. A row's largest product cannot be smaller than
# e^-gap; were it, what matters beside it might underflow, and exponentials are taken of whole scores.
WIDEST_GAP = 60.0
# Numbers in a line of the cache, where arrays begin.
LINE = 16

# Context, vocabulary, heads of layer 0 and 1; widths of a block, of layer 1's residual, of its dense part (what heads
# wrote), of the whole residual, of all of it but a block; wide_*, from row to row of each kind of array; rows of a
# band, and the sequences that go through a band one after the other.
Sizes = namedtuple(
    "Sizes",
    "n_ctx n_tok m1 m2 d0 d1 dense d_model n_features "
    "wide_ctx wide_tok wide_d1 wide_dense wide_features wide_q wide_rows band group",
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
# Of one sequence, in the notation of `fused.py`: 1 / sums of e^scores; r, P r, p; u, later what dt brings together in
# its place; of layer 1's scores the largest up to each band, and the sum of e^(score - largest), lane by lane; what
# reaches the features; c, p.dp, P c, dt.
Sequence = namedtuple("Sequence", "scale r reached p mixed tops totals d_features c inner passed dt")
# Of a band of rows: e^scores, zero above the diagonal; factors by token; what passes to and fro times the scale; of a
# vector of rows, row sums, a square of the scores' gradients [query, key], and all of them by token [token, query].
Band = namedtuple("Band", "rows tables through back means square columns")
# `one` is the first of `group` sequences; those behind it lie in `others`, `step` numbers each.
Room = namedtuple("Room", "packed sums chunk band one others step")


@shared
def all_sizes(four):
    """What n_ctx, n_tok, m1, m2 come to; writing a block may run over its end, so two kinds have a vector more."""
    n_ctx, n_tok, m1, m2 = four
    d0 = n_ctx + n_tok
    d1, dense, d_model = d0 * (1 + m1), d0 * m1, d0 * (1 + m1) * (1 + m2)
    features, q = padded(d_model - d0) + LANES, padded(d1) + LANES
    band, group = (padded(n_ctx), 1) if n_ctx <= KEPT else (BAND, CHUNK)
    wide = padded(n_ctx), padded(n_tok), padded(d1), padded(dense), features, q, band * padded(n_ctx)
    return Sizes(n_ctx, n_tok, m1, m2, d0, d1, dense, d_model, d_model - d0, *wide, band, group)


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
    tables, at = take(numbers, at, ROWS * sizes.wide_tok)
    through, at = take(numbers, at, m1 * sizes.wide_ctx)
    back, at = take(numbers, at, LANES)
    means, at = take(numbers, at, LANES)
    square, at = take(numbers, at, LANES * LANES)
    columns, at = take(numbers, at, LANES * sizes.wide_tok)
    band = Band(rows, tables, through, back, means, square, columns)
    one, others = carve_sequence(numbers, at, sizes)
    step = others - at
    at = others + step * (sizes.group - 1)
    return Room(packed, sums, chunk, band, one, numbers[others:at], step), at, n_tokens


@shared
def carve_sequence(numbers, at, sizes):
    """A `Sequence` from `at` on, and where it ends."""
    m1, m2, wide = sizes.m1, sizes.m2, sizes.wide_ctx
    scale, at = take(numbers, at, m1 * wide)
    r, at = take(numbers, at, m2 * m1 * wide)
    reached, at = take(numbers, at, m2 * m1 * wide)
    p, at = take(numbers, at, m2 * wide)
    mixed, at = take(numbers, at, m2 * m1 * wide)
    tops, at = take(numbers, at, m2 * wide)
    totals, at = take(numbers, at, m2 * LANES)
    d_features, at = take(numbers, at, sizes.wide_features)
    c, at = take(numbers, at, m2 * (1 + m1) * wide)
    inner, at = take(numbers, at, m2)
    passed, at = take(numbers, at, m2 * m1 * wide)
    dt, at = take(numbers, at, m2 * wide)
    return Sequence(scale, r, reached, p, mixed, tops, totals, d_features, c, inner, passed, dt), at


@inlined
def scratch_of(room, g, sizes):
    """The `Sequence` of number g of a group."""
    return room.one if g == 0 else carve_sequence(room.others, (g - 1) * room.step, sizes)[0]


@inlined
def exponentials(weights, at, n, out, to):
    """e^(weight - largest) of n weights of a row, zero up to whole vectors; returns largest - smallest."""
    top = turned = splat(-np.inf)
    for v in range(0, n, LANES):
        weight = load_first(weights, at + v, n - v)
        top = larger(keep_first(weight, n - v, -np.inf), top)
        turned = larger(keep_first(weight * -1.0, n - v, -np.inf), turned)
    largest = largest_of(top)
    for v in range(0, n, LANES):
        store(out, to + v, keep_first(exp_of_negative(load_first(weights, at + v, n - v) - largest), n - v, 0.0))
    return largest + largest_of(turned)


@inlined
def pack_scores(first, start, h, packed, sizes):
    """The exponentials of layer 0's weights; if their tables are too wide, the weights as they are."""
    n_ctx, n_tok, d0 = sizes.n_ctx, sizes.n_tok, sizes.d0
    by_position = by_token = np.float32(0.0)
    for i in range(n_ctx):
        row, at = h * n_ctx + i, start + (h * d0 + n_tok + i) * d0
        exponentials(first, at + n_tok, i + 1, packed.pp, row * sizes.wide_ctx)
        by_position = max(by_position, exponentials(first, at, n_tok, packed.pt, row * sizes.wide_tok))
    for t in range(n_tok):
        row, at = h * n_tok + t, start + (h * d0 + t) * d0
        spread = exponentials(first, at + n_tok, n_ctx, packed.tp, row * sizes.wide_ctx)
        spread += exponentials(first, at, n_tok, packed.tt, row * sizes.wide_tok)
        by_token = max(by_token, spread)
    packed.gap[h] = by_position + by_token
    if not packed.gap[h] < WIDEST_GAP:
        copy(first, start + h * d0 * d0, d0 * d0, packed.a1, h * d0 * d0, 1.0)


@inlined
def copy(source, at, n, out, to, factor):
    """N numbers, each times a factor."""
    for v in range(0, n, LANES):
        store_first(out, to + v, n - v, load_first(source, at + v, n - v) * factor)


@inlined
def copy_turned(source, at, stride, n_rows, n_columns, out, to, out_stride, factor):
    """A matrix transposed, each number times a factor; strides are from row to row."""
    for i in range(0, n_rows, LANES):
        for k in range(0, n_columns, LANES):
            here, there = at + i * stride + k, to + k * out_stride + i
            turn_over(source, here, stride, n_rows - i, n_columns - k, out, there, out_stride, factor)


@inlined
def pack(weights, member, packed, sizes):
    """The weights of a member as the kernel reads them."""
    first, second, unembed = weights
    n_tok, d0, d1, dense = sizes.n_tok, sizes.d0, sizes.d1, sizes.dense
    of_second, of_unembed = member * second.shape[1], member * unembed.shape[1]
    for h in range(sizes.m1):
        pack_scores(first, member * first.shape[1], h, packed, sizes)
    for m in range(sizes.m2):
        for start in range(0, d1, PANEL):
            panel, n = d1 * (m * panels(d1) + start), min(PANEL, d1 - start)
            for row in range(d1):
                copy(second, of_second + (m * d1 + row) * d1 + start, n, packed.a2, panel + row * PANEL, 1.0)
        for start in range(0, dense, PANEL):
            panel, n = d1 * (m * panels(dense) + start), min(PANEL, dense - start)
            at = of_second + (m * d1 + d0 + start) * d1
            copy_turned(second, at, d1, n, d1, packed.a2_t, panel, PANEL, 1.0)
    for row in range(d0):
        copy(unembed, of_unembed + row * n_tok, n_tok, packed.w, row * sizes.wide_tok, 1.0)
    at = of_unembed + d0 * n_tok
    copy_turned(unembed, at, n_tok, sizes.n_features, n_tok, packed.w_t, 0, sizes.wide_features, 1.0)


@inlined
def clear(sums, watched):
    """Back to zero, before the first sequence of a batch."""
    for array in (sums.pp, sums.tp, sums.pt, sums.tt, sums.a2, sums.w, sums.w_t):
        array[:] = 0.0
    if watched:
        sums.pattern[:] = 0.0
        sums.d_pattern[:] = 0.0


@inlined
def unpack(sums, member, gradients, watched, share, sizes):
    """The sums of a member times `share`, without the padding."""
    first, second, unembed = gradients
    of_second, of_unembed = member * second.shape[1], member * unembed.shape[1]
    n_ctx, n_tok, d0, d1, wide = sizes.n_ctx, sizes.n_tok, sizes.d0, sizes.d1, sizes.wide_ctx
    for h in range(sizes.m1):
        by_token = member * first.shape[1] + h * d0 * d0
        by_position = by_token + n_tok * d0
        for i in range(n_ctx):
            copy(sums.pp, (h * n_ctx + i) * wide, n_ctx, first, by_position + i * d0 + n_tok, share)
        copy_turned(sums.pt, h * n_tok * wide, wide, n_tok, n_ctx, first, by_position, d0, share)
        for s in range(n_tok):
            copy(sums.tp, (h * n_tok + s) * wide, n_ctx, first, by_token + s * d0 + n_tok, share)
            copy(sums.tt, (h * n_tok + s) * sizes.wide_tok, n_tok, first, by_token + s * d0, share)
    for m in range(sizes.m2):
        for row in range(d1):
            copy(sums.a2, (m * (d1 + ROWS) + row) * sizes.wide_d1, d1, second, of_second + (m * d1 + row) * d1, share)
    for row in range(d0):
        copy(sums.w, row * sizes.wide_tok, n_tok, unembed, of_unembed + row * n_tok, share)
    at = of_unembed + d0 * n_tok
    copy_turned(sums.w_t, 0, sizes.wide_features, n_tok, sizes.n_features, unembed, at, n_tok, share)
    if watched.size > 0:
        n_rows = sizes.m1 * n_ctx
        for row in range(n_rows):
            to = (2 * member * n_rows + row) * n_ctx
            copy(sums.pattern, row * wide, n_ctx, watched, to, share)
            for v in range(0, n_ctx, LANES):
                value = keep_first(load(sums.d_pattern, row * wide + v) * share, row % n_ctx + 1 - v, 0.0)
                store_first(watched, to + n_rows * n_ctx + v, n_ctx - v, value)
