"""Resampling of a waveform that arrives in chunks: the same samples, bit for bit, sooner."""

from __future__ import annotations

import numpy as np

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch.stream import Array, Stream, copied
from ast_fast_kernels.resample import checks
from ast_fast_kernels.resample.api import chosen_backend, resample
from ast_fast_kernels.resample.design import Design, design

BACKENDS = ("auto", "numba", "reference")


class OnlineResample(Stream):
    """Resample a stream, each sample as soon as all that it depends on has arrived.

    Together, the samples that `accept_waveform` and `finish` return are those of `resample` for the
    whole waveform: bit for bit with `numba`, and up to float rounding with `reference`. The stream
    is ahead of them by the reach of the filters: 3.4 ms from 44.1 to 16 kHz. Samples have no
    gradient. `reset` begins a new stream.

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
        return self._accept(waveform)

    def finish(self) -> Array:
        """End the stream and return the samples that were waiting for what comes after it.

        Raises:
            RuntimeError: No chunk was ever taken, or the stream is finished already.
        """
        return self._finish()

    @property
    def _plan(self) -> Design | None:
        """Return the filters; None if the rates are the same."""
        if self.rate_from == self.rate_to:
            return None
        return design(self.rate_from, self.rate_to, self.quality)

    def _check_samples(self, waveform: Array) -> None:
        checks.check(waveform, self.rate_from, self.rate_to, self.quality, None)

    def _num_complete(self) -> int:
        plan = self._plan
        reach = 0 if plan is None else plan.reach
        return -(-(self._num_samples - reach) * self.rate_to // self.rate_from)

    def _num_results(self) -> int:
        return -(-self._num_samples * self.rate_to // self.rate_from)

    def _take(self, end: int) -> Array:
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
        self._drop(max(keep // period * period, 0))  # to a whole number of periods
        return copied(taken)

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
