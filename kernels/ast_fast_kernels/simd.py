"""Explicit SIMD for Numba: a vector of float32 lanes and its few operations.

`Vector` values live in LLVM registers, so code written with them is vector code whatever the
optimiser thinks of it: LLVM maps 16 lanes to AVX-512, 8 to AVX2, 4 to NEON or SSE, and splits what
the machine is too narrow for. Knows no audio.

Two levels use it. Inside `@njit` code, `load`, `store`, `splat`, `maximum`, `log` and the
operators `+ - * /` work on values of `VectorType`. Inside an intrinsic, `Lanes` and `Value` emit
straight-line code from plain Python (see fft.py).

Squares are transposed by quarters: vectors are put together from runs of four floats in memory,
which load ports do, and only the fours themselves are transposed by shuffles, which one port does.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
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

from ast_fast_kernels._numba import intrinsic

FLOAT_BYTES, INTEGER_BYTES = 4, 8

ALIGNMENT = 64
"""Bytes to which scratch buffers are aligned: a cache line, and the widest vector."""

LINE = ALIGNMENT // FLOAT_BYTES
"""Floats of a cache line; buffers side by side are each a whole number of them."""

_CONTRACT = ("contract",)
_FLOAT = ir.FloatType()
_INT16 = ir.IntType(16)
_INT32 = ir.IntType(32)
_FOUR = ir.VectorType(_FLOAT, 4)


@cache
def host_lanes() -> int:
    """Return the float32 lanes of the widest vectors that Numba compiles for: 16, 8 or 4.

    Those of this machine, unless NUMBA_CPU_FEATURES says otherwise. Asked once: LLVM answers under
    a lock, and a process forked while another thread holds it would wait for ever.
    """
    chosen = numba.config.CPU_FEATURES  # type: ignore[attr-defined]
    features = llvm.get_host_cpu_features().flatten() if chosen is None else chosen
    names = features.split(",")
    if "+avx512f" in names:
        return 16
    return 8 if "+avx2" in names else 4


def aligned(size: int) -> npt.NDArray[np.float32]:
    """Return an uninitialised float32 buffer that begins at a multiple of ALIGNMENT."""
    raw = np.empty(size + LINE, np.float32)
    start = -(raw.ctypes.data // FLOAT_BYTES) % LINE
    return raw[start : start + size]


class VectorType(types.Type):
    """Numba's type of a vector of float32 lanes."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"float32x{lanes}")


@register_default(VectorType)
class _VectorModel(PrimitiveModel):
    def __init__(self, manager: Any, vector: VectorType) -> None:
        super().__init__(manager, vector, ir.VectorType(_FLOAT, vector.lanes))  # type: ignore[no-untyped-call]


class Value:
    """A vector under construction: operators emit LLVM instructions; floats are constants."""

    def __init__(self, lanes: Lanes, value: ir.Value) -> None:
        self.lanes = lanes
        self.value = value

    def _emit(self, instruction: str, left: Operand, right: Operand) -> Value:
        emit = getattr(self.lanes.builder, instruction)
        left, right = self.lanes.lift(left), self.lanes.lift(right)
        return Value(self.lanes, emit(left.value, right.value, flags=_CONTRACT))

    def __add__(self, other: Operand) -> Value:
        return self._emit("fadd", self, other)

    def __radd__(self, other: Operand) -> Value:
        return self._emit("fadd", other, self)

    def __sub__(self, other: Operand) -> Value:
        return self._emit("fsub", self, other)

    def __rsub__(self, other: Operand) -> Value:
        return self._emit("fsub", other, self)

    def __mul__(self, other: Operand) -> Value:
        return self._emit("fmul", self, other)

    def __rmul__(self, other: Operand) -> Value:
        return self._emit("fmul", other, self)

    def __truediv__(self, other: Operand) -> Value:
        return self._emit("fdiv", self, other)

    def __neg__(self) -> Value:
        return Value(self.lanes, self.lanes.builder.fneg(self.value))


Operand = Value | float


