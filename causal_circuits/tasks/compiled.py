# mypy: ignore-errors
# (numba types the kernels; to mypy the operators of a compiled vector mean nothing)
"""The sampler, compiled: random numbers, kernels, stationary laws and tokens of `LANES` sequences at a time.

A lane of a vector is a sequence: kernels lie in memory as [row, token, lane], so that what happens to a kernel (sums of
rows, eliminating states) happens to `LANES` of them at once. Every number of a sequence is a function of the seed's
key, the sequence's place in its batch, and what it is for (`simd.philox`), so a batch is the same for any number of
threads, and a longer batch begins with the shorter one.
`draws.py` makes the same draws in numpy, for machines without numba; this file needs it.
"""

from collections import namedtuple
from functools import cache

import numpy as np

from causal_circuits.simd.disk_cache import compile_kernel
from causal_circuits.simd.functions import exp, log
from causal_circuits.simd.integers import count_up, repeat
from causal_circuits.simd.lanes import LANES, inlined, shared
from causal_circuits.simd.memory import KeptPerThread
from causal_circuits.simd.philox import random_vectors, uniform
from causal_circuits.simd.sources import made_from
from causal_circuits.simd.vectors import (
    any_less,
    choose_less,
    count_less,
    fma,
    inverse,
    larger,
    load,
    root,
    scatter,
    splat,
    store,
)
from causal_circuits.tasks import draws
from causal_circuits.tasks.draws import FOR_GAMMAS, FOR_TOKENS, SINE, SMALL, TINY

# Kernel entries whose gammas are drawn at once: enough that those to draw again fill vectors, few enough that the
# numbers on the way stay in the nearest cache.
CHUNK = 128

# What a thread works in, see `allocate`. Of a chunk of entries: scratch of `draw_gammas`, logs and gammas. Of `LANES`
# sequences: kernel [row, token, lane], work and law of `stationary_law`, cumulative [lane, row, token] with the law of
# roots as its last row, uniform numbers [lane, position], low and high words of their places, the queries' tokens,
# drawn tokens [position, lane], and the rows that these name.
Room = namedtuple("Room", "scratch logs gammas kernel work law cumulative numbers sequence purpose queries drawn rows")


@inlined
def store_numbers(numbers, i, words):
    """Four random words a lane as uniform numbers, in the four rows of `numbers`; the second less 1/2."""
    stride = len(numbers) // 4
    store(numbers, i, uniform(words[0]))
    store(numbers, stride + i, uniform(words[1]) - 0.5)
    store(numbers, 2 * stride + i, uniform(words[2]))
    store(numbers, 3 * stride + i, uniform(words[3]))


@inlined
def propose(n, at, d, c, numbers, log_v, kept):
    """One attempt at Gamma(d + 1/3) / d for n lanes with d[at + i] and c[at + i]: 3 log(1 + c x), and 1 where kept.

    `numbers` are used up but for its last row. Each loop is one short chain of instructions a vector, so that the
    processor works on several vectors at once.
    """
    stride = len(numbers) // 4
    for i in range(0, n, LANES):
        turn = load(numbers, stride + i)
        square = turn * turn
        sine = splat(SINE[5])
        for power in range(4, -1, -1):
            sine = fma(sine, square, splat(SINE[power]))
        store(numbers, i, root(log(load(numbers, i)) * -2.0) * (sine * turn))
    for i in range(0, n, LANES):
        base = fma(load(c, at + i), load(numbers, i), splat(1.0))
        store(log_v, i, log(choose_less(0.0, base, base, splat(1.0))) * 3.0)
    for i in range(0, n, LANES):
        x, three_logs = load(numbers, i), load(log_v, i)
        base = fma(load(c, at + i), x, splat(1.0))
        bound = fma(load(d, at + i), (three_logs - base * base * base) + 1.0, x * x * 0.5)
        accepted = choose_less(log(load(numbers, 2 * stride + i)), bound, splat(1.0), splat(0.0))
        store(kept, i, choose_less(0.0, base, accepted, splat(0.0)))


