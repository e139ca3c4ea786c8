"""The CPU cores and threads that this process may use."""

from __future__ import annotations

import os

from ast_fast_kernels._torch.forks import on_one_thread_if_forked, one_thread_if_forked

__all__ = ["available_cores", "on_one_thread_if_forked", "one_thread_if_forked"]


def available_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
