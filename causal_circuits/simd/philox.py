# mypy: ignore-errors
"""Philox4x32-7 random numbers: word number `counter` of a stream, without the words before it.

Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); with seven rounds it passes
BigCrush. A counter of four 32-bit words and a key of two give four random words, so the numbers of a sequence depend on
nothing but the seed and the sequence's place in its batch: not on threads, vector widths, or what is drawn beside it.
"""

import numpy as np
from jaxtyping import UInt32

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
    k0, k1 = (int(word) for word in key)
    for _ in range(ROUNDS):
        p0, p1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        low = np.uint64(0xFFFFFFFF)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + WEYL[0]) & 0xFFFFFFFF, (k1 + WEYL[1]) & 0xFFFFFFFF
    return tuple(np.asarray(word, np.uint32) for word in np.broadcast_arrays(c0, c1, c2, c3))


if available():
    from causal_circuits.simd.vectors import (
        exclusive_or,
        inlined,
        multiply_wide,
        repeat,
        shift_right,
        to_floats,
    )

    @inlined
    def random_vectors(c0, c1, c2, c3, k0, k1):
        """`random_words` for vectors of counter words, inside a kernel."""
        for _ in range(ROUNDS):
            high0, low0 = multiply_wide(c0, MULTIPLIERS[0])
            high1, low1 = multiply_wide(c2, MULTIPLIERS[1])
            c0 = exclusive_or(exclusive_or(high1, c1), repeat(k0))
            c2 = exclusive_or(exclusive_or(high0, c3), repeat(k1))
            c1, c3 = low1, low0
            k0, k1 = np.uint32(k0 + np.uint32(WEYL[0])), np.uint32(k1 + np.uint32(WEYL[1]))
        return c0, c1, c2, c3

    @inlined
    def uniform(words):
        """Random words as numbers in (0, 1): the upper 24 bits, at the middle of their interval."""
        return (to_floats(shift_right(words, 8)) + 0.5) * np.float32(2.0**-24)
