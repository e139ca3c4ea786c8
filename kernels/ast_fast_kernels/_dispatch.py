"""Which function runs an operation: a table of backends, and the one place that chooses by name.

Order: the `backend` argument, then `use_backend`, then AST_FAST_BACKEND, then auto. Only auto
chooses by device and dtype (in the operation's `api.py`); a backend asked for by name runs or
raises.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

from ast_fast_kernels._torch.forks import on_one_thread_if_forked, was_forked
from ast_fast_kernels._torch.tracing import constant_in_graphs

BACKENDS: dict[tuple[str, str], str] = {
    ("fbank", "reference"): "ast_fast_kernels.fbank.reference:fbank_reference",
    ("fbank", "numba"): "ast_fast_kernels.fbank.numba_cpu:fbank_numba",
    ("fbank", "triton"): "ast_fast_kernels.fbank.triton_gpu:fbank_triton",
    ("mix", "reference"): "ast_fast_kernels.mix.reference:mix_reference",
    ("mix", "numba"): "ast_fast_kernels.mix.numba_cpu:mix_numba",
    ("normalise", "reference"): "ast_fast_kernels.normalise.reference:normalise_reference",
    ("normalise", "numba"): "ast_fast_kernels.normalise.numba_cpu:normalise_numba",
    ("attention", "reference"): "ast_fast_kernels.attention.reference:attention_reference",
    ("attention", "sdpa"): "ast_fast_kernels.attention.sdpa:attention_sdpa",
    ("attention", "numba"): "ast_fast_kernels.attention.numba_cpu:attention_numba",
    ("attention", "triton"): "ast_fast_kernels.attention.triton_gpu:attention_triton",
    ("layer_norm", "reference"): "ast_fast_kernels.layer_norm.reference:add_layer_norm_reference",
    ("layer_norm", "triton"): "ast_fast_kernels.layer_norm.triton_gpu:add_layer_norm_triton",
    ("linear", "reference"): "ast_fast_kernels.linear.reference:linear_reference",
    ("linear", "onednn"): "ast_fast_kernels.linear.onednn:linear_onednn",
    ("gelu", "reference"): "ast_fast_kernels.gelu.reference:linear_gelu_reference",
    ("gelu", "onednn"): "ast_fast_kernels.gelu.onednn:linear_gelu_onednn",
    ("gelu", "triton"): "ast_fast_kernels.gelu.triton_gpu:linear_gelu_triton",
    ("resample", "reference"): "ast_fast_kernels.resample.reference:resample_reference",
    ("resample", "soxr"): "ast_fast_kernels.resample.soxr_cpu:resample_soxr",
    ("stem", "reference"): "ast_fast_kernels.stem.reference:norm_gelu_conv_reference",
    ("stem", "numba"): "ast_fast_kernels.stem.numba_cpu:norm_gelu_conv_numba",
}
"""(operation, backend) → "module:function", loaded on first use."""

ENVIRONMENT_VARIABLE = "AST_FAST_BACKEND"

_logger = logging.getLogger("ast_fast_kernels")
_in_use: ContextVar[dict[str, str]] = ContextVar("ast_fast_kernels_backends", default={})  # noqa: B039


def backends_of(op: str) -> tuple[str, ...]:
    """Return the names that `backend` takes for one operation."""
    return ("auto", *(backend for name, backend in BACKENDS if name == op))


@contextmanager
def use_backend(backend: str | None = None, /, **per_op: str) -> Iterator[None]:
    """Set the backend of calls that do not name one, inside a `with` block.

    Args:
        backend: The backend of every operation that has it; other operations keep theirs.
        per_op: The backend of one operation, such as `fbank="numba"` or `attention="sdpa"`.
    Raises:
        ValueError: No operation has such a backend or such a name.
    """
    chosen = _spread(backend, "backend") if backend is not None else {}
    for op, name in per_op.items():
        check_op(op, "use_backend's argument")
        _check_backend(op, name, op)
        chosen[op] = name
    token = _in_use.set({**_in_use.get(), **chosen})
    try:
        yield
    finally:
        _in_use.reset(token)


@constant_in_graphs
def requested_backend(op: str, argument: str) -> str:
    """Return the backend asked for, `"auto"` when nothing names one.

    Compiled code keeps what was asked for when it was traced.

    Raises:
        ValueError: The operation has no backend of that name.
    """
    if argument != "auto":
        _check_backend(op, argument, "backend")
        return argument
    in_use = _in_use.get()
    if in_use and (backend := in_use.get(op, "auto")) != "auto":
        return backend
    value = _environment()
    return _parse_environment(value).get(op, "auto") if value else "auto"


_IN_ENVIRONMENT = os.environ.encodekey(ENVIRONMENT_VARIABLE)


def _environment() -> str:
    """Return the variable's value, `""` without it.

    What is not there is looked for in the dictionary below `os.environ`, which raises and catches
    two errors for it: that would take longer than the rest of the choice.
    """
    held = getattr(os.environ, "_data", None)
    if isinstance(held, dict) and _IN_ENVIRONMENT not in held:
        return ""
    return os.environ.get(ENVIRONMENT_VARIABLE, "")


def load_backend(op: str, backend: str) -> Callable[..., Any]:
    """Return a backend's function, importing its module the first time.

    In a forked process, those of torch's operators run on the caller's thread only.
    """
    name = f"{op}_{backend}"
    _load(op, backend, name)
    function: Callable[..., Any] = getattr(_loaded, name)
    if backend not in _ON_OWN_THREADS and was_forked():
        return on_one_thread_if_forked(function)
    return function


_ON_OWN_THREADS = ("numba", "soxr", "triton")


AUTO = {"cpu": ("numba", "onednn"), "cuda": ("triton",)}
"""Kind of device → the kernels that auto takes on it; an operation has at most one of these."""


def choose_kernel(
    op: str,
    requested: str,
    device: str,
    obstacles: Mapping[str, Callable[[], str | None]],
    otherwise: str,
) -> str:
    """Return the backend that runs: auto takes the device's kernels, if they can run the input.

    Args:
        op: The operation.
        requested: The result of `requested_backend`.
        device: The kind of device that its tensors are on, such as `"cpu"`.
        obstacles: For each of the operation's kernels, a function that says why it cannot run;
            None when it can.
        otherwise: What auto takes if they cannot run, and what the error suggests.
    Raises:
        RuntimeError: Kernels were asked for by name and cannot run.
    """
    if requested in obstacles:
        reason = _obstacle(requested, obstacles)
        if reason is not None:
            raise RuntimeError(f'{reason}; use backend="{otherwise}"')
        return requested
    if requested != "auto":
        return requested
    chosen, reason = otherwise, None
    for kernels in AUTO.get(device, ()):
        if kernels in obstacles:
            reason = _obstacle(kernels, obstacles)
            chosen = otherwise if reason else kernels
    log_choice(op, chosen, reason)
    return chosen


def _obstacle(kernels: str, obstacles: Mapping[str, Callable[[], str | None]]) -> str | None:
    reason = obstacles[kernels]()
    return numba_obstacle() if reason is None and kernels == "numba" else reason


@constant_in_graphs
def numba_obstacle() -> str | None:
    """Say why Numba cannot compile on this machine; None when it can."""
    return _numba_obstacle()


@constant_in_graphs
def log_choice(op: str, backend: str, reason: str | None = None) -> None:
    """Log what auto chose, once for each operation, backend and reason."""
    _log(op, backend, reason)


# A module, because dynamo looks up its attributes on each call; it would not see a dict change.
_loaded = ModuleType("ast_fast_kernels._loaded")


@constant_in_graphs
def _load(op: str, backend: str, name: str) -> None:
    if not hasattr(_loaded, name):
        module, _, function = BACKENDS[op, backend].partition(":")
        setattr(_loaded, name, getattr(importlib.import_module(module), function))


# Not part of `log_choice`, because dynamo looks through a cache at what it wraps.
@cache
def _log(op: str, backend: str, reason: str | None) -> None:
    because = "" if reason is None else f" ({reason})"
    _logger.info("%s: auto chose backend %r%s", op, backend, because)
    if _numba_obstacle.cache_info().currsize and reason == _numba_obstacle() is not None:
        _warn_of_no_numba(reason)


@cache
def _warn_of_no_numba(reason: str) -> None:
    _logger.warning("%s: auto chooses slower backends on the CPU", reason)


_BROKEN = (
    ImportError, OSError, RuntimeError, SyntaxError, SystemError, ArithmeticError,
    AssertionError, AttributeError, LookupError, NameError, TypeError, ValueError,
)  # fmt: skip
"""What Numba and LLVM raise where they fit neither each other nor the machine."""


@cache
def _numba_obstacle() -> str | None:
    """Load what compiles, and try it."""
    try:
        obstacle: str | None = importlib.import_module("ast_fast_kernels._cpu.probe").obstacle()
    except ModuleNotFoundError as error:
        if error.name == "numba":
            return "numba is not installed (pip install numba)"
        return f"numba cannot be loaded ({error})"
    except _BROKEN as error:
        said = " ".join(re.sub("\x1b[^m]*m", "", str(error)).split())
        return f"numba does not work here ({type(error).__name__}: {said[:200]})"
    return obstacle


@cache
def _parse_environment(value: str) -> dict[str, str]:
    """Read `numba`, or `fbank=numba,attention=sdpa`."""
    chosen: dict[str, str] = {}
    for part in value.split(","):
        op, equals, backend = part.strip().partition("=")
        if equals:
            check_op(op, ENVIRONMENT_VARIABLE)
            _check_backend(op, backend, ENVIRONMENT_VARIABLE)
            chosen[op] = backend
        else:
            chosen |= _spread(op, ENVIRONMENT_VARIABLE)
    return chosen


def _spread(backend: str, argument: str) -> dict[str, str]:
    """Give one backend's name to every operation that has it."""
    ops = dict.fromkeys(op for op, _ in BACKENDS)
    chosen = {op: backend for op in ops if backend in backends_of(op)}
    if not chosen:
        names = sorted({name for op in ops for name in backends_of(op)})
        raise ValueError(f"{argument} must be one of {', '.join(names)}, got {backend!r}")
    return chosen


def check_op(op: str, argument: str) -> None:
    """Raise unless an operation has that name."""
    ops = dict.fromkeys(name for name, _ in BACKENDS)
    if op not in ops:
        raise ValueError(f"{argument} must name an operation ({', '.join(ops)}), got {op!r}")


def _check_backend(op: str, backend: str, argument: str) -> None:
    known = backend == "auto" or (isinstance(backend, str) and (op, backend) in BACKENDS)
    if not known:
        names = ", ".join(backends_of(op))
        raise ValueError(f"{argument} must be one of {names} for {op}, got {backend!r}")
