"""Torch where it may be missing; loads it no sooner than something needs it."""

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
    """Return the error of what cannot do without torch, where torch is not installed."""
    return ImportError(f"{what} needs torch: pip install 'ast-fast-kernels[torch]'", name="torch")


def import_for(what: str, module: str) -> ModuleType:
    """Return a module, or say that `what`, which it is imported for, needs torch."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise needs_torch(what) from error
