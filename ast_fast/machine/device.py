"""Where a model trains, on how many cores, and in which precision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from ast_fast_kernels.errors import InputError
from ast_fast_kernels.linear.packed import multiplies_bfloat16_here

DeviceName = Literal["auto", "cpu", "cuda"]
AmpName = Literal["auto", "off", "bfloat16", "float16"]


@dataclass(frozen=True)
class Placement:
    """Where a model trains or runs, and in which precision."""

    device: torch.device
    amp: torch.dtype | None
    """Dtype of matrix products; None is float32."""

    @property
    def precision(self) -> str:
        """The dtype of mixed precision by name, `off` without it."""
        return "off" if self.amp is None else str(self.amp).removeprefix("torch.")

    def autocast(self) -> torch.autocast:
        """Return the context of mixed precision; in float32 it changes nothing."""
        return torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None)


def resolve_placement(device: DeviceName, amp: AmpName) -> Placement:
    """Return where and how a model trains on this machine.

    Args:
        device: The setting `device`.
        amp: The setting `training.amp`.
    Raises:
        InputError: The machine lacks the device, or the device lacks the precision.
    """
    found = resolve_device(device)
    return Placement(found, resolve_amp(amp, found))


def resolve_device(name: DeviceName) -> torch.device:
    """Return the device to train on; auto takes CUDA if available.

    Raises:
        InputError: CUDA is requested but not available.
    """
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise InputError(
            "device must be one that this machine has, got cuda, which torch does not find; "
            "use --device cpu"
        )
    return torch.device("cuda" if available and name != "cpu" else "cpu")


def multiplies_bfloat16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 matrices in hardware, faster than float32.

    CPUs with AMX or AVX-512's bfloat16 products do. Other CPUs are slower in bfloat16 than in
    float32: ten times or more where torch emulates it.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return multiplies_bfloat16_here()


def resolve_amp(name: AmpName, device: torch.device) -> torch.dtype | None:
    """Return autocast's dtype for matrix products, or None for float32.

    Raises:
        InputError: The device does not support it.
    """
    on_cuda = device.type == "cuda"
    if name == "float16" and not on_cuda:
        raise InputError("training.amp must be auto, off or bfloat16 on the CPU, got float16")
    if name == "bfloat16" and on_cuda and not multiplies_bfloat16(device):
        raise InputError(
            "training.amp must be auto, off or float16 on this GPU, which lacks bfloat16, "
            "got bfloat16"
        )
    if name == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else None
    return {"off": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def nearest_amp(name: AmpName, device: torch.device) -> torch.dtype | None:
    """Return autocast's dtype on a device that may differ from the one trained on.

    If the device does not support the dtype, or a CPU only emulates it, this is the one that auto
    takes.
    """
    try:
        dtype = resolve_amp(name, device)
    except InputError:
        return resolve_amp("auto", device)
    if dtype == torch.bfloat16 and not multiplies_bfloat16(device):
        return None
    return dtype


@contextmanager
def deterministic_algorithms(device: torch.device) -> Iterator[None]:
    """Make torch use algorithms that give the same bits each time, within the block.

    On the CPU they always do, for a given number of threads. On CUDA, an operation without such an
    algorithm raises RuntimeError.
    """
    if device.type != "cuda":
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    deterministic: Any = torch.utils.deterministic
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    deterministic.fill_uninitialized_memory = False  # every kernel writes all of its results
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
        deterministic.fill_uninitialized_memory = filled


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, of the machine or of the GPU."""
    signs = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    named = any(sign in str(error) for sign in signs)
    return named or isinstance(error, MemoryError | torch.OutOfMemoryError)
