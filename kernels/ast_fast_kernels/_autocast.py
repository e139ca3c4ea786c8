"""Arithmetic that keeps its precision where the caller has torch lower it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ast_fast_kernels._tracing import constant_in_graphs


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which no operation on the device is cast down."""
    if not torch.amp.is_autocast_available(device.type):  # the meta device, for one
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def exact_product(left: Tensor, right: Tensor) -> Tensor:
    """Return left · right in their own precision.

    Autocast does not lower it, nor does `torch.set_float32_matmul_precision`, by which products of
    float32 may keep 11 bits (TF32) or 8 of each factor.
    """
    with no_autocast(left.device):
        if left.dtype == torch.float32 and allows_tf32():
            return (left.double() @ right.double()).float()
        return left @ right


@constant_in_graphs
def allows_tf32() -> bool:
    """Say whether torch may multiply float32 in less than that."""
    return torch.get_float32_matmul_precision() != "highest"
