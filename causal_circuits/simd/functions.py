# mypy: ignore-errors
"""exp, log and look-ups in small tables, lane by lane."""

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from causal_circuits.simd.integers import (
    bits_of,
    from_bits,
    nearest_integer,
    shift_left,
    shift_right_signed,
    to_floats,
)
from causal_circuits.simd.lanes import IR, LANES, PERMUTE, call, floats, inlined, integers, spread_out
from causal_circuits.simd.vectors import choose_less, fma, gather, splat

LOG2_E = 1.4426950408889634
ROOT_HALF = int(np.float32(0.5**0.5).view(np.int32))
ROUND = 12583039.0  # 1.5 * 2^23 + 127: adding it rounds to an integer, whose lowest bits are those of a power of two
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln 2; the first has few bits, so n * LN2_HIGH is exact


@inlined
def _beyond_the_line(r):
    """(e ** r - 1 - r) / r ** 2 for |r| <= ln 2 / 2 (coefficients: Cephes, expf)."""
    p = fma(r, splat(1.9875691500e-4), splat(1.3981999507e-3))
    p = fma(p, r, splat(8.3334519073e-3))
    p = fma(p, r, splat(4.1665795894e-2))
    p = fma(p, r, splat(1.6666665459e-1))
    return fma(p, r, splat(5.0000001201e-1))


@inlined
def exp(x):
    """E ** x lane by lane to 2e-7 relative for x <= 88; 0 below -87, NaN stays NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for e ** r, and 2 ** n from bits.
    """
    clamped = choose_less(x, -87.0, splat(-87.0), x)
    n = nearest_integer(clamped * LOG2_E)
    whole = to_floats(n)
    r = fma(whole, -LN2_LOW, fma(whole, -LN2_HIGH, clamped))
    p = fma(_beyond_the_line(r), r * r, r + 1.0)
    return choose_less(x, -87.0, splat(0.0), p * from_bits(shift_left(n + 127, 23)))


@inlined
def exp_of_negative(x):
    """E ** x lane by lane as `exp`, a third faster, for x <= 0 alone; 0 below -87.7.

    The sum with `ROUND` holds n + 127 in its lowest bits: shifted up they are 2 ** n, and 0 for n = -127. (`fma`, whose
    rounding the compiler may not touch, adds: it would take ROUND away again.)
    """
    clamped = choose_less(x, -88.02, splat(-88.02), x)
    rounded = fma(clamped, LOG2_E, splat(ROUND))
    whole = fma(rounded, splat(1.0), splat(-ROUND))
    r = fma(whole, -LN2_LOW, fma(whole, -LN2_HIGH, clamped))
    p = fma(fma(_beyond_the_line(r), r, splat(1.0)), r, splat(1.0))
    return p * from_bits(shift_left(bits_of(rounded), 23))


@inlined
def log(x):
    """The natural logarithm lane by lane, to 1e-7, for positive normal numbers.

    x = m 2 ** e with m in [1/sqrt 2, sqrt 2): subtracting the bits of 1/sqrt 2 leaves e on top. Then a polynomial for
    log m (coefficients: Cephes, logf).
    """
    bits = bits_of(x)
    exponent = shift_right_signed(bits - ROOT_HALF, 23)
    m, exponent = from_bits(bits - shift_left(exponent, 23)) - 1.0, to_floats(exponent)
    p = fma(m, splat(7.0376836292e-2), splat(-1.1514610310e-1))
    p = fma(p, m, splat(1.1676998740e-1))
    p = fma(p, m, splat(-1.2420140846e-1))
    p = fma(p, m, splat(1.4249322787e-1))
    p = fma(p, m, splat(-1.6668057665e-1))
    p = fma(p, m, splat(2.0000714765e-1))
    p = fma(p, m, splat(-2.4999993993e-1))
    p = fma(p, m, splat(3.3333331174e-1))
    square = m * m
    return fma(exponent, LN2_HIGH, m + fma(p * m, square, fma(square, splat(-0.5), exponent * LN2_LOW)))


@intrinsic
def _permute(typingctx, table, index):
    def generate(context, builder, sig, args):
        return call(builder, PERMUTE, IR[floats], args[0], args[1])

    return floats(floats, integers), generate


@intrinsic
def _choose_at_least(typingctx, index, bound, if_at_least, otherwise):
    def generate(context, builder, sig, args):
        bound = spread_out(builder, context.cast(builder, args[1], sig.args[1], types.int32))
        return builder.select(builder.icmp_signed(">=", args[0], bound), args[2], args[3])

    return if_at_least(integers, bound, if_at_least, otherwise), generate


HAS_PERMUTE = PERMUTE is not None
# Tables up to this size are looked up in registers, larger ones in memory.
IN_REGISTERS = 2 * LANES if HAS_PERMUTE else 0


@inlined
def look_up_in(low, high, array, offset, index, size):
    """array[offset + index] lane by lane for indices below `size`, `low` and `high` being the table's first vectors.

    A table of up to `IN_REGISTERS` numbers is these two vectors; `array` may then hold anything.
    """
    if HAS_PERMUTE and size <= LANES:
        return _permute(low, index)
    if HAS_PERMUTE and size <= IN_REGISTERS:
        return _choose_at_least(index, LANES, _permute(high, index), _permute(low, index))
    return gather(array, offset, index)
