"""Products of small matrices in registers, for attention on a CPU. Knows no attention.

A tile of the result, a few rows of one or two vectors, stays in registers while the sum runs. Each
term loads one number of every row of the left matrix into all lanes, and one or two vectors of a
row of the right one. Matrices should lie in a near cache. The left one may be strided in both
directions, so it can be read transposed too. Addresses are in bytes, strides in floats.

In a product of pairs each number of left and right is a 32-bit word with two of bfloat16, whose
products are both added: a sum over n takes (n + 1) / 2 terms. The result is in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import types

from ast_fast_kernels._cpu.compile import intrinsic
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES, Lanes, Value


class _Product(NamedTuple):
    """A product's arguments, as addresses and numbers in LLVM; not every form has the last two."""

    left: ir.Value
    left_row: ir.Value
    left_term: ir.Value
    right: ir.Value
    right_term: ir.Value
    result: ir.Value
    result_row: ir.Value
    rows: ir.Value
    terms: ir.Value
    less: ir.Value | None = None
    factor: ir.Value | None = None


def tile_rows(lanes: int) -> tuple[int, ...]:
    """Return the heights of tiles, largest first, that a result is cut into.

    A tile has two vectors a row, and as many sums as the registers hold beside the factors: there
    are 32 registers of 16 lanes, and 16 of fewer.
    """
    return (8, 4, 1) if lanes == 16 else (6, 4, 1)


@intrinsic
def product(
    typing_context: Any, left: Any, left_row: Any, left_term: Any, right: Any, right_term: Any,
    result: Any, result_row: Any, rows: Any, terms: Any, vectors: Any, lanes: Any,
) -> Any:  # fmt: skip
    """Write left @ right, `vectors` vectors wide.

    The arguments are left's address and its strides from row to row and from term to term; right's
    address and stride; the result's address and stride; the number of rows, and of terms in a sum.
    """
    return _typed(9, vectors, lanes)


@intrinsic
def product_added(
    typing_context: Any, left: Any, left_row: Any, left_term: Any, right: Any, right_term: Any,
    result: Any, result_row: Any, rows: Any, terms: Any, vectors: Any, lanes: Any,
) -> Any:  # fmt: skip
    """Add left @ right to the result."""
    return _typed(9, vectors, lanes, added=True)


@intrinsic
def product_exp2(
    typing_context: Any, left: Any, left_row: Any, left_term: Any, right: Any, right_term: Any,
    result: Any, result_row: Any, rows: Any, terms: Any, less: Any, vectors: Any, lanes: Any,
) -> Any:  # fmt: skip
    """Write two to the power of left @ right minus the row at the address `less`."""
    return _typed(10, vectors, lanes, exp2=True)


@intrinsic
def product_times(
    typing_context: Any, left: Any, left_row: Any, left_term: Any, right: Any, right_term: Any,
    result: Any, result_row: Any, rows: Any, terms: Any, less: Any, factor: Any, vectors: Any,
    lanes: Any,
) -> Any:  # fmt: skip
    """Write left @ right minus the row at `less`, times the matrix at `factor`.

    `factor` has the result's stride.
    """
    return _typed(11, vectors, lanes)


@intrinsic
def pair_product(
    typing_context: Any, left: Any, left_row: Any, left_term: Any, right: Any, right_term: Any,
    result: Any, result_row: Any, rows: Any, terms: Any, vectors: Any, lanes: Any, native: Any,
) -> Any:  # fmt: skip
    """Write left @ right of pairs; unless `native` is 0, by the machine's dot product."""
    return _typed(9, vectors, lanes, native=native)


@intrinsic
def pair_product_added(
    typing_context: Any, left: Any, left_row: Any, left_term: Any, right: Any, right_term: Any,
    result: Any, result_row: Any, rows: Any, terms: Any, vectors: Any, lanes: Any, native: Any,
) -> Any:  # fmt: skip
    """Add left @ right of pairs to the result."""
    return _typed(9, vectors, lanes, added=True, native=native)


class _Form(NamedTuple):
    """What a product's tiles do."""

    vectors: int
    """Vectors in a row."""
    added: bool = False
    """Add to what the result holds."""
    exp2: bool = False
    """Store two to the power of the sums."""
    pairs: str | None = None
    """Numbers are pairs, multiplied by the machine's dot product (native) or not (widened)."""


