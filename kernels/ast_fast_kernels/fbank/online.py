"""The filterbank of a waveform that arrives in chunks: the same frames, bit for bit, sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels._torch.optional import is_tensor
from ast_fast_kernels.fbank.api import draw_keys, fbank_of_part
from ast_fast_kernels.fbank.config import FbankConfig

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = "Tensor | npt.NDArray[Any]"

_AST = FbankConfig()

DTYPES = ("float32", "float64", "int16")

WHOLE_CLIP = {
    "top_db": "it needs the whole clip",
    "norm_per_feature": "it needs the whole clip",
}
"""Fields that a stream cannot use, and why."""


class OnlineFbank:
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
        self._held: Array | None = None
        self._keys: Array | None = None  # of dither
        self._start = 0  # index of the first sample held: a multiple of the shift
        self._next = 0  # frame to return next
        self._finished = False

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
        if self._finished:
            raise RuntimeError("the stream is finished; call reset() to begin another")
        self._check(waveform)
        before = self._held
        if before is None and self.config.dither != 0.0:
            self._keys = draw_keys(waveform)
        # Always a copy: the caller may use the chunk's memory for the next one.
        self._held = _copied(waveform) if before is None else _joined(before, waveform)
        try:
            return self._take(self._complete_frames())
        except BaseException:
            self._held = before  # a chunk that cannot be computed is not taken
            raise

    def finish(self) -> Array:
        """End the stream and return the frames that were waiting for its end.

        Raises:
            RuntimeError: No chunk was ever taken, or the stream is finished already.
        """
        if self._finished:
            raise RuntimeError("the stream is finished already; call reset() to begin another")
        if self._held is None:
            raise RuntimeError("the stream is empty; call accept_waveform() first")
        frames = self._take(max(self.config.num_frames(self._num_samples), self._next))
        self._finished = True
        return frames

    @property
    def _num_samples(self) -> int:
        """Samples so far."""
        return self._start + (0 if self._held is None else self._held.shape[-1])

    def _check(self, waveform: object) -> None:
        if not (isinstance(waveform, np.ndarray) or is_tensor(waveform)):
            raise TypeError(
                f"waveform must be a tensor or a numpy array, got {type(waveform).__name__}"
            )
        if str(waveform.dtype).removeprefix("torch.") not in DTYPES:
            raise TypeError(f"waveform must be {', '.join(DTYPES)}, got {waveform.dtype}")
        if waveform.ndim == 0:
            raise ValueError("waveform must be (..., num_samples), got ()")
        first = self._held
        if first is None:
            return
        same_kind = isinstance(waveform, np.ndarray) == isinstance(first, np.ndarray)
        if not same_kind or waveform.dtype != first.dtype:
            raise TypeError(
                f"waveform must be {type(first).__name__} of {first.dtype} like the first chunk, "
                f"got {type(waveform).__name__} of {waveform.dtype}"
            )
        if waveform.shape[:-1] != first.shape[:-1]:
            raise ValueError(
                f"waveform must be (..., num_samples) with leading dimensions "
                f"{tuple(first.shape[:-1])} like the first chunk, got {tuple(waveform.shape)}"
            )

    def _complete_frames(self) -> int:
        """Return how many frames, counted from the first, the samples so far determine."""
        config, num_samples = self.config, self._num_samples
        if num_samples <= -config.first_sample:
            return 0  # the mirror image before the first sample is not yet known
        span = num_samples - config.first_sample - config.window_size
        complete = span // config.window_shift + 1 if span >= 0 else 0
        # If no more samples come, the last frame may be dropped or not exist.
        return max(min(complete, config.num_frames(num_samples)), self._next)

    def _take(self, end: int) -> Array:
        """Return the frames up to `end`, and drop the samples that no later one reads."""
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
        start = max(keep // config.window_shift * config.window_shift, 0)
        if start > self._start:
            self._held = _copied(held[..., start - self._start :])
            self._start = start
        return frames


def _joined(held: Array, chunk: Array) -> Array:
    if isinstance(held, np.ndarray):
        return np.concatenate((held, chunk), axis=-1)
    import torch  # loaded already: the stream's chunks are tensors

    with one_thread_if_forked():
        return torch.cat((held, chunk.detach()), dim=-1)  # type: ignore[union-attr]


def _copied(samples: Array) -> Array:
    """Return a copy, which does not keep the whole chunk alive."""
    if isinstance(samples, np.ndarray):
        return np.array(samples)
    with one_thread_if_forked():
        return samples.detach().clone()
