# mypy: ignore-errors
# (numba types what stands here; to mypy the operators of a compiled vector mean nothing)
"""Vectors of numbers inside numba kernels: SIMD that is written down rather than hoped for.

A compiled loop over an array becomes SIMD code if the compiler can prove that nothing overlaps; in a kernel with a
dozen arrays it cannot. So kernels here name their vectors. A vector has `LANES` lanes (8 float32, 16 where the
processor has AVX-512), lives in a register, and LLVM turns it into whatever instructions the machine has::

    total = zeros()
    for v in range(0, n, LANES):
        total = fma(load(a, v), load(b, v), total)      # a, b: C-contiguous arrays of any shape, read as flat memory
    dot = sum_of(total)

`+ - *` and comparisons by `where_less` work lane by lane, on two vectors or a vector and a number. Loads and stores do
not check bounds: arrays need `LANES` spare elements at their end if a vector may start at the last one.

Importing this file needs numba; `causal_circuits.simd.available` says whether it is there.
"""

import operator
from inspect import unwrap  # numba compiles the function itself, not a run-time type check around it

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, models, register_jitable, register_model

_FEATURES = llvmlite.binding.get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f") else 8
# The one operation LLVM has no portable word for is a table look-up inside a register; with AVX2 or AVX-512 it is one
# instruction, elsewhere it is a gather from memory.
_PERMUTE = {8: "llvm.x86.avx2.permps", 16: "llvm.x86.avx512.permvar.sf.512"}[LANES] if _FEATURES.get("avx2") else None

# Sums may be reordered and products fused; NaN and infinity keep their meaning, so that a loss that goes wrong shows.
FLAGS = ("reassoc", "contract", "arcp", "nsz")


# Pieces of kernels are compiled into whoever calls them, without the interpreter's lock. They may not make arrays:
# without numba's run time (_nrt) none of their arguments is counted, which in a loop over a few dozen numbers would
# take longer than the numbers.
PIECE = {"forceinline": True, "nogil": True, "error_model": "numpy", "fastmath": set(FLAGS), "_nrt": False}


def inlined(function):
    """Decorate a piece of a kernel."""
    return numba.njit(**PIECE)(unwrap(function))


def shared(function):
    """Decorate a piece of a kernel that Python calls too, uncompiled."""
    return register_jitable(**PIECE)(unwrap(function))


class Lanes(types.Type):
    """The numba type of a vector of `LANES` numbers."""

    def __init__(self, element: types.Number) -> None:
        self.element = element
        super().__init__(name=f"Lanes({element}, {LANES})")


floats, integers = Lanes(types.float32), Lanes(types.int32)
_IR = {floats: ir.VectorType(ir.FloatType(), LANES), integers: ir.VectorType(ir.IntType(32), LANES)}
_BITS = _IR[integers]


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _IR[fe_type])


def _splat(builder, value):
    """A vector that holds one scalar in every lane."""
    first = builder.insert_element(ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined), value, _i32(0))
    return builder.shuffle_vector(first, first, ir.Constant(_BITS, [0] * LANES))


def _i32(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(32), value)


def _constant(vector, value) -> ir.Constant:
    return ir.Constant(vector, [value] * vector.count)


def _call(builder, name, result, *arguments, flags=()):
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [argument.type for argument in arguments]), name
    )
    return builder.call(function, arguments, fastmath=flags)


def _suffix(vector) -> str:
    return f"v{LANES}{'f' if vector == _IR[floats] else 'i'}32"


def _as_lanes(context, builder, value, fe_type, lanes):
    """A vector as it is, a number in every lane."""
    if isinstance(fe_type, Lanes):
        return value
    return _splat(builder, context.cast(builder, value, fe_type, lanes.element))


def _arithmetic(operation, for_floats, for_integers):
    @infer_global(operation)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            lanes = next((argument for argument in args if isinstance(argument, Lanes)), None)
            fits = all(argument == lanes or isinstance(argument, types.Number) for argument in args)
            return signature(lanes, *args) if lanes is not None and fits else None

    def lower(context, builder, sig, args):
        a, b = (_as_lanes(context, builder, v, t, sig.return_type) for v, t in zip(args, sig.args, strict=True))
        if sig.return_type == floats:
            return getattr(builder, for_floats)(a, b, flags=FLAGS)
        return getattr(builder, for_integers)(a, b)

    for pair in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(operation, *pair)(lower)


