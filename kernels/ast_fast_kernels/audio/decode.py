"""Decode an audio file to blocks of mono samples, within bounds, whatever its header claims."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ast_fast_kernels.audio.content import Content
from ast_fast_kernels.audio.decoder import Decoder
from ast_fast_kernels.audio.errors import AbsentAudioError, BadAudioError
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.source import AudioSource
from ast_fast_kernels.audio.wav import open_wav
from ast_fast_kernels.resample.channels import mean_of

RESAMPLE_MARGIN = 0.1
"""Seconds read beyond a clip's end, so that a resampler's filter does not see the signal stop."""
BLOCK_VALUES = 2**20
"""Samples decoded at once, over all channels: bounds memory whatever a header claims."""


@contextmanager
def content_of(source: AudioSource, *, digested: bool = False) -> Iterator[Content]:
    """Open a file's bytes, and raise BadAudioError for every error of opening or reading it."""
    if "\0" in source.path:
        raise BadAudioError("has a name with a NUL, as no file has")
    try:
        with Content(source, digested=digested) as content:
            yield content
    except FileNotFoundError:
        raise AbsentAudioError("is absent") from None
    except OSError as error:
        raise BadAudioError(f"cannot be read: {error.strerror or error}") from None


@contextmanager
def decoding(content: Content, seconds: float | None = None) -> Iterator[Decoder]:
    """Open a decoder, and raise BadAudioError for every error of its own.

    Args:
        content: The file.
        seconds: What is read of it from its beginning, before the margin; None reads all.
    Raises:
        ImportError: The format needs soundfile, and that is not installed.
    """
    decoder = open_wav(content)
    if decoder is not None:
        yield decoder
        return
    try:
        from ast_fast_kernels.audio.libsndfile import open_by_libsndfile
    except ModuleNotFoundError as error:
        if error.name != "soundfile":
            raise
        raise ImportError(
            f"{content.source.path}: formats other than plain WAV need soundfile: "
            "pip install 'ast-fast-kernels[audio]'",
            name="soundfile",
        ) from error
    with open_by_libsndfile(content, seconds) as other:
        yield other


def mono_blocks(
    decoder: Decoder,
    survey: Survey,
    wanted: int = sys.maxsize,
    needed: int = sys.maxsize,
    first: int = 0,
    *,
    mix: bool = True,
) -> Iterator[NDArray[Any]]:
    """Yield frames `first` to `wanted`, as the mean of their channels, in blocks of bounded size.

    Args:
        decoder: At its first frame.
        survey: Measures what is needed.
        wanted: Frame before which to stop.
        needed: Frame before which the file must not end.
        first: Frame to begin with.
        mix: Whether to mix 16-bit stereo too; otherwise, it stays (frames, 2).
    Yields:
        Samples: int16 of one channel, or of two unmixed ones, that was stored so; else float32.
    Raises:
        BadAudioError: No frames, fewer than promised of those needed, or one that is not finite.
    """
    block_size = max(1, BLOCK_VALUES // decoder.num_channels)
    there = sys.maxsize if decoder.frames is None else decoder.frames
    limit = min(wanted, there)
    count = decoder.skip(min(first, limit)) if first else 0
    begun = count
    while count < limit:
        channels = decoder.read(min(block_size, limit - count))
        if not len(channels):
            break
        used = max(0, needed - count)
        if channels.dtype == np.int16 and decoder.num_channels == 2 and not mix:
            survey.add_stereo(channels[:used])
            block: NDArray[Any] = channels
        else:
            block = channels[:, 0]
            if decoder.num_channels > 1:
                block = mean_of(channels.T)
                survey.add_channels(channels, block)
            if not (survey.add_block(block[:used]) and is_finite(block[used:])):
                bad = count + int(np.flatnonzero(~np.isfinite(block))[0])
                raise BadAudioError(f"holds NaN or infinity (first at frame {bad})")
        count += len(block)
        yield block
    if count == begun and not first:
        raise BadAudioError("holds no samples")
    if decoder.promise and count + decoder.tolerance < min(limit, needed):
        raise BadAudioError(f"is cut short: {decoder.promise} {there} frames, {count} read")


def is_finite(block: NDArray[Any]) -> bool:
    """Say whether there is neither NaN nor infinity."""
    return block.dtype == np.int16 or bool(np.isfinite(block).all())


def as_float(samples: NDArray[Any]) -> NDArray[np.float32]:
    """Return samples as float32 in [-1, 1], whether they are int16 or float32."""
    if samples.dtype != np.int16:
        return samples
    scaled: NDArray[np.float32] = np.multiply(samples, np.float32(2**-15), dtype=np.float32)
    return scaled
