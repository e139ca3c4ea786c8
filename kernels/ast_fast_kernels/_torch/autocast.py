"""Autocast's dtype, and arithmetic that keeps its precision even if torch is told to lower it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ast_fast_kernels._torch.tracing import constant_in_graphs


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which no operation on the device is cast down."""
    if not _has_autocast(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def autocast_dtype(tensor: Tensor) -> torch.dtype | None:
    """Return the dtype that autocast would give a matrix product on the tensor's device."""
    device = "cuda" if tensor.is_cuda else "cpu" if tensor.is_cpu else tensor.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


@constant_in_graphs  # torch 2.9 cannot trace the question
def _has_autocast(device_type: str) -> bool:
    """Say whether a kind of device has autocast; the meta device, for one, has not."""
    return torch.amp.is_autocast_available(device_type)


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left · right in their own precision.

    Autocast does not lower it. Nor does `torch.set_float32_matmul_precision` or a newer switch,
    which let products of float32 keep only 11 bits (TF32) or 8 of each factor.
    """
    with no_autocast(left.device):
        if left.dtype == torch.float32 and lowers_float32(left.device.type):
            return (left.double() @ right.double()).float()
        return left @ right


@constant_in_graphs
def lowers_float32(device_type: str) -> bool:
    """Say whether torch may lower the precision of float32 products on that device.

    Reads torch's newer switches, which reflect the older ones; reading the older ones can raise.
    """
    backends: Any = torch.backends
    libraries = {"cuda": backends.cuda, "cpu": backends.mkldnn}
    library = libraries.get(device_type)
    return library is not None and library.matmul.fp32_precision not in ("none", "ieee")
