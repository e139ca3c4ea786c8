"""Vectors of float32 lanes in compiled code, and the few operations on them.

Values of `VectorType` live in LLVM registers, so code written with them is vector code whatever the
optimiser decides. LLVM maps 16 lanes to AVX-512, 8 to AVX2 and 4 to NEON or SSE, and splits vectors
that are too wide for the machine. Knows no audio.

Inside `@njit` code, `load`, `store`, `splat`, `maximum`, `log` and the operators `+ - * /` work on
values of `VectorType`; what they emit is in lanes.py.
"""

from __future__ import annotations

import ctypes
import operator
import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.datamodel.registry import register_default
from numba.extending import lower_builtin, type_callable

from ast_fast_kernels._cpu.compile import intrinsic
from ast_fast_kernels._cpu.lanes import (
    ALIGNMENT,
    FLOAT,
    FLOAT_BYTES,
    INT32,
    LOG_COEFFICIENTS,
    Lanes,
    Value,
    places,
)

INTEGER_BYTES = 8

LINE = ALIGNMENT // FLOAT_BYTES
"""Floats in a cache line; buffers side by side each fill a whole number of lines."""


@cache
def host_lanes() -> int:
    """Return the float32 lanes of the widest vectors that Numba compiles for: 16, 8 or 4.

    Those of this machine, unless NUMBA_CPU_FEATURES says otherwise. Asked only once: LLVM answers
    under a lock, and a process forked while another thread holds it would wait forever.
    """
    features = _host_features()
    if "+avx512f" in features:
        return 16
    return 8 if "+avx2" in features else 4


@cache
def _host_features() -> frozenset[str]:
    """Return the CPU's features as LLVM writes them; those that it lacks have a minus."""
    chosen = numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    features = llvm.get_host_cpu_features().flatten() if chosen is None else chosen
    return frozenset(features.split(","))


@cache
def has_bfloat16_dots() -> bool:
    """Say whether Numba compiles for a machine with dot products of bfloat16 (AVX-512 BF16)."""
    return {"+avx512f", "+avx512bf16"} <= _host_features()


@cache
def has_bfloat16_matrices() -> bool:
    """Say whether the machine multiplies matrices of bfloat16 (AMX), as torch does then."""
    return "+amx-bf16" in _host_features()


@cache
def has_float16() -> bool:
    """Say whether Numba compiles for a machine that converts float16: F16C, or any 64-bit ARM.

    Elsewhere LLVM would call a library for each lane, which compiled code does not find.
    """
    return "+f16c" in _host_features() or platform.machine() in ("aarch64", "arm64")


