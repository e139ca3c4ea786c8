"""Why a file gives no audio."""

from __future__ import annotations


class BadAudioError(Exception):
    """A file holds no usable audio; the message is a reason that follows the file's name."""


class AbsentAudioError(BadAudioError):
    """There is no file of that name."""
