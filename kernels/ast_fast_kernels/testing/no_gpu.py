"""A driver for Triton that compiles for a GPU and launches nothing: what a call does on the host.

A launch goes as far as the function that would pack its arguments for CUDA. Tensors are the CPU's,
and hold afterwards whatever they held.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from ast_fast_kernels._gpu import occupancy
from ast_fast_kernels.testing.ahead_of_time import SHARED_MEMORY, read_usage

MODULES = ("attention", "fbank", "gelu", "layer_norm")
MULTIPROCESSORS = {80: 108, 90: 132}
"""Of an A100 and an H100, by compute capability: those that can be compiled for."""


@dataclass(frozen=True)
class Launched:
    """A launch that did not take place."""

    kernel: str
    """Digest of the compiled kernel."""
    name: str
    grid: tuple[int, int, int]
    pointers: tuple[int, ...]
    numbers: tuple[Any, ...]
    """Arguments that are neither pointers nor constants of the code."""


class NoGpu:
    """What a launch asks of a driver; `launches` has those since it was last cleared, if kept."""

    def __init__(self, arch: int = 90, *, keeps: bool = False) -> None:
        self.arch = arch
        self.launches: list[Launched] = []
        self.launcher_cls = self._recorder if keeps else _nothing
        properties = {
            "max_shared_mem": SHARED_MEMORY[arch],
            "multiprocessor_count": MULTIPROCESSORS[arch],
        }
        self.utils = SimpleNamespace(
            load_binary=self._load,
            get_device_properties=lambda device: properties,
        )

    def get_current_device(self) -> int:
        """Return the only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Return what kernels are compiled for."""
        return GPUTarget("cuda", self.arch, 32)

    def _load(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[Any, ...]:
        return 1, cubin, read_usage(cubin)["REG"], 0, 1024

    def _recorder(self, source: Any, metadata: Any) -> Any:
        kinds = tuple(source.signature.values())

        def keep(*given: Any) -> None:
            grid, (metadata_of_launch, enter, leave), arguments = given[:3], given[6:9], given[9:]
            for hook in (enter, leave):
                if hook is not None:
                    hook(metadata_of_launch)
            pairs = list(zip(kinds, arguments, strict=True))
            pointers = [value for kind, value in pairs if kind.startswith("*")]
            self.launches.append(
                Launched(
                    metadata.hash,
                    source.fn.__name__,
                    grid,
                    tuple(getattr(p, "data_ptr", lambda p=p: p)() for p in pointers),
                    tuple(v for kind, v in pairs if kind[0] != "*" and kind != "constexpr"),
                )
            )

        return keep


def _nothing(source: Any, metadata: Any) -> Any:
    return lambda *given: None


def install(arch: int = 90, *, keeps: bool = False) -> NoGpu:
    """Load the kernels, give Triton this driver, and have Triton's backends take CPU tensors.

    For good: a process has one.

    Args:
        arch: Compute capability to compile for, with its launch tables: 80 or 90.
        keeps: Whether to keep what would have been launched.
    Raises:
        ValueError: `arch` is another.
        RuntimeError: The kernels are interpreted (TRITON_INTERPRET).
    """
    if arch not in MULTIPROCESSORS:
        raise ValueError(f"arch must be {' or '.join(map(str, MULTIPROCESSORS))}, got {arch}")
    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels must be compiled, got TRITON_INTERPRET=1")
    for name in MODULES:
        module: Any = import_module(f"ast_fast_kernels.{name}.triton_gpu")
        if hasattr(module, "architecture"):
            module.architecture = lambda device: arch
    gpu = occupancy.Gpu(occupancy.limits_of(*divmod(arch, 10)), MULTIPROCESSORS[arch])
    vars(occupancy)["gpu_of"] = lambda device: gpu
    driver = NoGpu(arch, keeps=keeps)
    triton.runtime.driver.set_active(driver)
    # From here on only the checks read it: kernels that are loaded stay compiled.
    os.environ["TRITON_INTERPRET"] = "1"
    return driver
