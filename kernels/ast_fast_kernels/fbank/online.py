"""The filterbank of a waveform that arrives in chunks: the same frames, bit for bit, sooner."""

from __future__ import annotations

import numpy as np

from ast_fast_kernels._torch.stream import Array, Stream
from ast_fast_kernels.fbank.api import draw_keys, fbank_of_part
from ast_fast_kernels.fbank.config import FbankConfig

_AST = FbankConfig()

DTYPES = ("float32", "float64", "int16")

WHOLE_CLIP = {
    "top_db": "it needs the whole clip",
    "norm_per_feature": "it needs the whole clip",
}
"""Fields that a stream cannot use, and why."""


class OnlineFbank(Stream):
    """Compute log-mel energies of a stream, each frame as soon as its last sample has arrived.

    Together, the frames that `accept_waveform` and `finish` return are those of `fbank` for the
    whole clip: bit for bit with `numba`, whose frames do not depend on their place, and up to float
    rounding with `reference`. Unlike kaldi-native-fbank, it returns frames instead of keeping them.
    Besides the chunk, it keeps at most two windows and a shift of samples. Frames have no gradient.
    Dither's keys are drawn with a stream's first chunk, as `fbank` draws them for the whole clip.

    Args:
        config: The conventions; without `top_db` and `norm_per_feature`.
        backend: As in `fbank`.
    Raises:
        TypeError: `config` is not an FbankConfig.
        ValueError: The config needs the whole clip.
    """

    def __init__(self, config: FbankConfig = _AST, *, backend: str = "auto") -> None:
        if not isinstance(config, FbankConfig):
            raise TypeError(f"config must be an FbankConfig, got {type(config).__name__}")
        for name, reason in WHOLE_CLIP.items():
            value = getattr(config, name)
            if value and config.use_log_fbank:
                raise ValueError(
                    f"config must have {name} {type(value)()!r} in a stream, because {reason}, "
                    f"got {value!r}; use fbank on the whole clip"
                )
        self.config = config
        self.backend = backend
        self._every_frame = config.replace(drop_last_frame=False)
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        super().reset()  # what is held begins at a multiple of the shift; results are frames
        self._keys: Array | None = None  # of dither

    def accept_waveform(self, waveform: Array) -> Array:
        """Take the next samples and return the frames that they complete.

        Args:
            waveform: Shape (..., num_samples), of any length; kind, dtype and leading dimensions
                as in the first chunk.
        Returns:
            Energies, shape (..., frames completed, num_mel_bins).
        Raises:
            TypeError: The chunk is no array or tensor, or its kind or dtype is not the first's.
            ValueError: Its leading dimensions are not the first chunk's.
            RuntimeError: The stream was finished and not reset.
        """
        return self._accept(waveform)

    def finish(self) -> Array:
        """End the stream and return the frames that were waiting for its end.

        Raises:
            RuntimeError: No chunk was ever taken, or the stream is finished already.
        """
        return self._finish()

    def _begin(self, waveform: Array) -> None:
        if self.config.dither != 0.0:
            self._keys = draw_keys(waveform)

    def _check_samples(self, waveform: Array) -> None:
        if str(waveform.dtype).removeprefix("torch.") not in DTYPES:
            raise TypeError(f"waveform must be {', '.join(DTYPES)}, got {waveform.dtype}")
        if waveform.ndim == 0:
            raise ValueError("waveform must be (..., num_samples), got ()")

    def _num_results(self) -> int:
        return self.config.num_frames(self._num_samples)

    def _num_complete(self) -> int:
        config, num_samples = self.config, self._num_samples
        if num_samples <= -config.first_sample:
            return 0  # the mirror image before the first sample is not yet known
        span = num_samples - config.first_sample - config.window_size
        complete = span // config.window_shift + 1 if span >= 0 else 0
        # If no more samples come, the last frame may be dropped or not exist.
        return min(complete, config.num_frames(num_samples))

    def _take(self, end: int) -> Array:
        held, config = self._held, self.config
        assert held is not None
        before = self._start // config.window_shift  # frames before what is held
        if end == self._next:
            shape = (*held.shape[:-1], 0, config.num_mel_bins)
            if isinstance(held, np.ndarray):
                return np.empty(shape, np.float64 if held.dtype == np.float64 else np.float32)
            from ast_fast_kernels.fbank.eager import result_dtype  # needs torch, which is loaded

            return held.new_empty(shape, dtype=result_dtype(held))
        keys = self._keys
        if keys is not None:
            keys[..., 1] = before
        frames: Array = fbank_of_part(held, self._every_frame, self.backend, keys)
        frames = frames[..., self._next - before : end - before, :]
        self._next = end
        # Padding mirrors at most a window before the end; pre-emphasis reads one sample more.
        keep = end * config.window_shift + config.first_sample - config.window_size - 1
        self._drop(max(keep // config.window_shift * config.window_shift, 0))
        return frames
