"""How torch.compile is to take our functions; loads neither torch nor its compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])


def constant_in_graphs(function: _F) -> _F:
    """Have torch.compile call a function while it traces, and keep what it returned.

    What `torch.compiler.assume_constant_result` does, which loads the whole compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
