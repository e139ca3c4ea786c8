"""Vectors of 32-bit words under construction, for random numbers; they travel as floats' bits.

Compiled code holds them as values of `VectorType`, so that `load`, `store` and registers are those
of simd.py. Knows no audio.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir

from ast_fast_kernels._cpu.compile import intrinsic
from ast_fast_kernels._cpu.lanes import INT32, Lanes, Value
from ast_fast_kernels._cpu.simd import VectorType


class Words:
    """Emits arithmetic on vectors of words, modulo 2^32, at the builder's position."""

    def __init__(self, lanes: Lanes) -> None:
        self.lanes = lanes
        self.builder = lanes.builder

    def constant(self, *values: int) -> ir.Constant:
        """Return a word in every lane, or one for each lane."""
        each = values * self.lanes.count if len(values) == 1 else values
        return ir.Constant(self.lanes.int_type, [value & 0xFFFFFFFF for value in each])

    def splat(self, integer: ir.Value) -> ir.Value:
        """Return a vector whose lanes all hold the lower 32 bits of an integer."""
        undefined = ir.Constant(self.lanes.int_type, ir.Undefined)
        word = self.builder.trunc(integer, INT32)
        one = self.builder.insert_element(undefined, word, INT32(0))
        return self.builder.shuffle_vector(one, undefined, self.constant(0))

    def of(self, vector: ir.Value) -> ir.Value:
        """Return the words that a float vector's bits are."""
        return self.builder.bitcast(vector, self.lanes.int_type)

    def bits(self, words: ir.Value) -> ir.Value:
        """Return the float vector whose bits are these words."""
        return self.builder.bitcast(words, self.lanes.type)

    def floats(self, words: ir.Value) -> Value:
        """Return signed words as floats."""
        return Value(self.lanes, self.builder.sitofp(words, self.lanes.type))

    def times(self, words: ir.Value, factor: int) -> ir.Value:
        """Return the lower halves of the products."""
        return self.builder.mul(words, self.constant(factor))

    def masked(self, words: ir.Value, mask: int) -> ir.Value:
        """Return the bits of a mask."""
        return self.builder.and_(words, self.constant(mask))

    def folded(self, words: ir.Value, shift: int) -> ir.Value:
        """Return words ^ words >> shift."""
        return self.builder.xor(words, self.builder.lshr(words, self.constant(shift)))

    def reversed(self, words: ir.Value) -> ir.Value:
        """Return words with their four bytes in reverse order."""
        size = 4 * self.lanes.count
        kind = ir.VectorType(ir.IntType(8), size)
        order = ir.Constant(ir.VectorType(INT32, size), [place ^ 3 for place in range(size)])
        undefined = ir.Constant(kind, ir.Undefined)
        turned = self.builder.shuffle_vector(self.builder.bitcast(words, kind), undefined, order)
        return self.builder.bitcast(turned, self.lanes.int_type)


def words_function(arity: int, emit_words: Callable[..., ir.Value], doc: str) -> Any:
    """Return an intrinsic of `arity` vectors of words that gives one."""

    def body(typing_context: Any, *vectors: Any) -> Any:
        first = vectors[0]
        if not isinstance(first, VectorType) or any(v != first for v in vectors):
            return None

        def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
            words = Words(Lanes(builder, first.lanes))
            return words.bits(emit_words(words, *map(words.of, args)))

        return first(*vectors), emit

    wrappers: dict[int, Callable[..., Any]] = {
        1: lambda typing_context, x: body(typing_context, x),
        2: lambda typing_context, x, y: body(typing_context, x, y),
        3: lambda typing_context, x, y, z: body(typing_context, x, y, z),
    }
    wrapper = wrappers[arity]
    wrapper.__doc__ = doc
    return intrinsic(wrapper)
