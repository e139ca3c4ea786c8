"""Tensors and facts in one safetensors file: written whole, and read without running code.

The facts are JSON in the file's header, so a single rename publishes both.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write
from ast_fast_kernels.files.text import one_name, open_document

CHECKPOINT = "checkpoint.safetensors"

LARGEST_HEADER = 64 * 2**20
"""Bytes of a header; a fold's has some hundred for each epoch and each tensor."""
MOST_CONTAINERS = 2_000_000
"""Lists and objects in a header: they cost far more memory than the two characters of each."""
MOST_DIMENSIONS = 8
BYTES = {
    **{"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1},
    **{"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1},
}
"""Bytes of a value, by dtype, for the dtypes that are read."""


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts to `path`, whole or not at all.

    Args:
        path: File to create or replace; its folder must exist.
        tensors: On any device; the file holds them as CPU tensors.
        facts: Anything JSON can hold. Floats come back equal to the bit.
    """
    with atomic_write(path) as temporary:
        # Not save_file: on a full disk it raises an error that names neither disk nor file.
        temporary.write_bytes(serialised(tensors, facts))


def serialised(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """Return the content of the file that `save` writes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    header = {"facts": text, "checksum": str(_checksum(text, plain))}
    content: bytes = serialise(plain, metadata=header)
    return content


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and facts that `save` wrote.

    Raises:
        InputError: The file is truncated, damaged, or was not written by `save`.
    """
    stored = read_header(path)
    return load_tensors(path, stored), stored.facts


class Stored(NamedTuple):
    """What a file's header says of it, before any tensor is read."""

    shapes: dict[str, tuple[int, ...]]
    """Of each tensor, by name."""
    dtypes: dict[str, str]
    """As safetensors calls them: F32, BF16, I64 and so on."""
    facts: dict[str, Any]
    text: str
    """The facts as they stand in the file."""
    checksum: int

    @property
    def num_values(self) -> int:
        """Values of all tensors together."""
        return sum(map(math.prod, self.shapes.values()))


def read_header(path: Path) -> Stored:
    """Return what the header of a file says, checked against the file's size.

    The tensors fill the file without a gap, so whatever agrees with these shapes is no larger than
    the file itself.

    Raises:
        InputError: The file is truncated, damaged, or was not written by `save`.
    """
    try:
        with open_document(path, sys.maxsize) as file:
            size = os.fstat(file.fileno()).st_size
            (length,) = struct.unpack("<Q", file.read(8))
            if not 2 <= length <= min(size - 8, LARGEST_HEADER):
                most = f"{LARGEST_HEADER} bytes or the file's {size}"
                raise ValueError(f"its header must end within {most}, and claims {length} bytes")
            text = file.read(length).decode()
        header = _parsed(text)
        if not isinstance(header, dict):
            raise ValueError("its header must be a JSON object")
        about = header.pop("__metadata__", {})
        if not isinstance(about, dict) or not {"facts", "checksum"} <= about.keys():
            raise ValueError("its header must hold facts and checksum")
        if not all(isinstance(value, str) for value in about.values()):
            raise ValueError("facts and checksum must be text")
        if not re.fullmatch("[0-9]{1,10}", about["checksum"], re.ASCII):
            raise ValueError(f"checksum must be a number, got {about['checksum']!r}")
        shapes, dtypes = _checked_tensors(header, size - 8 - length)
        about["facts"].encode()  # raises where it has half a surrogate pair
        facts = _parsed(about["facts"])
        if not isinstance(facts, dict):
            raise ValueError("facts must be a JSON object")
    except (OSError, struct.error, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    return Stored(shapes, dtypes, facts, about["facts"], int(about["checksum"]))


def load_tensors(path: Path, stored: Stored) -> dict[str, Tensor]:
    """Return the tensors of a file whose header was read.

    Raises:
        InputError: They are damaged, or the file has changed since.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    if stored.checksum != _checksum(stored.text, tensors):
        raise InputError(
            f"{path} is damaged: its checksum must be {stored.checksum}; remove it to train its "
            "fold again"
        )
    return tensors


def check_shapes(path: Path, stored: Stored, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a file holds these tensors, in float32, and no others.

    Args:
        path: The file, for messages.
        stored: Its header.
        expected: Shapes by name.
    Raises:
        InputError: The message names the first that is missing, unknown, or of another shape.
    """
    for name, shape in expected.items():
        if name not in stored.shapes:
            raise InputError(f"{path} must hold the tensor {one_name(name)}, which is missing")
        got, dtype = stored.shapes[name], stored.dtypes[name]
        if got != shape or dtype != "F32":
            raise InputError(
                f"{path}: tensor {one_name(name)} must be F32 of shape {shape}, got {dtype} of "
                f"shape {one_name(got)}"
            )
    unknown = [name for name in stored.shapes if name not in expected]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise InputError(
            f"{path} must hold only the {len(expected)} tensors of its model, got "
            f"{one_name(unknown[0])}{more} too"
        )


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else one_name(error)
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return InputError(
        f"{path} must be a whole file written by ast_fast, but cannot be read ({reason}); "
        "remove it to train its fold again"
    )


def _parsed(text: str) -> Any:
    """Parse JSON in which no object has a key twice.

    Raises:
        ValueError: It is not JSON, or a key is there twice.
        RecursionError: It is nested too deeply.
    """
    if text.count("{") + text.count("[") > MOST_CONTAINERS:
        raise ValueError(f"JSON must have at most {MOST_CONTAINERS} lists and objects")
    return json.loads(text, object_pairs_hook=_without_doubles)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(name for name, _ in pairs)
        double = next(name for name, count in times.items() if count > 1)
        raise ValueError(f"JSON must have each key once, got {double!r} twice")
    return found


def _checked_tensors(
    header: Mapping[str, Any], num_bytes: int
) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return shapes and dtypes of the tensors in a header.

    Raises:
        ValueError: They are not what safetensors writes, or do not fill `num_bytes` exactly.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    dtypes: dict[str, str] = {}
    spans = []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
                is_whole = type(begin) is int and type(end) is int
            case _:
                is_whole = False
        if not is_whole:
            raise ValueError(f"tensor {name!r} must have a dtype, a shape and two offsets")
        if dtype not in BYTES:
            raise ValueError(f"tensor {name!r} must be one of {', '.join(BYTES)}, got {dtype!r}")
        if len(shape) > MOST_DIMENSIONS or not all(
            type(size) is int and 0 <= size < 2**63 for size in shape
        ):
            raise ValueError(
                f"tensor {name!r} must have a shape of at most {MOST_DIMENSIONS} sizes"
            )
        if not 0 <= begin <= end or end - begin != math.prod(shape) * BYTES[dtype]:
            raise ValueError(f"tensor {name!r} must have as many bytes as its shape")
        shapes[name], dtypes[name] = tuple(shape), dtype
        spans.append((begin, end))
    reached = 0
    for begin, end in sorted(spans):
        if begin != reached:
            raise ValueError("its tensors must follow each other without a gap")
        reached = end
    if reached != num_bytes:
        raise ValueError(f"its tensors must have {num_bytes} bytes, as the file, got {reached}")
    return shapes, dtypes


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> int:
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with `prefix.` put before their names."""
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def without_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors whose names begin with `prefix.`, without it."""
    start = f"{prefix}."
    return {name[len(start) :]: tensors[name] for name in tensors if name.startswith(start)}
