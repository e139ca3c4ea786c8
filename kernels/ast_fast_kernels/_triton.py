"""What the Triton launchers share: whether kernels are interpreted, and a GPU's place in tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

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


def is_interpreted() -> bool:
    """Whether kernels run on CPU tensors, in Triton's interpreter (TRITON_INTERPRET=1)."""
    return bool(triton.knobs.runtime.interpret)


@cache
def architecture(device: torch.device) -> int:
    """Return the launch tables' key of a device; the interpreter takes the newest's."""
    if device.type != "cuda":
        return ARCHITECTURES[-1]
    major, minor = torch.cuda.get_device_capability(device)
    return max((arch for arch in ARCHITECTURES if arch <= 10 * major + minor), default=80)


def obstacle(device: torch.device) -> str | None:
    """Say why no Triton kernel can run on tensors of this device; None when one can."""
    if device.type == "cuda" or (device.type == "cpu" and is_interpreted()):
        return None
    return f"triton needs a CUDA tensor, got one on {device}"
