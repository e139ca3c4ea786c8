"""The filterbank of a file's waveform while it is decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ast_fast_kernels.audio.grown import Grown
from ast_fast_kernels.audio.load import WaveformStream, joined
from ast_fast_kernels.fbank.api import fbank
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.online import OnlineFbank


def fbank_of_any(waveform: NDArray[Any], config: FbankConfig) -> NDArray[np.float32]:
    """Return `fbank` of a waveform, (0, num_mel_bins) where that is too short for one frame."""
    if not config.num_frames(len(waveform)):
        return np.empty((0, config.num_mel_bins), np.float32)
    return fbank(waveform, config)


def fbank_of_blocks(blocks: WaveformStream, config: FbankConfig) -> NDArray[np.float32]:
    """Return `fbank` of a waveform in blocks, bit for bit, shape (num_frames, num_mel_bins).

    Besides the result, memory holds a block, unless the config needs the whole clip. A waveform
    without a single frame gives (0, num_mel_bins).
    """
    if blocks.is_whole or config.needs_whole_clip:
        return fbank_of_any(joined(blocks), config)
    online, grown = OnlineFbank(config), Grown()
    for block in blocks:
        grown.add(np.asarray(online.accept_waveform(block)))
    grown.add(np.asarray(online.finish()))
    return grown.take()
