# mypy: ignore-errors
"""Columns of a block of memory: what is a row of additions one way is a scatter the other."""

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from causal_circuits.simd.lanes import IR, LANES, as_lanes, constant, floats, integers, word
from causal_circuits.simd.vectors import first_lanes, masked_load, masked_store, pointer


def transposed(builder, rows):
    """`LANES` vectors as the columns of `LANES` vectors, by exchanging ever larger squares (Eklundh 1972)."""
    rows, step = list(rows), 1
    while step < LANES:
        stays = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
        moves = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
        for i in (i for i in range(LANES) if not i & step):
            pair = rows[i], rows[i + step]
            for at, lanes in ((i, stays), (i + step, moves)):
                rows[at] = builder.shuffle_vector(*pair, ir.Constant(IR[integers], lanes))
        step *= 2
    return rows


@intrinsic
def add_columns(typingctx, block, at, stride, table, to, table_stride, index):
    """table[to + index[k] * table_stride + i] += block[at + i * stride + k] for all lanes k and i, k after k.

    Block and table are float32 arrays read as flat memory; indices are not checked.
    """

    def generate(context, builder, sig, args):
        at, stride, to, table_stride = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2, 4, 5))
        rows = []
        for _ in range(LANES):
            rows.append(builder.load(pointer(context, builder, sig.args[0], args[0], at, IR[floats])))
            rows[-1].align = 4
            at = builder.add(at, stride)
        for k, column in enumerate(transposed(builder, rows)):
            row = builder.sext(builder.extract_element(args[6], word(k)), ir.IntType(64))
            place = builder.add(to, builder.mul(row, table_stride))
            place = pointer(context, builder, sig.args[3], args[3], place, IR[floats])
            before = builder.load(place)
            written = builder.store(builder.fadd(before, column), place)
            before.align = written.align = 4
        return context.get_dummy_value()

    return types.void(block, at, stride, table, to, table_stride, integers), generate


@intrinsic
def turn_over(typingctx, source, at, stride, n_rows, n_columns, out, to, out_stride, factor):
    """out[to + k * out_stride + i] = factor * source[at + i * stride + k] for i < n_rows and k < n_columns.

    Of both numbers, `LANES` at most. Arrays are float32, read as flat memory; nothing else of it is touched.
    """

    def generate(context, builder, sig, args):
        at, stride, to, out_stride = (context.cast(builder, args[i], sig.args[i], types.intp) for i in (1, 2, 6, 7))
        n_rows, n_columns = (context.cast(builder, args[i], sig.args[i], types.int32) for i in (3, 4))
        rows_there, columns_there = (first_lanes(context, builder, n, types.int32) for n in (n_rows, n_columns))
        nothing = constant(columns_there.type, 0)
        factor, rows = as_lanes(context, builder, args[8], sig.args[8], floats), []
        for i in range(LANES):
            there = builder.select(builder.icmp_signed("<", word(i), n_rows), columns_there, nothing)
            row = masked_load(builder, pointer(context, builder, sig.args[0], args[0], at, IR[floats]), there)
            rows.append(builder.fmul(row, factor))
            at = builder.add(at, stride)
        for k, column in enumerate(transposed(builder, rows)):
            there = builder.select(builder.icmp_signed("<", word(k), n_columns), rows_there, nothing)
            masked_store(builder, column, pointer(context, builder, sig.args[5], args[5], to, IR[floats]), there)
            to = builder.add(to, out_stride)
        return context.get_dummy_value()

    return types.void(source, at, stride, n_rows, n_columns, out, to, out_stride, factor), generate
