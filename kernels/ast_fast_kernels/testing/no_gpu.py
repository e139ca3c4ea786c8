"""A driver for Triton that compiles for a GPU and launches nothing: what a call does on the host.

Kernels are compiled for sm_90, and a launch goes as far as the function that would pack its
arguments for CUDA. Tensors are the CPU's, and hold afterwards whatever they held.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

MODULES = ("attention", "fbank", "gelu", "layer_norm")


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

    def __init__(self, *, keeps: bool = False) -> None:
        self.launches: list[Launched] = []
        self.launcher_cls = self._recorder if keeps else _nothing
        properties = {"max_shared_mem": 232_448, "multiprocessor_count": 132}
        self.utils = SimpleNamespace(
            load_binary=lambda name, kernel, shared, device: (1, kernel, 32, 0, 1024),
            get_device_properties=lambda device: properties,
        )

    def get_current_device(self) -> int:
        """Return the only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default one."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Return a Hopper."""
        return GPUTarget("cuda", 90, 32)

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


def install(*, keeps: bool = False) -> NoGpu:
    """Load the kernels, give Triton this driver, and have Triton's backends take CPU tensors.

    Args:
        keeps: Whether to keep what would have been launched.
    Raises:
        RuntimeError: The kernels are interpreted (TRITON_INTERPRET).
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("kernels must be compiled, got TRITON_INTERPRET=1")
    for name in MODULES:
        import_module(f"ast_fast_kernels.{name}.triton_gpu")
    driver = NoGpu(keeps=keeps)
    triton.runtime.driver.set_active(driver)
    # From here on only the checks read it: kernels that are loaded stay compiled.
    os.environ["TRITON_INTERPRET"] = "1"
    return driver
