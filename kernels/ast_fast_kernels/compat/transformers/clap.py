"""transformers' ClapFeatureExtractor by our filterbank."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ast_fast_kernels.compat.transformers.clips import Clip, check_rate, mono_clips
from ast_fast_kernels.compat.transformers.filterbank import (
    Array,
    Filterbank,
    Float32Array,
    Tables,
    stft,
)
from ast_fast_kernels.compat.transformers.library import live_class, module_of
from ast_fast_kernels.compat.transformers.results import batch_feature

_Live: Any = live_class("clap", "ClapFeatureExtractor")
_library: Any = module_of(_Live)


class ClapFeatureExtractor(_Live):  # type: ignore[misc]
    """Extract CLAP's log-mel in dB, with the library's crops, fusions and repetitions.

    For the same state of numpy's generator it takes the library's crops.
    """

    def __call__(
        self,
        raw_speech: Any,
        truncation: str | None = None,
        padding: Any = None,
        max_length: int | None = None,
        sampling_rate: int | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Return `input_features`, (batch, 4 or 1, num_frames, feature_size), and `is_longer`.

        Args:
            raw_speech: One clip or a batch, mono: arrays, tensors or lists.
            truncation: `"fusion"` or `"rand_trunc"`; None is the extractor's.
            padding: `"repeatpad"`, `"repeat"` or `"pad"`; None or True is the extractor's.
            max_length: Samples of a clip; None is `max_length_s` seconds.
            sampling_rate: The clips' rate, in Hz, which must be the extractor's.
            return_tensors: `"pt"` or `"np"`; None gives lists.
            kwargs: Ignored, as in the library.
        Raises:
            ValueError: The rate is another, or a clip has several channels.
            NotImplementedError: A longer clip meets another `truncation`.
        """
        check_rate(self, sampling_rate, _library.logger, in_full=False)
        clips = mono_clips(raw_speech, self)
        truncation = self.truncation if truncation is None else truncation
        padding = self.padding if padding is None or padding is True else padding
        most = max_length or self.nb_max_samples
        fuses = truncation == "fusion"
        filterbank = self._filterbank(self.mel_filters if fuses else self.mel_filters_slaney)
        shape = (len(clips), 4 if fuses else 1, filterbank.num_frames(most), self.feature_size)
        features = np.empty(shape, np.float32)
        is_longer = []
        for clip, channels in zip(clips, features, strict=True):
            longer = False
            if len(clip) > most:
                channels[:], longer = self._get_input_mel(clip, most, truncation, padding)
            else:
                filterbank.write(_repeated(clip, most, padding), channels[0])
                channels[1:] = channels[0]
            is_longer.append([longer])
        if fuses and [True] not in is_longer:  # one clip at random counts as longer
            is_longer[np.random.randint(len(clips))] = [True]  # noqa: NPY002 - as the library
        listed = list(features) if return_tensors is None else features
        return batch_feature({"input_features": listed, "is_longer": is_longer}, return_tensors)

    def _np_extract_fbank_features(
        self, waveform: Array, mel_filters: Array | None = None
    ) -> Float32Array:
        return self._filterbank(self.mel_filters if mel_filters is None else mel_filters).log_mel(
            waveform
        )

    def _filterbank(self, filters: Array) -> Filterbank:
        shape = "slaney" if filters is self.mel_filters_slaney else "htk"
        size = self.fft_window_size
        own = Tables(_hann(size), filters, self.hop_length, size, logarithm=_decibels)
        return stft(
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


def _repeated(clip: Clip, num_samples: int, padding: Any) -> Clip:
    """Return a clip of so many samples, repeated as `padding` says and followed by zeros."""
    if len(clip) == num_samples:
        return clip
    if not len(clip) and padding in ("repeat", "repeatpad"):
        raise ValueError("raw_speech must have at least 1 sample to be repeated, got 0")
    samples = np.zeros(num_samples, np.float32)
    if padding == "repeat":
        samples[:] = np.resize(clip, num_samples)
    else:
        times = num_samples // len(clip) if padding == "repeatpad" else 1
        samples[: times * len(clip)].reshape(times, len(clip))[:] = clip
    return samples


def _decibels(energies: Array) -> Array:
    return 10.0 * np.log10(energies)


@lru_cache(maxsize=16)
def _hann(size: int) -> Array:
    """Return a periodic Hann window, the same array for the same size."""
    return np.hanning(size + 1)[:-1]
