"""How torch.compile treats our functions; loads neither torch nor its compiler."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])
_P = ParamSpec("_P")
_T = TypeVar("_T")


def constant_in_graphs(function: _F) -> _F:
    """Have torch.compile call a function while it traces, and keep the result.

    `torch.compiler.assume_constant_result` does the same, but loads the whole compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
def is_loaded() -> bool:
    """Say whether this process has imported torch, to the end."""
    torch = sys.modules.get("torch")
    return torch is not None and not getattr(torch.__spec__, "_initializing", False)


# A module, because dynamo looks up its attributes on each call.
_loaded: Any = ModuleType("ast_fast_kernels._torch._loaded")
_loaded.is_dynamo_compiling = None


@constant_in_graphs
def _find_compiler() -> None:
    if is_loaded():
        _loaded.is_dynamo_compiling = import_module("torch.compiler").is_dynamo_compiling


def is_compiling() -> bool:
    """Say whether torch.compile traces the caller."""
    if _loaded.is_dynamo_compiling is None:
        _find_compiler()
        if _loaded.is_dynamo_compiling is None:
            return False
    compiling: bool = _loaded.is_dynamo_compiling()
    return compiling


def outside_compilation(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Break torch.compile's graph around a function, which then runs uncompiled.

    `torch.compiler.disable` as a decorator would load the whole compiler on import.
    """

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if is_compiling():
            import torch

            disable: Any = torch.compiler.disable
            uncompiled: _T = disable(function)(*args, **kwargs)
            return uncompiled
        return function(*args, **kwargs)

    return run
