"""How many programs of a compiled kernel a GPU holds at once, by what their code needs.

A kernel whose programs go from block to block starts as many: more would wait for others to end.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from triton.compiler import CompiledKernel

WARP = 32

REGISTERS = 65_536
"""Registers of a multiprocessor, of four schedulers with a quarter each."""

REGISTER_UNIT, SHARED_UNIT = 256, 128
"""A warp gets a multiple of so many registers, a program a multiple of so many shared bytes."""

RESERVED = 1024
"""Bytes of shared memory that each program takes beside its own."""


@dataclass(frozen=True)
class Limits:
    """What the programs on one multiprocessor share."""

    threads: int
    programs: int
    shared: int
    """Bytes of shared memory."""


LIMITS = {
    (8, 0): Limits(2048, 32, 164 << 10),
    (8, 6): Limits(1536, 16, 100 << 10),
    (8, 7): Limits(1536, 16, 164 << 10),
    (8, 9): Limits(1536, 24, 100 << 10),
    (9, 0): Limits(2048, 32, 228 << 10),
    (10, 0): Limits(2048, 32, 228 << 10),
    (11, 0): Limits(1536, 24, 228 << 10),
    (12, 0): Limits(1536, 24, 100 << 10),
}
"""Compute capability → limits; others take the nearest below. CUDA C++ Programming Guide,
"Technical Specifications per Compute Capability"."""


@dataclass(frozen=True)
class Gpu:
    """A GPU's multiprocessors: their limits and how many there are."""

    limits: Limits
    multiprocessors: int


@cache
def gpu_of(device: torch.device) -> Gpu | None:
    """Return a device's multiprocessors; None for a CPU, where Triton interprets."""
    if device.type != "cuda":
        return None
    facts = torch.cuda.get_device_properties(device)
    return Gpu(limits_of(facts.major, facts.minor), facts.multi_processor_count)


def limits_of(major: int, minor: int) -> Limits:
    """Return the limits of a compute capability of 8.0 or above."""
    return LIMITS[max(known for known in LIMITS if known <= (major, minor))]


def resident_programs(limits: Limits, registers: int, shared: int, num_warps: int) -> int:
    """Return how many programs of a kernel one multiprocessor holds at once.

    Args:
        limits: The multiprocessor's.
        registers: Registers of a thread.
        shared: Bytes of shared memory of a program.
        num_warps: Warps of a program.
    """
    of_warp = _rounded(registers * WARP, REGISTER_UNIT)
    warps = REGISTERS // 4 // of_warp * 4  # a warp stays with one scheduler
    return min(
        warps // num_warps,
        limits.threads // (WARP * num_warps),
        limits.shared // (_rounded(shared, SHARED_UNIT) + RESERVED),
        limits.programs,
    )


def _rounded(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def programs_at_once(compiled: CompiledKernel, gpu: Gpu, device: torch.device) -> int:
    """Return how many programs of a kernel the current device holds at once.

    Args:
        compiled: What a warm-up or a launch gave. Its code is loaded here, if it was not yet.
        gpu: The device's multiprocessors.
        device: The current device.
    Raises:
        RuntimeError: Its code is not loaded, and the stream captures a CUDA graph, which refuses
            that.
    """
    is_capturing = device.type == "cuda" and torch.cuda.is_current_stream_capturing()
    if compiled.module is None and is_capturing:
        raise RuntimeError(
            f"the code of {compiled.name} for this call is not on {device} yet, and a stream that "
            "captures a CUDA graph cannot load it; make one call with the same config, dtype, "
            "strides and device before the capture"
        )
    compiled[1, 1, 1]  # loads it, and so learns what its threads need
    needs = compiled.n_regs, compiled.metadata.shared, compiled.metadata.num_warps
    return max(1, resident_programs(gpu.limits, *needs)) * gpu.multiprocessors
