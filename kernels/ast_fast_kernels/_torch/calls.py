"""What an operation has found out about a call, kept for later calls with the same layout.

Checks and the choice of a backend depend on dtypes, shapes, devices and switches, not on values. A
call on a GPU would spend longer on them than plain torch does on the operation itself.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

MOST = 256
"""Calls that are kept for an operation."""


class Calls:
    """An operation's functions for calls that have passed every check, by what these looked at."""

    def __init__(self) -> None:
        self.known: dict[Hashable, Callable[..., Any]] = {}
        """Empty where no call was kept, as on a CPU: then a key need not be made."""

    def keep(self, key: Hashable, call: Callable[..., Any]) -> None:
        """Keep what runs calls of that key; when there are too many, forget all others."""
        if len(self.known) >= MOST:
            self.known.clear()
        self.known[key] = call


def function_apply(function: type[torch.autograd.Function]) -> Callable[..., Any]:
    """Return a Function's `apply` without the search for tensors that outlived a transform.

    That takes half as long as the rest of it, and `are_light` has seen that no transform is active.
    """
    base: Any = super(torch.autograd.Function, function)
    apply: Callable[..., Any] = base.apply
    return apply