def aligned(size: int) -> npt.NDArray[np.float32]:
    """Return an uninitialised float32 buffer that begins at a multiple of ALIGNMENT."""
    raw = np.empty(size + LINE, np.float32)
    start = -(address_of(raw) // FLOAT_BYTES) % LINE
    return raw[start : start + size]


def address_of(array: npt.NDArray[Any]) -> int:
    """Return the address of the array's first element; the array must not be empty."""
    if array.flags.carray:  # contiguous and writable: a third of the time of `ctypes.data`
        return _address(_first_byte(array))
    return array.ctypes.data


_address: Callable[[Any], int] = ctypes.addressof
_first_byte: Callable[[Any], Any] = ctypes.c_char.from_buffer


class VectorType(types.Type):
    """Numba's type of a vector of float32 lanes."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"float32x{lanes}")


@register_default(VectorType)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, vector: VectorType) -> None:
        super().__init__(manager, vector, ir.VectorType(FLOAT, vector.lanes))  # type: ignore[no-untyped-call]


def data_pointer(context: Any, builder: ir.IRBuilder, kind: Any, value: ir.Value) -> ir.Value:
    """Return the data pointer of a Numba array, or a pointer as it is, inside an intrinsic."""
    if isinstance(kind, types.CPointer):
        return value
    return context.make_array(kind)(context, builder, value).data


def _is_float32(kind: Any) -> bool:
    if isinstance(kind, types.CPointer):
        return bool(kind.dtype == types.float32)
    return isinstance(kind, types.Array) and kind.dtype == types.float32


def _pointer_at(kind: Any, doc: str) -> Any:
    """Return an intrinsic that turns an address into a pointer.

    Numba counts references to an array, with atomic operations, wherever the array is passed; a
    pointer costs nothing. The operations below take arrays and pointers alike.
    """

    def body(typing_context: Any, address: Any) -> Any:
        if not isinstance(address, types.Integer):
            return None

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            return builder.inttoptr(args[0], context.get_value_type(types.CPointer(kind)))

        return types.CPointer(kind)(types.intp), emit

    body.__doc__ = doc
    return intrinsic(body)


bytes_at = _pointer_at(types.uint8, "Return the address as a pointer to bytes.")
floats_at = _pointer_at(types.float32, "Return the address as a pointer to float32.")
shorts_at = _pointer_at(types.int16, "Return the address as a pointer to int16.")
indices_at = _pointer_at(types.int32, "Return the address as a pointer to int32.")
integers_at = _pointer_at(types.intp, "Return the address as a pointer to integers of its width.")


def _tuple_of(kind: Any, doc: str) -> Any:
    """Return an intrinsic that loads consecutive numbers."""

    def body(typing_context: Any, address: Any, count: Any) -> Any:
        if not (isinstance(address, types.Integer) and isinstance(count, types.IntegerLiteral)):
            return None
        result = types.UniTuple(kind, count.literal_value)

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            first = builder.inttoptr(args[0], context.get_value_type(types.CPointer(kind)))
            places = (builder.gep(first, [INT32(i)]) for i in range(result.count))
            return context.make_tuple(builder, result, [builder.load(p) for p in places])

        return result(types.intp, count), emit

    body.__doc__ = doc
    return intrinsic(body)


integers_of = _tuple_of(types.intp, "Return `count` integers from the address on.")
doubles_of = _tuple_of(types.float64, "Return `count` float64 from the address on.")


def _prefetch(*, write: bool, doc: str) -> Any:
    """Return an intrinsic that prefetches the cache line at an address, valid or not."""

    def body(typing_context: Any, address: Any) -> Any:
        if not isinstance(address, types.Integer):
            return None

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            byte = ir.IntType(8).as_pointer()
            function = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(ir.VoidType(), [byte, INT32, INT32, INT32]),
                "llvm.prefetch.p0i8",
            )
            # What is read soon goes to the second-level cache: the first is full of data in use.
            flags = (INT32(1), INT32(3)) if write else (INT32(0), INT32(2))
            builder.call(function, [builder.inttoptr(args[0], byte), *flags, INT32(1)])
            return context.get_dummy_value()

        return types.void(types.intp), emit

    body.__doc__ = doc
    return intrinsic(body)


prefetch_read = _prefetch(write=False, doc="Prefetch the cache line at an address, to read it.")
prefetch_write = _prefetch(write=True, doc="Prefetch the cache line at an address, to write it.")


@intrinsic
def load(typing_context: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Load `lanes` floats from the flat array, beginning at index; no bounds are checked."""
    if not (_is_float32(array) and isinstance(lanes, types.IntegerLiteral)):
        return None
    vector = VectorType(lanes.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, array, args[0])
        return Lanes(builder, vector.lanes).load(pointer, args[1]).value

    return vector(array, types.intp, lanes), emit


def _shorts_loader(emit_load: Callable[..., Value], doc: str) -> Any:
    """Return an intrinsic that loads lanes of two bytes from a pointer, at any alignment."""

    def body(typing_context: Any, shorts: Any, index: Any, lanes: Any) -> Any:
        if not (isinstance(shorts, types.CPointer) and isinstance(lanes, types.IntegerLiteral)):
            return None
        vector = VectorType(lanes.literal_value)

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            return emit_load(Lanes(builder, vector.lanes), args[0], args[1]).value

        return vector(shorts, types.intp, lanes), emit

    body.__doc__ = doc
    return intrinsic(body)


load_int16 = _shorts_loader(
    Lanes.load_int16,
    "Load `lanes` int16 from the pointer as floats times 2^16, beginning at index; nothing is "
    "checked.",
)
load_bfloat16 = _shorts_loader(
    Lanes.load_bfloat16,
    "Load `lanes` bfloat16 from the pointer, beginning at index; nothing is checked.",
)


def _shorts_storer(emit_store: Callable[..., None], doc: str) -> Any:
    """Return an intrinsic that stores lanes as two bytes each through a pointer."""

    def body(typing_context: Any, shorts: Any, index: Any, vector: Any) -> Any:
        if not (isinstance(shorts, types.CPointer) and isinstance(vector, VectorType)):
            return None

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            lanes = Lanes(builder, vector.lanes)
            emit_store(lanes, Value(lanes, args[2]), args[0], args[1])
            return context.get_dummy_value()

        return types.void(shorts, types.intp, vector), emit

    body.__doc__ = doc
    return intrinsic(body)


store_bfloat16 = _shorts_storer(
    Lanes.store_bfloat16,
    "Store a vector through the pointer as bfloat16, beginning at index; nothing is checked.",
)


FLOAT32, BFLOAT16, FLOAT16 = range(3)
"""Formats of numbers in memory, for `load_as` and `store_as`."""

_POINTED = {FLOAT32: FLOAT, BFLOAT16: ir.IntType(16), FLOAT16: ir.HalfType()}
_LOADS = {FLOAT32: Lanes.load, BFLOAT16: Lanes.load_bfloat16, FLOAT16: Lanes.load_float16}
_STORES = {FLOAT32: Lanes.store, BFLOAT16: Lanes.store_bfloat16, FLOAT16: Lanes.store_float16}


@intrinsic
def load_as(typing_context: Any, address: Any, index: Any, kind: Any, lanes: Any) -> Any:
    """Load `lanes` numbers of a format, beginning at an index of the array at the address."""
    if not all(isinstance(literal, types.IntegerLiteral) for literal in (kind, lanes)):
        return None
    vector, stored = VectorType(lanes.literal_value), kind.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        pointer = builder.inttoptr(args[0], _POINTED[stored].as_pointer())
        return _LOADS[stored](Lanes(builder, vector.lanes), pointer, args[1]).value

    return vector(types.intp, types.intp, kind, lanes), emit


@intrinsic
def store_as(typing_context: Any, address: Any, index: Any, vector: Any, kind: Any) -> Any:
    """Store a vector's numbers in a format, rounded to nearest, to the array at the address."""
    if not (isinstance(vector, VectorType) and isinstance(kind, types.IntegerLiteral)):
        return None
    stored = kind.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        pointer = builder.inttoptr(args[0], _POINTED[stored].as_pointer())
        lanes = Lanes(builder, vector.lanes)
        _STORES[stored](lanes, Value(lanes, args[2]), pointer, args[1])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, vector, kind), emit


