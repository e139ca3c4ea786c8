"""transformers' SpeechT5FeatureExtractor by our filterbank."""

from __future__ import annotations

from typing import Any

from ast_fast_kernels.compat.transformers.clips import mono_clips
from ast_fast_kernels.compat.transformers.filterbank import (
    WINDOWS,
    Filterbank,
    Float32Array,
    Tables,
    stft,
)
from ast_fast_kernels.compat.transformers.library import live_class, module_of
from ast_fast_kernels.compat.transformers.results import allocate, batch_feature

_Live: Any = live_class("speecht5", "SpeechT5FeatureExtractor")
_library: Any = module_of(_Live)


class SpeechT5FeatureExtractor(_Live):  # type: ignore[misc]
    """Extract SpeechT5's log-mel from `audio_target`, and pad or normalise the samples of `audio`.

    Arguments and results are the library's.
    """

    def _process_audio(
        self,
        speech: Any,
        is_target: bool = False,
        padding: Any = False,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> Any:
        clips = mono_clips(speech, self)
        filterbank = self._filterbank()
        batch = None
        if is_target and not kwargs:
            batch = allocate(
                self,
                [filterbank.num_frames(len(clip)) for clip in clips],
                self.num_mel_bins,
                feature_size=self.num_mel_bins,
                padding=padding,
                max_length=max_length,
                truncation=truncation,
                multiple=pad_to_multiple_of,
            )
        if batch is None:
            return super()._process_audio(
                clips,
                is_target,
                padding,
                max_length,
                truncation,
                pad_to_multiple_of,
                return_attention_mask,
                return_tensors,
                **kwargs,
            )
        for clip, rows in zip(clips, batch.valid(), strict=True):
            filterbank.write(clip, rows)
        batch.pad(self.padding_value)
        values: dict[str, Any] = {"input_values": batch.features}
        if return_attention_mask is None:
            return_attention_mask = self.return_attention_mask
        if return_attention_mask:
            mask = batch.mask()
            values["attention_mask"] = list(mask) if return_tensors is None else mask
        return batch_feature(values, return_tensors)

    def _extract_mel_features(self, one_waveform: Any) -> Float32Array:
        return self._filterbank().log_mel(mono_clips(one_waveform, self)[0])

    def _filterbank(self) -> Filterbank:
        own = Tables(
            self.window,
            self.mel_filters,
            self.sample_stride,
            self.n_fft,
            power=1.0,
            floor=self.mel_floor,
        )
        return stft(
            own,
            sample_frequency=self.sampling_rate,
            window_type=WINDOWS[self.win_function],
            use_power=False,
            num_mel_bins=self.num_mel_bins,
            low_freq=self.fmin,
            high_freq=self.fmax,
            mel_scale="slaney",
            mel_norm="slaney",
            log_type="log10",
            log_floor=self.mel_floor,
        )
