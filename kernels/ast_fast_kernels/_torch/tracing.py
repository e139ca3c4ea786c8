"""How torch.compile treats our functions; loads neither torch nor its compiler."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
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


def outside_compilation(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Break torch.compile's graph around a function, which then runs uncompiled.

    `torch.compiler.disable` as a decorator would load the whole compiler on import.
    """

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        if is_loaded():
            import torch

            if torch.compiler.is_dynamo_compiling():
                disable: Any = torch.compiler.disable
                uncompiled: _T = disable(function)(*args, **kwargs)
                return uncompiled
        return function(*args, **kwargs)

    return run
