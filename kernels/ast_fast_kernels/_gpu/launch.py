"""What the Triton launchers share: launches as data, bound kernels, a GPU's key and device."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, NamedTuple, ParamSpec, TypeVar

import torch
from torch import Tensor
from triton.compiler import CompiledKernel
from triton.knobs import runtime
from triton.runtime import driver

from ast_fast_kernels._gpu import occupancy

_P = ParamSpec("_P")
_T = TypeVar("_T")

PREPARED = 256
"""Launches of an operation that are kept, of the layouts that its last calls had."""

ALIGNMENT = 16
"""Bytes of which Triton asks whether an address is a multiple when it compiles a kernel."""

RESIDENT_VALUES = 4096
"""Values that the programs of a loop over rows have in work at once, on each multiprocessor.

By 8 or more to a thread these are at most 512 threads, so no program waits for another to end.
"""

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


class Plan(NamedTuple):
    """A launch of which only the tensors are open."""

    kernel: Any
    """What `triton.jit` gave: tensors first, then numbers, then constants."""
    grid: int
    """Programs."""
    numbers: tuple[float, ...]
    """Its arguments after the tensors."""
    constants: dict[str, Any]
    """Its last arguments and Triton's options, by name."""

    def start(self, *tensors: Tensor | None) -> Any:
        """Launch by Triton, on the current device; return the compiled kernel if there is one."""
        return self.kernel[self.grid,](*tensors, *self.numbers, **self.constants)


class Prepared:
    """A launch of which only the tensors are open; their dtypes are the same in every call.

    Triton's own `kernel[grid](...)` looks every argument and option up again, which takes longer on
    the host than many a kernel on the device. The first call goes that way and gives the compiled
    kernel, which later calls start themselves. It was compiled for addresses that are multiples of
    16; other addresses go Triton's way each time, as all do in its interpreter, and so do calls
    that a launch hook sees. Hooks and the current stream are read at each call; Triton's debug
    switches, its hooks before a run and the tables of launches, only at the first.
    """

    def __init__(self, plan: Plan, device: torch.device) -> None:
        """Prepare a launch.

        Args:
            plan: All but its tensors.
            device: Where the tensors are.
        """
        self._plan = plan
        names = [name for name in plan.kernel.arg_names if name in plan.constants]
        self._rest = (*plan.numbers, *(plan.constants[name] for name in names))
        self._grid = plan.grid
        self._index = device.index if device.type == "cuda" else None
        self._run: Callable[..., object] | None = None

    @property
    def is_bound(self) -> bool:
        """Whether later calls start the compiled kernel."""
        return self._run is not None

    def __call__(self, *tensors: Tensor | None) -> None:
        """Launch on the tensors' device: Triton uses the current one."""
        addresses: list[int | None] = []
        bits = 0
        for tensor in tensors:
            if tensor is None:
                addresses.append(None)
            else:
                address = tensor.data_ptr()
                bits |= address
                addresses.append(address)
        is_aligned = bits % ALIGNMENT == 0
        if self._index is None or torch.cuda.current_device() == self._index:
            if is_aligned and self._run is not None and not _has_hooks():
                # What Triton does between the grid and the launch, but for its empty hooks.
                stream = self._stream_of(self._index or 0)
                self._run(
                    self._grid, 1, 1, stream, *self._compiled, None, None, None,
                    *addresses, *self._rest,
                )  # fmt: skip
            else:
                self._launch(tensors, is_aligned)
        else:
            with torch.cuda.device(self._index):
                self._launch(tensors, is_aligned)

    def _launch(self, tensors: tuple[Tensor | None, ...], is_aligned: bool) -> None:
        compiled = self._plan.start(*tensors)
        if is_aligned and isinstance(compiled, CompiledKernel):
            run = compiled.run  # loads the code, and so gives it its function
            self._compiled = compiled.function, compiled.packed_metadata
            self._stream_of = driver.active.get_current_stream
            self._run = run  # last: another thread takes it as a sign that the rest is there


def _has_hooks() -> bool:
    """Say whether Triton has something to call before or after a launch."""
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    # Chains of calls, as Triton makes them, or functions, as one may set.
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))


def index_of(device: torch.device) -> int | None:
    """Return what `Tensor.get_device` says of tensors on a device."""
    return -1 if device.type == "cpu" else device.index


def programs_in_work(device: torch.device, values: int) -> int:
    """Return how many programs with blocks of so many values have RESIDENT_VALUES in work."""
    gpu = occupancy.gpu_of(device)
    if gpu is None:
        return 2  # the interpreter's: several blocks to a program, as on a GPU
    return gpu.multiprocessors * max(1, RESIDENT_VALUES // values)


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
