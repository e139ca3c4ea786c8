"""What makes features of waveforms: the one interface that a corpus's engine needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from ast_fast_kernels.audio.load import WaveformStream
from ast_fast_kernels.audio.streamed import fbank_of_any, fbank_of_blocks
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig

Samples: TypeAlias = np.float32 | np.int16


class Extractor(Protocol):
    """Makes a row of each waveform. Picklable: each process of a run unpickles its own."""

    sample_rate: int
    """Of the waveforms that it takes, in Hz."""
    width: int
    """Values of a frame, or of a vector."""
    ragged: bool
    """Whether a row is (num_frames, width); False is one vector, (width,)."""
    frame_shift: float | None
    """Milliseconds from one frame to the next; None if rows are vectors."""
    takes_int16: bool
    """Whether a waveform may be int16, to be read as sample / 32768; each gives the same row."""
    batch_size: int
    """Waveforms that it takes at once. No row may depend on the others of its batch."""
    needs_gpu: bool
    """Whether each process runs it on a GPU."""
    is_random: bool
    """Whether it draws from numpy's global generator, which is then seeded for each item."""

    def settings(self) -> dict[str, Any]:
        """Return what its rows depend on: kept in extract.toml, compared when a run is resumed."""

    def __call__(self, waveforms: Sequence[NDArray[Samples]]) -> list[NDArray[np.float32]]:
        """Return the row of each waveform; one without a single frame gives (0, width)."""


@runtime_checkable
class BlockExtractor(Protocol):
    """An extractor that can also make a row of a waveform in blocks, however long it is."""

    def of_blocks(self, blocks: WaveformStream) -> NDArray[np.float32]:
        """Return the row that the whole waveform would give, bit for bit."""


class FbankExtractor:
    """Makes log-mel energies, as `fbank` does, one waveform at a time.

    Args:
        config: The conventions; `sample_frequency` is the waveforms' rate.
        preset: The preset that the config began with, for the record.
    Raises:
        InputError: The rate is not a whole number of Hz.
    """

    ragged = True
    takes_int16 = True
    needs_gpu = False
    batch_size = 1  # a clip's kernel call costs microseconds, and its samples stay in the cache

    def __init__(self, config: FbankConfig, preset: str | None = None) -> None:
        rate = config.sample_frequency
        if rate != int(rate):
            raise InputError(f"sample_frequency must be a whole number of Hz, got {rate:g}")
        self.config = config
        self.preset = preset
        self.sample_rate = int(rate)
        self.width = config.num_mel_bins
        self.frame_shift: float | None = 1000.0 * config.window_shift / rate
        self.is_random = config.dither != 0.0

    def settings(self) -> dict[str, Any]:
        """Return the kind of features, the preset, and the config's fields but those of None."""
        fields = {name: value for name, value in asdict(self.config).items() if value is not None}
        named = {} if self.preset is None else {"preset": self.preset}
        return {"kind": "fbank", **named, "fbank": fields}

    def __call__(self, waveforms: Sequence[NDArray[Samples]]) -> list[NDArray[np.float32]]:
        """Return log-mel energies, each (num_frames, num_mel_bins)."""
        return [fbank_of_any(waveform, self.config) for waveform in waveforms]

    def of_blocks(self, blocks: WaveformStream) -> NDArray[np.float32]:
        """Return the log-mel energies of a waveform in blocks."""
        return fbank_of_blocks(blocks, self.config)
