"""Whether Numba can compile on this machine: a kernel of one line, compiled and run."""

from __future__ import annotations

import ctypes
from typing import Any

import numba
from numba.core.ccallback import CFunc
from numba.core.errors import NumbaError
from numba.core.types import intp

from ast_fast_kernels._cpu.threads import compile_lock


def obstacle() -> str | None:
    """Say why Numba is kept from compiling here; None when it compiles.

    The kernel is not cached, so that the answer does not depend on what the disk holds. It takes
    0.03 s; Numba's own start, which any kernel needs, takes most of a second.

    Raises:
        RuntimeError: Numba tried in vain; LLVM may raise other errors.
    """
    if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]
        return "numba compiles nothing while NUMBA_DISABLE_JIT is set (unset it)"
    try:
        with compile_lock:
            kernel: Any = CFunc(_add_one, ((intp,), intp), {}, {"error_model": "numpy"})
            kernel.compile()
    except NumbaError as error:
        raise RuntimeError(str(error)) from error
    result = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_ssize_t)(kernel.address)(41)
    return None if result == 42 else f"numba compiles wrong code here (41 + 1 = {result})"


def _add_one(number: int) -> int:
    return number + 1
