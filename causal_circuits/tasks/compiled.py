# mypy: ignore-errors
# (numba types the kernels; to mypy the operators of a compiled vector mean nothing)
"""The sampler, compiled: random numbers, kernels, stationary laws and tokens of a batch, one sequence after another.

Every number of a sequence is a function of the seed's key, the sequence's place in its batch, and what it is for
(`simd.philox`), so a batch is the same for any number of threads, and a longer batch begins with the shorter one.
`draws.py` makes the same draws in numpy, for machines without numba; this file needs it.
"""

from functools import cache
from inspect import unwrap  # numba compiles the function itself, not a run-time type check around it

import numba
import numpy as np

from causal_circuits.simd.philox import random_vectors, uniform
from causal_circuits.simd.vectors import (
    LANES,
    any_less,
    choose_less,
    count_less,
    count_up,
    exp,
    fma,
    inlined,
    keep_first,
    larger,
    largest_of,
    load,
    log,
    repeat,
    root,
    splat,
    store,
    sum_of,
)
from causal_circuits.tasks.draws import FOR_GAMMAS, FOR_TOKENS, SINE, SMALL, SPARE, TINY


@inlined
def propose(entries, n, attempt, sequence, purpose, key, d, c, numbers, log_v, kept):
    """One attempt at Gamma(d + 1/3) / d for n entries: 3 log(1 + c x), and 1 where it is kept.

    `numbers` is scratch of four rows, the last of which is left holding uniform numbers for the power. Each loop is one
    short chain of instructions a vector, so that the processor works on several vectors at once.
    """
    stride = len(numbers) // 4
    for at in range(0, n, LANES):
        w0, w1, w2, w3 = random_vectors(
            load(entries, at), repeat(attempt), repeat(sequence), repeat(purpose), key[0], key[1]
        )
        store(numbers, at, uniform(w0))
        store(numbers, stride + at, uniform(w1) - 0.5)
        store(numbers, 2 * stride + at, uniform(w2))
        store(numbers, 3 * stride + at, uniform(w3))
    for at in range(0, n, LANES):
        turn = load(numbers, stride + at)
        square = turn * turn
        sine = splat(SINE[5])
        for power in range(4, -1, -1):
            sine = fma(sine, square, splat(SINE[power]))
        store(numbers, at, root(log(load(numbers, at)) * -2.0) * (sine * turn))
    for at in range(0, n, LANES):
        base = fma(load(c, at), load(numbers, at), splat(1.0))
        store(log_v, at, log(choose_less(0.0, base, base, splat(1.0))) * 3.0)
    for at in range(0, n, LANES):
        x, three_logs = load(numbers, at), load(log_v, at)
        base = fma(load(c, at), x, splat(1.0))
        bound = fma(load(d, at), (three_logs - base * base * base) + 1.0, x * x * 0.5)
        accepted = choose_less(log(load(numbers, 2 * stride + at)), bound, splat(1.0), splat(0.0))
        store(kept, at, choose_less(0.0, base, accepted, splat(0.0)))


@inlined
def draw_gammas(constants, n, sequence, purpose, key, scratch, pending, logs, gammas):
    """Gamma(alpha[e]) draws, e < n, and their logs: see `draws.log_gammas` for the method.

    `scratch` has rows numbers (four), log_v, kept, d, c; `pending` has the entries 0, 1, ... and those to draw again.
    """
    numbers, log_v, kept, d, c = scratch
    propose(pending[0], n, 0, sequence, purpose, key, constants[1], constants[2], numbers, log_v, kept)
    stride, again = len(numbers) // 4, pending[1]
    for at in range(0, n, LANES):
        power = fma(log(load(numbers, 3 * stride + at)), load(constants[3], at), load(constants[4], at))
        store(logs, at, power + load(log_v, at))
    n_pending = 0
    for at in range(0, n, LANES):
        store(gammas, at, exp(load(logs, at)))
        if any_less(load(kept, at), 0.5):
            for e in range(at, min(at + LANES, n)):
                if kept[e] < 0.5:
                    logs[e] -= log_v[e]
                    again[n_pending] = e
                    n_pending += 1
    attempt = 0
    while n_pending > 0:
        attempt += 1
        for i in range(n_pending):
            d[i], c[i] = constants[1, again[i]], constants[2, again[i]]
        propose(again, n_pending, attempt, sequence, purpose, key, d, c, numbers, log_v, kept)
        n_left = 0
        for i in range(n_pending):
            e = again[i]
            if kept[i] < 0.5:
                again[n_left] = e
                n_left += 1
            else:
                logs[e] += log_v[i]
                gammas[e] = np.exp(logs[e])
        n_pending = n_left


