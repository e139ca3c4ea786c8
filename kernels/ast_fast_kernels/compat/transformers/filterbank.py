"""An extractor's filterbank: our config if its tables are the extractor's, otherwise they alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.api import fbank
from ast_fast_kernels.fbank.config import FLOAT32_EPS, FbankConfig

Array = npt.NDArray[Any]
Float32Array = npt.NDArray[np.float32]

ROUNDING = 1e-6
"""Most that a filter or window differs by from the same one elsewhere, relative to its largest
value: computed in float64 in another order, or rounded to float32."""

FRAMES_AT_ONCE = 512
"""Frames that the path by tables holds at a time: 4 MB for 1,024 samples in float64."""

WINDOWS = {
    "boxcar": "rectangular",
    "hamming": "hamming",
    "hamming_window": "hamming",
    "hann": "hanning",
    "hann_window": "hanning",
    "povey": "povey",
}
"""transformers' names of windows, and ours."""


class Tables(NamedTuple):
    """A filterbank in transformers' terms, computed from its tables in float64."""

    window: Array  # (window_size,)
    filters: Array  # (n_fft // 2 + 1, num_mel_bins)
    shift: int
    n_fft: int
    center: bool = True
    power: float = 2.0
    scale: float = 1.0
    as_kaldi: bool = False  # each frame loses its mean, and is pre-emphasised by 0.97
    floor: float = 1e-10
    logarithm: Callable[[Array], Array] = np.log10

    def num_frames(self, num_samples: int) -> int:
        """Return how many frames there are, not fewer than 0."""
        size = len(self.window)
        padded = num_samples + 2 * (size // 2) * self.center
        return max(1 + (padded - size) // self.shift, 0)

    def log_mel(self, waveform: Array, noise: Array | None = None) -> Float32Array:
        """Return log-mel energies of a clip, shape (num_frames, num_mel_bins).

        Args:
            waveform: Shape (num_samples,).
            noise: Added to the scaled frames, shape (num_frames, window_size).
        """
        size = len(self.window)
        samples = self.scale * waveform.astype(np.float64)
        if self.center:
            samples = np.pad(samples, size // 2, mode="reflect")
        log_mel = np.empty((self.num_frames(len(waveform)), self.filters.shape[1]), np.float32)
        if not len(log_mel):
            return log_mel
        frames = np.lib.stride_tricks.sliding_window_view(samples, size)[:: self.shift]
        for first in range(0, len(log_mel), FRAMES_AT_ONCE):
            block = slice(first, min(first + FRAMES_AT_ONCE, len(log_mel)))
            some = frames[block] if noise is None else frames[block] + noise[block]
            log_mel[block] = self._of_frames(some)
        return log_mel

    def _of_frames(self, frames: Array) -> Array:
        if self.as_kaldi:
            frames = frames - frames.mean(axis=1, keepdims=True)
            frames[:, 1:] -= 0.97 * frames[:, :-1]
            frames[:, 0] *= 1 - 0.97
        spectrum = np.abs(np.fft.rfft(frames * self.window, self.n_fft)) ** self.power
        return self.logarithm(np.maximum(spectrum @ self.filters, self.floor))


class Filterbank(NamedTuple):
    """A config, its tables, or both; without a config the tables compute."""

    config: FbankConfig | None
    tables: Tables | None
    fewest: int = 1

    def num_frames(self, num_samples: int) -> int:
        """Return how many frames a clip gives.

        Raises:
            ValueError: The clip is shorter than the library takes.
        """
        if num_samples < self.fewest:
            raise ValueError(
                f"raw_speech must have at least {self.fewest} samples, got {num_samples}"
            )
        if self.tables is not None:
            return self.tables.num_frames(num_samples)
        assert self.config is not None
        return self.config.num_frames(num_samples)

    def write(self, clip: Array, out: Float32Array) -> None:
        """Write a clip's log-mel energies, shape (num_frames, num_mel_bins)."""
        if not len(out):
            return
        if self.config is not None:
            fbank(clip.astype(np.float32, copy=False), self.config, out=out)
        else:
            assert self.tables is not None
            out[:] = self.tables.log_mel(clip)

    def begin(self, clip: Array, num_frames: int) -> Array:
        """Return the samples of a clip's first frames, where these begin at the first sample."""
        if self.tables is not None:
            size, shift = len(self.tables.window), self.tables.shift
        else:
            assert self.config is not None
            size, shift = self.config.window_size, self.config.window_shift
        return clip[: (num_frames - 1) * shift + size]

    def log_mel(self, clip: Array) -> Float32Array:
        """Return a clip's log-mel energies, shape (num_frames, num_mel_bins)."""
        num_frames = self.num_frames(len(clip))
        if self.config is not None and num_frames:
            return fbank(clip.astype(np.float32, copy=False), self.config)
        assert self.tables is not None
        return self.tables.log_mel(clip)


def kaldi(
    extractor: Any, window_type: str, *, with_torchaudio: bool, scale: float = 1.0
) -> Filterbank:
    """Return the filterbank of an extractor that follows Kaldi.

    Args:
        extractor: It has `sampling_rate`, `num_mel_bins` and, without torchaudio, `window` and
            `mel_filters`.
        window_type: As in `FbankConfig`.
        with_torchaudio: Whether the library calls torchaudio: frames have 25 ms every 10 ms, and
            filters are computed in float32. Otherwise frames have 400 samples every 160 at any
            rate, and a clip that lacks less than 160 for one is taken, and has none.
        scale: Factor on the waveform.
    """
    config = _kaldi_config(
        extractor.sampling_rate, extractor.num_mel_bins, window_type, scale, with_torchaudio
    )
    if with_torchaudio:
        assert config is not None
        return Filterbank(config, None, config.window_size)
    own = _kaldi_tables(extractor.window, extractor.mel_filters, scale)
    return Filterbank(_if_agreed(config, own), own, len(own.window) - own.shift)


@lru_cache(maxsize=64)
def _kaldi_config(
    rate: float, num_mel_bins: int, window_type: str, scale: float, with_torchaudio: bool
) -> FbankConfig | None:
    fields: dict[str, Any] = {
        "sample_frequency": rate,
        "num_mel_bins": num_mel_bins,
        "window_type": window_type,
        "waveform_scale": scale,
    }
    if with_torchaudio:
        return FbankConfig(mel_dtype="float32", **fields)
    return _config_or_none(
        window_size=400, window_shift=160, n_fft=512, high_freq=rate // 2, **fields
    )


def _kaldi_tables(window: Array, filters: Array, scale: float) -> Tables:
    return Tables(
        window,
        filters,
        shift=160,
        n_fft=512,
        center=False,
        scale=scale,
        as_kaldi=True,
        floor=FLOAT32_EPS,
        logarithm=np.log,
    )


def stft(own: Tables, **fields: Any) -> Filterbank:
    """Return a filterbank of centred frames, from its tables and the config that they should have.

    Args:
        own: The extractor's tables.
        fields: Of the config: `sample_frequency`, and those that differ from a periodic Hann
            window, triangles over Hz and no dither.
    """
    config = _stft_config(len(own.window), own.shift, own.n_fft, **fields)
    return Filterbank(_if_agreed(config, own), own)


@lru_cache(maxsize=64)
def _stft_config(
    window_size: int, window_shift: int, n_fft: int, **fields: Any
) -> FbankConfig | None:
    if window_size % 2:  # an odd window's centre is another sample here
        return None
    return _config_or_none(
        **{
            "window_size": window_size,
            "window_shift": window_shift,
            "n_fft": n_fft,
            "window_periodic": True,
            "preemphasis_coefficient": 0.0,
            "snip_edges": False,
            "center": True,
            "pad_mode": "reflect",
            "remove_dc_offset": False,
            "whole_nyquist": True,
            "triangle_axis": "hertz",
            **fields,
        }
    )


def _config_or_none(**fields: Any) -> FbankConfig | None:
    """Return a config of frames of such sizes; None if there can be none."""
    try:
        return FbankConfig.from_samples(**fields)
    except ValueError:
        return None


def _if_agreed(config: FbankConfig | None, own: Tables) -> FbankConfig | None:
    """Return the config if it has these tables' window and filters, but for rounding."""
    if config is None or not _agree(config, _Same(own.window), _Same(own.filters)):
        return None
    return config


class _Same:
    """An array that equals only itself; held, so that no other comes to its address."""

    __slots__ = ("array",)

    def __init__(self, array: Array) -> None:
        self.array = array

    def __hash__(self) -> int:
        return id(self.array)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.array is other.array


@lru_cache(maxsize=64)
def _agree(config: FbankConfig, window: _Same, filters: _Same) -> bool:
    return _close(tables.window(config), np.asarray(window.array)) and _close(
        tables.mel_banks(config), np.asarray(filters.array).T
    )


def _close(ours: Array, theirs: Array) -> bool:
    """Compare row by row: a filter without a bin must have none in both."""
    if ours.shape != theirs.shape:
        return False
    error = np.abs(ours - theirs).max(axis=-1)
    return bool(np.all(error <= ROUNDING * np.abs(theirs).max(axis=-1)))
