"""transformers' ASTFeatureExtractor by our filterbank."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from ast_fast_kernels.compat.transformers.clips import check_rate, mono_clips
from ast_fast_kernels.compat.transformers.filterbank import kaldi
from ast_fast_kernels.compat.transformers.library import live_class, module_of
from ast_fast_kernels.compat.transformers.results import batch_feature
from ast_fast_kernels.fbank.config import FbankConfig

_Live: Any = live_class("audio_spectrogram_transformer", "ASTFeatureExtractor")
_library: Any = module_of(_Live)


class ASTFeatureExtractor(_Live):  # type: ignore[misc]
    """Extract the Audio Spectrogram Transformer's log-mel, normalised and of one length.

    At other rates than 16 kHz, as in the library, frames have 25 ms where torchaudio is installed
    and 400 samples where it is not.
    """

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Return `input_values`, float32 (batch, max_length, num_mel_bins).

        Args:
            raw_speech: One clip or a batch, mono: arrays, tensors or lists.
            sampling_rate: The clips' rate, in Hz, which must be the extractor's.
            return_tensors: `"pt"` or `"np"`; None gives a list of arrays.
            kwargs: Ignored, as in the library.
        Raises:
            ValueError: The rate is another, or a clip has several channels or no frame.
        """
        check_rate(self, sampling_rate, _library.logger)
        clips = mono_clips(raw_speech, self)
        filterbank = kaldi(self, "hanning", with_torchaudio=_library.is_speech_available())
        in_kernel = self.do_normalize and filterbank.config is not None and self.std > 0
        if in_kernel:
            config = _normalised(filterbank.config, self.mean, self.std)
            filterbank = filterbank._replace(config=config)
        silence = self.normalize(0.0) if in_kernel else 0.0
        features = np.empty((len(clips), self.max_length, self.num_mel_bins), np.float32)
        for clip, rows in zip(clips, features, strict=True):
            num_frames = filterbank.num_frames(len(clip))
            if num_frames > self.max_length:
                num_frames, clip = self.max_length, filterbank.begin(clip, self.max_length)
            filterbank.write(clip, rows[:num_frames])
            rows[num_frames:] = silence
        if self.do_normalize and not in_kernel:
            features = self.normalize(features)
        listed = list(features) if return_tensors is None else features
        return batch_feature({"input_values": listed}, return_tensors)


@lru_cache(maxsize=16)
def _normalised(config: FbankConfig, mean: float, std: float) -> FbankConfig:
    """Let the kernel subtract the mean and divide by two deviations."""
    return config.replace(output_shift=-mean, output_scale=1 / (2 * std))