@inlined
def normalize_row(logs, gammas, at, n_tok, kernel, cumulative, to):
    """A row of probabilities from gammas, none of them zero, and its running sums."""
    total = splat(0.0)
    for v in range(0, n_tok, LANES):
        total = total + keep_first(load(gammas, at + v) + TINY, n_tok - v, 0.0)
    sum_of_row = sum_of(total)
    if sum_of_row < SMALL:  # the whole row underflowed: go back to the logs
        top = splat(-np.inf)
        for v in range(0, n_tok, LANES):
            top = larger(keep_first(load(logs, at + v), n_tok - v, -np.inf), top)
        largest, total = largest_of(top), splat(0.0)
        for v in range(0, n_tok, LANES):
            value = exp(load(logs, at + v) - largest)
            for lane in range(min(LANES, n_tok - v)):
                gammas[at + v + lane] = np.exp(logs[at + v + lane] - largest)
            total = total + keep_first(value + TINY, n_tok - v, 0.0)
        sum_of_row = sum_of(total)
    z = np.float32(1.0) / sum_of_row
    for v in range(0, n_tok, LANES):
        store(kernel, to + v, keep_first(load(gammas, at + v) + TINY, n_tok - v, 0.0) * z)
    accumulate(kernel, to, n_tok, cumulative, to)


@inlined
def accumulate(law, at, n_tok, cumulative, to):
    """Running sums of a law, infinite from where they reach the last: rounding leaves no draw without a token."""
    running = np.float32(0.0)
    for t in range(n_tok):
        running += law[at + t]
        cumulative[to + t] = running
    for v in range(0, n_tok, LANES):
        value = keep_first(load(cumulative, to + v), n_tok - v, np.inf)
        store(cumulative, to + v, choose_less(value, running, value, splat(np.inf)))


@inlined
def stationary_law(kernel, n_tok, wide, work, mass, law):
    """Grassmann, Taksar & Heyman (1985): see `kernels.stationary_law`. No subtraction, so float32 keeps its digits.

    `kernel` and `work` have rows of whole vectors; `mass` is float64 scratch, since weights of states that are hardly
    ever left may be larger than a float32.
    """
    for at in range(0, n_tok * wide, LANES):
        store(work, at, load(kernel, at))
    for k in range(n_tok - 1, 0, -1):
        total = splat(0.0)
        for v in range(0, k, LANES):
            total = total + keep_first(load(work, k * wide + v), k - v, 0.0)
        leaving = np.float32(1.0) / sum_of(total)
        for s in range(k):
            factor = work[s * wide + k] * leaving
            for v in range(0, k, LANES):  # columns from k on hold the factors of states that have gone
                row = keep_first(load(work, k * wide + v), k - v, 0.0)
                store(work, s * wide + v, fma(factor, row, load(work, s * wide + v)))
            work[s * wide + k] = factor
    mass[0] = 1.0
    everything = 1.0
    for k in range(1, n_tok):
        value = 0.0
        for s in range(k):
            value += mass[s] * work[s * wide + k]
        mass[k] = value
        everything += value
    for t in range(n_tok):
        law[t] = mass[t] / everything


