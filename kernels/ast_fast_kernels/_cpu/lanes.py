"""Vectors of float32 lanes under construction: plain Python that emits straight-line LLVM code.

Intrinsics are written with `Lanes` and `Value` (see fft.py); simd.py has what compiled code calls.
Knows no audio.

Squares are transposed in fours: the load ports put vectors together from runs of four floats in
memory, and only the fours themselves are transposed by shuffles, which use a single port.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Sequence

from llvmlite import ir
from numba.core import cgutils

FLOAT_BYTES = 4

ALIGNMENT = 64
"""Bytes to which scratch buffers are aligned: a cache line, and the widest vector."""

_CONTRACT = ("contract",)
FLOAT = ir.FloatType()
_HALF = ir.HalfType()
_INT16 = ir.IntType(16)
INT32 = ir.IntType(32)
_FOUR = ir.VectorType(FLOAT, 4)


class _BFloat(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat16, of which llvmlite has no type."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


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
        self.type = ir.VectorType(FLOAT, count)
        self.int_type = ir.VectorType(INT32, count)
        self._align_stack()

    def _align_stack(self) -> None:
        """Align the stack, so that vectors that spill from registers lie within cache lines."""
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
        one = self.builder.insert_element(undefined, scalar, INT32(0))
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
        """Load int16 lanes from `pointer[index:]`, at any alignment, as floats times 2^16."""
        return self._from_lower(self.load_shorts(pointer, index))

    def _from_lower(self, words: Value) -> Value:
        """Return the int16 in the lower half of each lane as a float times 2^16.

        Moved to the upper half it needs no sign extension. The conversion is exact.
        """
        bits = self.builder.bitcast(self._lower_half(words).value, self.int_type)
        return Value(self, self.builder.sitofp(bits, self.type))

    def _from_upper(self, words: Value) -> Value:
        """Return the int16 in the upper half of each lane as a float times 2^16."""
        bits = self.builder.bitcast(self._upper_half(words).value, self.int_type)
        return Value(self, self.builder.sitofp(bits, self.type))

    def load_bfloat16(self, pointer: ir.Value, index: ir.Value) -> Value:
        """Load bfloat16 lanes from `pointer[index:]`, at any alignment."""
        b = self.builder
        kind = ir.VectorType(_INT16, self.count)
        wide = b.zext(b.load(self._place(pointer, index, kind), align=2), self.int_type)
        return Value(self, b.bitcast(b.shl(wide, self._integers(16)), self.type))

    def store_bfloat16(self, vector: Value, pointer: ir.Value, index: ir.Value) -> None:
        """Store lanes to `pointer[index:]` as bfloat16, rounded to the nearest, ties to even."""
        self.store_shorts(self.round_bfloat16(vector), pointer, index)

    def round_bfloat16(self, vector: Value, *, native: bool = False) -> Value:
        """Round to bfloat16, to the nearest, ties to even; its bits are the lower half of a lane's.

        `native` takes the machine's instruction, which makes denormal numbers zeros.
        """
        b = self.builder
        if native:
            kind = ir.VectorType(_INT16, self.count)
            rounded = b.fptrunc(vector.value, ir.VectorType(_BFloat(), self.count))
            return self._words(b.zext(b.bitcast(rounded, kind), self.int_type))
        bits = b.bitcast(vector.value, self.int_type)
        last = b.and_(b.lshr(bits, self._integers(16)), self._integers(1))
        rounded = b.add(b.add(bits, self._integers(0x7FFF)), last)
        is_nan = b.fcmp_unordered("uno", vector.value, vector.value)
        rounded = b.select(is_nan, self._integers(0x7FC00000), rounded)
        return self._words(b.lshr(rounded, self._integers(16)))

    def load_shorts(self, pointer: ir.Value, index: ir.Value) -> Value:
        """Load 16 bits into the lower half of each lane, at any alignment."""
        kind = ir.VectorType(_INT16, self.count)
        short = self.builder.load(self._place(pointer, index, kind), align=2)
        return self._words(self.builder.zext(short, self.int_type))

    def store_shorts(self, words: Value, pointer: ir.Value, index: ir.Value) -> None:
        """Store the lower half of each lane, at any alignment."""
        b, kind = self.builder, ir.VectorType(_INT16, self.count)
        short = b.trunc(b.bitcast(words.value, self.int_type), kind)
        b.store(short, self._place(pointer, index, kind), align=2)

    @property
    def are_few(self) -> bool:
        """Whether the machine has 16 registers for such vectors; AVX-512 and NEON have 32."""
        return self.count < 16 and platform.machine() in ("x86_64", "AMD64")

    def memory(self, count: int) -> ir.Value:
        """Return memory on the stack for `count` vectors."""
        with self.builder.goto_entry_block():
            memory = self.builder.alloca(self.type, count)
        memory.align = ALIGNMENT
        return self.builder.bitcast(memory, FLOAT.as_pointer())

    def settle(self, memory: ir.Value) -> None:
        """Keep what was stored to memory there: loads that follow, and what uses them, wait."""
        function = ir.FunctionType(ir.VoidType(), [memory.type])
        self.builder.asm(function, "", "r,~{memory}", [memory], side_effect=True)

    def join_shorts(self, low: Value, high: Value) -> Value:
        """Return pairs of the lower halves of both vectors' lanes, which hold nothing above."""
        b = self.builder
        above = b.shl(b.bitcast(high.value, self.int_type), self._integers(16))
        return self._words(b.or_(b.bitcast(low.value, self.int_type), above))

    def _words(self, bits: ir.Value) -> Value:
        return Value(self, self.builder.bitcast(bits, self.type))

    def add_pairs(self, a: Value, b: Value, total: Value, *, native: bool) -> Value:
        """Add the products of both pairs of bfloat16 in each lane to the float32 total.

        `native` takes the dot product of AVX-512 BF16, which takes denormal numbers for zeros; it
        needs 16 lanes. Otherwise pairs are widened.
        """
        if native:
            return self._call_dot(total, a, b)
        for half in (self._lower_half, self._upper_half):
            total = self.fma(half(a), half(b), total)
        return total

    def _lower_half(self, pairs: Value) -> Value:
        bits = self.builder.bitcast(pairs.value, self.int_type)
        return self._words(self.builder.shl(bits, self._integers(16)))

    def _upper_half(self, pairs: Value) -> Value:
        bits = self.builder.bitcast(pairs.value, self.int_type)
        return self._words(self.builder.and_(bits, self._integers(0xFFFF0000)))

    def _call_dot(self, total: Value, a: Value, b: Value) -> Value:
        """Call the machine's dot product; LLVM takes pairs as integers, whatever its version."""
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(self.type, [self.type, self.int_type, self.int_type]),
            "llvm.x86.avx512bf16.dpbf16ps.512",
        )
        pairs = [self.builder.bitcast(value.value, self.int_type) for value in (a, b)]
        return Value(self, self.builder.call(function, [total.value, *pairs]))

    def load_float16(self, pointer: ir.Value, index: ir.Value) -> Value:
        """Load float16 lanes from `pointer[index:]`, at any alignment."""
        kind = ir.VectorType(_HALF, self.count)
        short = self.builder.load(self._place(pointer, index, kind), align=2)
        return Value(self, self.builder.fpext(short, self.type))

    def store_float16(self, vector: Value, pointer: ir.Value, index: ir.Value) -> None:
        """Store lanes to `pointer[index:]` as float16, rounded to the nearest, ties to even."""
        kind = ir.VectorType(_HALF, self.count)
        short = self.builder.fptrunc(vector.value, kind)
        self.builder.store(short, self._place(pointer, index, kind), align=2)

    def _integers(self, value: int) -> ir.Constant:
        return ir.Constant(self.int_type, [value] * self.count)

    def sum_lanes(self, vector: Value) -> ir.Value:
        """Return the sum of all lanes, added by halves."""
        order = list(range(self.count))
        half = self.count // 2
        while half:
            vector = vector + self.shuffle(vector, vector, order[half:] + order[:half])
            half //= 2
        return self.builder.extract_element(vector.value, INT32(0))

    def _load_fours(
        self, pointer: ir.Value, indices: Sequence[ir.Value], kind: ir.Type = _FOUR
    ) -> Value:
        """Load four floats, or another vector, from each `pointer[index:]`, side by side."""
        align = 4 if pointer.type.pointee == FLOAT else 2
        parts = [
            self.builder.load(self._place(pointer, index, kind), align=align) for index in indices
        ]
        while len(parts) > 1:
            size = 2 * parts[0].type.count
            mask = ir.Constant(ir.VectorType(INT32, size), list(range(size)))
            parts = [
                self.builder.shuffle_vector(low, high, mask)
                for low, high in zip(parts[0::2], parts[1::2], strict=True)
            ]
        return Value(self, parts[0])

    def load_turned(
        self, pointer: ir.Value, index: ir.Value, stride: ir.Value, of: int = 1
    ) -> list[Value]:
        """Load a square, rows `stride` apart from `pointer[index:]`, and return its columns.

        Its words are floats, or `of` is how many of the pointer's numbers one holds.
        """
        rows = places(self.builder, index, stride, self.count)
        columns: list[Value] = []
        for first in range(0, self.count, 4):
            starts = [self.builder.add(row, row.type(of * first)) for row in rows]
            columns += self._transpose_fours(
                [self._load_fours(pointer, starts[i::4]) for i in range(4)]
            )
        return columns

    def gather(self, pointer: ir.Value, indices: Sequence[ir.Value]) -> Value:
        """Load one number from each `pointer[index:]`: floats, or int16 as floats times 2^16."""
        b, is_float = self.builder, pointer.type.pointee == FLOAT
        result = ir.Constant(self.type if is_float else self.int_type, ir.Undefined)
        for lane, index in enumerate(indices):
            number = b.load(b.gep(pointer, [index]), align=4 if is_float else 2)
            number = number if is_float else b.zext(number, INT32)
            result = b.insert_element(result, number, INT32(lane))
        return Value(self, result) if is_float else self._from_lower(self._words(result))

    def load_turned_int16(
        self, pointer: ir.Value, index: ir.Value, stride: ir.Value
    ) -> list[Value]:
        """Load a square of int16 as `load_turned` does, as floats times 2^16.

        Columns are transposed in pairs: a word has one in its lower half, the next in its upper.
        """
        rows = places(self.builder, index, stride, self.count)
        pairs: list[Value] = []
        if self.count == 4:  # a row has two words, not four
            two = ir.VectorType(FLOAT, 2)
            low, high = (self._load_fours(pointer, rows[i : i + 2], two) for i in (0, 2))
            pairs = [self.shuffle(low, high, [i, i + 2, i + 4, i + 6]) for i in (0, 1)]
        else:
            for first in range(0, self.count, 8):
                starts = [self.builder.add(row, row.type(first)) for row in rows]
                pairs += self._transpose_fours(
                    [self._load_fours(pointer, starts[i::4]) for i in range(4)]
                )
        return [turn(pair) for pair in pairs for turn in (self._from_lower, self._from_upper)]

    def load_turned_means(
        self, pointer: ir.Value, index: ir.Value, stride: ir.Value
    ) -> list[Value]:
        """Load a square of pairs as `load_turned` does and return the pairs' means.

        Floats, or int16 as floats times 2^16; a pair of int16 moves as one word.
        """
        if pointer.type.pointee != FLOAT:
            pairs = self.load_turned(pointer, index, stride, of=2)
            return [(self._from_lower(pair) + self._from_upper(pair)) * 0.5 for pair in pairs]
        halves = (self.builder.add(index, index.type(at)) for at in (0, self.count))
        words = [word for half in halves for word in self.load_turned(pointer, half, stride)]
        return [(left + right) * 0.5 for left, right in zip(words[0::2], words[1::2], strict=True)]

    def load_splat(self, pointer: ir.Value, index: ir.Value) -> Value:
        """Load one float into every lane."""
        return self.splat(self.builder.load(self.builder.gep(pointer, [index]), align=4))

    def shuffle(self, left: Value, right: Value, order: Sequence[int]) -> Value:
        """Return the lanes of left and right, numbered consecutively, in the given order."""
        mask = ir.Constant(self.int_type, list(order))
        return Value(self, self.builder.shuffle_vector(left.value, right.value, mask))

    def sqrt(self, x: Value) -> Value:
        """Return the square root of every lane."""
        return self._call("sqrt", x)

    def fma(self, a: Operand, b: Operand, c: Operand) -> Value:
        """Return a * b + c, rounded once where the machine can."""
        return self._call("fmuladd", self.lift(a), self.lift(b), self.lift(c))

    def product(self, a: Value, b: Value) -> Value:
        """Return a * b, rounded before anything is added to it, whatever else uses it."""
        return Value(self, self.builder.fmul(a.value, b.value))

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
        """Return the natural logarithm of x >= 0: -inf at 0; NaN and infinity unchanged.

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
        """Return the natural logarithm of x >= 2^-126; NaN and infinity unchanged.

        Splits x into 2^e * m with m in [sqrt(1/2), sqrt(2)). log(m) is a polynomial, off by 1e-7 at
        most: a fifth of the rounding of a logarithm near 16.
        """
        return self.scaled_log_of_normal(x, LOG_COEFFICIENTS, 0.0)

    def scaled_log_of_normal(
        self, x: Value, coefficients: Sequence[Operand], shift: Operand
    ) -> Value:
        """Return a positive factor times `log_of_normal`, plus a shift.

        Args:
            x: At least 2^-126; NaN and infinity unchanged.
            coefficients: `LOG_COEFFICIENTS`, each times the factor.
            shift: What is added.
        """
        b = self.builder

        bits = b.bitcast(x.value, self.int_type)
        # sqrt(1/2) as bits: values from there to sqrt(2) get exponent 0. The exponent keeps its
        # place in the word; the first coefficient makes up for that.
        exponent = b.and_(b.sub(bits, self._integers(0x3F3504F3)), self._integers(-(1 << 23)))
        f = Value(self, b.bitcast(b.sub(bits, exponent), self.type)) - 1.0
        e = Value(self, b.sitofp(exponent, self.type))
        polynomial = self._by_pairs(f, coefficients[1:])
        result = self.fma(f, polynomial, self.fma(e, coefficients[0], shift))
        # +inf and NaN are their own logarithms.
        finite = b.fcmp_ordered("<", x.value, self.constant(math.inf).value)
        return Value(self, b.select(finite, result.value, x.value))

    def _by_pairs(self, x: Value, coefficients: Sequence[Operand]) -> Value:
        """Return a polynomial of an even number of coefficients, by Horner's rule in x².

        Half as many steps wait for one another: a processor looks some 40 instructions ahead.
        """
        firsts, seconds = coefficients[0::2], coefficients[1::2]
        pairs = [self.fma(a, x, b) for a, b in zip(firsts, seconds, strict=True)]
        square = x * x
        polynomial = pairs[0]
        for pair in pairs[1:]:
            polynomial = self.fma(polynomial, square, pair)
        return polynomial

    def exp2(self, x: Value) -> Value:
        """Return 2^x for x <= 127, with a relative error of 2e-7; 0 below -126.5; NaN stays."""
        return self._exp2(x, _EXP2_POLYNOMIAL)

    def exp2_short(self, x: Value) -> Value:
        """Return 2^x as `exp2` does, with a relative error of 1e-4, a twentieth of bfloat16's."""
        return self._exp2(x, _EXP2_SHORT)

    def _exp2(self, x: Value, coefficients: Sequence[float]) -> Value:
        b = self.builder
        inside = self.maximum(x, self.constant(-127.0))
        # Added to 1.5 * 2^23, x loses its fraction, and its integer part is in the lowest bits.
        # Plus the exponent's bias, and shifted, these bits are a power of two; for -127 they are 0.
        magic = 12582912.0 + 127
        shifted = inside + magic
        f = inside - (shifted - magic)
        polynomial = self.constant(coefficients[0])
        for coefficient in coefficients[1:]:
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


# Of the exponent in its place in the word; then log(1 + f) / f on sqrt(1/2) - 1 to sqrt(2) - 1, the
# last coefficient 1: least largest error, found by linear programming (scipy.optimize.linprog on
# 1,201 Chebyshev points).
LOG_COEFFICIENTS = (
    math.log(2) / (1 << 23),
    -0.10408225655555725,
    0.16317272186279297,
    -0.17196124792099,
    0.19888561964035034,
    -0.24973444640636444,
    0.3333527743816376,
    -0.5000028610229492,
    1.0,
)


# 2^f on -1/2 to 1/2, the last coefficient 1: found likewise, by relative error, on 2,001 points.
_EXP2_POLYNOMIAL = (
    0.001326472032815218,
    0.009671512991189957,
    0.05550733953714371,
    0.24022242426872253,
    0.6931470036506653,
    1.0,
)
_EXP2_SHORT = (0.0550089319346167, 0.2422109594505452, 0.69328292692477, 1.0)


def places(builder: ir.IRBuilder, start: ir.Value, stride: ir.Value, count: int) -> list[ir.Value]:
    """Return start, start + stride, … as indices."""
    return [builder.add(start, builder.mul(stride, stride.type(row))) for row in range(count)]
