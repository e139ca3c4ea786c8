"""transformers' SeamlessM4TFeatureExtractor by our filterbank."""

from __future__ import annotations

from typing import Any

import numpy as np

from ast_fast_kernels.compat.transformers.clips import Clip, as_floats, check_rate, split
from ast_fast_kernels.compat.transformers.filterbank import Float32Array, kaldi
from ast_fast_kernels.compat.transformers.library import live_class, module_of
from ast_fast_kernels.compat.transformers.results import Batch, allocate, batch_feature

_Live: Any = live_class("seamless_m4t", "SeamlessM4TFeatureExtractor")
_library: Any = module_of(_Live)

INT16_RANGE = 32768.0


class SeamlessM4TFeatureExtractor(_Live):  # type: ignore[misc]
    """Extract SeamlessM4T's log-mel: Kaldi's, normalised by bin over the clip, frames in pairs.

    Of a clip of several channels, (num_channels, num_samples), it takes the first, as the library
    does. A batch of one, given as an array (1, num_samples), is mono.
    """

    def __call__(
        self,
        raw_speech: Any,
        padding: Any = True,
        pad_to_multiple_of: int | None = 2,
        max_length: int | None = None,
        truncation: bool = False,
        return_tensors: Any = None,
        sampling_rate: int | None = None,
        return_attention_mask: bool | None = None,
        do_normalize_per_mel_bins: bool | None = True,
        **kwargs: Any,
    ) -> Any:
        """Return `input_features`, (batch, num_frames // stride, num_mel_bins * stride), and mask.

        Args:
            raw_speech: One clip or a batch: arrays, tensors or lists.
            padding: `True` or `"longest"`, `"max_length"`, or False.
            pad_to_multiple_of: Frames are padded to a multiple of this.
            max_length: Frames, for padding and truncation.
            truncation: Whether longer clips are cut to `max_length`.
            return_tensors: `"pt"` or `"np"`; None gives arrays.
            sampling_rate: The clips' rate, in Hz, which must be the extractor's.
            return_attention_mask: Whether `attention_mask` is returned; None is the extractor's.
            do_normalize_per_mel_bins: Whether each bin has mean 0 and variance 1 over its clip.
            kwargs: Ignored, as in the library.
        Raises:
            ValueError: The rate is another, or a shape or the padding does not fit.
        """
        check_rate(self, sampling_rate, _library.logger)
        if getattr(raw_speech, "ndim", 1) > 3:
            raise ValueError(
                f"Only mono-channel or stereo-channel audio is supported for input to {self}"
            )
        clips = [_first_channel(clip) for clip in split(raw_speech)]
        filterbank = kaldi(self, "povey", with_torchaudio=False, scale=INT16_RANGE)
        batch = allocate(
            self,
            [filterbank.num_frames(len(clip)) for clip in clips],
            self.num_mel_bins,
            feature_size=self.feature_size,
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            multiple=pad_to_multiple_of,
        )
        if batch is None:
            return super().__call__(
                clips,
                padding=padding,
                pad_to_multiple_of=pad_to_multiple_of,
                max_length=max_length,
                truncation=truncation,
                return_tensors=return_tensors,
                sampling_rate=self.sampling_rate,
                return_attention_mask=return_attention_mask,
                do_normalize_per_mel_bins=do_normalize_per_mel_bins,
            )
        for clip, rows in zip(clips, batch.valid(), strict=True):
            filterbank.write(clip, rows)
            if do_normalize_per_mel_bins:
                _normalise(rows)
        batch.pad(self.padding_value)
        values: dict[str, Any] = {"input_features": self._stacked(batch)}
        if return_attention_mask is None:
            return_attention_mask = self.return_attention_mask
        if return_attention_mask:
            mask = batch.mask()
            kept = mask.shape[1] - mask.shape[1] % self.stride
            values["attention_mask"] = mask[:, :kept][:, np.arange(kept) % self.stride == 1]
        return batch_feature(values, return_tensors)

    def _stacked(self, batch: Batch) -> Float32Array:
        """Return frames in groups of `stride`; a copy only if some are left over."""
        count, num_frames, num_bins = batch.features.shape
        groups = num_frames // self.stride
        kept = batch.features[:, : groups * self.stride]
        return kept.reshape(count, groups, num_bins * self.stride)

    def _extract_fbank_features(self, waveform: Any) -> Float32Array:
        filterbank = kaldi(self, "povey", with_torchaudio=False, scale=INT16_RANGE)
        return filterbank.log_mel(_first_channel(waveform))


def _first_channel(clip: Any) -> Clip:
    samples = as_floats(clip)
    if samples.ndim == 2:
        samples = samples[0]
    if samples.ndim != 1:
        raise ValueError(
            "raw_speech must be (num_samples,) or (num_channels, num_samples) for each clip, "
            f"got {samples.shape}"
        )
    return samples


def _normalise(rows: Float32Array) -> None:
    """Give each bin mean 0 and variance 1 over a clip's frames, in place."""
    rows -= rows.mean(axis=0)
    variance = np.einsum("ij,ij->j", rows, rows) / np.float32(len(rows) - 1)
    rows *= 1 / np.sqrt(variance + np.float32(1e-7))
