"""Resampling of a waveform that arrives in chunks: the same samples, bit for bit, sooner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels._torch.optional import is_tensor
from ast_fast_kernels.resample import checks
from ast_fast_kernels.resample.api import chosen_backend, resample
from ast_fast_kernels.resample.design import Design, design

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = "Tensor | npt.NDArray[Any]"

BACKENDS = ("auto", "numba", "reference")


class OnlineResample:
    """Resample a stream, each sample as soon as all that it depends on has arrived.

    Together, the samples that `accept_waveform` and `finish` return are those of `resample` for the
    whole waveform: bit for bit with `numba`, and up to float rounding with `reference`. The stream
    is ahead of them by the reach of the filters: 3.4 ms from 44.1 to 16 kHz. Samples have no
    gradient.

    Args:
        rate_from: As in `resample`.
        rate_to: As in `resample`.
        quality: As in `resample`.
        backend: As in `resample`, without `"soxr"`; auto takes numba or the reference.
    Raises:
        TypeError: A rate is no number.
        ValueError: A rate, `quality` or `backend` does not fit.
    """

    def __init__(
        self, rate_from: int, rate_to: int, *, quality: str = "hq", backend: str = "auto"
    ) -> None:
        self.rate_from, self.rate_to = checks.check_rates(rate_from, rate_to, quality)
        self.quality = quality
        if backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
        self.backend = backend
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self._held: Array | None = None
        self._start = 0  # index of the first sample held: a whole number of periods
        self._next = 0  # sample to return next
        self._finished = False

    def accept_waveform(self, waveform: Array) -> Array:
        """Take the next samples and return the resampled ones that they complete.

        Args:
            waveform: Shape (..., num_samples), of any length; kind, dtype and leading dimensions
                as in the first chunk.
        Returns:
            Float32, shape (..., samples completed).
        Raises:
            TypeError: The chunk is no array or tensor, or its kind or dtype is not the first's.
            ValueError: Its leading dimensions are not the first chunk's.
            RuntimeError: The stream was finished and not reset.
        """
        if self._finished:
            raise RuntimeError("the stream is finished; call reset() to begin another")
        self._check(waveform)
        before = self._held
        # Always a copy: the caller may use the chunk's memory for the next one.
        self._held = _copied(waveform) if before is None else _joined(before, waveform)
        try:
            return self._take(self._complete())
        except BaseException:
            self._held = before  # a chunk that cannot be computed is not taken
            raise

    def finish(self) -> Array:
        """End the stream and return the samples that were waiting for what comes after it.

        Raises:
            RuntimeError: No chunk was ever taken, or the stream is finished already.
        """
        if self._finished:
            raise RuntimeError("the stream is finished already; call reset() to begin another")
        if self._held is None:
            raise RuntimeError("the stream is empty; call accept_waveform() first")
        samples = self._take(-(-self._num_samples * self.rate_to // self.rate_from))
        self._finished = True
        return samples

    @property
    def _num_samples(self) -> int:
        """Return how many samples came so far."""
        return self._start + (0 if self._held is None else self._held.shape[-1])

    @property
    def _plan(self) -> Design | None:
        """Return the filters; None if the rates are the same."""
        if self.rate_from == self.rate_to:
            return None
        return design(self.rate_from, self.rate_to, self.quality)

    def _complete(self) -> int:
        """Return how many resampled samples, from the first on, the samples so far determine."""
        plan = self._plan
        reach = 0 if plan is None else plan.reach
        known = self._num_samples - reach
        return max(-(-known * self.rate_to // self.rate_from), self._next)

    def _check(self, waveform: object) -> None:
        if not (isinstance(waveform, np.ndarray) or is_tensor(waveform)):
            kind = type(waveform).__name__
            raise TypeError(f"waveform must be a tensor or a numpy array, got {kind}")
        checks.check(waveform, self.rate_from, self.rate_to, self.quality, None)
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

    def _take(self, end: int) -> Array:
        """Return the samples up to `end`, and drop what no later one reads."""
        held, plan = self._held, self._plan
        assert held is not None
        if end == self._next:
            shape = (*held.shape[:-1], 0)
            if isinstance(held, np.ndarray):
                return np.empty(shape, np.float32)
            return held.new_empty(shape).float()
        backend = self._backend_for(held)
        resampled = resample(
            held, self.rate_from, self.rate_to, quality=self.quality, backend=backend
        )  # fmt: skip
        before = self._start * self.rate_to // self.rate_from  # whole: the start is of a period
        taken = resampled[..., self._next - before : end - before]
        self._next = end
        period, reach = (1, 0) if plan is None else (plan.period, plan.reach)
        keep = end * self.rate_from // self.rate_to - reach
        start = max(keep // period * period, 0)
        if start > self._start:
            self._held = _copied(held[..., start - self._start :])
            self._start = start
        return _copied(taken)

    def _backend_for(self, held: Array) -> str:
        """Return the backend that runs; auto takes the reference where `resample` takes soxr."""
        if _dispatch.requested_backend("resample", self.backend) == "soxr":
            raise RuntimeError(
                'soxr cannot resample a stream in chunks; use backend="numba" or "reference"'
            )
        chosen = chosen_backend(
            held, self.rate_from, self.rate_to, quality=self.quality, backend=self.backend
        )  # fmt: skip
        return "reference" if chosen == "soxr" else chosen


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
