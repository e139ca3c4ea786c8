"""Compile on a machine without a GPU what `bench.gpu_record` compiles on one with a GPU.

`TRITON_CACHE_DIR=warm python -m bench.gpu_warm --arch 90`, by the Python, torch and Triton of the
machine that has the GPU; there, `make gpu-record` with that folder as TRITON_CACHE_DIR finds the
kernels. A kernel whose key differs there is compiled there, no more. The stages run as they do on
a GPU, through the same launchers and on tensors of the same kinds, fewer clips at a time; a launch
ends before the device would begin (`ast_fast_kernels.testing.no_gpu`), so tensors hold what they
held. The tests' kernels are not compiled: the tests are many, and each has few.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import torch
import triton

from ast_fast_kernels._dispatch import numba_obstacle
from ast_fast_kernels.testing import no_gpu
from bench.gpu_record import function_of
from bench.gpu_timer import FULL, Candidates, Recorder

WARMED = ("errors", "hazards", "attention", "block", "fbank", "training", "sweep")
"""Stages whose kernels are compiled."""


def _small(number: int) -> int:
    return 16 + number % 16


# Triton tells apart whether a number is 1, and whether it is a multiple of 16; else sizes do not
# matter to a kernel, and what torch computes beside it need not take long.
SIZES = replace(
    FULL,
    attention=tuple((2, _small(tokens), *heads) for _, tokens, *heads in FULL.attention),
    block=tuple((_small(rows), width) for rows, width in FULL.block),
    rows=_small(FULL.rows),
    clips=(2, 1),
    clip_samples=8000,
    batch=16,
    steps=1,
    epochs=1,
    repeats=1,
    model=(("depth", 2),),
)


class NoFile:
    """Stands for the record."""

    def keep(self, section: str, name: str, row: object, *, silent: bool = False) -> None:
        """Keep nothing: nothing was computed."""


class Compiler(Recorder):
    """Calls what a recorder would measure, once, on the CPU; keeps nothing."""

    def __init__(self) -> None:
        self.file, self.device, self.sizes = NoFile(), torch.device("cpu"), SIZES
        self.on_gpu = False
        self.cannot: list[str] = []

    def noise(self, *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        yield

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


def compile_stages(stages: list[str]) -> list[str]:
    """Call what the stages launch; return what cannot be compiled, and why."""
    compiler = Compiler()
    numba_obstacle()  # loads Numba, which registers functions of `math` under their names
    for name in stages:
        try:
            run = function_of(name)
        except ModuleNotFoundError as error:
            compiler.cannot.append(f"{name}: {error.name} is not installed")
            continue
        with (
            mock.patch.object(torch, "equal", return_value=True),  # hazards go on
            mock.patch.object(math, "isfinite", return_value=True),  # so does a fold
        ):
            run(compiler)
    return compiler.cannot


def main(arguments: list[str] | None = None) -> int:
    """Compile the stages' kernels; print how many, and how long it took."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_warm", description=__doc__)
    add = parser.add_argument
    add(
        "--arch", type=int, choices=tuple(no_gpu.MULTIPROCESSORS), default=90,
        help="compute capability; default 90",
    )  # fmt: skip
    add("--stages", nargs="+", choices=WARMED, default=WARMED, help="default: all of these")
    options = parser.parse_args(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("TRITON_INTERPRET=1 compiles nothing")
    if "TRITON_CACHE_DIR" not in os.environ:
        parser.error("TRITON_CACHE_DIR must name the folder to fill")
    begin, counted = time.monotonic(), Compilations()
    no_gpu.install(options.arch)
    triton.knobs.compilation.listener = counted
    for line in compile_stages(options.stages):
        print(f"cannot be compiled: {line}")
    seconds = time.monotonic() - begin
    print(
        f"sm_{options.arch}, Triton {triton.__version__}: {counted.compiled} kernels compiled, "
        f"{counted.found} found, {seconds:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