_arithmetic(operator.add, "fadd", "add")
_arithmetic(operator.sub, "fsub", "sub")
_arithmetic(operator.mul, "fmul", "mul")


def _pointer(context, builder, array_type, array, offset, vector):
    data = context.make_array(array_type)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


def _lanes_of(array: types.Array) -> Lanes:
    return {types.float32: floats, types.int32: integers}[array.dtype]


@intrinsic
def load(typingctx, array, offset):
    """`LANES` neighbours from a float32 or int32 array, read as flat memory."""
    if not isinstance(array, types.Array) or array.layout != "C" or array.dtype not in (types.float32, types.int32):
        return None
    lanes = _lanes_of(array)

    def generate(context, builder, sig, args):
        offset = context.cast(builder, args[1], sig.args[1], types.intp)
        value = builder.load(_pointer(context, builder, sig.args[0], args[0], offset, _IR[lanes]))
        value.align = 4
        return value

    return lanes(array, offset), generate


@intrinsic
def store(typingctx, array, offset, value):
    """Write a vector to a float32 or int32 array, read as flat memory."""
    if not isinstance(array, types.Array) or array.layout != "C" or not isinstance(value, Lanes):
        return None

    def generate(context, builder, sig, args):
        offset = context.cast(builder, args[1], sig.args[1], types.intp)
        written = builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], offset, _IR[value]))
        written.align = 4
        return context.get_dummy_value()

    return types.void(array, offset, value), generate


@intrinsic
def splat(typingctx, number):
    """A number in every lane: a float32 vector."""

    def generate(context, builder, sig, args):
        return _as_lanes(context, builder, args[0], sig.args[0], floats)

    return floats(number), generate


@intrinsic
def count_up(typingctx):
    """The int32 vector 0, 1, 2, ..."""

    def generate(context, builder, sig, args):
        return ir.Constant(_BITS, list(range(LANES)))

    return integers(), generate


@intrinsic
def fma(typingctx, a, b, c):
    """A * b + c in one rounding; a and b may be numbers."""

    def generate(context, builder, sig, args):
        a, b, c = (_as_lanes(context, builder, v, t, floats) for v, t in zip(args, sig.args, strict=True))
        return _call(builder, f"llvm.fma.{_suffix(c.type)}", c.type, a, b, c)

    return floats(a, b, c), generate


def _reduction(name: str, llvm: str, doc: str):
    def typing(typingctx, value):
        def generate(context, builder, sig, args):
            start = [ir.Constant(ir.FloatType(), 0.0)] if llvm == "fadd" else []
            llvm_name = f"llvm.vector.reduce.{llvm}.{_suffix(_IR[floats])}"
            return _call(builder, llvm_name, ir.FloatType(), *start, args[0], flags=FLAGS)

        return types.float32(floats), generate

    typing.__name__, typing.__doc__ = name, doc
    return intrinsic(typing)


sum_of = _reduction("sum_of", "fadd", "The sum of all lanes.")
largest_of = _reduction("largest_of", "fmax", "The largest lane.")


@intrinsic
def larger(typingctx, a, b):
    """The larger of each pair; NaN only if a is."""

    def generate(context, builder, sig, args):
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[1], args[0])

    return floats(floats, floats), generate


@intrinsic
def keep_first(typingctx, value, n, otherwise):
    """The lanes below n as they are, `otherwise` in the rest."""

    def generate(context, builder, sig, args):
        n = _splat(builder, context.cast(builder, args[1], sig.args[1], types.int32))
        inside = builder.icmp_signed("<", ir.Constant(_BITS, list(range(LANES))), n)
        return builder.select(inside, args[0], _as_lanes(context, builder, args[2], sig.args[2], value))

    return value(value, n, otherwise), generate


@intrinsic
def choose_less(typingctx, a, b, if_less, otherwise):
    """`if_less` where a < b, `otherwise` elsewhere (also where one is NaN)."""

    def generate(context, builder, sig, args):
        a, b = (_as_lanes(context, builder, v, t, floats) for v, t in zip(args[:2], sig.args[:2], strict=True))
        return builder.select(builder.fcmp_ordered("<", a, b), args[2], args[3])

    return if_less(a, b, if_less, otherwise), generate


