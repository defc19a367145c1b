# mypy: ignore-errors
"""Vectors of numbers inside numba kernels: SIMD that is written down rather than hoped for.

A compiled loop over an array becomes SIMD code if the compiler can prove that nothing overlaps; in a kernel with a
dozen arrays it cannot. So kernels here name their vectors. A vector has `LANES` lanes (8 float32, 16 where the
processor has AVX-512), lives in a register, and LLVM turns it into whatever instructions the machine has::

    total = splat(0.0)
    for v in range(0, n, LANES):
        total = fma(load(a, v), load(b, v), total)      # a, b: C-contiguous arrays of any shape, read as flat memory
    dot = sum_of(total)

`+ - *` and comparisons by `choose_less` work lane by lane, on two vectors or a vector and a number. Loads and stores do
not check bounds: arrays need `LANES` spare elements at their end if a vector may start at the last one.

Importing this file needs numba; `causal_circuits.simd.available` says whether it is there.
"""

import operator

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.imputils import lower_builtin
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic

from causal_circuits.simd.lanes import (
    BITS,
    FLAGS,
    IR,
    LANES,
    Lanes,
    as_lanes,
    call,
    constant,
    floats,
    integers,
    spread_out,
    suffix,
    word,
)


def _arithmetic(operation, for_floats, for_integers):
    @infer_global(operation)
    class Template(AbstractTemplate):
        def generic(self, args, kws):
            lanes = next((argument for argument in args if isinstance(argument, Lanes)), None)
            fits = all(argument == lanes or isinstance(argument, types.Number) for argument in args)
            return signature(lanes, *args) if lanes is not None and fits else None

    def lower(context, builder, sig, args):
        a, b = (as_lanes(context, builder, v, t, sig.return_type) for v, t in zip(args, sig.args, strict=True))
        if sig.return_type == floats:
            return getattr(builder, for_floats)(a, b, flags=FLAGS)
        return getattr(builder, for_integers)(a, b)

    for pair in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(operation, *pair)(lower)


_arithmetic(operator.add, "fadd", "add")
_arithmetic(operator.sub, "fsub", "sub")
_arithmetic(operator.mul, "fmul", "mul")


def pointer(context, builder, array_type, array, offset, vector):
    """Where a vector lies in an array read as flat memory."""
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
        value = builder.load(pointer(context, builder, sig.args[0], args[0], offset, IR[lanes]))
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
        written = builder.store(args[2], pointer(context, builder, sig.args[0], args[0], offset, IR[value]))
        written.align = 4
        return context.get_dummy_value()

    return types.void(array, offset, value), generate


def first_lanes(context, builder, value, number_type):
    """A mask of the lanes below a number."""
    n = spread_out(builder, context.cast(builder, value, number_type, types.int32))
    return builder.icmp_signed("<", ir.Constant(BITS, list(range(LANES))), n)


def masked_load(builder, at, mask):
    """The lanes of a mask from memory, 0 in the rest, whose memory is not touched."""
    arguments = at, word(4), mask, constant(IR[floats], 0.0)
    function = ir.FunctionType(IR[floats], [argument.type for argument in arguments])
    name = f"llvm.masked.load.{suffix(IR[floats])}.p0{suffix(IR[floats])}"
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def masked_store(builder, value, at, mask):
    """Write the lanes of a mask; the memory of the rest is not touched."""
    arguments = value, at, word(4), mask
    function = ir.FunctionType(ir.VoidType(), [argument.type for argument in arguments])
    name = f"llvm.masked.store.{suffix(IR[floats])}.p0{suffix(IR[floats])}"
    builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


@intrinsic
def load_first(typingctx, array, offset, n):
    """The first n of `LANES` neighbours from a float32 array, read as flat memory, then zeros: it may end there."""

    def generate(context, builder, sig, args):
        offset = context.cast(builder, args[1], sig.args[1], types.intp)
        at = pointer(context, builder, sig.args[0], args[0], offset, IR[floats])
        return masked_load(builder, at, first_lanes(context, builder, args[2], sig.args[2]))

    return floats(array, offset, n), generate


@intrinsic
def store_first(typingctx, array, offset, n, value):
    """Write the first n lanes to a float32 array, read as flat memory; what lies behind stays as it is."""

    def generate(context, builder, sig, args):
        offset = context.cast(builder, args[1], sig.args[1], types.intp)
        at = pointer(context, builder, sig.args[0], args[0], offset, IR[floats])
        masked_store(builder, args[3], at, first_lanes(context, builder, args[2], sig.args[2]))
        return context.get_dummy_value()

    return types.void(array, offset, n, floats), generate


