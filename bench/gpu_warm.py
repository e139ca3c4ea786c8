"""Compile on a machine without a GPU what `bench.gpu_record` compiles on one with a GPU.

`TRITON_CACHE_DIR=warm python -m bench.gpu_warm --arch 90`, by the Python, torch and Triton of the
machine that has the GPU; there, `make gpu-record` with that folder as TRITON_CACHE_DIR finds the
kernels. A kernel whose key differs there is compiled there, no more. The stages run as they do on
a GPU, through the same launchers and on tensors of the same kinds; each launch ends after its
compilation, so tensors hold what they held.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from ast_fast_kernels._gpu.launch import ARCHITECTURES
from ast_fast_kernels._torch import checks
from ast_fast_kernels.attention import triton_gpu as attention_gpu
from bench import gpu_sweep
from bench.gpu_record import function_of
from bench.gpu_timer import FULL, Candidates, Recorder

WARMED = ("errors", "attention", "block", "fbank", "sweep")
"""Stages whose kernels are compiled; the others launch the same ones."""


class NoDevice:
    """What a launch asks of a driver before it launches."""

    def __init__(self, arch: int) -> None:
        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compiler(Recorder):
    """Calls what a recorder would measure, once, on the CPU; keeps nothing."""

    def __init__(self) -> None:
        self.device, self.sizes, self.on_gpu = torch.device("cpu"), FULL, False
        self.cannot: list[str] = []

    def noise(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        yield

    def check(self, name: str, error: float, bound: float) -> None:
        """Leave out the error: nothing was computed."""

    def compare(self, name: str, candidates: Candidates, **facts: object) -> None:
        """Call what launches kernels of ours."""
        ours = facts.get("section") == "sweep"
        for candidate, run in candidates.items():
            if ours or candidate.startswith("triton"):
                try:
                    run()
                except Exception as error:  # a form of the sweep that does not fit
                    self.cannot.append(f"{name}, {candidate}: {str(error).splitlines()[0][:100]}")


class Compilations:
    """Counts what Triton compiles, and what it finds in its cache."""

    def __init__(self) -> None:
        self.compiled, self.found = 0, 0

    def __call__(self, *, cache_hit: bool, **others: object) -> None:
        self.found += cache_hit
        self.compiled += not cache_hit


@contextmanager
def launching_nothing(arch: int) -> Iterator[Compilations]:
    """Let launches on CPU tensors compile for an architecture, and end there."""
    run, counted = JITFunction.run, Compilations()

    def compile_only(self: Any, *args: Any, warmup: bool, **options: Any) -> None:
        run(self, *args, warmup=True, **options)  # gives nothing that a later call could start

    driver.set_active(NoDevice(arch))  # of this process, which has no other
    triton.knobs.compilation.listener = counted
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.object(JITFunction, "run", compile_only))
        enter(mock.patch.object(checks, "triton_obstacle", return_value=None))
        for module in (attention_gpu, gpu_sweep):
            enter(mock.patch.object(module, "architecture", return_value=arch))
        yield counted


def main(arguments: list[str] | None = None) -> int:
    """Compile the stages' kernels; print how many, and how long it took."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_warm", description=__doc__)
    add = parser.add_argument
    add(
        "--arch", type=int, choices=ARCHITECTURES, default=90, help="compute capability; default 90"
    )
    add("--stages", nargs="+", choices=WARMED, default=WARMED, help="default: all of these")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 compiles nothing")
    if "TRITON_CACHE_DIR" not in os.environ:
        parser.error("TRITON_CACHE_DIR must name the folder to fill")
    begin, compiler = time.monotonic(), Compiler()
    with launching_nothing(options.arch) as counted:
        for name in options.stages:
            function_of(name)(compiler)
    for line in compiler.cannot:
        print(f"cannot be compiled: {line}")
    seconds = time.monotonic() - begin
    print(
        f"sm_{options.arch}, Triton {triton.__version__}: {counted.compiled} kernels compiled, "
        f"{counted.found} found, {seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
