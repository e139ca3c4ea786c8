"""Tell by its name, and a manifest by its first line, what an input is; read it as items."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ast_fast_kernels.audio.find import has_audio_suffix, walk_audio
from ast_fast_kernels.corpus.inputs.cuts import from_cuts, is_of_lhotse
from ast_fast_kernels.corpus.inputs.lines import objects
from ast_fast_kernels.corpus.inputs.manifests import from_jsonl, from_list, from_scp, from_table
from ast_fast_kernels.corpus.inputs.tars import from_tar
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.errors import InputError

JSON_LINES = (".jsonl", ".ndjson", ".json")
TABLES = (".csv", ".tsv")
LISTS = (".txt", ".lst", ".list", ".flist", "")


@dataclass(frozen=True)
class Input:
    """What a corpus is given as."""

    root: Path
    """The folder at which relative paths begin, absolute."""
    items: Iterator[Item]
    """Its items, read while they are asked for; errors of the input are raised then."""
    has_cells: bool = False
    """Whether values are text that may stand for numbers."""


def open_input(
    paths: Sequence[Path], *, root: Path | None = None, path_column: str | None = None
) -> Input:
    """Return the input that paths name, without reading more of it than its first line.

    One folder, list, manifest or cut set; or any number of audio files or of tars. Relative paths
    in a list or manifest begin at its folder.

    Args:
        paths: At least one.
        root: Where relative paths begin instead.
        path_column: Column of a manifest that names the audio.
    Raises:
        InputError: There is none, it cannot be read, is of no such kind, several do not go
            together, or `root` or `path_column` is given where it has no meaning.
    """
    if not paths:
        raise InputError("INPUT must be a folder, a list, a manifest or tars, got none")
    for path in paths:
        if not os.path.exists(path):
            raise InputError(f"INPUT must exist, got {path}")
    first = paths[0]
    kind = _suffix(first)
    if path_column is not None and kind not in (*JSON_LINES, *TABLES):
        raise InputError(f"--path-column must go with a manifest, got INPUT {first}")
    if first.is_dir() and len(paths) == 1:
        folder = Path(os.path.abspath(root or first))
        inside = Path(os.path.abspath(first))
        return Input(folder, _in_folder(inside, folder))
    are_tars = all(_suffix(path) == ".tar" for path in paths)
    are_audio = all(has_audio_suffix(path.name) and not path.is_dir() for path in paths)
    if root is not None and (are_tars or are_audio):
        raise InputError(f"--root must go with a folder, a list or a manifest, got INPUT {first}")
    if are_tars:
        return _of_tars(paths)
    if are_audio:
        return Input(Path.cwd(), (Item(str(path)) for path in paths))
    if len(paths) > 1:
        raise InputError(
            f"INPUT must be one folder, list or manifest, or several tars or audio files, "
            f"got {', '.join(map(str, paths[:3]))}"
        )
    folder = Path(os.path.abspath(root or first.parent))
    if kind in JSON_LINES:
        _, row = next(objects(first), (0, {}))
        items = from_cuts(first) if is_of_lhotse(row) else from_jsonl(first, path_column)
        return Input(folder, items)
    if kind in TABLES:
        return Input(folder, from_table(first, path_column), has_cells=True)
    if kind == ".scp":
        return Input(folder, from_scp(first))
    if kind in LISTS:
        return Input(folder, from_list(first))
    raise InputError(
        "INPUT must be a folder, .jsonl, .csv, .tsv, .tar, wav.scp, audio, or a list of files that "
        f"ends in .txt, got {first}"
    )


def _suffix(path: Path) -> str:
    return Path(path.name.removesuffix(".gz")).suffix.lower()


def _in_folder(inside: Path, root: Path) -> Iterator[Item]:
    before = os.path.relpath(inside, root)
    is_empty = True
    try:
        for name in walk_audio(inside):
            is_empty = False
            yield Item(name if before == "." else os.path.join(before, name))
    except OSError as error:
        raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
    if is_empty and any(inside.rglob("*.tar")):
        raise InputError(f"INPUT {inside} holds no audio files but tars: name these, as *.tar")


def _of_tars(paths: Sequence[Path]) -> Input:
    absolute = [Path(os.path.abspath(path)) for path in paths]
    root = Path(os.path.commonpath([path.parent for path in absolute]))

    def items() -> Iterator[Item]:
        for path in absolute:
            yield from from_tar(path, os.path.relpath(path, root))

    return Input(root, items())
