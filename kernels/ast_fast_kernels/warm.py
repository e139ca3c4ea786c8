"""Compile kernels ahead of their first use: `python -m ast_fast_kernels.warm`."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from typing import Any, NoReturn

import numpy as np

from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.presets import PRESETS


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    taken = _Parser(
        prog="python -m ast_fast_kernels.warm",
        description="Compile CPU kernels and keep them on disk, for container images and clusters. "
        "Without arguments: the filterbank of every preset. Kernels are compiled for this "
        "machine's CPU, unless NUMBA_CPU_NAME and NUMBA_CPU_FEATURES name another; NUMBA_CACHE_DIR "
        "says where they are kept.",
    )
    add = taken.add_argument
    add("--preset", nargs="+", choices=PRESETS, metavar="NAME", help=f"any of {', '.join(PRESETS)}")
    add("--sample-rate", type=float, metavar="HZ", help="of the presets, where not their own")
    add(
        "--set", nargs="+", default=[], metavar="FIELD=VALUE",
        help="fields of FbankConfig to change in the presets, such as n_fft=1024",
    )  # fmt: skip
    add("--gradient", action="store_true", help="the presets' gradient too (needs torch)")
    add("--resample", action="store_true", help="resample, for all rates and dtypes")
    add("--mix", action="store_true", help="mix, of int16 and float32 (needs torch)")
    add("--normalise", action="store_true", help="normalise (needs torch)")
    add(
        "--attention", nargs="+", type=int, default=[], metavar="HEAD_DIM",
        help="attention for these head dimensions, in float32 and bfloat16 (needs torch)",
    )  # fmt: skip
    add(
        "--stem", nargs="+", type=int, default=[], metavar="WIDTH",
        help="norm_gelu_conv for these widths, in float32 and bfloat16 (needs torch)",
    )  # fmt: skip
    return taken


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile what the command line asks for, and say what was compiled and where it lies.

    Returns:
        The exit code: 1 if a kernel could not be kept on disk, 2 for arguments that do not fit.
    """
    given = parser().parse_args(arguments)
    try:
        with _printed("ast_fast_kernels", logging.WARNING), _printed(COMPILATIONS, logging.INFO):
            for run in list(_runs(given)):
                run()
    except (ImportError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    from ast_fast_kernels._cpu.disk import kernel_files  # loads Numba, which has run by now

    for folder in sorted({str(path.parent) for path in kernel_files.values() if path is not None}):
        print(f"kept in {folder}")
    print(f"ready: {', '.join(kernel_files)}")
    lost = [kernel for kernel, path in kernel_files.items() if path is None]
    if lost:
        print(f"error: not kept on disk: {', '.join(lost)}", file=sys.stderr)
    return 1 if lost else 0


COMPILATIONS = "ast_fast_kernels.compile"


@contextmanager
def _printed(name: str, level: int) -> Iterator[None]:
    """Print a logger's records from a level on."""
    logger = logging.getLogger(name)
    handler, before = _Lines(level), logger.level
    logger.addHandler(handler)
    if not logger.isEnabledFor(level):
        logger.setLevel(level)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), flush=True)


def _runs(given: argparse.Namespace) -> Iterator[Callable[[], object]]:
    """Yield calls that compile what is asked for."""
    others = given.resample or given.mix or given.normalise or given.attention or given.stem
    if given.preset is None and (given.gradient or not others):
        given.preset = list(PRESETS)
    changes = dict(map(_change, given.set))
    if given.sample_rate is not None:
        changes["sample_frequency"] = given.sample_rate
    if changes and given.preset is None:
        raise ValueError("--sample-rate and --set change presets; --preset must name them")
    for name in given.preset or []:
        config = FbankConfig.preset(name, **changes)
        yield partial(_run_fbank, config)
        if given.gradient:
            yield partial(_run_gradient, config)
    if given.resample:
        yield _run_resample
    if given.mix:
        yield _run_mix
    if given.normalise:
        yield _run_normalise
    for head_dim in given.attention:
        yield partial(_run_attention, head_dim)
    for width in given.stem:
        yield partial(_run_stem, width)


def _change(text: str) -> tuple[str, Any]:
    """Read FIELD=VALUE: a number, true or false, or a word."""
    field, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set must be FIELD=VALUE, got {text!r}")
    known = [*(of_config.name for of_config in fields(FbankConfig)), "window_size", "window_shift"]
    if field not in known:
        raise ValueError(f"--set must name a field of FbankConfig, got {field!r}")
    try:
        return field, json.loads(value)
    except ValueError:
        return field, value


def _run_fbank(config: FbankConfig) -> None:
    from ast_fast_kernels import fbank
    from ast_fast_kernels._cpu import crew

    crew.compile_loops()  # for longer clips on several threads

    # The kernel is one for all dtypes, lengths and layouts.
    fbank(np.zeros(2 * config.window_size, np.float32), config, backend="numba")


def _run_gradient(config: FbankConfig) -> None:
    import torch

    from ast_fast_kernels import fbank

    waveform = torch.zeros(2 * config.window_size, requires_grad=True)
    fbank(waveform, config, backend="numba").sum().backward()  # type: ignore[no-untyped-call]


def _run_resample() -> None:
    from ast_fast_kernels import resample

    resample(np.zeros(1, np.float32), 2, 1, backend="numba")


def _run_mix() -> None:
    import torch

    from ast_fast_kernels import mix  # says that it needs torch

    zero = torch.zeros(1, 1, dtype=torch.int64)
    for dtype in (torch.int16, torch.float32):
        waveforms = torch.zeros(1, 1, dtype=dtype)
        mix(waveforms, zero, zero, torch.ones(1, 1), backend="numba")


def _run_normalise() -> None:
    import torch

    from ast_fast_kernels import normalise

    normalise(torch.zeros(1, 1, 1), 1, log_silence=0.0, std_floor=1.0, backend="numba")


def _run_attention(head_dim: int) -> None:
    import torch

    from ast_fast_kernels import attention

    for dtype in (torch.float32, torch.bfloat16):
        qkv = torch.zeros(1, 1, 3, 1, head_dim, dtype=dtype, requires_grad=True)
        attention(qkv, backend="numba").sum().backward()  # type: ignore[no-untyped-call]


def _run_stem(width: int) -> None:
    import torch

    from ast_fast_kernels import norm_gelu_conv

    ones = torch.ones(width)
    for dtype in (torch.float32, torch.bfloat16):
        cells = torch.zeros(1, 2, 2, width, dtype=dtype, requires_grad=True)
        taps = torch.ones(width, 1, 3, 3)
        joined = norm_gelu_conv(cells, ones, ones, taps, ones, backend="numba")
        joined.sum().backward()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(main())