def _typed(
    count: int, vectors: Any, lanes: Any, *, added: bool = False, exp2: bool = False,
    native: Any = None,
) -> Any:  # fmt: skip
    """Return the signature and the emitter of a product of `count` addresses, strides and sizes.

    Args:
        count: How many fields of `_Product` the form has.
        vectors: Vectors in a row, a literal type.
        lanes: Lanes of a vector, a literal type.
        added: Add to what the result holds.
        exp2: Store two to the power of the sums.
        native: Of a product of pairs, whether the machine has their dot product, a literal type.
    """
    literals = (vectors, lanes) if native is None else (vectors, lanes, native)
    if not all(isinstance(kind, types.IntegerLiteral) for kind in literals):
        return None
    pairs = None
    if native is not None:
        pairs = "native" if native.literal_value else "widened"

    def emit(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> ir.Value:
        unit, form = Lanes(builder, lanes.literal_value), vectors.literal_value
        _emit_product(unit, _Form(form, added, exp2, pairs), _Product(*args[:count]))
        return context.get_dummy_value()

    return types.void(*[types.intp] * count, *literals), emit


def _emit_product(unit: Lanes, form: _Form, given: _Product) -> None:
    """Emit the tiles from the first row to the last, each as high as the rows left allow."""
    builder, size = unit.builder, given.rows.type
    moving = {"left": given.left_row, "result": given.result_row}
    if given.factor is not None:
        moving["factor"] = given.result_row
    state, rows = [getattr(given, name) for name in moving], given.rows
    for height in tile_rows(unit.count):

        def one_tile(now: list[ir.Value], height: int = height) -> list[ir.Value]:
            here = given._replace(**dict(zip(moving, now, strict=True)))
            _emit_tile(unit, height, form, here)
            bytes_on = size(height * FLOAT_BYTES)
            return [
                builder.add(address, builder.mul(stride, bytes_on))
                for address, stride in zip(now, moving.values(), strict=True)
            ]

        count = _tiles_of(builder, height, rows)
        state = _repeat(builder, count, state, one_tile)
        rows = builder.sub(rows, builder.mul(count, size(height)))


def _tiles_of(builder: ir.IRBuilder, height: int, rows: ir.Value) -> ir.Value:
    """Return how many tiles of a height to cut from rows.

    If two or three rows would be left after tiles of six, cut one tile fewer: the rest then has two
    tiles of four.
    """
    size = rows.type
    count, left = builder.udiv(rows, size(height)), builder.urem(rows, size(height))
    if height != 6:
        return count
    odd = builder.or_(
        builder.icmp_unsigned("==", left, size(2)), builder.icmp_unsigned("==", left, size(3))
    )
    spare = builder.and_(odd, builder.icmp_unsigned(">", count, size(0)))
    return builder.sub(count, builder.zext(spare, size))


def _emit_tile(unit: Lanes, rows: int, form: _Form, given: _Product) -> None:
    builder, size, vectors = unit.builder, given.rows.type, form.vectors
    row_starts = [builder.mul(given.left_row, size(row)) for row in range(rows)]
    columns = [size(vector * unit.count) for vector in range(vectors)]
    places = [
        builder.add(builder.mul(given.result_row, size(row)), column)
        for row in range(rows)
        for column in columns
    ]
    result = _pointer(builder, given.result)
    if form.added:
        sums = [unit.load(result, place) for place in places]
    else:
        sums = [unit.constant(0.0)] * len(places)

    def add_term(state: list[ir.Value]) -> list[ir.Value]:
        """Add the products of the term at the two addresses."""
        left, right, *so_far = state
        here, there = _pointer(builder, left), _pointer(builder, right)
        line = [unit.load(there, column) for column in columns]
        grown = []
        for row, row_start in enumerate(row_starts):
            number = unit.load_splat(here, row_start)
            for value, total in zip(line, so_far[row * vectors :], strict=False):
                grown.append(_add_product(unit, number, value, Value(unit, total), form).value)
        return [
            builder.add(left, builder.mul(given.left_term, size(FLOAT_BYTES))),
            builder.add(right, builder.mul(given.right_term, size(FLOAT_BYTES))),
            *grown,
        ]

    state = [given.left, given.right, *(value.value for value in sums)]
    # One term a turn: with more, LLVM moves all loads to the front and runs out of registers.
    state = _repeat(builder, given.terms, state, add_term)
    totals = [Value(unit, total) for total in state[2:]]
    if given.less is not None:
        less = _pointer(builder, given.less)
        totals = [
            total - unit.load(less, column)
            for total, column in zip(totals, columns * rows, strict=True)
        ]
    for total, place in zip(totals, places, strict=True):
        if form.exp2:
            total = unit.exp2(total)
        if given.factor is not None:
            total = total * unit.load(_pointer(builder, given.factor), place)
        unit.store(total, result, place)


def _add_product(unit: Lanes, number: Value, value: Value, total: Value, form: _Form) -> Value:
    if form.pairs is None:
        return unit.fma(number, value, total)
    return unit.add_pairs(number, value, total, native=form.pairs == "native")


def _pointer(builder: ir.IRBuilder, address: ir.Value) -> ir.Value:
    return builder.inttoptr(address, ir.FloatType().as_pointer())


def _repeat(
    builder: ir.IRBuilder,
    count: ir.Value,
    state: Sequence[ir.Value],
    turn: Callable[[list[ir.Value]], list[ir.Value]],
) -> list[ir.Value]:
    """Emit a loop of `count` turns that carries values in registers; return the last ones."""
    before = builder.block
    check, body, after = (builder.append_basic_block(name) for name in ("check", "turn", "after"))
    builder.branch(check)
    builder.position_at_end(check)
    index, *now = phis = [builder.phi(value.type) for value in (count, *state)]
    for phi, value in zip(phis, (count.type(0), *state), strict=True):
        phi.add_incoming(value, before)
    builder.cbranch(builder.icmp_unsigned("<", index, count), body, after)
    builder.position_at_end(body)
    following = (builder.add(index, count.type(1)), *turn(list(now)))
    for phi, value in zip(phis, following, strict=True):
        phi.add_incoming(value, builder.block)
    builder.branch(check)
    builder.position_at_end(after)
    return now