load_shorts = _shorts_loader(
    Lanes.load_shorts, "Load 16 bits from the pointer into the lower half of each lane."
)


store_shorts = _shorts_storer(
    Lanes.store_shorts, "Store the lower half of each lane through the pointer, from index on."
)


@intrinsic
def round_bfloat16(typing_context: Any, vector: Any, native: Any) -> Any:
    """Round lanes to bfloat16, whose bits become the lower half of a lane's.

    Unless `native` is 0, by the machine's instruction.
    """
    if not (isinstance(vector, VectorType) and isinstance(native, types.IntegerLiteral)):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(builder, vector.lanes)
        value = Value(lanes, args[0])
        return lanes.round_bfloat16(value, native=bool(native.literal_value)).value

    return vector(vector, native), emit


@intrinsic
def add_pairs(typing_context: Any, a: Any, b: Any, total: Any, native: Any) -> Any:
    """Add the products of both pairs of bfloat16 in each lane to the total.

    Unless `native` is 0, by the machine's dot product.
    """
    if not (isinstance(total, VectorType) and isinstance(native, types.IntegerLiteral)):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(builder, total.lanes)
        values = (Value(lanes, arg) for arg in args[:3])
        return lanes.add_pairs(*values, native=bool(native.literal_value)).value

    return total(a, b, total, native), emit


