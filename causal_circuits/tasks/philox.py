"""Philox4x32-7 random numbers: word number `counter` of a stream, without the words before it.

Salmon, Moraes, Dror & Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); with seven rounds it passes
BigCrush. A counter of four 32-bit words and a key of two give four random words, so the numbers of a sequence depend on
nothing but the seed and the sequence's place in its stream: not on threads, vector widths, or what is drawn beside it.
"""

import numpy as np
from jaxtyping import UInt32

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
