"""A waveform that arrives in chunks, arrays or tensors: what the streams of operations share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels._torch.optional import is_tensor

if TYPE_CHECKING:
    from torch import Tensor

Array: TypeAlias = "Tensor | npt.NDArray[Any]"


class Stream(ABC):
    """Holds the samples that later results read, and returns each result once it is determined."""

    def reset(self) -> None:
        """Begin a new stream."""
        self._held: Array | None = None
        self._start = 0  # index of the first sample held
        self._next = 0  # result to return next
        self._finished = False

    def _accept(self, waveform: Array) -> Array:
        """Take a chunk, and return the results that it completes."""
        if self._finished:
            raise RuntimeError("the stream is finished; call reset() to begin another")
        self._check(waveform)
        before = self._held
        if before is None:
            self._begin(waveform)
        # Always a copy: the caller may use the chunk's memory for the next one.
        self._held = copied(waveform) if before is None else _joined(before, waveform)
        try:
            return self._take(max(self._num_complete(), self._next))
        except BaseException:
            self._held = before  # a chunk that cannot be computed is not taken
            raise

    def _finish(self) -> Array:
        """End the stream, and return the results that were waiting for its end."""
        if self._finished:
            raise RuntimeError("the stream is finished already; call reset() to begin another")
        if self._held is None:
            raise RuntimeError("the stream is empty; call accept_waveform() first")
        results = self._take(max(self._num_results(), self._next))
        self._finished = True
        return results

    @property
    def _num_samples(self) -> int:
        """Samples so far."""
        return self._start + (0 if self._held is None else self._held.shape[-1])

    def _check(self, waveform: object) -> None:
        if not (isinstance(waveform, np.ndarray) or is_tensor(waveform)):
            kind = type(waveform).__name__
            raise TypeError(f"waveform must be a tensor or a numpy array, got {kind}")
        self._check_samples(waveform)
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

    def _drop(self, start: int) -> None:
        """Forget the samples before one."""
        assert self._held is not None
        if start > self._start:
            self._held = copied(self._held[..., start - self._start :])
            self._start = start

    def _begin(self, waveform: Array) -> None:  # noqa: B027 - most need nothing
        """Prepare for a stream, of which this is the first chunk."""

    @abstractmethod
    def _check_samples(self, waveform: Array) -> None:
        """Raise if the operation takes no such dtype or shape."""

    @abstractmethod
    def _num_complete(self) -> int:
        """Return how many results, counted from the first, the samples so far determine."""

    @abstractmethod
    def _num_results(self) -> int:
        """Return how many results there are if no more samples come."""

    @abstractmethod
    def _take(self, end: int) -> Array:
        """Return the results up to `end`, and drop the samples that no later one reads."""


def copied(samples: Array) -> Array:
    """Return a copy, which does not keep the whole chunk alive."""
    if isinstance(samples, np.ndarray):
        return np.array(samples)
    with one_thread_if_forked():
        return samples.detach().clone()


def _joined(held: Array, chunk: Array) -> Array:
    if isinstance(held, np.ndarray):
        return np.concatenate((held, chunk), axis=-1)
    import torch  # loaded already: the stream's chunks are tensors

    with one_thread_if_forked():
        return torch.cat((held, chunk.detach()), dim=-1)  # type: ignore[union-attr]
