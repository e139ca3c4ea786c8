"""Tensors and facts in one safetensors file: written whole, read without executing anything.

The facts are JSON in the file's header, so a single rename publishes both.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from ast_fast.config import CHANGES_NO_RESULT, OF_A_JOB, Config
from ast_fast.errors import InputError
from ast_fast.machine.atomic import atomic_write

NOT_IDENTITY = CHANGES_NO_RESULT | OF_A_JOB
"""Settings that do not say what is trained on what."""


def save(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Write tensors and facts to `path`, whole or not at all.

    Args:
        path: File to create or replace; its folder must exist.
        tensors: Any device; written from the CPU.
        facts: Anything JSON can say. Floats come back equal to the bit.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(facts)
    header = {"facts": text, "checksum": str(_checksum(text, plain))}
    with atomic_write(path) as temporary:
        # Not save_file: it turns a full disk into an error that names neither disk nor file.
        temporary.write_bytes(serialise(plain, metadata=header))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and facts that `save` wrote.

    Raises:
        InputError: The file is cut off, damaged, or was not written by `save`.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        facts = json.loads(header["facts"])
        checksum = int(header["checksum"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} must be a whole file written by ast_fast, but cannot be read ({error}); "
            "remove it to train its fold again"
        ) from error
    if not isinstance(facts, dict) or checksum != _checksum(header["facts"], tensors):
        raise InputError(
            f"{path} is damaged: its checksum must be {checksum}; remove it to train its fold again"
        )
    return tensors, facts


def settings(config: Config) -> dict[str, Any]:
    """Return the run's settings as JSON can hold them, without the paths of this machine."""
    values = dataclasses.asdict(config)
    del values["paths"]
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def check_same_run(path: Path, recorded: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise if a file belongs to a run that trains something else.

    Args:
        path: The file, for the message.
        recorded: Facts of that run: `settings` and whatever else identifies it, nested.
        expected: The same of this run. Names in `NOT_IDENTITY` may differ.
    Raises:
        InputError: The message names the first setting that differs, with both values.
    """
    there, here = _flatten(recorded), _flatten(expected)
    for name in sorted(there.keys() | here.keys()):
        if name not in there:
            raise InputError(
                f"{path} was written by a version without {name} (here {here[name]}); "
                "give another --out"
            )
        if there.get(name) != here.get(name):
            raise InputError(
                f"{path} belongs to another run: {name} is {there.get(name)} there and "
                f"{here.get(name)} here; give the same settings, or another --out"
            )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = prefix + key
        if name in NOT_IDENTITY:
            continue
        flat.update(_flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value})
    return flat


def _checksum(text: str, tensors: Mapping[str, Tensor]) -> int:
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return value
