"""Keeping freed memory in the process; needs only the standard library."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
LARGEST_KEPT = 32 << 20


def keep_freed_memory() -> None:
    """Make malloc keep freed memory, as it does in a process that has trained for a while.

    glibc raises these thresholds by itself as blocks are freed, up to 32 MiB and twice that. Until
    then, fresh pages take up to half the time of every pass of a model.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
            mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_KEPT)
