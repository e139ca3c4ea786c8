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
    audio: list[tarfile.TarInfo] = field(default_factory=list)
    columns: dict[str, Any] = field(default_factory=dict)


def from_tar(path: Path, name: str) -> Iterator[Item]:
    """Yield the audio members of a tar, in its order; nothing is unpacked.

    A key is a member's name up to the first dot of its last part. A sample of several audio files
    gives an item for each, whose key is the member's name without its suffix.

    Args:
        path: The tar, not compressed.
        name: What items call it.
    Raises:
        InputError: It cannot be read, is compressed or damaged, or a sidecar is not what its suffix
            says.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            sample = _Sample("")
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps every member
                if member.isdir() or _is_hidden(member.name):
                    continue
                key = _key_of(member.name)
                if key != sample.key:
                    yield from _items(sample, name)
                    sample = _Sample(key)
                suffix = member.name[len(key) :].lower()
                if has_audio_suffix(member.name):
                    sample.audio.append(member)
                elif suffix in SIDECARS and member.isfile():
                    sample.columns |= _sidecar(tar, member, suffix, path)
            yield from _items(sample, name)
            _check_end(tar)
    except tarfile.ReadError as error:
        raise InputError(
            f"{path} cannot be read as a tar: {error}; a compressed one must be decompressed first"
        ) from error
    except (OSError, tarfile.TarError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}") from error


def _items(sample: _Sample, tar: str) -> Iterator[Item]:
    for member in sample.audio:
        key = sample.key if len(sample.audio) == 1 else os.path.splitext(member.name)[0]
        yield Item(
            f"{tar}/{member.name}",
            file=tar,
            begin=member.offset_data,
            size=member.size,
            key=key,
            columns=sample.columns,
            bad=_why_unusable(member),
        )


def _why_unusable(member: tarfile.TarInfo) -> str | None:
    if member.issym() or member.islnk():
        return f"is a link to {one_name(member.linkname)}, and links in a tar are not followed"
    if member.issparse() or not member.isfile():
        return "is no plain file of its tar"
    return None


def _check_end(tar: tarfile.TarFile) -> None:
    """Raise if a tar does not end where its last member does: `tarfile` says nothing of damage.

    Raises:
        tarfile.ReadError: There is something else than zeros, or the end of the file.
    """
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError(f"byte {tar.offset} must begin a member, and is damaged or cut off")


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
    except (ValueError, RecursionError) as error:  # of UTF-8, or of JSON
        raise InputError(f"{where} cannot be read: {error}") from error
    return carried(value if isinstance(value, dict) else {suffix.removeprefix("."): value})