@intrinsic
def any_less(typingctx, a, b):
    """Whether a < b in any lane."""

    def generate(context, builder, sig, args):
        a, b = (_as_lanes(context, builder, v, t, floats) for v, t in zip(args, sig.args, strict=True))
        bits = builder.bitcast(builder.fcmp_ordered("<", a, b), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(a, b), generate


@intrinsic
def count_less(typingctx, a, b):
    """In how many lanes a < b."""

    def generate(context, builder, sig, args):
        a, b = (_as_lanes(context, builder, v, t, floats) for v, t in zip(args, sig.args, strict=True))
        bits = builder.bitcast(builder.fcmp_ordered("<", a, b), ir.IntType(LANES))
        return builder.zext(builder.ctpop(bits), ir.IntType(64))

    return types.intp(a, b), generate


@intrinsic
def gather(typingctx, array, offset, index):
    """array[offset + index] lane by lane, from a float32 array read as flat memory; indices are not checked."""

    def generate(context, builder, sig, args):
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        base = builder.gep(base, [context.cast(builder, args[1], sig.args[1], types.intp)])
        result = ir.Constant(_IR[floats], ir.Undefined)
        for lane in range(LANES):
            at = builder.sext(builder.extract_element(args[2], _i32(lane)), ir.IntType(64))
            result = builder.insert_element(result, builder.load(builder.gep(base, [at])), _i32(lane))
        return result

    return floats(array, offset, integers), generate


@intrinsic
def scatter(typingctx, array, offset, stride, value):
    """array[offset + lane * stride] = value, lane by lane, in a float32 array seen as flat memory."""

    def generate(context, builder, sig, args):
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        at, step = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2))
        for lane in range(LANES):
            builder.store(builder.extract_element(args[3], _i32(lane)), builder.gep(base, [at]))
            at = builder.add(at, step)
        return context.get_dummy_value()

    return types.void(array, offset, stride, floats), generate


@intrinsic
def _permute(typingctx, table, index):
    def generate(context, builder, sig, args):
        return _call(builder, _PERMUTE, _IR[floats], args[0], args[1])

    return floats(floats, integers), generate


@intrinsic
def _choose_at_least(typingctx, index, bound, if_at_least, otherwise):
    def generate(context, builder, sig, args):
        bound = _splat(builder, context.cast(builder, args[1], sig.args[1], types.int32))
        return builder.select(builder.icmp_signed(">=", args[0], bound), args[2], args[3])

    return if_at_least(integers, bound, if_at_least, otherwise), generate


HAS_PERMUTE = _PERMUTE is not None


@inlined
def look_up_in(low, high, array, offset, index, size):
    """array[offset + index] lane by lane for indices below `size`, `low` and `high` being the table's first vectors.

    A table of up to two vectors is read in registers, a larger one from memory.
    """
    if HAS_PERMUTE and size <= LANES:
        return _permute(low, index)
    if HAS_PERMUTE and size <= 2 * LANES:
        return _choose_at_least(index, LANES, _permute(high, index), _permute(low, index))
    return gather(array, offset, index)


@intrinsic
def bits_of(typingctx, value):
    """The bits of a float32 vector as integers."""

    def generate(context, builder, sig, args):
        return builder.bitcast(args[0], _BITS)

    return integers(floats), generate


@intrinsic
def from_bits(typingctx, value):
    """The float32 vector with these bits."""

    def generate(context, builder, sig, args):
        return builder.bitcast(args[0], _IR[floats])

    return floats(integers), generate


def _shift(name: str, doc: str):
    @intrinsic
    def shift(typingctx, value, n):
        def generate(context, builder, sig, args):
            n = _splat(builder, context.cast(builder, args[1], sig.args[1], types.int32))
            return getattr(builder, name)(args[0], n)

        return integers(integers, n), generate

    shift.__doc__ = doc
    return shift


shift_left = _shift("shl", "Integer lanes times 2 ** n.")
shift_right = _shift("lshr", "Integer lanes, taken as unsigned, divided by 2 ** n.")
shift_right_signed = _shift("ashr", "Integer lanes divided by 2 ** n and rounded down.")


