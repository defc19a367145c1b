# mypy: ignore-errors
"""The type of a vector inside numba kernels, and the words of LLVM that its operations are made of.

Pieces of kernels are decorated with `inlined`; operations stand in `vectors` (floats, memory), `integers`, `functions`.
"""

from inspect import unwrap  # numba compiles the function itself, not a run-time type check around it

import llvmlite.binding
import numba
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.compiler import Compiler
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import models, register_jitable, register_model

FEATURES = llvmlite.binding.get_host_cpu_features()
LANES = 16 if FEATURES.get("avx512f") else 8
# The one operation LLVM has no portable word for is a table look-up inside a register; with AVX2 or AVX-512 it is one
# instruction, elsewhere it is a gather from memory.
PERMUTE = {8: "llvm.x86.avx2.permps", 16: "llvm.x86.avx512.permvar.sf.512"}[LANES] if FEATURES.get("avx2") else None

# Sums may be reordered and products fused; NaN and infinity keep their meaning, so that a loss that goes wrong shows.
FLAGS = ("reassoc", "contract", "arcp", "nsz")


# Pieces of kernels are compiled into whoever calls them, without the interpreter's lock. They may not make arrays:
# without numba's run time (_nrt) none of their arguments is counted, which in a loop over a few dozen numbers would
# take longer than the numbers. And they have no door for Python, which would take a tenth of the time to compile:
# calling a piece from outside a kernel crashes.
PIECE = {
    "forceinline": True,
    "nogil": True,
    "error_model": "numpy",
    "fastmath": set(FLAGS),
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


class _PieceCompiler(Compiler):
    """Leaves a piece as it stands: the kernel that it ends up in is optimised as a whole, once."""

    def compile_extra(self, func):
        """Compile, with LLVM's optimisations off."""
        with global_compiler_lock:  # the level is numba's own, for all threads
            level, config.OPT = config.OPT, 0
            try:
                return super().compile_extra(func)
            finally:
                config.OPT = level


def inlined(function):
    """Decorate a piece of a kernel."""
    return numba.njit(**PIECE, pipeline_class=_PieceCompiler)(unwrap(function))


def shared(function):
    """Decorate a piece of a kernel that Python calls too, uncompiled."""
    return register_jitable(**PIECE)(unwrap(function))


class Lanes(types.Type):
    """The numba type of a vector of `LANES` numbers."""

    def __init__(self, element: types.Number) -> None:
        self.element = element
        super().__init__(name=f"Lanes({element}, {LANES})")


floats, integers = Lanes(types.float32), Lanes(types.int32)
IR = {floats: ir.VectorType(ir.FloatType(), LANES), integers: ir.VectorType(ir.IntType(32), LANES)}
BITS = IR[integers]


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, IR[fe_type])


def spread_out(builder, value):
    """A vector that holds one scalar in every lane."""
    first = builder.insert_element(ir.Constant(ir.VectorType(value.type, LANES), ir.Undefined), value, word(0))
    return builder.shuffle_vector(first, first, ir.Constant(BITS, [0] * LANES))


def word(value: int) -> ir.Constant:
    """A 32-bit integer."""
    return ir.Constant(ir.IntType(32), value)


def constant(vector, value) -> ir.Constant:
    """The same constant in every lane of a vector type."""
    return ir.Constant(vector, [value] * vector.count)


def call(builder, name, result, *arguments, flags=()):
    """A call of one of LLVM's own functions."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [argument.type for argument in arguments]), name
    )
    return builder.call(function, arguments, fastmath=flags)


def suffix(vector) -> str:
    """How LLVM's functions name a vector type."""
    return f"v{LANES}{'f' if vector == IR[floats] else 'i'}32"


def as_lanes(context, builder, value, fe_type, lanes):
    """A vector as it is, a number in every lane."""
    if isinstance(fe_type, Lanes):
        return value
    return spread_out(builder, context.cast(builder, value, fe_type, lanes.element))
