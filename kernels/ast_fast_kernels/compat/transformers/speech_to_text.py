"""transformers' Speech2TextFeatureExtractor by our filterbank."""

from __future__ import annotations

from typing import Any

import numpy as np

from ast_fast_kernels.compat.transformers.clips import Clip, check_rate, mono_clips
from ast_fast_kernels.compat.transformers.filterbank import Filterbank, Float32Array, kaldi
from ast_fast_kernels.compat.transformers.library import live_class, module_of
from ast_fast_kernels.compat.transformers.results import allocate, batch_feature

_Live: Any = live_class("speech_to_text", "Speech2TextFeatureExtractor")
_library: Any = module_of(_Live)

INT16_RANGE = 32768.0


class Speech2TextFeatureExtractor(_Live):  # type: ignore[misc]
    """Extract Speech2Text's log-mel: Kaldi's, normalised by bin over the clip.

    At other rates than 16 kHz, as in the library, frames have 25 ms where torchaudio is installed
    and 400 samples where it is not. Dither is torchaudio's noise for the same state of torch's
    generator there, and the library's own for the same state of numpy's here.

    With `return_attention_mask=False` a padded batch is normalised over its clips' own frames; the
    library fails there.
    """

    def __call__(
        self,
        raw_speech: Any,
        padding: Any = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: Any = None,
        sampling_rate: int | None = None,
        return_attention_mask: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Return `input_features`, (batch, num_frames, num_mel_bins), and the mask.

        Args:
            raw_speech: One clip or a batch, mono: arrays, tensors or lists.
            padding: `True` or `"longest"`, `"max_length"`, or False.
            max_length: Frames, for padding and truncation.
            truncation: Whether longer clips are cut to `max_length`.
            pad_to_multiple_of: Frames are padded to a multiple of this.
            return_tensors: `"pt"` or `"np"`; None gives lists of arrays, or features in an array
                without `do_ceptral_normalize`.
            sampling_rate: The clips' rate, in Hz, which must be the extractor's.
            return_attention_mask: Whether `attention_mask` is returned; None is the extractor's.
            kwargs: For the library's `pad`.
        Raises:
            ValueError: The rate is another, or a shape or the padding does not fit.
        """
        check_rate(self, sampling_rate, _library.logger)
        clips = mono_clips(raw_speech, self)
        filterbank = self._filterbank()
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
        if batch is None or kwargs:
            return super().__call__(
                clips,
                padding=padding,
                max_length=max_length,
                truncation=truncation,
                pad_to_multiple_of=pad_to_multiple_of,
                return_tensors=return_tensors,
                sampling_rate=self.sampling_rate,
                return_attention_mask=return_attention_mask,
                **kwargs,
            )
        for clip, rows in zip(clips, batch.valid(), strict=True):
            self._write(filterbank, clip, rows)
            if self.do_ceptral_normalize:
                self._normalise(rows)
        batch.pad(self.padding_value)
        values: dict[str, Any] = {"input_features": batch.features}
        if return_attention_mask is None:
            return_attention_mask = self.return_attention_mask
        if return_attention_mask:
            values["attention_mask"] = batch.mask()
        if return_tensors is None:
            listed = values if self.do_ceptral_normalize else ["attention_mask"]
            values |= {key: list(values[key]) for key in listed if key in values}
        return batch_feature(values, return_tensors)

    def _extract_fbank_features(self, waveform: Any) -> Float32Array:
        clip, filterbank = mono_clips(waveform, self)[0], self._filterbank()
        log_mel = np.empty((filterbank.num_frames(len(clip)), self.num_mel_bins), np.float32)
        self._write(filterbank, clip, log_mel)
        return log_mel

    def _filterbank(self) -> Filterbank:
        has_torchaudio = _library.is_speech_available()
        return kaldi(self, "povey", with_torchaudio=has_torchaudio, scale=INT16_RANGE)

    def _write(self, filterbank: Filterbank, clip: Clip, rows: Float32Array) -> None:
        if self.dither == 0.0:
            filterbank.write(clip, rows)
        elif filterbank.tables is not None:
            noise = self.dither * np.random.randn(len(rows), len(self.window))  # noqa: NPY002
            rows[:] = filterbank.tables.log_mel(clip, noise)
        else:
            rows[:] = self._with_torchs_noise(clip)

    def _with_torchs_noise(self, clip: Clip) -> Float32Array:
        import torch

        from ast_fast_kernels import kaldi as with_noise

        log_mel: Float32Array = with_noise.fbank(
            torch.from_numpy(clip * np.float32(INT16_RANGE))[None],
            dither=self.dither,
            num_mel_bins=self.num_mel_bins,
            sample_frequency=self.sampling_rate,
        ).numpy()
        return log_mel

    def _normalise(self, rows: Float32Array) -> None:
        """Give each bin mean 0 and deviation 1 over a clip's frames, as far as asked for."""
        if self.normalize_means:
            rows -= rows.mean(axis=0)
        if self.normalize_vars:
            rows /= rows.std(axis=0)
