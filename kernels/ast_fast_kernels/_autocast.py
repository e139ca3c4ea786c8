"""Arithmetic that keeps its dtype where the caller runs under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which no operation on the device is cast down."""
    if not torch.amp.is_autocast_available(device.type):  # the meta device, for one
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
