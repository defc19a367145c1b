# mypy: ignore-errors
"""Vectors of 32-bit integers: bits, shifts, wide products, and to and from floats."""

import operator

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from causal_circuits.simd.lanes import BITS, IR, LANES, as_lanes, call, constant, floats, integers, spread_out, suffix


@intrinsic
def count_up(typingctx):
    """The int32 vector 0, 1, 2, ..."""

    def generate(context, builder, sig, args):
        return ir.Constant(BITS, list(range(LANES)))

    return integers(), generate


@intrinsic
def repeat(typingctx, number):
    """A 32-bit integer in every lane."""

    def generate(context, builder, sig, args):
        return spread_out(builder, context.cast(builder, args[0], sig.args[0], types.uint32))

    return integers(number), generate


def _shift(name: str, doc: str):
    @intrinsic
    def shift(typingctx, value, n):
        def generate(context, builder, sig, args):
            n = spread_out(builder, context.cast(builder, args[1], sig.args[1], types.int32))
            return getattr(builder, name)(args[0], n)

        return integers(integers, n), generate

    shift.__doc__ = doc
    return shift


shift_left = _shift("shl", "Integer lanes times 2 ** n.")
shift_right = _shift("lshr", "Integer lanes, taken as unsigned, divided by 2 ** n.")
shift_right_signed = _shift("ashr", "Integer lanes divided by 2 ** n and rounded down.")


def _bitwise(operation, name):
    @intrinsic
    def combine(typingctx, a, b):
        def generate(context, builder, sig, args):
            a, b = (as_lanes(context, builder, v, t, integers) for v, t in zip(args, sig.args, strict=True))
            return getattr(builder, name)(a, b)

        return integers(a, b), generate

    return combine


exclusive_or = _bitwise(operator.xor, "xor")
bits_and = _bitwise(operator.and_, "and_")


@intrinsic
def multiply_wide(typingctx, a, b):
    """High and low halves of the 64-bit products of unsigned 32-bit lanes with a number."""

    def generate(context, builder, sig, args):
        pairs = ir.VectorType(ir.IntType(64), LANES // 2)  # even lanes and odd lanes are multiplied apart
        low, half = constant(pairs, 0xFFFFFFFF), constant(pairs, 32)
        number = spread_out(builder, context.cast(builder, args[1], sig.args[1], types.uint32))
        number = builder.and_(builder.bitcast(number, pairs), low)
        both = builder.bitcast(args[0], pairs)
        even = builder.mul(builder.and_(both, low), number)
        odd = builder.mul(builder.lshr(both, half), number)
        high = builder.or_(builder.lshr(even, half), builder.and_(odd, constant(pairs, 0xFFFFFFFF00000000)))
        rest = builder.or_(builder.and_(even, low), builder.shl(odd, half))
        halves = [builder.bitcast(value, BITS) for value in (high, rest)]
        return context.make_tuple(builder, sig.return_type, halves)

    return types.UniTuple(integers, 2)(integers, b), generate


@intrinsic
def bits_of(typingctx, value):
    """The bits of a float32 vector as integers."""

    def generate(context, builder, sig, args):
        return builder.bitcast(args[0], BITS)

    return integers(floats), generate


@intrinsic
def from_bits(typingctx, value):
    """The float32 vector with these bits."""

    def generate(context, builder, sig, args):
        return builder.bitcast(args[0], IR[floats])

    return floats(integers), generate


@intrinsic
def nearest_integer(typingctx, value):
    """Float lanes rounded to integers (NaN becomes some integer)."""

    def generate(context, builder, sig, args):
        rounded = call(builder, f"llvm.rint.{suffix(IR[floats])}", IR[floats], args[0])
        return builder.fptosi(rounded, BITS)

    return integers(floats), generate


@intrinsic
def to_floats(typingctx, value):
    """Signed integer lanes as float32."""

    def generate(context, builder, sig, args):
        return builder.sitofp(args[0], IR[floats])

    return floats(integers), generate