@intrinsic
def sum_lanes(typing_context: Any, vector: Any) -> Any:
    """Return the sum of a vector's lanes."""
    if not isinstance(vector, VectorType):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(builder, vector.lanes)
        return lanes.sum_lanes(Value(lanes, args[0]))

    return types.float32(vector), emit


@intrinsic
def store(typing_context: Any, array: Any, index: Any, vector: Any) -> Any:
    """Store a vector into the flat array, beginning at index; no bounds are checked."""
    if not (_is_float32(array) and isinstance(vector, VectorType)):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, array, args[0])
        lanes = Lanes(builder, vector.lanes)
        lanes.store(Value(lanes, args[2]), pointer, args[1])
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), emit


@intrinsic
def broadcast(typing_context: Any, array: Any, index: Any, lanes: Any) -> Any:
    """Load one float of the flat array into every lane; no bounds are checked."""
    if not (_is_float32(array) and isinstance(lanes, types.IntegerLiteral)):
        return None
    vector = VectorType(lanes.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, array, args[0])
        return Lanes(builder, vector.lanes).load_splat(pointer, args[1]).value

    return vector(array, types.intp, lanes), emit


@intrinsic
def gather(typing_context: Any, array: Any, index: Any, stride: Any, lanes: Any) -> Any:
    """Load one float into each lane, `stride` apart in the flat array; no bounds are checked."""
    if not (_is_float32(array) and isinstance(lanes, types.IntegerLiteral)):
        return None
    vector = VectorType(lanes.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, array, args[0])
        indices = places(builder, args[1], args[2], vector.lanes)
        return Lanes(builder, vector.lanes).gather(pointer, indices).value

    return vector(array, types.intp, types.intp, lanes), emit


