# mypy: ignore-errors
"""Philox4x32-7 random numbers: word number `counter` of a stream, without the words before it.

Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); with seven rounds it passes
BigCrush. A counter of four 32-bit words and a key of two give four random words, so the numbers of a sequence depend on
nothing but the seed and the sequence's place in its batch: not on threads, vector widths, or what is drawn beside it.
"""

import numpy as np
from jaxtyping import Int32, UInt32

from causal_circuits.simd import available

ROUNDS = 7
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def random_words(
    counter: "tuple[np.ndarray | np.unsignedinteger, ...]", key: tuple[int, int]
) -> tuple[UInt32[np.ndarray, "..."], ...]:
    """Four arrays of random words for four arrays of counter words (of shapes that broadcast).

    >>> [hex(int(word)) for word in random_words(tuple(np.zeros(4, np.uint32)), (0, 0))]
    ['0x5f6fb709', '0xd893f64', '0x4f121f81', '0x4f730a48']
    """
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) for word in counter)
    for k0, k1 in key_schedule(key).tolist():
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        low = np.uint64(0xFFFFFFFF)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
    return tuple(np.asarray(word, np.uint32) for word in np.broadcast_arrays(c0, c1, c2, c3))


def key_schedule(key: tuple[int, int]) -> UInt32[np.ndarray, "rounds 2"]:
    """The two words that each round adds: the key, and steps of Weyl sequences from it."""
    rounds = np.arange(ROUNDS, dtype=np.uint64)[:, None]
    return (np.array(key, np.uint64) + rounds * np.array(WEYL, np.uint64)).astype(np.uint32)


if available():
    from causal_circuits.simd.integers import exclusive_or, multiply_wide, shift_right, to_floats
    from causal_circuits.simd.lanes import LANES, inlined
    from causal_circuits.simd.vectors import fma, load, splat

    def vectors_of_key(key: tuple[int, int]) -> Int32[np.ndarray, "_"]:
        """`key_schedule` for `random_vectors`: each word in every lane of a vector."""
        return np.repeat(key_schedule(key).ravel(), LANES).view(np.int32)

    @inlined
    def _round(counter, schedule, at):
        c0, c1, c2, c3 = counter
        high0, low0 = multiply_wide(c0, MULTIPLIERS[0])
        high1, low1 = multiply_wide(c2, MULTIPLIERS[1])
        c0 = exclusive_or(high1, exclusive_or(c1, load(schedule, at * LANES)))
        c2 = exclusive_or(high0, exclusive_or(c3, load(schedule, (at + 1) * LANES)))
        return c0, low1, c2, low0

    @inlined
    def random_vectors(c0, c1, c2, c3, schedule):
        """`random_words` for vectors of counter words, inside a kernel; `schedule` is `vectors_of_key(key)`."""
        counter = _round((c0, c1, c2, c3), schedule, 0)
        counter = _round(counter, schedule, 2)  # written out: the compiler would leave a loop, and a jump a round
        counter = _round(counter, schedule, 4)
        counter = _round(counter, schedule, 6)
        counter = _round(counter, schedule, 8)
        counter = _round(counter, schedule, 10)
        return _round(counter, schedule, 12)

    @inlined
    def uniform(words):
        """Random words as numbers in (0, 1): the upper 24 bits, at the middle of their interval."""
        return fma(to_floats(shift_right(words, 8)), np.float32(2.0**-24), splat(np.float32(2.0**-25)))
