"""How this package compiles with Numba: its flags, and what its kernels are called."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numba.extending
from numba.core.ccallback import CFunc

from ast_fast_kernels._cpu.disk import KernelCache

_OPTIONS: dict[str, Any] = {"error_model": "numpy"}
_UNWRAPPED: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}

_PACKAGE = Path(__file__).parents[1]


def callback(signature: Any, function: Callable[..., Any]) -> Any:
    """Compile an entry point that C code calls by its `address`, and Python by its `ctypes`.

    Arithmetic is IEEE's. The code is cached on disk if possible.
    """
    _tell_apart(function)
    compiled: Any = CFunc(function, (signature.args, signature.return_type), {}, _OPTIONS)
    compiled._cache = KernelCache(function, _describe(function))
    try:
        compiled.compile()
    finally:
        compiled._cache.close()
    return compiled


def stage(function: Callable[..., Any]) -> Any:
    """Compile a function for compiled code only; it is cached with the entry points that call it.

    Python cannot call it: a wrapper for that would take a sixth of the compilation time.
    """
    compiled: Any = numba.njit(nogil=True, **_UNWRAPPED, **_OPTIONS)(function)
    compiled._compile_for_args = _refuse_call
    return compiled


def _refuse_call(*args: object, **kwargs: object) -> None:
    raise TypeError("a function compiled by `stage` can be called by compiled code only")


def intrinsic(function: Callable[..., Any]) -> Any:
    """Make an intrinsic that sees the values of literal arguments."""
    return numba.extending.intrinsic(prefer_literal=True)(function)


def _built_for(function: Callable[..., Any]) -> dict[str, int]:
    """Return the numbers that a kernel is built for: those in its closure.

    The closure may hold only numbers and strings: Numba finds a kernel on the disk by them, and
    anything compiled differs in every process.
    """
    built_for = inspect.getclosurevars(function).nonlocals
    assert all(type(value) in (int, str) for value in built_for.values()), built_for
    return {name: value for name, value in built_for.items() if isinstance(value, int)}


def _tell_apart(function: Callable[..., Any]) -> None:
    """Name a kernel's code by the numbers that it is built for.

    Numba tells functions of the same name apart by the order in which a process compiles them. If
    two kernels cached by different processes met in a third, one would run in place of both.
    """
    numbers = "_".join(f"{name}{value}" for name, value in _built_for(function).items())
    function.__qualname__ += f"_{numbers}"


def _describe(function: Callable[..., Any]) -> str:
    """Name a kernel by its operation and the numbers that it is built for."""
    op, name = function.__module__.split(".")[1], function.__name__
    kernel = f"the {op} {name} kernel" if name in ("forward", "backward") else f"the {op} kernel"
    if op == "_cpu":  # of no operation's
        kernel = f"the {name} kernel"
    numbers = [f"{name} {value}" for name, value in _built_for(function).items()]
    return f"{kernel} for {', '.join(numbers)}" if numbers else kernel


@cache
def source_digest(package: Path = _PACKAGE) -> str:
    """Return a digest of every source of the package, wherever kernels are emitted from.

    Numba's cache watches one file per kernel, and the code comes from several. To find which, one
    would follow imports, which takes longer than reading all of them.
    """
    texts = (path.read_bytes() for path in sorted(package.rglob("*.py")))
    return hashlib.sha256(b"".join(texts)).hexdigest()
