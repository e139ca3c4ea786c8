"""Integers that threads of compiled code read and write while others do; `team.take` counts."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from ast_fast_kernels._cpu.compile import intrinsic
from ast_fast_kernels._cpu.simd import INTEGER_BYTES


@intrinsic
def read_shared(typing_context: Any, address: Any, index: Any) -> Any:
    """Return an integer of the array at the address, and see what its writer had written before.

    Nor does it come before a `swap_shared` that this thread has made.
    """
    if not (isinstance(address, types.Integer) and isinstance(index, types.Integer)):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        pointer = _place(context, builder, args)
        return builder.load_atomic(pointer, "seq_cst", INTEGER_BYTES)

    return types.intp(types.intp, types.intp), emit


@intrinsic
def write_shared(typing_context: Any, address: Any, index: Any, value: Any) -> Any:
    """Write an integer to the array at the address, after all that was written before."""
    if not all(isinstance(kind, types.Integer) for kind in (address, index, value)):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        pointer = _place(context, builder, args)
        builder.store_atomic(args[2], pointer, "release", INTEGER_BYTES)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), emit


@intrinsic
def swap_shared(typing_context: Any, address: Any, index: Any, old: Any, new: Any) -> Any:
    """Put `new` in the place of `old`, and say whether it was there; no thread comes in between."""
    if not all(isinstance(kind, types.Integer) for kind in (address, index, old, new)):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        pointer = _place(context, builder, args)
        pair = builder.cmpxchg(pointer, args[2], args[3], "seq_cst", "seq_cst")
        return builder.extract_value(pair, 1)

    return types.boolean(types.intp, types.intp, types.intp, types.intp), emit


def _place(context: Any, builder: ir.IRBuilder, args: Any) -> ir.Value:
    kind = context.get_value_type(types.intp)
    return builder.gep(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
