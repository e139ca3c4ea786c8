"""transformers' WhisperFeatureExtractor by our filterbank."""

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
from ast_fast_kernels.compat.transformers.results import batch_feature, multiple_of
from ast_fast_kernels.fbank.api import fbank

_Live: Any = live_class("whisper", "WhisperFeatureExtractor")
_library: Any = module_of(_Live)


class WhisperFeatureExtractor(_Live):  # type: ignore[misc]
    """Extract Whisper's log-mel, (batch, feature_size, num_frames).

    Frames that hold nothing but padding are computed once. With `dither` the noise is the library's
    for the same state of torch's generator.
    """

    def __call__(
        self,
        raw_speech: Any,
        truncation: bool = True,
        pad_to_multiple_of: int | None = None,
        return_tensors: Any = None,
        return_attention_mask: bool | None = None,
        padding: Any = "max_length",
        max_length: int | None = None,
        sampling_rate: int | None = None,
        do_normalize: bool | None = None,
        device: Any = "cpu",
        **kwargs: Any,
    ) -> Any:
        """Return `input_features`, float32 (batch, feature_size, num_frames), and the mask.

        Args:
            raw_speech: One clip or a batch, mono: arrays, tensors or lists.
            truncation: Whether longer clips are cut to `max_length`.
            pad_to_multiple_of: Samples are padded to a multiple of this.
            return_tensors: `"pt"` or `"np"`; None gives an array.
            return_attention_mask: Whether `attention_mask` is returned, (batch, num_frames).
            padding: `"max_length"`, `"longest"` or `"do_not_pad"`.
            max_length: Samples, for padding and truncation; None is `chunk_length` seconds.
            sampling_rate: The clips' rate, in Hz, which must be the extractor's.
            do_normalize: Whether samples are brought to mean 0 and variance 1 first.
            device: Where the features are computed; they are returned on the CPU.
            kwargs: Ignored, as in the library.
        Raises:
            ValueError: The rate is another, a shape or the padding does not fit, or clips are left
                with different lengths or too few samples for a frame.
        """
        check_rate(self, sampling_rate, _library.logger, in_full=False)
        clips = mono_clips(raw_speech, self)
        most = multiple_of(pad_to_multiple_of, max_length or self.n_samples)
        if truncation:
            clips = [clip[:most] for clip in clips]
        strategy = self._get_padding_strategies(padding=padding, max_length=most).value
        target = 0
        if strategy != "do_not_pad":
            longest = max(map(len, clips))
            target = most if strategy == "max_length" else multiple_of(pad_to_multiple_of, longest)
        lengths = [len(clip) for clip in clips]
        total = self._common_length([max(n, target) for n in lengths])
        if do_normalize or self.padding_side != "right" or self.dither != 0.0:
            clips = [self._padded(clip, total, do_normalize) for clip in clips]
        if self.dither != 0.0:
            clips = self._dithered(clips, device)
        values = {"input_features": self._features(clips, total, device)}
        with_mask = return_attention_mask or do_normalize
        if self.return_attention_mask if with_mask is None else with_mask:
            mask = self._mask(lengths, total)
            values["attention_mask"] = self._of_frames(mask) if return_attention_mask else mask
        return batch_feature(values, return_tensors)

    def _common_length(self, lengths: list[int]) -> int:
        if any(n != lengths[0] for n in lengths):
            raise ValueError(
                "raw_speech must hold clips of one length where padding leaves them as they are, "
                f"got {min(lengths)} and {max(lengths)} samples"
            )
        fewest = max(self.n_fft // 2 + 1, self.hop_length)
        if lengths[0] < fewest:
            raise ValueError(f"raw_speech must have at least {fewest} samples, got {lengths[0]}")
        return lengths[0]

    def _padded(self, clip: Clip, total: int, do_normalize: bool | None) -> Clip:
        """Return a clip with its padding, normalised if asked for."""
        padded = np.full(total, self.padding_value, np.float32)
        num_samples, mask = len(clip), self._mask([len(clip)], total)
        padded[mask[0] == 1] = clip
        if do_normalize and num_samples:
            padded = self.zero_mean_unit_var_norm([padded], mask, self.padding_value)[0]
        return padded

    def _mask(self, lengths: list[int], total: int) -> Any:
        """Return 1 for each sample that is not padding, int32 (batch, total)."""
        valid = np.arange(total) < np.array(lengths)[:, None]
        return (valid if self.padding_side == "right" else valid[:, ::-1]).astype(np.int32)

    def _of_frames(self, mask: Any) -> Any:
        """Return the mask of frames from that of samples, as the library takes it."""
        of_frames = mask[:, :: self.hop_length]
        return of_frames[:, :-1] if mask.shape[1] % self.hop_length else of_frames

    def _dithered(self, clips: list[Clip], device: Any) -> list[Clip]:
        import torch

        shape = (len(clips), len(clips[0]))
        noise = torch.randn(shape, dtype=torch.float32, device=device).cpu().numpy()
        return list(np.stack(clips) + np.float32(self.dither) * noise)

    def _filterbank(self) -> Filterbank:
        own = Tables(_hann(self.n_fft), self.mel_filters, self.hop_length, self.n_fft)
        return stft(
            own,
            sample_frequency=self.sampling_rate,
            drop_last_frame=True,
            num_mel_bins=self.feature_size,
            low_freq=0.0,
            high_freq=8000.0,
            mel_scale="slaney",
            mel_norm="slaney",
            log_type="log10",
            log_floor=1e-10,
            top_db=80.0,
            output_shift=4.0,
            output_scale=0.25,
        )

    def _features(self, clips: list[Clip], total: int, device: Any) -> Float32Array:
        """Return the log-mel of clips that are padded to `total` samples, or are to be."""
        filterbank = self._filterbank()
        if str(device) != "cpu":
            return self._on(device, clips, total, filterbank)
        assert filterbank.tables is not None
        num_frames = filterbank.tables.num_frames(total) - 1
        features = np.empty((len(clips), self.feature_size, num_frames), np.float32)
        for clip, columns in zip(clips, features, strict=True):
            log_mel = self._log_mel(clip, total, filterbank)
            columns[:, : len(log_mel)] = log_mel.T
            columns[:, len(log_mel) :] = log_mel[-1][:, None]
        return features

    def _log_mel(self, clip: Clip, total: int, filterbank: Filterbank) -> Float32Array:
        """Return the log-mel of a clip's frames, up to the first that holds only padding."""
        # The next frame would begin half a window earlier: at the padding, or after it.
        silent = -(-(len(clip) + self.n_fft // 2) // self.hop_length)
        needed = min((silent + 1) * self.hop_length + self.n_fft, total)
        samples = clip
        if len(clip) < needed:
            samples = np.full(needed, self.padding_value, np.float32)
            samples[: len(clip)] = clip
        if filterbank.config is not None:
            return fbank(samples, filterbank.config)
        assert filterbank.tables is not None
        log_mel = filterbank.tables.log_mel(samples)[:-1]
        limited: Float32Array = (np.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0
        return limited

    def _on(
        self, device: Any, clips: list[Clip], total: int, filterbank: Filterbank
    ) -> Float32Array:
        """Do what `_features` does on another device."""
        import torch

        place = torch.device(device)
        if filterbank.config is None:
            return self._features(clips, total, "cpu")
        padded = np.full((len(clips), total), self.padding_value, np.float32)
        for clip, row in zip(clips, padded, strict=True):
            row[: len(clip)] = clip
        log_mel = fbank(torch.from_numpy(padded).to(place), filterbank.config)
        features: Float32Array = log_mel.transpose(1, 2).contiguous().cpu().numpy()
        return features


@lru_cache(maxsize=16)
def _hann(size: int) -> Array:
    """Return a periodic Hann window, the same array for the same size."""
    return np.hanning(size + 1)[:-1]
