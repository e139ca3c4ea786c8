"""Read the audio of items."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import xxhash
from numpy.typing import NDArray

from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.load import read_waveform
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.corpus.extractor import Samples
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.corpus.plan import Plan

AT_ONCE = 2**20
"""Bytes of a file that are digested at once."""


@dataclass(frozen=True)
class Waveform:
    """What was read of an item."""

    samples: NDArray[Samples]
    """Mono, at the extractor's sample rate, shape (num_samples,)."""
    seconds: float
    digest: str
    """Of the whole audio file's bytes, also where the item is a span of it."""


class Reader:
    """Reads items one after the other; spans of one file share its digest."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._file: tuple[str, int] | None = None
        """Whose digest is known."""
        self._digest = ""

    def read(self, item: Item) -> Waveform:
        """Read an item.

        Raises:
            BadAudioError: It cannot be used; the message follows its name.
        """
        extractor = self._plan.extractor
        path = self._plan.resolve(item.file or item.path)
        source = AudioSource(path, item.begin, item.size, item.start, item.duration)
        try:
            samples, info = read_waveform(
                source, extractor.sample_rate, keep_int16=extractor.takes_int16
            )
        except MemoryError:
            raise BadAudioError("is too large for this machine's memory") from None
        if self._file != (path, item.begin):
            self._digest = digest_of_audio(path, item.begin, item.size)
            self._file = path, item.begin
        return Waveform(samples, info.seconds, self._digest)


def digest_of_audio(path: str, begin: int = 0, size: int | None = None) -> str:
    """Return the hexadecimal XXH3 of a file's bytes, in 128 bits, as `xxh128sum` prints it.

    It tells files apart, and finds damage; it does not keep out who means to deceive. Cryptographic
    digests take longer than reading a WAV file and its filterbank do.

    Args:
        path: The file.
        begin: Offset of the bytes.
        size: Number of the bytes; None is all from `begin` on.
    Raises:
        BadAudioError: It cannot be read.
    """
    found = xxhash.xxh3_128()
    left = sys.maxsize if size is None else size
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(begin)
            while left and (block := file.read(min(left, AT_ONCE))):
                found.update(block)
                left -= len(block)
    except OSError as error:
        raise BadAudioError(f"cannot be read: {error.strerror or error}") from error
    return found.hexdigest()
