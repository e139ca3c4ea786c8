"""Tensors and facts in one safetensors file: written whole, and read without running code.

The facts are JSON in the file's header, so a single rename publishes both.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from ast_fast.errors import InputError
from ast_fast.machine.atomic import atomic_write

CHECKPOINT = "checkpoint.safetensors"


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts to `path`, whole or not at all.

    Args:
        path: File to create or replace; its folder must exist.
        tensors: On any device; the file holds them as CPU tensors.
        facts: Anything JSON can hold. Floats come back equal to the bit.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    header = {"facts": text, "checksum": str(_checksum(text, plain))}
    with atomic_write(path) as temporary:
        # Not save_file: on a full disk it raises an error that names neither disk nor file.
        temporary.write_bytes(serialise(plain, metadata=header))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and facts that `save` wrote.

    Raises:
        InputError: The file is truncated, damaged, or was not written by `save`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        facts = json.loads(header["facts"])
        checksum = int(header["checksum"])
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} must be a whole file written by ast_fast, but cannot be read ({error}); "
            "remove it to train its fold again"
        ) from error
    if not isinstance(facts, dict) or checksum != _checksum(header["facts"], tensors):
        raise InputError(
            f"{path} is damaged: its checksum must be {checksum}; remove it to train its fold again"
        )
    return tensors, facts


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
