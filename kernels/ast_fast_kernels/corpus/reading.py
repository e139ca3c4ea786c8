"""Read the audio of items."""

from __future__ import annotations

from dataclasses import dataclass

from numpy.typing import NDArray

from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.load import read_waveform
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.corpus.extractor import Samples
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.corpus.plan import Plan


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
        self._digest = ""

    def read(self, item: Item) -> Waveform:
        """Read an item.

        Raises:
            BadAudioError: It cannot be used; the message follows its name.
        """
        extractor = self._plan.extractor
        path = self._plan.resolve(item.file or item.path)
        source = AudioSource(path, item.begin, item.size, item.start, item.duration)
        is_known = self._file == (path, item.begin)
        self._file = None
        try:
            samples, info = read_waveform(
                source,
                extractor.sample_rate,
                digest=not is_known,
                keep_int16=extractor.takes_int16,
            )
        except MemoryError:
            raise BadAudioError("is too large for this machine's memory") from None
        self._file = path, item.begin
        self._digest = info.digest or self._digest
        return Waveform(samples, info.seconds, self._digest)
