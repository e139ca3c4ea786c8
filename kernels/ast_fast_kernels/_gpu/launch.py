"""What the Triton launchers share: launches as data, a GPU's key in their tables, its device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_T = TypeVar("_T")

ARCHITECTURES = (80, 90)
"""Compute capabilities that have launch tables of their own; others take the nearest below."""


@dataclass(frozen=True)
class Launch:
    """How a kernel is cut into programs: constants of its code, warps and pipeline stages."""

    constants: tuple[tuple[str, int], ...]
    num_warps: int = 4
    num_stages: int = 1

    @classmethod
    def of(cls, num_warps: int = 4, num_stages: int = 1, **constants: int) -> Launch:
        """Return a launch whose constants are given by name."""
        return cls(tuple(constants.items()), num_warps, num_stages)

    def __getitem__(self, name: str) -> int:
        return dict(self.constants)[name]

    @property
    def arguments(self) -> dict[str, int]:
        """Keyword arguments of the kernel's launch."""
        return {
            **dict(self.constants),
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


@cache
def architecture(device: torch.device) -> int:
    """Return the launch tables' key of a device; the interpreter takes the newest's."""
    if device.type != "cuda":
        return ARCHITECTURES[-1]
    return nearest_architecture(*torch.cuda.get_device_capability(device))


def nearest_architecture(major: int, minor: int) -> int:
    """Return the launch tables' key of a compute capability.

    12 has no HGMMA and less shared memory, so launches that fit 9.0 spill there: it takes 8.0's.
    """
    if major >= 12:
        return 80
    return max((arch for arch in ARCHITECTURES if arch <= 10 * major + minor), default=80)


def on_its_device(launch: Callable[_P, _T]) -> Callable[_P, _T]:
    """Launch on the device of the arguments' first tensor: Triton uses the current device."""

    @wraps(launch)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        tensor = next(arg for arg in args if isinstance(arg, Tensor))
        current: AbstractContextManager[object] = nullcontext()
        if tensor.is_cuda:
            current = torch.cuda.device(tensor.device)
        with current:
            return launch(*args, **kwargs)

    return run