@intrinsic
def gather_as(
    typing_context: Any, address: Any, is_int16: Any, index: Any, stride: Any, lanes: Any
) -> Any:
    """Load one float into each lane; from int16, unless `is_int16` is 0, floats times 2^16."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    vector = VectorType(lanes.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, vector.lanes)
        indices = places(builder, args[2], args[3], vectors.count)
        (result,) = _of_kind(
            builder, args[0], args[1], lambda pointer: [vectors.gather(pointer, indices)]
        )
        return result.value

    return vector(types.intp, types.intp, types.intp, types.intp, lanes), emit


def _of_kind(
    builder: ir.IRBuilder,
    address: ir.Value,
    is_int16: ir.Value,
    emit_load: Callable[[ir.Value], list[Value]],
) -> list[Value]:
    """Emit a load twice, from int16 and from float32: which of them runs is known only then."""
    loaded = []
    with builder.if_else(builder.icmp_signed("!=", is_int16, is_int16.type(0))) as branches:
        for branch, kind in zip(branches, (ir.IntType(16), FLOAT), strict=True):
            with branch:
                values = emit_load(builder.inttoptr(address, kind.as_pointer()))
                loaded.append((values, builder.block))
    merged = []
    for one, other in zip(*(values for values, _ in loaded), strict=True):
        phi = builder.phi(one.value.type)
        for value, (_, block) in zip((one, other), loaded, strict=True):
            phi.add_incoming(value.value, block)
        merged.append(Value(one.lanes, phi))
    return merged


@intrinsic
def product_of(typing_context: Any, lanes: Any, groups: Any) -> Any:
    """Return the lanes of `groups` vectors together, as a literal.

    A vector of so many lanes becomes as many registers, and constants are loaded once for them all.
    """
    if not all(isinstance(size, types.IntegerLiteral) for size in (lanes, groups)):
        return None
    product = types.literal(lanes.literal_value * groups.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        return context.get_constant(types.intp, product.literal_value)

    return product(lanes, groups), emit


@intrinsic
def splat(typing_context: Any, scalar: Any, lanes: Any) -> Any:
    """Return a vector whose lanes all hold the scalar."""
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    vector = VectorType(lanes.literal_value)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        return Lanes(builder, vector.lanes).splat(args[0]).value

    return vector(types.float32, lanes), emit


def _vector_function(emit_value: Callable[..., Value], arity: int, doc: str) -> Any:
    """Return an intrinsic of `arity` vectors that gives a vector."""

    def body(typing_context: Any, *vectors: Any) -> Any:
        first = vectors[0]
        if not isinstance(first, VectorType) or any(v != first for v in vectors):
            return None

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            lanes = Lanes(builder, first.lanes)
            return emit_value(lanes, *(Value(lanes, arg) for arg in args)).value

        return first(*vectors), emit

    wrappers: dict[int, Callable[..., Any]] = {
        1: lambda typing_context, x: body(typing_context, x),
        2: lambda typing_context, x, y: body(typing_context, x, y),
        3: lambda typing_context, x, y, z: body(typing_context, x, y, z),
        4: lambda typing_context, x, y, z, w: body(typing_context, x, y, z, w),
    }
    wrapper = wrappers[arity]
    wrapper.__doc__ = doc
    return intrinsic(wrapper)


exp2 = _vector_function(Lanes.exp2, 1, "Return two to the power of every lane, at most 127.")
exp2_short = _vector_function(
    Lanes.exp2_short, 1, "Return two to the power of every lane, at most 127, to within 1e-4."
)
join_shorts = _vector_function(
    Lanes.join_shorts, 2, "Return pairs of the lower halves of two vectors, with nothing above."
)
log = _vector_function(Lanes.log, 1, "Return the natural logarithm of every lane.")
log_of_normal = _vector_function(
    Lanes.log_of_normal, 1, "Return the natural logarithm of every lane, none below 2^-126."
)
rounded_product = _vector_function(
    Lanes.product, 2, "Return the product of each lane, rounded before anything is added to it."
)
sqrt = _vector_function(Lanes.sqrt, 1, "Return the square root of every lane.")
equal_or = _vector_function(
    Lanes.equal_or, 3, "Return the third argument in lanes where the first equals the second."
)
select_less = _vector_function(
    Lanes.select_less,
    4,
    "Return the third argument where the first is less than the second, else the fourth.",
)
maximum = _vector_function(Lanes.maximum, 2, "Return the larger of each lane; a NaN in x stays.")


def _register_operator(function: Callable[[Value, Value], Value]) -> None:
    @type_callable(function)
    def type_operator(context: Any) -> Callable[[Any, Any], Any]:
        def typer(left: Any, right: Any) -> Any:
            return left if isinstance(left, VectorType) and left == right else None

        return typer

    def lower_operator(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(builder, signature.return_type.lanes)
        return function(Value(lanes, args[0]), Value(lanes, args[1])).value

    lower_builtin(function, VectorType, VectorType)(lower_operator)


for _function in (operator.add, operator.sub, operator.mul, operator.truediv):
    _register_operator(_function)


@intrinsic
def multiply_add(typing_context: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a * b + c of three vectors or of three floats, rounded once where the machine can."""
    if not (a == b == c and (a == types.float32 or isinstance(a, VectorType))):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        if isinstance(a, VectorType):
            lanes = Lanes(builder, a.lanes)
            return lanes.fma(*(Value(lanes, arg) for arg in args)).value
        function = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(FLOAT, [FLOAT] * 3), "llvm.fmuladd.f32"
        )
        return builder.call(function, args)

    return a(a, b, c), emit


@intrinsic
def transpose_tile(
    typing_context: Any,
    source: Any,
    source_index: Any,
    target: Any,
    target_index: Any,
    target_stride: Any,
    lanes: Any,
) -> Any:
    """Transpose a square of `lanes` vectors, one after another, into rows of the flat target."""
    if not (_is_float32(source) and _is_float32(target)):
        return None
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    count, size = lanes.literal_value, types.intp

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        read = data_pointer(context, builder, source, args[0])
        write = data_pointer(context, builder, target, args[2])
        turned = vectors.load_turned(read, args[1], args[1].type(count))
        targets = places(builder, args[3], args[4], count)
        for vector, place in zip(turned, targets, strict=True):
            vectors.store(vector, write, place)
        return context.get_dummy_value()

    return types.void(source, size, target, size, size, lanes), emit