class Lanes:
    """Emits operations on vectors of `count` float32 lanes at the builder's position."""

    def __init__(self, builder: ir.IRBuilder, count: int) -> None:
        self.builder = builder
        self.count = count
        self.type = ir.VectorType(_FLOAT, count)
        self.int_type = ir.VectorType(_INT32, count)
        self._align_stack()

    def _align_stack(self) -> None:
        """Have vectors that do not fit the registers lie within cache lines."""
        attributes = self.builder.function.attributes
        attributes.alignstack = ALIGNMENT
        attributes.add("nounwind")  # without another attribute llvmlite leaves that one out

    def constant(self, value: float) -> Value:
        """Return a vector whose lanes all hold `value`."""
        return Value(self, ir.Constant(self.type, [value] * self.count))

    def lift(self, operand: Operand) -> Value:
        """Return the operand as a vector."""
        return operand if isinstance(operand, Value) else self.constant(operand)

    def splat(self, scalar: ir.Value) -> Value:
        """Return a vector whose lanes all hold the scalar."""
        undefined = ir.Constant(self.type, ir.Undefined)
        one = self.builder.insert_element(undefined, scalar, _INT32(0))
        zeros = ir.Constant(self.int_type, [0] * self.count)
        return Value(self, self.builder.shuffle_vector(one, undefined, zeros))

    def load(self, pointer: ir.Value, index: ir.Value) -> Value:
        """Load lanes from `pointer[index:]`, at any alignment."""
        return Value(self, self.builder.load(self._place(pointer, index), align=4))

    def store(self, vector: Value, pointer: ir.Value, index: ir.Value) -> None:
        """Store lanes to `pointer[index:]`, at any alignment."""
        self.builder.store(vector.value, self._place(pointer, index), align=4)

    def _place(self, pointer: ir.Value, index: ir.Value, kind: ir.Type | None = None) -> ir.Value:
        place = self.builder.gep(pointer, [index])
        return self.builder.bitcast(place, (kind or self.type).as_pointer())

    def load_int16(self, pointer: ir.Value, index: ir.Value) -> Value:
        """Load int16 lanes from `pointer[index:]`, at any alignment, as floats."""
        kind = ir.VectorType(_INT16, self.count)
        short = self.builder.load(self._place(pointer, index, kind), align=2)
        wide = self.builder.sext(short, self.int_type)
        return Value(self, self.builder.sitofp(wide, self.type))

    def load_bfloat16(self, pointer: ir.Value, index: ir.Value) -> Value:
        """Load bfloat16 lanes from `pointer[index:]`, at any alignment."""
        b = self.builder
        kind = ir.VectorType(_INT16, self.count)
        wide = b.zext(b.load(self._place(pointer, index, kind), align=2), self.int_type)
        return Value(self, b.bitcast(b.shl(wide, self._integers(16)), self.type))

    def store_bfloat16(self, vector: Value, pointer: ir.Value, index: ir.Value) -> None:
        """Store lanes to `pointer[index:]` as bfloat16, rounded to the nearest, ties to even."""
        b = self.builder
        kind = ir.VectorType(_INT16, self.count)
        bits = b.bitcast(vector.value, self.int_type)
        last = b.and_(b.lshr(bits, self._integers(16)), self._integers(1))
        rounded = b.add(b.add(bits, self._integers(0x7FFF)), last)
        is_nan = b.fcmp_unordered("uno", vector.value, vector.value)
        rounded = b.select(is_nan, self._integers(0x7FC00000), rounded)
        short = b.trunc(b.lshr(rounded, self._integers(16)), kind)
        b.store(short, self._place(pointer, index, kind), align=2)

    def _integers(self, value: int) -> ir.Constant:
        return ir.Constant(self.int_type, [value] * self.count)

    def sum_lanes(self, vector: Value) -> ir.Value:
        """Return the sum of all lanes, added by halves."""
        order = list(range(self.count))
        half = self.count // 2
        while half:
            vector = vector + self.shuffle(vector, vector, order[half:] + order[:half])
            half //= 2
        return self.builder.extract_element(vector.value, _INT32(0))

    def _load_fours(self, pointer: ir.Value, indices: Sequence[ir.Value]) -> Value:
        """Load four floats from each `pointer[index:]`, side by side."""
        parts = [
            self.builder.load(self._place(pointer, index, _FOUR), align=4) for index in indices
        ]
        while len(parts) > 1:
            size = 2 * parts[0].type.count
            mask = ir.Constant(ir.VectorType(_INT32, size), list(range(size)))
            parts = [
                self.builder.shuffle_vector(low, high, mask)
                for low, high in zip(parts[0::2], parts[1::2], strict=True)
            ]
        return Value(self, parts[0])

    def load_turned(self, pointer: ir.Value, index: ir.Value, stride: ir.Value) -> list[Value]:
        """Load a square, rows `stride` apart from `pointer[index:]`, and return its columns."""
        rows = _places(self.builder, index, stride, self.count)
        columns: list[Value] = []
        for first in range(0, self.count, 4):
            starts = [self.builder.add(row, row.type(first)) for row in rows]
            columns += self._transpose_fours(
                [self._load_fours(pointer, starts[i::4]) for i in range(4)]
            )
        return columns

    def load_splat(self, pointer: ir.Value, index: ir.Value) -> Value:
        """Load one float into every lane."""
        return self.splat(self.builder.load(self.builder.gep(pointer, [index]), align=4))

    def shuffle(self, left: Value, right: Value, order: Sequence[int]) -> Value:
        """Return the lanes of left and right, numbered through, in the given order."""
        mask = ir.Constant(self.int_type, list(order))
        return Value(self, self.builder.shuffle_vector(left.value, right.value, mask))

    def sqrt(self, x: Value) -> Value:
        """Return the square root of every lane."""
        return self._call("sqrt", x)

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """Return a * b + c, rounded once where the machine can."""
        return self._call("fmuladd", self.lift(a), self.lift(b), self.lift(c))

    def _call(self, name: str, *operands: Value) -> Value:
        """Call LLVM's own function of that name on vectors."""
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(self.type, [self.type] * len(operands)),
            f"llvm.{name}.v{self.count}f32",
        )
        return Value(self, self.builder.call(function, [operand.value for operand in operands]))

    def select_less(self, a: Value, b: Value, yes: Value, no: Value) -> Value:
        """Return `yes` in lanes where a < b, else `no`; a NaN is not less."""
        less = self.builder.fcmp_ordered("<", a.value, b.value)
        return Value(self, self.builder.select(less, yes.value, no.value))

    def equal_or(self, x: Value, value: Value, instead: Value) -> Value:
        """Return `instead` in lanes where x equals `value`, else x."""
        equal = self.builder.fcmp_ordered("==", x.value, value.value)
        return Value(self, self.builder.select(equal, instead.value, x.value))

    def maximum(self, x: Value, floor: Value) -> Value:
        """Return the larger of each lane; a NaN in x stays."""
        return self.select_less(x, floor, floor, x)

    def log(self, x: Value) -> Value:
        """Return the natural logarithm of x >= 0: -inf at 0, NaN and infinity as they come.

        A denormal is scaled to a normal number first.
        """
        b = self.builder
        is_tiny = b.fcmp_ordered("<", x.value, self.constant(2.0**-126).value)
        scaled = Value(self, b.select(is_tiny, (x * 2.0**23).value, x.value))
        scale = b.select(is_tiny, self.constant(-23 * math.log(2)).value, self.constant(0.0).value)
        result = self.log_of_normal(scaled) + Value(self, scale)
        zero = b.fcmp_ordered("==", x.value, self.constant(0.0).value)
        return Value(self, b.select(zero, self.constant(-math.inf).value, result.value))

    def log_of_normal(self, x: Value) -> Value:
        """Return the natural logarithm of x >= 2^-126, NaN and infinity as they come.

        Splits x into 2^e * m with m in [sqrt(1/2), sqrt(2)); log(m) is a polynomial, off by 1e-7 at
        most, which is a fifth of the rounding of a logarithm near 16.
        """
        b = self.builder

        bits = b.bitcast(x.value, self.int_type)
        # sqrt(1/2) as bits: what lies above it up to sqrt(2) gets exponent 0. The exponent stays
        # where it is in the word; the factor makes up for that.
        exponent = b.and_(b.sub(bits, self._integers(0x3F3504F3)), self._integers(-(1 << 23)))
        f = Value(self, b.bitcast(b.sub(bits, exponent), self.type)) - 1.0
        e = Value(self, b.sitofp(exponent, self.type))
        polynomial = self.constant(_LOG_POLYNOMIAL[0])
        for coefficient in _LOG_POLYNOMIAL[1:]:
            polynomial = self.fma(polynomial, f, coefficient)
        result = self.fma(f, polynomial, e * (math.log(2) / (1 << 23)))
        # +inf and NaN have no logarithm better than themselves.
        finite = b.fcmp_ordered("<", x.value, self.constant(math.inf).value)
        return Value(self, b.select(finite, result.value, x.value))

    def exp2(self, x: Value) -> Value:
        """Return two to the power of x <= 127, to 2e-7 of it; 0 below -126.5, and NaN stays."""
        b = self.builder
        inside = self.maximum(x, self.constant(-127.0))
        # Added to 1.5 * 2^23, x loses its fraction and leaves the rest in the lowest bits; with the
        # exponent's bias they are, shifted, a power of two, and of -127 nothing.
        magic = 12582912.0 + 127
        shifted = inside + magic
        f = inside - (shifted - magic)
        polynomial = self.constant(_EXP2_POLYNOMIAL[0])
        for coefficient in _EXP2_POLYNOMIAL[1:]:
            polynomial = self.fma(polynomial, f, coefficient)
        power = b.shl(b.bitcast(shifted.value, self.int_type), self._integers(23))
        return polynomial * Value(self, b.bitcast(power, self.type))

    def _transpose_fours(self, rows: Sequence[Value]) -> list[Value]:
        """Transpose four vectors within each group of four lanes."""
        low, high = ([], [])  # type: tuple[list[int], list[int]]
        even, odd = ([], [])  # type: tuple[list[int], list[int]]
        for first in range(0, self.count, 4):
            other = first + self.count
            low += [first, other, first + 1, other + 1]
            high += [first + 2, other + 2, first + 3, other + 3]
            even += [first, first + 1, other, other + 1]
            odd += [first + 2, first + 3, other + 2, other + 3]
        a, b, c, d = rows
        ab, cd = self.shuffle(a, b, low), self.shuffle(c, d, low)
        ab_high, cd_high = self.shuffle(a, b, high), self.shuffle(c, d, high)
        return [
            self.shuffle(left, right, order)
            for left, right in ((ab, cd), (ab_high, cd_high))
            for order in (even, odd)
        ]


