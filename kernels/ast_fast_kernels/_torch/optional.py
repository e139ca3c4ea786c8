"""Torch, which may be missing; it is loaded only when something needs it."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, TypeGuard

from ast_fast_kernels._torch.tracing import is_loaded

if TYPE_CHECKING:
    from torch import Tensor


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """Say whether a value is torch's tensor, without loading torch to find out."""
    if not is_loaded():
        return False
    import torch

    return isinstance(value, torch.Tensor)


def needs_torch(what: str) -> ImportError:
    """Return the error for something that needs torch when torch is not installed."""
    return ImportError(f"{what} needs torch: pip install 'ast-fast-kernels[torch]'", name="torch")


def import_for(what: str, module: str) -> ModuleType:
    """Import a module for `what`; without torch, raise an error that says `what` needs it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise needs_torch(what) from error
