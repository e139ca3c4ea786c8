"""Tars of WebDataset: members of one key are a sample; audio is read where it lies in the tar."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ast_fast_kernels.audio.find import has_audio_suffix
from ast_fast_kernels.corpus.inputs.columns import carried, kind_of_cell, typed
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name

SIDECARS = (".json", ".txt", ".cls")
"""Members whose content becomes columns: an object's entries, or a column named `txt` or `cls`."""
LARGEST_SIDECAR = 2**20


@dataclass
class _Sample:
    """Consecutive members with one key."""

    key: str
    audio: list[tuple[str, int, int]] = field(default_factory=list)
    """Name, offset and size of each audio member."""
    columns: dict[str, Any] = field(default_factory=dict)


def from_tar(path: Path, name: str) -> Iterator[Item]:
    """Yield the audio members of a tar, in its order; nothing is unpacked.

    A key is a member's name up to the first dot of its last part. A sample of several audio files
    gives an item for each, whose key is the member's name without its suffix.

    Args:
        path: The tar, not compressed.
        name: What items call it.
    Raises:
        InputError: It cannot be read, is compressed, or a sidecar is not what its suffix says.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            sample = _Sample("")
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every member
                if not member.isfile() or _is_hidden(member.name):
                    continue
                key = _key_of(member.name)
                if key != sample.key:
                    yield from _items(sample, name)
                    sample = _Sample(key)
                suffix = member.name[len(key) :].lower()
                if has_audio_suffix(member.name):
                    sample.audio.append((member.name, member.offset_data, member.size))
                elif suffix in SIDECARS:
                    sample.columns |= _sidecar(tar, member, suffix, path)
            yield from _items(sample, name)
    except tarfile.ReadError as error:
        raise InputError(
            f"{path} cannot be read as a tar: {error}; a compressed one must be decompressed first"
        ) from error
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}") from error


def _items(sample: _Sample, tar: str) -> Iterator[Item]:
    for member, begin, size in sample.audio:
        key = sample.key if len(sample.audio) == 1 else os.path.splitext(member)[0]
        yield Item(
            f"{tar}/{member}", file=tar, begin=begin, size=size, key=key, columns=sample.columns
        )


def _key_of(name: str) -> str:
    folder, _, last = name.rpartition("/")
    return name[: len(name) - len(last) + len(last.partition(".")[0])] if folder or last else name


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != "." for part in name.split("/"))


def _sidecar(
    tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str, path: Path
) -> dict[str, Any]:
    where = f"{path}: {one_name(member.name)}"
    file = tar.extractfile(member)
    if file is None or member.size > LARGEST_SIDECAR:
        raise InputError(f"{where} must have at most {LARGEST_SIDECAR} bytes, has {member.size}")
    try:
        text = file.read().decode()
        value = json.loads(text) if suffix == ".json" else text.strip()
        if suffix == ".cls":
            value = typed(value, kind_of_cell(value))
    except ValueError as error:  # of UTF-8, or of JSON
        raise InputError(f"{where} cannot be read: {error}") from error
    return carried(value if isinstance(value, dict) else {suffix.removeprefix("."): value})
