"""Find audio files in folders, by their names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile

from ast_fast_kernels.errors import InputError

SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {
    ".8svx", ".aff", ".aif", ".aifc", ".amb", ".bw64", ".bwf", ".fla", ".iff", ".mat", ".mp1",
    ".mp2", ".mpa", ".mpc", ".mpga", ".oga", ".opus", ".sf", ".snd", ".sph", ".wave", ".wv1",
}  # fmt: skip
"""Suffixes of the files taken from a folder: libsndfile's formats, and their other usual names.
Not .raw, which has no header. A file named by itself is always tried."""


def has_audio_suffix(name: str) -> bool:
    """Return whether a file's name ends as audio's does."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def walk_audio(folder: Path) -> Iterator[str]:
    """Yield the audio files of a folder and its subfolders, below it, sorted by their parts.

    Leaves out what is hidden: names that begin with a dot, such as the `._` files that macOS leaves
    beside the audio. Links to files are followed, links to folders are not. Memory holds the names
    of one folder, and of those above it.

    Raises:
        OSError: A folder cannot be read.
    """
    yield from _below(os.fspath(folder), "")


def _below(folder: str, before: str) -> Iterator[str]:
    with os.scandir(folder) as entries:
        found = sorted(
            (entry.name, is_folder)
            for entry in entries
            if not entry.name.startswith(".")
            and ((is_folder := entry.is_dir(follow_symlinks=False)) or _is_audio(entry))
        )
    for name, is_folder in found:
        if is_folder:
            yield from _below(os.path.join(folder, name), f"{before}{name}/")
        else:
            yield before + name


def _is_audio(entry: os.DirEntry[str]) -> bool:
    return has_audio_suffix(entry.name) and entry.is_file()


def find_audio(paths: Sequence[Path]) -> list[Path]:
    """Return the named files, and those of the named folders, as `walk_audio` gives them.

    Raises:
        InputError: A folder holds no audio file, or one cannot be read.
    """
    found: list[Path] = []
    for path in paths:
        if not os.path.isdir(path):  # Path.is_dir raises where a name is too long or out of reach
            found.append(path)
            continue
        try:
            inside = [path / name for name in walk_audio(path)]
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
        if not inside:
            raise InputError(
                f"AUDIO must be files or folders of audio files, got {path}, which holds none"
            )
        found += inside
    return found
