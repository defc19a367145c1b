"""The sampler's random numbers in numpy: gammas and uniforms of a batch, each a function of (key, sequence, purpose).

Philox4x32-7 (Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011; with seven rounds it
passes BigCrush) gives four random 32-bit words for a counter of four words and a key of two. So the numbers of a
sequence depend on nothing but the seed and the sequence's place in its stream: not on threads, vector widths, or what
is drawn beside it. `src/native/sampler.cpp` draws the same numbers, up to the last bits of a logarithm: AVX2 and
AVX-512 agree to the bit, and without their fused multiply-add, as here, a token differs in at most 7 of 100,000
sequences (30 positions, 20 tokens).
"""

import numpy as np
from jaxtyping import Float, Int, UInt32

Key = tuple[int, int]

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)

# What the fourth word of a counter says the number is for.
FOR_GAMMAS, FOR_TOKENS = 0, 1
# Added to every gamma: a row of zeros, or a token never left, has no law. Rows that sum to less than SMALL have
# underflowed and are scaled by their largest entry first.
TINY, SMALL = np.float32(1e-37), np.float32(1e-25)
# sin(pi t) = t (SINE[0] + SINE[1] t^2 + ...) on [-1/2, 1/2], to 2e-7: the Taylor series of sin(pi t).
SINE = tuple(np.float32((-1) ** n * np.pi ** (2 * n + 1) / float(np.prod(np.arange(1.0, 2 * n + 2)))) for n in range(6))


def key_of(seed: np.random.SeedSequence) -> Key:
    """The two words that a seed comes down to."""
    first, second = seed.generate_state(2)
    return int(first), int(second)


def gamma_constants(alpha: Float[np.ndarray, " entry"]) -> Float[np.ndarray, "5 entry"]:
    """What drawing Gamma(alpha) needs, once for all draws: alpha, d, c, 1 / alpha, log d."""
    d = alpha + 2.0 / 3.0
    return np.stack([alpha, d, 1.0 / np.sqrt(9.0 * d), 1.0 / alpha, np.log(d)]).astype(np.float32)


def log_gammas(
    constants: Float[np.ndarray, "5 entry"], sequences: Int[np.ndarray, " batch"], key: Key
) -> Float[np.ndarray, "batch entry"]:
    """Logs of Gamma(alpha[e]) draws for every sequence and entry: Marsaglia & Tsang (2000), a rejection method.

    With d = alpha + 2/3, c = 1 / sqrt(9 d), x normal and v = (1 + c x)^3, d v has the law of Gamma(alpha + 1) if it is
    kept when log u < x^2 / 2 + d (1 - v + log v); times U^(1 / alpha) it has that of Gamma(alpha), and in logs nothing
    underflows. x is sqrt(-2 log u1) sin(pi (u2 - 1/2)), half of Box & Muller's pair.
    """
    _, d, c, inverse, log_d = constants
    n_entries = len(d)
    result = np.empty((len(sequences), n_entries), np.float32)
    log_power = np.empty_like(result)
    row, entry = (index.ravel() for index in np.indices(result.shape))
    attempt = 0
    while len(row):
        words = random_words((entry, np.uint32(attempt), *_place(sequences[row], FOR_GAMMAS)), key)
        u1, u2, u3, u4 = (uniform(word) for word in words)
        x = np.sqrt(np.float32(-2.0) * np.log(u1)) * np.sin(np.float32(np.pi) * (u2 - np.float32(0.5)))
        base = 1 + c[entry] * x
        log_v = 3 * np.log(np.where(base > 0, base, 1))
        kept = (base > 0) & (np.log(u3) < x * x / 2 + d[entry] * (log_v - base**3 + 1))
        result[row[kept], entry[kept]] = log_v[kept]
        if attempt == 0:
            log_power[row, entry] = np.log(u4)
        row, entry, attempt = row[~kept], entry[~kept], attempt + 1
    return log_d + result + log_power * inverse


def _place(sequences: np.ndarray, purpose: int) -> tuple[np.ndarray, np.ndarray]:
    """The last two words of a counter: the sequence's place in its stream, and what the number is for."""
    return sequences & 0xFFFFFFFF, purpose + 256 * (sequences >> 32)


def uniform(words: "np.ndarray") -> Float[np.ndarray, "..."]:
    """Random words as float32 numbers in (0, 1): the upper 24 bits, at the middle of their interval."""
    return ((words >> np.uint32(8)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)


def rows_of(logs: Float[np.ndarray, "batch row token"]) -> Float[np.ndarray, "batch row token"]:
    """Rows of probabilities from log gammas, none of them zero."""
    rows = np.exp(logs)
    small = rows.sum(axis=-1) < SMALL
    rows[small] = np.exp(logs[small] - logs[small].max(axis=-1, keepdims=True))
    rows += TINY
    return rows / rows.sum(axis=-1, keepdims=True, dtype=np.float32)


def log_rows_of(logs: Float[np.ndarray, "batch row token"]) -> Float[np.ndarray, "batch row token"]:
    """The logs of the rows of probabilities, float64, from log gammas."""
    logs = logs - logs.max(axis=-1, keepdims=True).astype(np.float64)
    return logs - np.log(np.exp(logs).sum(axis=-1, keepdims=True))


def token_numbers(
    n_ctx: int, sequences: Int[np.ndarray, " batch"], key: Key
) -> tuple[Float[np.ndarray, "batch n_ctx"], Float[np.ndarray, " batch"]]:
    """A uniform number for every token, and one for the query's."""
    words = random_words((np.arange(n_ctx), np.uint32(0), *_place(sequences[:, None], FOR_TOKENS)), key)
    return uniform(words[0]), uniform(words[1][:, -1])


def random_words(
    counter: "tuple[np.ndarray | np.unsignedinteger, ...]", key: tuple[int, int]
) -> tuple[UInt32[np.ndarray, "..."], ...]:
    """Four arrays of random words for four arrays of counter words (of shapes that broadcast).

    >>> [hex(int(word)) for word in random_words(tuple(np.zeros(4, np.uint32)), (0, 0))]
    ['0x5f6fb709', '0xd893f64', '0x4f121f81', '0x4f730a48']
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    for k0, k1 in _key_schedule(key).tolist():
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        low = np.uint64(0xFFFFFFFF)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
    return tuple(np.asarray(word, np.uint32) for word in np.broadcast_arrays(c0, c1, c2, c3))


def _key_schedule(key: tuple[int, int]) -> UInt32[np.ndarray, "rounds 2"]:
    """The two words that each round adds: the key, and steps of Weyl sequences from it."""
    rounds = np.arange(ROUNDS, dtype=np.uint64)[:, None]
    return (np.array(key, np.uint64) + rounds * np.array(WEYL, np.uint64)).astype(np.uint32)
