"""Memory between pages without access, where reading or writing beyond it ends the process."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import numpy.typing as npt

_PAGES: list[mmap.mmap] = []


def guarded(size: int, at_end: bool, dtype: npt.DTypeLike = np.float32) -> npt.NDArray[np.generic]:
    """Return an array that begins or ends at a page without access; floats are NaN.

    Args:
        size: Number of items.
        at_end: Whether the guarded page follows the array's last item; False for before its first.
        dtype: Of the items.
    """
    page, kind = mmap.PAGESIZE, np.dtype(dtype)
    pages = -(-size * kind.itemsize // page) * page
    memory = mmap.mmap(-1, pages + 2 * page)
    _PAGES.append(memory)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    for guard in (address, address + page + pages):
        if protect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    start = page + (pages - size * kind.itemsize if at_end else 0)
    buffer: npt.NDArray[np.generic] = np.frombuffer(memory, kind, size, start)
    if kind.kind == "f":
        buffer[:] = np.nan
    return buffer
