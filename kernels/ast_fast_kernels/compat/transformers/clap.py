"""transformers' ClapFeatureExtractor by our filterbank."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ast_fast_kernels.compat.transformers.clips import mono_clips
from ast_fast_kernels.compat.transformers.filterbank import Array, Float32Array, Tables, stft
from ast_fast_kernels.compat.transformers.library import live_class, module_of

_Live: Any = live_class("clap", "ClapFeatureExtractor")
_library: Any = module_of(_Live)


class ClapFeatureExtractor(_Live):  # type: ignore[misc]
    """Extract CLAP's log-mel in dB, with the library's crops, fusions and repetitions.

    Arguments and results are the library's; for the same state of numpy's generator it takes the
    same crops.
    """

    def __call__(self, raw_speech: Any, *args: Any, **kwargs: Any) -> Any:
        """Return `input_features` and `is_longer`.

        Args:
            raw_speech: One clip or a batch, mono: arrays, tensors or lists.
            args: As the library's.
            kwargs: As the library's.
        Raises:
            ValueError: The rate is another, or a clip has several channels.
        """
        return super().__call__(mono_clips(raw_speech, self), *args, **kwargs)

    def _np_extract_fbank_features(
        self, waveform: Array, mel_filters: Array | None = None
    ) -> Float32Array:
        filters = self.mel_filters if mel_filters is None else mel_filters
        shape = "slaney" if filters is self.mel_filters_slaney else "htk"
        size = self.fft_window_size
        own = Tables(_hann(size), filters, self.hop_length, size, logarithm=_decibels)
        filterbank = stft(
            own,
            sample_frequency=self.sampling_rate,
            num_mel_bins=self.feature_size,
            low_freq=self.frequency_min,
            high_freq=self.frequency_max,
            mel_scale=shape,
            mel_norm="slaney" if shape == "slaney" else "none",
            log_type="db",
            log_floor=1e-10,
        )
        return filterbank.log_mel(waveform)


def _decibels(energies: Array) -> Array:
    return 10.0 * np.log10(energies)


@lru_cache(maxsize=16)
def _hann(size: int) -> Array:
    """Return a periodic Hann window, the same array for the same size."""
    return np.hanning(size + 1)[:-1]
