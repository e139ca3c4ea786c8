"""Files mapped into memory but not kept open, of which a process may have fewer than shards; .npy.

numpy's own functions for .npy files copy the values, or keep the file open.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

LARGEST_HEADER = 4096
"""Bytes of an .npy file's header; one of a plain array has 128."""


def map_file(path: Path) -> pa.Buffer:
    """Return a file's bytes, mapped for reading.

    Raises:
        OSError: It cannot be read.
    """
    with pa.memory_map(str(path)) as file:
        return file.read_buffer()


def array_at(data: pa.Buffer, start: int = 0) -> npt.NDArray[Any]:
    """Return the array of an .npy file that lies in mapped bytes, as a view.

    Raises:
        ValueError: There is none, or its end is missing.
    """
    head = io.BytesIO(data.slice(start, min(LARGEST_HEADER, data.size - start)))
    np.lib.format.read_magic(head)
    shape, _, dtype = np.lib.format.read_array_header_1_0(head)
    values = np.frombuffer(data, dtype, int(np.prod(shape)), start + head.tell())
    return values.reshape(shape)


def npy_header(shape: tuple[int, ...], dtype: npt.DTypeLike) -> bytes:
    """Return the header of an .npy file, which the values follow."""
    header = io.BytesIO()
    described = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(header, described)
    return header.getvalue()
