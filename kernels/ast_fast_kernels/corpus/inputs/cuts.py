"""Lhotse's cuts and recordings, as JSONL: what their files say, without lhotse."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ast_fast_kernels.corpus.inputs.columns import carried
from ast_fast_kernels.corpus.inputs.lines import objects
from ast_fast_kernels.corpus.inputs.manifests import seconds_of
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name

SPOKEN = ("text", "speaker", "language", "gender")
"""Fields of a cut's only supervision that become columns of their own."""


def is_of_lhotse(row: Mapping[str, Any]) -> bool:
    """Return whether a manifest's row is a cut or a recording."""
    return "sources" in row or "recording" in row or str(row.get("type", "")).endswith("Cut")


def from_cuts(path: Path) -> Iterator[Item]:
    """Yield the items of a cut set (MonoCut, MultiCut) or a recording set.

    Supervisions are carried along as JSON, and the text, speaker, language and gender of the only
    one as columns; so is what `custom` holds. The mean of all channels is taken, so a cut must have
    all channels of its recording.

    Raises:
        InputError: A line holds what is no audio of one file; it says what.
    """
    for number, row in objects(path):
        where = f"{path} line {number}"
        try:
            yield _recording(where, row) if "sources" in row else _cut(where, row)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{where} is no cut that can be read: {error!r}") from error


def _recording(where: str, row: Mapping[str, Any]) -> Item:
    return Item(_file(where, row), key=str(row["id"]))


def _cut(where: str, row: Mapping[str, Any]) -> Item:
    kind = row.get("type", "MonoCut")
    if kind not in ("MonoCut", "MultiCut"):
        raise InputError(
            f"{where} must be a MonoCut or a MultiCut, got {one_name(kind)}; mixed and padded cuts "
            "have no file of their own: save their audio first"
        )
    recording = row.get("recording")
    if not recording:
        raise InputError(f"{where} must have a recording, got none")
    source = _file(where, recording)
    chosen = row.get("channel", 0)
    channels = set(chosen if isinstance(chosen, list) else [chosen])
    if channels != set(_channels(recording)):
        raise InputError(
            f"{where} must have all channels of its recording, whose mean is taken, "
            f"got {sorted(channels)} of {sorted(_channels(recording))}"
        )
    start = seconds_of(where, "start", row.get("start")) or 0.0
    duration = seconds_of(where, "duration", row.get("duration"))
    if start == 0.0 and duration is not None and duration == recording.get("duration"):
        duration = None
    return Item(source, start=start, duration=duration, key=str(row["id"]), columns=_columns(row))


def _file(where: str, recording: Mapping[str, Any]) -> str:
    """Return the file of a recording."""
    sources: Sequence[Mapping[str, Any]] = recording["sources"]
    if recording.get("transforms"):
        raise InputError(
            f"{where} has a recording with transforms, which are not applied: save its audio first"
        )
    if len(sources) != 1 or sources[0]["type"] != "file":
        kinds = ", ".join(one_name(source["type"]) for source in sources)
        raise InputError(f"{where} must have one source, of type file, got {kinds or 'none'}")
    return str(sources[0]["source"])


def _channels(recording: Mapping[str, Any]) -> list[int]:
    return list(recording["sources"][0].get("channels") or [0])


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    supervisions = row.get("supervisions") or []
    columns = dict(row.get("custom") or {})
    if supervisions:
        columns["supervisions"] = supervisions
    if len(supervisions) == 1:
        columns |= {name: supervisions[0][name] for name in SPOKEN if name in supervisions[0]}
    return carried(columns)
