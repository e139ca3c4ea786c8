"""Processes that were forked: they lack the threads that torch's operators wait for.

A fork copies only the thread that calls it. If torch has used its threads by then, the child's copy
of torch still counts on them, and an operator that shares its work out waits for ever.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import ParamSpec, TypeVar

from ast_fast_kernels._torch.tracing import constant_in_graphs

_P = ParamSpec("_P")
_T = TypeVar("_T")

_IMPORTED_IN = os.getpid()

PF_FORKNOEXEC = 0x40
"""Linux's flag of a process that was forked and has started no other program since."""


@constant_in_graphs
def was_forked() -> bool:
    """Say whether this process was forked, and so may lack the threads of torch's team."""
    return _was_forked(os.getpid())


@cache
def _was_forked(process: int) -> bool:
    try:
        stat = Path("/proc/self/stat").read_text()
    except OSError:  # not Linux
        return process != _IMPORTED_IN
    flags = stat.rpartition(")")[2].split()[6]
    return bool(int(flags) & PF_FORKNOEXEC)


def one_thread_if_forked() -> AbstractContextManager[None]:
    """Inside a `with` block in a forked process, run this thread's torch operators without others.

    Afterwards torch has as many threads as before. torch is loaded already.
    """
    return _one_thread() if was_forked() else nullcontext()


@contextmanager
def _one_thread() -> Iterator[None]:
    import torch

    threads = torch.get_num_threads()
    if threads == 1 or torch.compiler.is_dynamo_compiling():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def on_one_thread_if_forked(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Run a function within `one_thread_if_forked`."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with one_thread_if_forked():
            return function(*args, **kwargs)

    return run
