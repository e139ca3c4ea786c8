"""What is to be read: a file, a part of one, a span of seconds."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

MOST_SECONDS = 1e9
"""Of a start or a duration, 30 years: times any sample rate, it is a number of frames."""


@dataclass(frozen=True)
class AudioSource:
    """Audio to read: plain values, so that it can be pickled, compared and written as JSON.

    Args:
        path: The file; as `os.fsdecode` gives it, so a name need not be UTF-8.
        begin: Offset of the audio file in `path`, in bytes, such as that of a tar's member.
        size: Bytes of the audio file; None is all from `begin` on.
        start: Seconds to skip.
        duration: Seconds to read; None is all from `start` on.
    Raises:
        ValueError: A number is negative or not finite, or one of seconds is above MOST_SECONDS.
    """

    path: str
    begin: int = 0
    size: int | None = None
    start: float = 0.0
    duration: float | None = None

    def __post_init__(self) -> None:
        for name in ("begin", "size", "start", "duration"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number from 0 on, got {value}")
        for name in ("start", "duration"):
            if (getattr(self, name) or 0) > MOST_SECONDS:
                limit = f"at most {MOST_SECONDS:.0e} s"
                raise ValueError(f"{name} must be {limit}, got {getattr(self, name):g}")

    @classmethod
    def of(cls, source: AudioSource | str | os.PathLike[str]) -> AudioSource:
        """Return a source as it is, and a path as the source of the whole file."""
        return source if isinstance(source, AudioSource) else cls(os.fspath(source))

    @property
    def is_whole_file(self) -> bool:
        """Whether the audio file is all of `path`; it may be read in part."""
        return self.begin == 0 and self.size is None
