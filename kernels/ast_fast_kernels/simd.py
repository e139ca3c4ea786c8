"""Explicit SIMD for Numba: a vector of float32 lanes and its few operations.

`Vector` values live in LLVM registers, so code written with them is vector code whatever the
optimiser thinks of it: LLVM maps 16 lanes to AVX-512, 8 to AVX2, 4 to NEON or SSE, and splits what
the machine is too narrow for. Knows no audio.

Two levels use it. Inside `@njit` code, `load`, `store`, `splat`, `maximum`, `log` and the
operators `+ - *` work on values of `VectorType`. Inside an intrinsic, `Lanes` and `Value` emit
straight-line code from plain Python (see fft.py).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.datamodel.registry import register_default
from numba.extending import lower_builtin, type_callable

from ast_fast_kernels._numba import intrinsic

ALIGNMENT = 64
"""Bytes to which scratch buffers are aligned: a cache line, and the widest vector."""

_CONTRACT = ("contract",)
_FLOAT = ir.FloatType()
_INT32 = ir.IntType(32)


@cache
def host_lanes() -> int:
    """Return the float32 lanes of this machine's widest vectors: 16, 8 or 4.

    Asked once: LLVM answers under a lock, and a process forked while another thread holds it would
    wait for ever.
    """
    features = llvm.get_host_cpu_features()
    if features.get("avx512f"):
        return 16
    return 8 if features.get("avx2") else 4


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

    def _place(self, pointer: ir.Value, index: ir.Value) -> ir.Value:
        place = self.builder.gep(pointer, [index])
        return self.builder.bitcast(place, self.type.as_pointer())

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
        """Return a * b + c, rounded once."""
        return self._call("fma", self.lift(a), self.lift(b), self.lift(c))

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

    def maximum(self, x: Value, floor: Value) -> Value:
        """Return the larger of each lane; a NaN in x stays."""
        return self.select_less(x, floor, floor, x)

    def log(self, x: Value) -> Value:
        """Return the natural logarithm of x >= 0: 2 ulp, -inf at 0, NaN and infinity as they come.

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
        """Return the natural logarithm of x >= 2^-126: 2 ulp, NaN and infinity as they come.

        Splits x into 2^e * m with m in [sqrt(1/2), sqrt(2)) and evaluates Cephes' logf polynomial.
        """
        b = self.builder

        def integers(value: int) -> ir.Constant:
            return ir.Constant(self.int_type, [value] * self.count)

        bits = b.bitcast(x.value, self.int_type)
        # sqrt(1/2) as bits: what lies above it up to sqrt(2) gets exponent 0.
        exponent = b.ashr(b.sub(bits, integers(0x3F3504F3)), integers(23))
        mantissa_bits = b.sub(bits, b.shl(exponent, integers(23)))
        f = Value(self, b.bitcast(mantissa_bits, self.type)) - 1.0
        e = Value(self, b.sitofp(exponent, self.type))
        polynomial = self.constant(_LOG_POLYNOMIAL[0])
        for coefficient in _LOG_POLYNOMIAL[1:]:
            polynomial = self.fma(polynomial, f, coefficient)
        result = self.fma(f, polynomial, e * math.log(2))
        # +inf and NaN have no logarithm better than themselves.
        finite = b.fcmp_ordered("<", x.value, self.constant(math.inf).value)
        return Value(self, b.select(finite, result.value, x.value))

    def transpose(self, rows: Sequence[Value]) -> list[Value]:
        """Transpose `count` vectors by log2(count) perfect shuffles."""
        half = self.count // 2
        low = [lane // 2 + (lane % 2) * self.count for lane in range(self.count)]
        high = [half + lane for lane in low]
        vectors = list(rows)
        for _ in range(self.count.bit_length() - 1):
            pairs = list(zip(vectors[:half], vectors[half:], strict=True))
            vectors = [self.shuffle(a, b, order) for a, b in pairs for order in (low, high)]
        return vectors


# log(1 + f) / f on sqrt(1/2) - 1 to sqrt(2) - 1. Source: Cephes, single/logf.c.
_LOG_POLYNOMIAL = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
    -0.5,
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


@intrinsic
def pointer(typing_context: Any, array: Any) -> Any:
    """Return the address of an array's first element.

    What is passed as a pointer costs no reference counting, which Numba does, with atomic
    operations, wherever an array goes. The operations below take arrays and pointers alike.
    """
    if not isinstance(array, types.Array):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        return data_pointer(context, builder, array, args[0])

    return types.CPointer(array.dtype)(array), emit


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


@intrinsic
def scatter(typing_context: Any, array: Any, index: Any, stride: Any, vector: Any) -> Any:
    """Store each lane, `stride` apart in the flat array; no bounds are checked."""
    if not (_is_float32(array) and isinstance(vector, VectorType)):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        pointer = data_pointer(context, builder, array, args[0])
        for lane, place in enumerate(_places(builder, args[1], args[2], vector.lanes)):
            value = builder.extract_element(args[3], _INT32(lane))
            builder.store(value, builder.gep(pointer, [place]), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, vector), emit


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
    }
    wrapper = wrappers[arity]
    wrapper.__doc__ = doc
    return intrinsic(wrapper)


log = _vector_function(Lanes.log, 1, "Return the natural logarithm of every lane.")
log_of_normal = _vector_function(
    Lanes.log_of_normal, 1, "Return the natural logarithm of every lane, none below 2^-126."
)
sqrt = _vector_function(Lanes.sqrt, 1, "Return the square root of every lane.")
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


for _function in (operator.add, operator.sub, operator.mul):
    _register_operator(_function)


def _transposition(source: Any, target: Any, lanes: Any, *, differences: bool) -> Any:
    """Return signature and emitter of the two intrinsics below."""
    if not (_is_float32(source) and _is_float32(target)):
        return None
    if not isinstance(lanes, types.IntegerLiteral):
        return None
    count, size = lanes.literal_value, types.intp

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        vectors = Lanes(builder, count)
        read = data_pointer(context, builder, source, args[0])
        write = data_pointer(context, builder, target, args[3])

        def load_row(place: ir.Value) -> Value:
            if not differences:
                return vectors.load(read, place)
            previous = vectors.load(read, builder.sub(place, place.type(1)))
            return vectors.load(read, place) - vectors.splat(args[6]) * previous

        rows = [load_row(place) for place in _places(builder, args[1], args[2], count)]
        targets = _places(builder, args[4], args[5], count)
        for vector, place in zip(vectors.transpose(rows), targets, strict=True):
            vectors.store(vector, write, place)
        return context.get_dummy_value()

    coefficient = (types.float32,) if differences else ()
    return types.void(source, size, size, target, size, size, *coefficient, lanes), emit


@intrinsic
def transpose_tile(
    typing_context: Any,
    source: Any,
    source_index: Any,
    source_stride: Any,
    target: Any,
    target_index: Any,
    target_stride: Any,
    lanes: Any,
) -> Any:
    """Transpose a square of `lanes` rows from the flat source into the flat target."""
    return _transposition(source, target, lanes, differences=False)


@intrinsic
def transpose_differences(
    typing_context: Any,
    source: Any,
    source_index: Any,
    source_stride: Any,
    target: Any,
    target_index: Any,
    target_stride: Any,
    coefficient: Any,
    lanes: Any,
) -> Any:
    """Transpose like `transpose_tile`, of each element less `coefficient` times the one before."""
    return _transposition(source, target, lanes, differences=True)