@intrinsic
def scaled_log_coefficients(typing_context: Any, factor: Any) -> Any:
    """Return the coefficients of the logarithm, times a vector, for `scaled_log_of_normal`."""
    if not isinstance(factor, VectorType):
        return None
    result = types.UniTuple(factor, len(LOG_COEFFICIENTS))

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        scale = Value(Lanes(builder, factor.lanes), args[0])
        scaled = [(coefficient * scale).value for coefficient in LOG_COEFFICIENTS]
        return context.make_tuple(builder, result, scaled)

    return result(factor), emit


@intrinsic
def scaled_log_of_normal(typing_context: Any, x: Any, coefficients: Any, shift: Any) -> Any:
    """Return `Lanes.scaled_log_of_normal`; coefficients are `scaled_log_coefficients(factor)`."""
    if not (isinstance(x, VectorType) and isinstance(coefficients, types.UniTuple)):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(builder, x.lanes)
        scaled = [Value(lanes, one) for one in cgutils.unpack_tuple(builder, args[1])]
        result = lanes.scaled_log_of_normal(Value(lanes, args[0]), scaled, Value(lanes, args[2]))
        return result.value

    return x(x, coefficients, x), emit


@intrinsic
def turn_differences(
    typing_context: Any,
    source: Any,
    source_index: Any,
    source_stride: Any,
    target: Any,
    target_index: Any,
    target_stride: Any,
    factor: Any,
    previous: Any,
) -> Any:
    """Transpose a square of samples and write each vector less `factor` times the one before.

    Row r of the source begins at `source_index + r * source_stride`; vector j of the target, at
    `target_index + j * target_stride`, holds element j of every row; `previous` comes before the
    first. Returns the last vector as it was read, and the sum of all.
    """
    if not (_is_float32(source) and _is_float32(target) and isinstance(previous, VectorType)):
        return None
    size, result = types.intp, types.UniTuple(previous, 2)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, previous.lanes)
        read = data_pointer(context, builder, source, args[0])
        turned = vectors.load_turned(read, args[1], args[2])
        write = data_pointer(context, builder, target, args[3])
        values = _store_differences(vectors, turned, write, args[4:])
        return context.make_tuple(builder, result, values)

    signature = result(source, size, size, target, size, size, previous, previous)
    return signature, emit


@intrinsic
def turn_differences_as(
    typing_context: Any,
    address: Any,
    is_int16: Any,
    source_index: Any,
    source_stride: Any,
    target: Any,
    target_index: Any,
    target_stride: Any,
    factor: Any,
    previous: Any,
) -> Any:
    """Do as `turn_differences`; from int16, unless `is_int16` is 0, as floats times 2^16."""
    if not (_is_float32(target) and isinstance(previous, VectorType)):
        return None
    size, result = types.intp, types.UniTuple(previous, 2)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, previous.lanes)
        turned = _of_kind(
            builder, args[0], args[1], lambda at: _load_square(vectors, at, args[2], args[3])
        )
        write = data_pointer(context, builder, target, args[4])
        values = _store_differences(vectors, turned, write, args[5:])
        return context.make_tuple(builder, result, values)

    signature = result(size, size, size, size, target, size, size, previous, previous)
    return signature, emit


def _load_square(
    vectors: Lanes, pointer: ir.Value, index: ir.Value, stride: ir.Value
) -> list[Value]:
    """Return the columns of a square of samples, floats or int16."""
    is_float = pointer.type.pointee == FLOAT
    turn = vectors.load_turned if is_float else vectors.load_turned_int16
    return turn(pointer, index, stride)


def _turner(load_square: Callable[..., list[Value]], doc: str) -> Any:
    """Return an intrinsic that loads a square of samples and stores its columns."""

    def body(
        typing_context: Any,
        address: Any,
        is_int16: Any,
        source_index: Any,
        source_stride: Any,
        target: Any,
        target_index: Any,
        target_stride: Any,
        lanes: Any,
    ) -> Any:
        if not (_is_float32(target) and isinstance(lanes, types.IntegerLiteral)):
            return None
        size, count = types.intp, lanes.literal_value

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            vectors = Lanes(builder, count)
            turned = _of_kind(
                builder, args[0], args[1], lambda at: load_square(vectors, at, args[2], args[3])
            )
            write = data_pointer(context, builder, target, args[4])
            targets = places(builder, args[5], args[6], count)
            for vector, place in zip(turned, targets, strict=True):
                vectors.store(vector, write, place)
            return context.get_dummy_value()

        return types.void(size, size, size, size, target, size, size, lanes), emit

    body.__doc__ = doc
    return intrinsic(body)