@inlined
def draw_gammas(constants, at, n, sequence, purpose, key, scratch, logs, gammas):
    """Gamma(alpha[e]) draws and their logs for the lanes at, ..., at + n - 1 of the kernels: see `draws.log_gammas`.

    `constants` has an element for every lane of every entry; `sequence` and `purpose` are those of the lanes.
    `scratch` is numbers (four rows), kept and log_v; for the lanes to draw again their places, entries, sequences,
    purposes; and their d and c.
    """
    numbers, kept, log_v, again, entries, sequences, purposes, d, c = scratch
    low, what, stride = load(sequence, 0), load(purpose, 0), len(numbers) // 4
    for i in range(0, n, 2 * LANES):  # two at a time: a round waits for the round before it
        words = random_vectors(repeat((at + i) // LANES), repeat(0), low, what, key)
        more = random_vectors(repeat((at + i) // LANES + 1), repeat(0), low, what, key)
        store_numbers(numbers, i, words)
        store_numbers(numbers, i + LANES, more)
    propose(n, at, constants[1], constants[2], numbers, logs, kept)
    n_again = 0
    for i in range(0, n, LANES):
        log_uniform = log(load(numbers, 3 * stride + i))
        store(gammas, i, fma(log_uniform, load(constants[3], at + i), load(constants[4], at + i)))
        if any_less(load(kept, i), 0.5):
            for lane in range(i, i + LANES):
                again[n_again] = lane
                n_again += kept[lane] < 0.5
    attempt = 0
    while n_again > 0:
        attempt += 1
        for i in range(n_again):
            lane = again[i]
            entries[i], sequences[i] = (at + lane) // LANES, sequence[lane % LANES]
            purposes[i] = purpose[lane % LANES]
            d[i], c[i] = constants[1, at + lane], constants[2, at + lane]
        for i in range(0, n_again, LANES):
            store_numbers(
                numbers,
                i,
                random_vectors(load(entries, i), repeat(attempt), load(sequences, i), load(purposes, i), key),
            )
        propose(n_again, 0, d, c, numbers, log_v, kept)
        n_left = 0
        for i in range(n_again):
            lane = again[i]
            logs[lane] = log_v[i]
            again[n_left] = lane
            n_left += kept[i] < 0.5
        n_again = n_left
    for i in range(0, n, LANES):
        value = load(gammas, i) + load(logs, i)
        store(logs, i, value)
        store(gammas, i, exp(value))


@inlined
def normalize_row(logs, gammas, at, n_tok, kernel, to):
    """A row of probabilities of `LANES` kernels from their gammas, none of them zero."""
    total = splat(0.0)
    for t in range(at, at + n_tok * LANES, LANES):
        total = total + (load(gammas, t) + TINY)
    if any_less(total, SMALL):  # a whole row underflowed: go back to the logs
        top = splat(-np.inf)
        for t in range(at, at + n_tok * LANES, LANES):
            top = larger(load(logs, t), top)
        small, total = total, splat(0.0)
        for t in range(at, at + n_tok * LANES, LANES):
            value = choose_less(small, SMALL, exp(load(logs, t) - top), load(gammas, t))
            store(gammas, t, value)
            total = total + (value + TINY)
    z = inverse(total)
    for t in range(0, n_tok * LANES, LANES):
        store(kernel, to + t, (load(gammas, at + t) + TINY) * z)


@inlined
def accumulate(law, at, n_tok, cumulative, to, stride):
    """Running sums of a law a lane, infinite from where they reach the last: rounding leaves no draw without a token.

    The sums of a lane are neighbours, those of the next lane `stride` further: each sequence looks its own tokens up.
    """
    total, running = splat(0.0), splat(0.0)
    for t in range(at, at + n_tok * LANES, LANES):
        total = total + load(law, t)
    for t in range(n_tok):
        running = running + load(law, at + t * LANES)
        scatter(cumulative, to + t, stride, choose_less(running, total, running, splat(np.inf)))


@inlined
def stationary_law(kernel, n_tok, work, law):
    """Grassmann, Taksar & Heyman (1985) for `LANES` kernels: see `kernels.stationary_law`.

    No subtraction, so float32 keeps its digits; the weights of states that are hardly ever left would overflow, so they
    are kept divided by their sum. `kernel` and `work` are [row, token, lane], `law` is [token, lane].
    """
    wide = n_tok * LANES
    for at in range(0, n_tok * wide, LANES):
        store(work, at, load(kernel, at))
    for k in range(n_tok - 1, 0, -1):
        total, gone = splat(0.0), k * wide
        for s in range(0, k * LANES, LANES):
            total = total + load(work, gone + s)
        leaving = inverse(total)
        for row in range(0, k * wide, wide):
            factor = load(work, row + k * LANES) * leaving
            store(work, row + k * LANES, factor)
            for s in range(0, k * LANES, LANES):
                store(work, row + s, fma(factor, load(work, gone + s), load(work, row + s)))
    store(law, 0, splat(1.0))
    for k in range(1, n_tok):
        weight = splat(0.0)
        for s in range(k):
            weight = fma(load(law, s * LANES), load(work, s * wide + k * LANES), weight)
        z = inverse(weight + 1.0)
        for s in range(0, k * LANES, LANES):
            store(law, s, load(law, s) * z)
        store(law, k * LANES, weight * z)


@inlined
def find(cumulative, at, n_tok, number):
    """How many entries of a cumulative row are not above the number: the token it stands for."""
    below = 0
    for v in range(0, n_tok, LANES):
        below += LANES - count_less(number, load(cumulative, at + v))
    return below


@inlined
def draw_numbers(n_ctx, sequence, purpose, key, numbers, lane):
    """A uniform number for every token of a sequence; the query's number comes from the second word of its place."""
    at = lane * numbers.shape[1]
    for i in range(0, n_ctx, LANES):
        w0, w1, _, _ = random_vectors(count_up() + i, repeat(0), repeat(sequence), repeat(purpose), key)
        store(numbers, at + i, uniform(w1))
        last = numbers[lane, n_ctx - 1]  # in the end, the query's
        store(numbers, at + i, uniform(w0))
    return last


@inlined
def name_rows(drawn, parents, i, n_parents, n_tok, first_row, root_row, rows):
    """The row among all kernels that the tokens of a position's parents name, for every lane."""
    for lane in range(LANES):
        rows[lane] = 0 if n_parents > 0 else root_row
    for k in range(n_parents):
        above = parents[i, k]
        for lane in range(LANES):
            rows[lane] = rows[lane] * n_tok + drawn[above, lane]
    if n_parents > 0:
        for lane in range(LANES):
            rows[lane] += first_row[n_parents]


def allocate(n_rows: int, n_tok: int, n_ctx: int) -> Room:
    """Memory for any number of calls, one after the other, that draw kernels of so many rows and tokens."""
    chunk = rows_at_once(n_tok) * n_tok * LANES
    wide, room = -(-n_tok // LANES) * LANES, -(-n_ctx // LANES) * LANES
    n_floats = (4 * (chunk + LANES), chunk, chunk)  # numbers, kept, log_v
    n_integers = (chunk + LANES, chunk, chunk, chunk)  # again, entries, sequences, purposes
    scratch = (
        *(np.zeros(n, np.float32) for n in n_floats),
        *(np.zeros(n, np.int32) for n in n_integers),
        *(np.ones(chunk, np.float32) for _ in "dc"),
    )
    return Room(
        scratch=scratch,
        logs=np.zeros(chunk, np.float32),
        gammas=np.zeros(chunk, np.float32),
        kernel=np.zeros((n_rows, n_tok, LANES), np.float32),
        work=np.zeros((n_tok, n_tok, LANES), np.float32),
        law=np.zeros((n_tok, LANES), np.float32),
        cumulative=np.full((LANES, n_rows + 1, wide), np.inf, np.float32),  # what pads a row stays infinite
        numbers=np.zeros((LANES, room), np.float32),
        sequence=np.zeros(LANES, np.int32),
        purpose=np.zeros(LANES, np.int32),
        queries=np.zeros(LANES, np.int32),
        drawn=np.zeros((n_ctx, LANES), np.int32),
        rows=np.zeros(LANES, np.int32),
    )


@shared
def rows_at_once(n_tok):
    """How many rows of the kernels are drawn at once."""
    return max(CHUNK // n_tok, 1)


@cache
def sampler():  # numba's dispatcher has no useful static type
    """`_sample_all`, compiled: a function of all its arguments but the memory, which every thread keeps."""
    sources = made_from(_sample_all, __file__, draws.__file__)
    compiled = compile_kernel(sources, nogil=True, error_model="numpy", _nrt=False)
    memory = KeptPerThread(allocate)

    def sample(alpha, first_row, parents, degrees, n_roots_law, keys, start, tokens, targets):
        n_tok = targets.shape[2]
        room = memory(alpha.shape[1] // (n_tok * LANES), n_tok, tokens.shape[2])
        compiled(alpha, first_row, parents, degrees, n_roots_law, keys, start, tokens, targets, room)

    return sample


def _sample_all(alpha, first_row, parents, degrees, n_roots_law, keys, start, tokens, targets, room):
    """Fill tokens [member, n, n_ctx] and targets [member, n, d_vocab]: see `_sample`; keys are [member, word]."""
    for member in range(len(tokens)):
        of_member = parents[member], degrees[member], n_roots_law, keys[member], start, tokens[member], targets[member]
        _sample(alpha, first_row, *of_member, room)


@inlined
def _sample(alpha, first_row, parents, degrees, n_roots_law, key, start, tokens, targets, room):
    """Fill tokens [n, n_ctx] and targets [n, d_vocab] with sequences start, start + 1, ... of a stream.

    Args:
        alpha: rows alpha, d, c, 1 / alpha, log d of `draws.gamma_constants`; a column for every lane of an entry.
        first_row: [n_parents] -> first row of that in-degree's kernel among all rows.
        parents, degrees: of every position, and last of the target; degree -1 is the query.
        n_roots_law: 0 uniform roots, 1 the stationary law of the one-parent kernel, 2 a Dirichlet draw: the last row.
        key: `simd.philox.vectors_of_key` of the seed's two words.
        room: `allocate` of these sizes, a thread's own.
    """
    n, n_tok, n_ctx = len(tokens), targets.shape[1], tokens.shape[1]
    n_rows = alpha.shape[1] // (n_tok * LANES)
    chunk = rows_at_once(n_tok) * n_tok
    scratch, logs, gammas, kernel, work, law, cumulative, numbers, sequence, purpose, queries, drawn, rows = room
    wide, stride = cumulative.shape[2], (n_rows + 1) * cumulative.shape[2]
    for t in range(n_tok):
        store(law, t * LANES, splat(np.float32(1.0) / np.float32(n_tok)))
    accumulate(law, 0, n_tok, cumulative, n_rows * wide, stride)
    root_row = n_rows - 1 if n_roots_law == 2 else n_rows
    for b in range(0, n, LANES):
        for lane in range(LANES):
            place = start + b + lane
            sequence[lane], purpose[lane] = np.int32(np.uint32(place & 0xFFFFFFFF)), FOR_GAMMAS + 256 * (place >> 32)
        for at in range(0, n_rows * n_tok, chunk):
            n_entries = min(chunk, n_rows * n_tok - at)
            draw_gammas(alpha, at * LANES, n_entries * LANES, sequence, purpose, key, scratch, logs, gammas)
            for row in range(at // n_tok, (at + n_entries) // n_tok):
                first = row * n_tok * LANES
                normalize_row(logs, gammas, first - at * LANES, n_tok, kernel, first)
                accumulate(kernel, first, n_tok, cumulative, row * wide, stride)
        if n_roots_law == 1:
            stationary_law(kernel, n_tok, work, law)
            accumulate(law, 0, n_tok, cumulative, n_rows * wide, stride)
        for lane in range(LANES):
            token_purpose = purpose[lane] + (FOR_TOKENS - FOR_GAMMAS)
            number = draw_numbers(n_ctx, sequence[lane], token_purpose, key, numbers, lane)
            queries[lane] = min(int(number * n_tok), n_tok - 1)
        for i in range(n_ctx):
            if degrees[i] < 0:
                for lane in range(LANES):
                    drawn[i, lane] = queries[lane]
                continue
            name_rows(drawn, parents, i, degrees[i], n_tok, first_row, root_row, rows)
            for lane in range(LANES):
                number = numbers[lane, i]
                drawn[i, lane] = find(cumulative, lane * stride + rows[lane] * wide, n_tok, number)
        name_rows(drawn, parents, n_ctx, degrees[n_ctx], n_tok, first_row, root_row, rows)
        for lane in range(min(LANES, n - b)):
            for i in range(n_ctx):
                tokens[b + lane, i] = drawn[i, lane]
            for t in range(n_tok):
                targets[b + lane, t] = kernel[rows[lane], t, lane]