# log(1 + f) / f on sqrt(1/2) - 1 to sqrt(2) - 1, the last coefficient 1: least largest error, found
# by linear programming (scipy.optimize.linprog on 1,201 Chebyshev points).
_LOG_POLYNOMIAL = (
    -0.10408225655555725,
    0.16317272186279297,
    -0.17196124792099,
    0.19888561964035034,
    -0.24973444640636444,
    0.3333527743816376,
    -0.5000028610229492,
    1.0,
)


# 2^f on -1/2 to 1/2, the last coefficient 1: found alike, by relative error, on 2,001 points.
_EXP2_POLYNOMIAL = (
    0.001326472032815218,
    0.009671512991189957,
    0.05550733953714371,
    0.24022242426872253,
    0.6931470036506653,
    1.0,
)


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
    """Return an intrinsic that takes an address for a pointer.

    What is passed as a pointer costs no reference counting, which Numba does, with atomic
    operations, wherever an array goes. The operations below take arrays and pointers alike.
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
integers_at = _pointer_at(types.intp, "Return the address as a pointer to integers as wide as one.")


def _tuple_of(kind: Any, doc: str) -> Any:
    """Return an intrinsic that loads numbers which lie one after another."""

    def body(typing_context: Any, address: Any, count: Any) -> Any:
        if not (isinstance(address, types.Integer) and isinstance(count, types.IntegerLiteral)):
            return None
        result = types.UniTuple(kind, count.literal_value)

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            first = builder.inttoptr(args[0], context.get_value_type(types.CPointer(kind)))
            places = (builder.gep(first, [_INT32(i)]) for i in range(result.count))
            return context.make_tuple(builder, result, [builder.load(p) for p in places])

        return result(types.intp, count), emit

    body.__doc__ = doc
    return intrinsic(body)


integers_of = _tuple_of(types.intp, "Return so many integers from the address on.")
doubles_of = _tuple_of(types.float64, "Return so many float64 from the address on.")


def _prefetch(*, write: bool, doc: str) -> Any:
    """Return an intrinsic that asks for the cache line at an address, which need not be valid."""

    def body(typing_context: Any, address: Any) -> Any:
        if not isinstance(address, types.Integer):
            return None

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            byte = ir.IntType(8).as_pointer()
            function = cgutils.get_or_insert_function(
                builder.module,
                ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32]),
                "llvm.prefetch.p0i8",
            )
            # What is read soon goes to the second cache: the first is full of what is used now.
            flags = (_INT32(1), _INT32(3)) if write else (_INT32(0), _INT32(2))
            builder.call(function, [builder.inttoptr(args[0], byte), *flags, _INT32(1)])
            return context.get_dummy_value()

        return types.void(types.intp), emit

    body.__doc__ = doc
    return intrinsic(body)


prefetch_read = _prefetch(write=False, doc="Ask for the cache line at an address, to be read.")
prefetch_write = _prefetch(write=True, doc="Ask for the cache line at an address, to be written.")


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
    "Load `lanes` int16 from the pointer as floats, beginning at index; nothing is checked.",
)
load_bfloat16 = _shorts_loader(
    Lanes.load_bfloat16,
    "Load `lanes` bfloat16 from the pointer, beginning at index; nothing is checked.",
)


@intrinsic
def store_bfloat16(typing_context: Any, shorts: Any, index: Any, vector: Any) -> Any:
    """Store a vector through the pointer as bfloat16, beginning at index; nothing is checked."""
    if not (isinstance(shorts, types.CPointer) and isinstance(vector, VectorType)):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        lanes = Lanes(builder, vector.lanes)
        lanes.store_bfloat16(Value(lanes, args[2]), args[0], args[1])
        return context.get_dummy_value()

    return types.void(shorts, types.intp, vector), emit


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
        result = ir.Constant(Lanes(builder, vector.lanes).type, ir.Undefined)
        for lane, place in enumerate(_places(builder, args[1], args[2], vector.lanes)):
            value = builder.load(builder.gep(pointer, [place]), align=4)
            result = builder.insert_element(result, value, _INT32(lane))
        return result

    return vector(array, types.intp, types.intp, lanes), emit


def _places(builder: ir.IRBuilder, start: ir.Value, stride: ir.Value, count: int) -> list[ir.Value]:
    """Return start, start + stride, … as indices."""
    return [builder.add(start, builder.mul(stride, stride.type(row))) for row in range(count)]


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
log = _vector_function(Lanes.log, 1, "Return the natural logarithm of every lane.")
log_of_normal = _vector_function(
    Lanes.log_of_normal, 1, "Return the natural logarithm of every lane, none below 2^-126."
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
            builder.module, ir.FunctionType(_FLOAT, [_FLOAT] * 3), "llvm.fmuladd.f32"
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
        targets = _places(builder, args[3], args[4], count)
        for vector, place in zip(turned, targets, strict=True):
            vectors.store(vector, write, place)
        return context.get_dummy_value()

    return types.void(source, size, target, size, size, lanes), emit


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
    `target_index + j * target_stride`, holds element j of every row; `previous` stands before the
    first. Returns the last vector as it was read, and the sum of all.
    """
    if not (_is_float32(source) and _is_float32(target) and isinstance(previous, VectorType)):
        return None
    size, result = types.intp, types.UniTuple(previous, 2)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, previous.lanes)
        read = data_pointer(context, builder, source, args[0])
        write = data_pointer(context, builder, target, args[3])
        turned = vectors.load_turned(read, args[1], args[2])
        before = Value(vectors, args[7])
        minus = -Value(vectors, args[6])
        targets = _places(builder, args[4], args[5], vectors.count)
        for vector, place in zip(turned, targets, strict=True):
            vectors.store(vectors.fma(minus, before, vector), write, place)
            before = vector
        sums = turned
        while len(sums) > 1:
            sums = [a + b for a, b in zip(sums[0::2], sums[1::2], strict=True)]
        return context.make_tuple(builder, result, [before.value, sums[0].value])

    signature = result(source, size, size, target, size, size, previous, previous)
    return signature, emit


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
        targets = _places(builder, args[4], args[5], vectors.count)
        for vector, place in zip(turned, targets, strict=True):
            vectors.store(vector * Value(vectors, args[6]), write, place)
        return context.get_dummy_value()

    return types.void(source, size, size, target, size, size, factor), emit
