"""Triton's interpreter with the arithmetic that a GPU has, for tests.

Triton 3.7's interpreter keeps bfloat16 as 16-bit integers, and multiplies those in a dot; it
truncates float32 to bfloat16 where a GPU rounds; and it computes every float32 dot exactly,
whatever `input_precision` says. `install` fixes these three. Arithmetic on bfloat16 outside of dots
stays wrong: kernels convert to float32 first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import triton.language as tl
from triton.runtime import interpreter

_cuts_off = True


def install() -> None:
    """Fix the interpreter of this process; a second call changes nothing."""
    builder = interpreter.InterpreterBuilder
    if getattr(builder, "is_mended", False):
        return
    create_dot, cast_impl = builder.create_dot, builder.cast_impl

    def dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, imprecise: int) -> Any:
        a, b = (_widened(operand) for operand in (a, b))
        if _cuts_off and input_precision.name == "TF32":
            a, b = (_cut_off(operand) for operand in (a, b))
        return create_dot(self, a, b, d, input_precision, imprecise)

    def cast(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            return interpreter.TensorHandle(to_bfloat16_bits(source.data), tl.bfloat16)
        return cast_impl(self, source, to)

    builder.create_dot, builder.cast_impl = dot, cast
    builder.is_mended = True


def to_bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return float32 rounded to the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def to_tf32(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return float32 truncated to TF32's 10 bits of mantissa, as a tensor core reads it."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    kept = (bits & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isnan(values), values, kept)


def _widened(operand: Any) -> Any:
    if operand.dtype.scalar != tl.bfloat16:
        return operand
    values = (operand.data.astype(np.uint32) << 16).view(np.float32)
    return interpreter.TensorHandle(values, tl.float32)


def _cut_off(operand: Any) -> Any:
    if operand.data.dtype != np.float32:
        return operand
    return interpreter.TensorHandle(to_tf32(operand.data), operand.dtype.scalar)


@contextmanager
def exact_dots() -> Iterator[None]:
    """Compute float32 dots exactly inside a `with` block, whatever `input_precision` says."""
    global _cuts_off
    _cuts_off = False
    try:
        yield
    finally:
        _cuts_off = True
