"""Work for the threads that torch keeps: compiled code run by its OpenMP team.

After one of torch's operators its threads wait for the next one at full speed, for some
milliseconds; a thread of another kind that wants their cores gets half of them. So what runs
between torch's operators runs on torch's threads: `GOMP_parallel`, the function behind every
parallel region that gcc compiles, in the library that torch loaded. Where there is none, and in a
process that was forked, whose team a fork does not copy, the plain threads of `_threads` do the
same work.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import types

from ast_fast_kernels import _threads
from ast_fast_kernels._numba import callback, intrinsic

HEADER = 2
"""Integers at the front of a task's memory: the next item, and the next worker's number."""

_forked = False


def run_items(worker: Any, numbers: tuple[int, ...], threads: int) -> None:
    """Have `threads` threads run a compiled worker, each until no item is left.

    Args:
        worker: What `compile_worker` returned.
        numbers: What it finds behind the header.
        threads: How many at most.
    """
    task = np.array([0] * HEADER + list(numbers), np.intp)
    parallel = _gomp_parallel() if threads > 1 and not _forked else None
    if parallel is not None:
        parallel(worker.address, task.ctypes.data, threads, 0)
        return

    def run(first: int, last: int) -> None:
        worker.ctypes(task.ctypes.data)

    _threads.parallel_for(run, threads, 1, threads)


def compile_worker(function: Callable[[int], None]) -> Any:
    """Compile what takes a task's address, and takes items from it by `take`."""
    with _threads.compile_lock:
        return callback(types.void(types.intp), function)


@intrinsic
def take(typing_context: Any, address: Any) -> Any:
    """Return the integer at the address and raise it by one, as no other thread does meanwhile."""
    if not isinstance(address, types.Integer):
        return None

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> ir.Value:
        kind = context.get_value_type(types.intp)
        pointer = builder.inttoptr(args[0], kind.as_pointer())
        return builder.atomic_rmw("add", pointer, kind(1), "seq_cst")

    return types.intp(types.intp), emit


@cache
def _gomp_parallel() -> Any:
    """Return torch's `GOMP_parallel(function, data, threads, flags)`; None where it has none."""
    folder = Path(torch.__file__).parent / "lib"
    for library in [*sorted(map(str, folder.glob("libgomp*"))), None]:
        try:
            function = ctypes.CDLL(library).GOMP_parallel
        except (OSError, AttributeError):
            continue
        function.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
        function.restype = None
        return function
    return None


def _start_anew() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_start_anew)