@inlined
def find(cumulative, at, n_tok, number):
    """How many entries of a cumulative row are not above the number: the token it stands for."""
    below = 0
    for v in range(0, n_tok, LANES):
        below += LANES - count_less(number, load(cumulative, at + v))
    return below


@cache
def sampler():  # numba's dispatcher has no useful static type
    """The compiled `_sample`."""
    return numba.njit(nogil=True, cache=True, error_model="numpy")(unwrap(_sample))


def _sample(alpha, first_row, parents, degrees, n_roots_law, key, start, tokens, targets):
    """Fill tokens [n, n_ctx] and targets [n, d_vocab] with sequences start, start + 1, ... of a stream.

    Args:
        alpha: rows alpha, d, c, 1 / alpha, log d of `draws.gamma_constants`; a column an entry of all kernels.
        first_row: [n_parents] -> first row of that in-degree's kernel among all rows.
        parents, degrees: of every position, and last of the target; degree -1 is the query.
        n_roots_law: 0 uniform roots, 1 the stationary law of the one-parent kernel, 2 a Dirichlet draw: the last row.
        key: two 32-bit words.
    """
    n_tok, n_ctx = targets.shape[1], tokens.shape[1]
    wide = (n_tok + LANES - 1) // LANES * LANES
    n_entries = alpha.shape[1] - SPARE
    n_rows = n_entries // n_tok
    length = (n_entries + LANES - 1) // LANES * LANES + LANES
    logs, gammas = np.zeros(length, np.float32), np.zeros(length, np.float32)
    scratch = (
        np.zeros(4 * length, np.float32),
        np.zeros(length, np.float32),
        np.zeros(length, np.float32),
        np.ones(length, np.float32),
        np.ones(length, np.float32),
    )
    pending = np.zeros((2, length), np.int32)
    pending[0] = np.arange(length)
    kernel, cumulative = np.zeros((n_rows + 1) * wide, np.float32), np.zeros((n_rows + 2) * wide, np.float32)
    work, mass, law = np.zeros(n_tok * wide + LANES, np.float32), np.zeros(n_tok), np.zeros(n_tok, np.float32)
    numbers = np.zeros(n_ctx + LANES, np.float32)
    root_row, last = n_rows - 1 if n_roots_law == 2 else n_rows, n_ctx - 1
    for t in range(n_tok):
        law[t] = np.float32(1.0 / n_tok)
    accumulate(law, 0, n_tok, cumulative, n_rows * wide)
    for b in range(len(tokens)):
        sequence, high = start + b, (start + b) >> 32
        draw_gammas(alpha, n_entries, sequence, FOR_GAMMAS + 256 * high, key, scratch, pending, logs, gammas)
        for row in range(n_rows):
            normalize_row(logs, gammas, row * n_tok, n_tok, kernel, cumulative, row * wide)
        if n_roots_law == 1:
            stationary_law(kernel, n_tok, wide, work, mass, law)
            accumulate(law, 0, n_tok, cumulative, n_rows * wide)
        query = 0
        for at in range(0, n_ctx, LANES):
            w0, w1, _, _ = random_vectors(
                count_up() + at, repeat(0), repeat(sequence), repeat(FOR_TOKENS + 256 * high), key[0], key[1]
            )
            store(numbers, at, uniform(w1))
            if at + LANES >= n_ctx:
                query = min(int(numbers[last] * n_tok), n_tok - 1)
            store(numbers, at, uniform(w0))
        for i in range(n_ctx + 1):
            row, n_parents = 0, degrees[i]
            for k in range(n_parents):
                row = row * n_tok + tokens[b, parents[i, k]]
            row = root_row if n_parents == 0 else first_row[n_parents] + row
            if i == n_ctx:
                for t in range(n_tok):
                    targets[b, t] = kernel[row * wide + t]
            elif n_parents < 0:
                tokens[b, i] = query
            else:
                tokens[b, i] = find(cumulative, row * wide, n_tok, numbers[i])