turn_as = _turner(
    _load_square,
    "Transpose a square of samples; from int16, unless `is_int16` is 0, as floats times 2^16.",
)
turn_means_as = _turner(
    Lanes.load_turned_means,
    "Do as `turn_as`, with the means of pairs of neighbours, as stereo lies in memory.",
)


def _store_differences(
    vectors: Lanes, turned: list[Value], write: ir.Value, args: Any
) -> list[ir.Value]:
    """Emit what follows the load: `args` are index, stride, factor and the vector before."""
    index, stride, factor, previous = args
    before, minus = Value(vectors, previous), -Value(vectors, factor)
    targets = places(vectors.builder, index, stride, vectors.count)
    for vector, place in zip(turned, targets, strict=True):
        vectors.store(vectors.fma(minus, before, vector), write, place)
        before = vector
    sums = turned
    while len(sums) > 1:
        sums = [a + b for a, b in zip(sums[0::2], sums[1::2], strict=True)]
    return [before.value, sums[0].value]


@intrinsic
def move_fours(
    typing_context: Any, array: Any, index: Any, stride: Any, distance: Any, rows: Any
) -> Any:
    """Move the first four floats of `rows` rows by a distance within their row."""
    if not (_is_float32(array) and isinstance(rows, types.IntegerLiteral)):
        return None
    count, size = rows.literal_value, types.intp

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        fours = Lanes(builder, 4)
        pointer = data_pointer(context, builder, array, args[0])
        for row in places(builder, args[1], args[2], count):
            fours.store(fours.load(pointer, row), pointer, builder.add(row, args[3]))
        return context.get_dummy_value()

    return types.void(array, size, size, size, rows), emit


@intrinsic
def turn(
    typing_context: Any,
    source: Any,
    source_index: Any,
    source_stride: Any,
    target: Any,
    target_index: Any,
    target_stride: Any,
    lanes: Any,
) -> Any:
    """Transpose a square of `lanes` rows, whatever their 32-bit words mean; as `turn_scaled`."""
    if not (_is_float32(source) and _is_float32(target)):
        return None
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    size = types.intp

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, lanes.literal_value)
        read = data_pointer(context, builder, source, args[0])
        write = data_pointer(context, builder, target, args[3])
        turned = vectors.load_turned(read, args[1], args[2])
        targets = places(builder, args[4], args[5], vectors.count)
        for vector, place in zip(turned, targets, strict=True):
            vectors.store(vector, write, place)
        return context.get_dummy_value()

    return types.void(source, size, size, target, size, size, lanes), emit


@intrinsic
def turn_scaled(
    typing_context: Any,
    source: Any,
    source_index: Any,
    source_stride: Any,
    target: Any,
    target_index: Any,
    target_stride: Any,
    factor: Any,
) -> Any:
    """Transpose a square and write each vector times `factor`.

    Row r of the source begins at `source_index + r * source_stride`; vector j of the target, at
    `target_index + j * target_stride`, holds element j of every row.
    """
    if not (_is_float32(source) and _is_float32(target) and isinstance(factor, VectorType)):
        return None
    size = types.intp

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, factor.lanes)
        read = data_pointer(context, builder, source, args[0])
        write = data_pointer(context, builder, target, args[3])
        turned = vectors.load_turned(read, args[1], args[2])
        targets = places(builder, args[4], args[5], vectors.count)
        for vector, place in zip(turned, targets, strict=True):
            vectors.store(vector * Value(vectors, args[6]), write, place)
        return context.get_dummy_value()

    return types.void(source, size, size, target, size, size, factor), emit
