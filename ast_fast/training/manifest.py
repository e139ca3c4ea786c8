"""manifest.json: the size and SHA-256 of each file of a finished fold.

It is the last file that a fold's training writes, so it marks the fold as finished. Its checkpoint
stays until then: a process killed before that resumes from it and finishes the fold again.

A file that is replaced later is announced first, under `next`: until the manifest is written again,
either of the two is the one listed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write
from ast_fast_kernels.files.sealed import digest_of_file, read_sealed, sealed

MANIFEST = "manifest.json"

Files = dict[str, dict[str, int | str]]
"""By name, `bytes` and `sha256`."""


def describe(folder: Path, names: Sequence[str]) -> Files:
    """Return the size and SHA-256 of files in a fold's folder."""
    return {
        name: {
            "bytes": (folder / name).stat().st_size,
            "sha256": digest_of_file(folder / name),
        }
        for name in names
    }


def write_manifest(folder: Path, files: Files) -> None:
    """Write the manifest of files that are on disk already."""
    _write(folder, {"files": files})


def replace_listed(folder: Path, name: str, content: bytes) -> None:
    """Replace a file of a finished fold, and list it anew if the fold has a manifest.

    A process killed at any moment leaves a file that the manifest lists; `settle` ends its work.
    """
    files = read_manifest(folder)
    if files is not None:
        new: dict[str, int | str] = {
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        _write(folder, {"files": files, "next": {name: new}})
    with atomic_write(folder / name) as path:
        path.write_bytes(content)
    if files is not None:
        write_manifest(folder, files | {name: new})


def settle(folder: Path) -> None:
    """List once what a process killed in `replace_listed` left announced."""
    document, files = _read(folder), read_manifest(folder)
    if document is not None and files is not None and "next" in document:
        write_manifest(folder, files)


def _write(folder: Path, document: Mapping[str, Files]) -> None:
    with atomic_write(folder / MANIFEST) as path:
        path.write_text(json.dumps(sealed(document), indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Files | None:
    """Return the files that a fold's manifest lists; None if there is no manifest.

    Raises:
        InputError: It is damaged.
    """
    document = _read(folder)
    if document is None:
        return None
    try:
        files, replaced = (
            {name: {key: of[key] for key in ("bytes", "sha256")} for name, of in listed.items()}
            for listed in (document["files"], document.get("next", {}))
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / MANIFEST} must list files, but does not; {remedy(folder)}"
        ) from error
    return files | {name: of for name, of in replaced.items() if _is_there(folder / name, of)}


def _read(folder: Path) -> dict[str, Any] | None:
    """Return what a manifest holds, if it is intact; None if there is no manifest."""
    unreadable = "must be a fold's manifest, but cannot be read"
    return read_sealed(folder / MANIFEST, unreadable, remedy(folder))


def _is_there(path: Path, listed: Mapping[str, int | str]) -> bool:
    """Return whether a file is the one listed."""
    try:
        return bool(
            path.stat().st_size == listed["bytes"] and digest_of_file(path) == listed["sha256"]
        )
    except OSError:
        return False


def check_files(folder: Path, files: Files, names: Sequence[str]) -> None:
    """Check that files are those that the manifest lists.

    Args:
        folder: The fold's folder.
        files: What `read_manifest` gave.
        names: The files to check.
    Raises:
        InputError: The message names the first that is missing or another.
    """
    for name in names:
        path = folder / name
        if name not in files:
            raise InputError(f"{folder / MANIFEST} must list {name}; {remedy(folder)}")
        listed = files[name]
        try:
            size = path.stat().st_size
            same_size = size == listed["bytes"]
            same = same_size and digest_of_file(path) == listed["sha256"]
        except FileNotFoundError:
            raise InputError(
                f"{path} is missing, and {MANIFEST} lists it; {remedy(folder)}"
            ) from None
        except OSError as error:
            raise InputError(
                f"{path} cannot be read: {error.strerror}; {remedy(folder)}"
            ) from error
        if not same_size:
            raise InputError(
                f"{path} must have the {listed['bytes']} bytes that {MANIFEST} lists, got {size}; "
                f"{remedy(folder)}"
            )
        if not same:
            raise InputError(
                f"{path} must have the SHA-256 that {MANIFEST} lists, but was damaged or changed; "
                f"{remedy(folder)}"
            )


def missing_manifest(folder: Path) -> InputError:
    """Return the error for a fold that must have a manifest and has none."""
    return InputError(
        f"{folder / MANIFEST} is missing, so the files beside it cannot be checked; "
        f"{remedy(folder)}"
    )


def remedy(folder: Path) -> str:
    """Return what to do about a damaged fold, as the last clause of an error."""
    return f"remove {folder} to train the fold again"
