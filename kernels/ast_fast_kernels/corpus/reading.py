"""Read the audio of items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.load import joined, open_waveform
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.corpus.extractor import BlockExtractor, Extractor, Samples
from ast_fast_kernels.corpus.items import Item
from ast_fast_kernels.corpus.plan import Plan

DIGESTS = 2**10
"""Files whose digests are kept, for further spans of them."""


@dataclass(frozen=True)
class Waveform:
    """What was read of an item."""

    samples: NDArray[Samples] | None
    """Mono, at the extractor's sample rate, shape (num_samples,); None if its row is made."""
    row: NDArray[np.float32] | None
    """Of audio so long that its row was made while it was decoded."""
    seconds: float
    digest: str
    """Of the whole audio file's bytes, also where the item is a span of it."""


class Reader:
    """Reads items one after the other; spans of one file share its digest."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        extractor = plan.extractor
        self._in_blocks = extractor if isinstance(extractor, BlockExtractor) else None
        self._digests: dict[tuple[str, int], str] = {}
        """Of the files read last, by name and offset."""

    def read(self, item: Item) -> Waveform:
        """Read an item.

        Raises:
            BadAudioError: It cannot be used; the message follows its name.
        """
        extractor = self._plan.extractor
        path = self._plan.resolve(item.file or item.path)
        source = AudioSource(path, item.begin, item.size, item.start, item.duration)
        digest = self._digests.get((path, item.begin))
        samples = row = None
        try:
            with open_waveform(
                source,
                extractor.sample_rate,
                digest=digest is None,
                keep_int16=extractor.takes_int16,
            ) as stream:
                if self._in_blocks is None or stream.is_whole:
                    samples = joined(stream)
                else:
                    row = self._in_blocks.of_blocks(stream)
                info = stream.info()
        except MemoryError:
            raise BadAudioError("is too large for this machine's memory") from None
        if info.digest is not None:
            digest = self._keep(path, item.begin, info.digest)
        assert digest is not None
        return Waveform(samples, row, info.seconds, digest)

    def _keep(self, path: str, begin: int, digest: str) -> str:
        if len(self._digests) == DIGESTS:
            del self._digests[next(iter(self._digests))]  # the oldest
        self._digests[path, begin] = digest
        return digest


def rows_of(extractor: Extractor, waveforms: Sequence[Waveform]) -> list[NDArray[np.float32]]:
    """Return the row of each waveform: that which is made, or the extractor's."""
    made = iter(extractor([one.samples for one in waveforms if one.samples is not None]))
    return [next(made) if one.row is None else one.row for one in waveforms]