@intrinsic
def nearest_integer(typingctx, value):
    """Float lanes rounded to integers (NaN becomes some integer)."""

    def generate(context, builder, sig, args):
        rounded = _call(builder, f"llvm.rint.{_suffix(_IR[floats])}", _IR[floats], args[0])
        return builder.fptosi(rounded, _BITS)

    return integers(floats), generate


@intrinsic
def to_floats(typingctx, value):
    """Signed integer lanes as float32."""

    def generate(context, builder, sig, args):
        return builder.sitofp(args[0], _IR[floats])

    return floats(integers), generate


LOG2_E = 1.4426950408889634
ROOT_HALF = int(np.float32(0.5**0.5).view(np.int32))
LN2_HIGH, LN2_LOW = 0.693359375, -2.12194440e-4  # their sum is ln 2; the first has few bits, so n * LN2_HIGH is exact


@inlined
def exp(x):
    """E ** x lane by lane to 2e-7 relative for x <= 88; 0 below -87, NaN stays NaN.

    x = n ln 2 + r with |r| <= ln 2 / 2, a polynomial for e ** r (coefficients: Cephes, expf), and 2 ** n from bits.
    """
    clamped = choose_less(x, -87.0, splat(-87.0), x)
    n = nearest_integer(clamped * LOG2_E)
    whole = to_floats(n)
    r = fma(whole, -LN2_LOW, fma(whole, -LN2_HIGH, clamped))
    p = fma(r, splat(1.9875691500e-4), splat(1.3981999507e-3))
    p = fma(p, r, splat(8.3334519073e-3))
    p = fma(p, r, splat(4.1665795894e-2))
    p = fma(p, r, splat(1.6666665459e-1))
    p = fma(p, r, splat(5.0000001201e-1))
    p = fma(p, r * r, r + 1.0)
    return choose_less(x, -87.0, splat(0.0), p * from_bits(shift_left(n + 127, 23)))


@intrinsic
def multiply_wide(typingctx, a, b):
    """High and low halves of the 64-bit products of unsigned 32-bit lanes with a number."""

    def generate(context, builder, sig, args):
        pairs = ir.VectorType(ir.IntType(64), LANES // 2)  # even lanes and odd lanes are multiplied apart
        low, half = _constant(pairs, 0xFFFFFFFF), _constant(pairs, 32)
        number = _splat(builder, context.cast(builder, args[1], sig.args[1], types.uint32))
        number = builder.and_(builder.bitcast(number, pairs), low)
        both = builder.bitcast(args[0], pairs)
        even = builder.mul(builder.and_(both, low), number)
        odd = builder.mul(builder.lshr(both, half), number)
        high = builder.or_(builder.lshr(even, half), builder.and_(odd, _constant(pairs, 0xFFFFFFFF00000000)))
        rest = builder.or_(builder.and_(even, low), builder.shl(odd, half))
        halves = [builder.bitcast(value, _BITS) for value in (high, rest)]
        return context.make_tuple(builder, sig.return_type, halves)

    return types.UniTuple(integers, 2)(integers, b), generate


def _bitwise(operation, name):
    @intrinsic
    def combine(typingctx, a, b):
        def generate(context, builder, sig, args):
            a, b = (_as_lanes(context, builder, v, t, integers) for v, t in zip(args, sig.args, strict=True))
            return getattr(builder, name)(a, b)

        return integers(a, b), generate

    return combine


exclusive_or = _bitwise(operator.xor, "xor")
bits_and = _bitwise(operator.and_, "and_")


@intrinsic
def repeat(typingctx, number):
    """A 32-bit integer in every lane."""

    def generate(context, builder, sig, args):
        return _splat(builder, context.cast(builder, args[0], sig.args[0], types.uint32))

    return integers(number), generate


@intrinsic
def inverse(typingctx, value):
    """1 / value lane by lane."""

    def generate(context, builder, sig, args):
        return builder.fdiv(_constant(_IR[floats], 1.0), args[0])

    return floats(value), generate


@intrinsic
def root(typingctx, value):
    """The square root lane by lane."""

    def generate(context, builder, sig, args):
        return _call(builder, f"llvm.sqrt.{_suffix(_IR[floats])}", _IR[floats], args[0])

    return floats(floats), generate


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