@intrinsic
def entry(typingctx, array, offset):
    """One entry of an array read as flat memory.

    array[offset] would ask first whether the offset counts from the end, in inner loops as costly as the arithmetic.
    """
    if not isinstance(array, types.Array) or array.layout != "C":
        return None

    def generate(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        return builder.load(builder.gep(data, [context.cast(builder, args[1], sig.args[1], types.intp)]))

    return array.dtype(array, offset), generate


@intrinsic
def splat(typingctx, number):
    """A number in every lane: a float32 vector."""

    def generate(context, builder, sig, args):
        return as_lanes(context, builder, args[0], sig.args[0], floats)

    return floats(number), generate


@intrinsic
def fma(typingctx, a, b, c):
    """A * b + c in one rounding; a and b may be numbers."""

    def generate(context, builder, sig, args):
        a, b, c = (as_lanes(context, builder, v, t, floats) for v, t in zip(args, sig.args, strict=True))
        return call(builder, f"llvm.fma.{suffix(c.type)}", c.type, a, b, c)

    return floats(a, b, c), generate


def _reduction(name: str, llvm: str, doc: str):
    def typing(typingctx, value):
        def generate(context, builder, sig, args):
            start = [ir.Constant(ir.FloatType(), 0.0)] if llvm == "fadd" else []
            llvm_name = f"llvm.vector.reduce.{llvm}.{suffix(IR[floats])}"
            return call(builder, llvm_name, ir.FloatType(), *start, args[0], flags=FLAGS)

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
        inside = first_lanes(context, builder, args[1], sig.args[1])
        return builder.select(inside, args[0], as_lanes(context, builder, args[2], sig.args[2], value))

    return value(value, n, otherwise), generate


@intrinsic
def choose_less(typingctx, a, b, if_less, otherwise):
    """`if_less` where a < b, `otherwise` elsewhere (also where one is NaN)."""

    def generate(context, builder, sig, args):
        a, b = (as_lanes(context, builder, v, t, floats) for v, t in zip(args[:2], sig.args[:2], strict=True))
        return builder.select(builder.fcmp_ordered("<", a, b), args[2], args[3])

    return if_less(a, b, if_less, otherwise), generate


@intrinsic
def any_less(typingctx, a, b):
    """Whether a < b in any lane."""

    def generate(context, builder, sig, args):
        a, b = (as_lanes(context, builder, v, t, floats) for v, t in zip(args, sig.args, strict=True))
        bits = builder.bitcast(builder.fcmp_ordered("<", a, b), ir.IntType(LANES))
        return builder.icmp_unsigned("!=", bits, ir.Constant(ir.IntType(LANES), 0))

    return types.boolean(a, b), generate


@intrinsic
def count_less(typingctx, a, b):
    """In how many lanes a < b."""

    def generate(context, builder, sig, args):
        a, b = (as_lanes(context, builder, v, t, floats) for v, t in zip(args, sig.args, strict=True))
        bits = builder.bitcast(builder.fcmp_ordered("<", a, b), ir.IntType(LANES))
        return builder.zext(builder.ctpop(bits), ir.IntType(64))

    return types.intp(a, b), generate


@intrinsic
def gather(typingctx, array, offset, index):
    """array[offset + index] lane by lane, from a float32 array read as flat memory; indices are not checked."""

    def generate(context, builder, sig, args):
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        base = builder.gep(base, [context.cast(builder, args[1], sig.args[1], types.intp)])
        result = ir.Constant(IR[floats], ir.Undefined)
        for lane in range(LANES):
            at = builder.sext(builder.extract_element(args[2], word(lane)), ir.IntType(64))
            result = builder.insert_element(result, builder.load(builder.gep(base, [at])), word(lane))
        return result

    return floats(array, offset, integers), generate


@intrinsic
def scatter(typingctx, array, offset, stride, value):
    """array[offset + lane * stride] = value, lane by lane, in a float32 array seen as flat memory."""

    def generate(context, builder, sig, args):
        base = context.make_array(sig.args[0])(context, builder, args[0]).data
        at, step = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2))
        for lane in range(LANES):
            builder.store(builder.extract_element(args[3], word(lane)), builder.gep(base, [at]))
            at = builder.add(at, step)
        return context.get_dummy_value()

    return types.void(array, offset, stride, floats), generate


@intrinsic
def where_equal(typingctx, index, number, value):
    """The lanes of a float32 vector whose index is a number, 0 in the rest."""

    def generate(context, builder, sig, args):
        number = spread_out(builder, context.cast(builder, args[1], sig.args[1], types.int32))
        return builder.select(builder.icmp_signed("==", args[0], number), args[2], constant(IR[floats], 0.0))

    return floats(integers, number, floats), generate


@intrinsic
def store_four_sums(typingctx, array, offset, a, b, c, d):
    """Write the sums over all lanes of four float32 vectors side by side; `sum_of` four times takes twice as long."""

    def generate(context, builder, sig, args):
        def pairs(first, second):  # neighbours added, four lanes at a time: those of `first`, then those of `second`
            even = [at + lane for start in range(0, LANES, 4) for at in (start, LANES + start) for lane in (0, 2)]
            odd = [lane + 1 for lane in even]
            halves = (builder.shuffle_vector(first, second, ir.Constant(BITS, lanes)) for lanes in (even, odd))
            return builder.fadd(*halves, flags=FLAGS)

        total, n = pairs(pairs(*args[2:4]), pairs(*args[4:6])), LANES
        while n > 4:
            n //= 2
            low, high = (ir.Constant(ir.VectorType(ir.IntType(32), n), list(range(at, at + n))) for at in (0, n))
            low, high = (builder.shuffle_vector(total, total, half) for half in (low, high))
            total = builder.fadd(low, high, flags=FLAGS)
        offset = context.cast(builder, args[1], sig.args[1], types.intp)
        written = builder.store(total, pointer(context, builder, sig.args[0], args[0], offset, total.type))
        written.align = 4
        return context.get_dummy_value()

    return types.void(array, offset, floats, floats, floats, floats), generate


@intrinsic
def inverse(typingctx, value):
    """1 / value lane by lane."""

    def generate(context, builder, sig, args):
        return builder.fdiv(constant(IR[floats], 1.0), args[0])

    return floats(value), generate


@intrinsic
def root(typingctx, value):
    """The square root lane by lane."""

    def generate(context, builder, sig, args):
        return call(builder, f"llvm.sqrt.{suffix(IR[floats])}", IR[floats], args[0])

    return floats(floats), generate
