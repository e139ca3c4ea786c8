"""One item of a corpus: the audio that becomes one row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Item:
    """Audio that becomes one row: a file, a span of one, or a member of an archive."""

    path: str
    """Its name in the output: as the input has it, or below the input's folder; valid Unicode."""
    path_bytes: str | None = None
    """Its name's bytes in hexadecimal, if they are not UTF-8."""
    file: str | None = None
    """The archive that holds it, if one does; named as `path` is."""
    begin: int = 0
    """Offset of its bytes in the archive."""
    size: int | None = None
    """Number of its bytes in the archive."""
    start: float = 0.0
    """Where its span begins, in seconds."""
    duration: float | None = None
    """Seconds of its span; None goes to the end."""
    key: str | None = None
    """Its own name, if the input has one: an utterance's, or a cut's."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """What else the input says of it."""
    bad: str | None = None
    """Why it cannot be used, if the input itself tells."""

    def to_line(self) -> str:
        """Return it as one line of JSON; `from_line` reads it back."""
        given = {
            name: value
            for name, value in vars(self).items()
            if value is not None and value != _DEFAULTS.get(name)
        }
        return json.dumps(given, ensure_ascii=False, separators=(",", ":"), allow_nan=False)

    @classmethod
    def from_line(cls, line: str | bytes) -> Item:
        """Return what `to_line` wrote."""
        return cls(**json.loads(line))


_DEFAULTS: dict[str, Any] = {"begin": 0, "start": 0.0, "columns": {}}
