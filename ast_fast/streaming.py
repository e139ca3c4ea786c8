"""A trained model on a stream: a decision every so many seconds, each on the latest window."""

from __future__ import annotations

import math
from collections import deque
from copy import copy
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ast_fast.classifier import Classifier
from ast_fast.data.audio import as_int16
from ast_fast.data.cache import decode_settings
from ast_fast.features import undithered
from ast_fast_kernels import OnlineFbank, OnlineResample
from ast_fast_kernels.resample.checks import HIGHEST_RATE

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """What a model says of a window of a stream."""

    start: float
    """Where the window begins, in seconds since the stream began."""
    end: float
    """Where it ends: the decision is made as soon as this has arrived."""
    probabilities: NDArray[np.float32]
    """Of all classes, shape (num_classes,)."""
    embedding: NDArray[np.float32]
    """What the model's head classifies, shape (embed_dim,)."""


class StreamingClassifier:
    """Classify a stream by windows of the model's clip length, one every so many seconds.

    Features are computed once, as samples arrive, also where windows overlap. Samples are rounded
    to int16 at the model's rate, as those of files are; a decision is then what `Classifier` gives
    for the window's samples, bit for bit with `numba`, whatever the chunks. Where a filterbank
    reads beyond its frames (`snip_edges` off, pre-emphasis over the waveform), the first frames of
    a window that is not the stream's first have the samples before them instead of an edge.
    """

    def __init__(
        self,
        classifier: Classifier,
        *,
        every: float = 1.0,
        first: float | None = None,
        sample_rate: float | None = None,
        quality: str = "hq",
    ) -> None:
        """Begin a stream.

        Args:
            classifier: The model.
            every: Seconds from one decision to the next, at least a frame's shift.
            first: Seconds to the first decision; None waits for a whole window. A window that is
                not yet whole is padded as a short file is.
            sample_rate: Of the stream, a whole number of Hz; None is the model's.
            quality: Of resampling, `"hq"` or `"fast"`, as in `OnlineResample`.
        Raises:
            ValueError: A value is out of range, or the filterbank needs the whole clip.
        """
        clip, fbank = decode_settings(classifier.config), undithered(classifier.config.fbank)
        self._rate = clip.sample_rate
        rate = self._rate if sample_rate is None else sample_rate
        shift, length = fbank.window_shift / self._rate, clip.num_samples / self._rate
        for name, value, rule, holds in (
            ("every", every, f"at least a frame's shift, {shift:g} s", shift <= every < math.inf),
            ("first", first, f"above 0 and at most a clip, {length:g} s",
             first is None or 0 < first <= length),
            ("sample_rate", rate, f"a whole number of Hz from 1 to {HIGHEST_RATE}",
             isinstance(rate, Real) and 1 <= rate <= HIGHEST_RATE and rate == int(rate)),
        ):  # fmt: skip
            if not holds:
                raise ValueError(f"{name} must be {rule}, got {value!r}")
        self.classifier = classifier
        self.every = every
        self.first = length if first is None else first
        self._window = fbank.num_frames(clip.num_samples)
        self._shortest = clip.num_samples if classifier.shortest is None else classifier.shortest
        self._resample = OnlineResample(int(rate), self._rate, quality=quality)
        self._fbank = OnlineFbank(fbank)
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self._resample.reset()
        self._fbank.reset()
        self._frames: deque[NDArray[Any]] = deque()  # a latest window of them, in pieces
        self._spare = -self._window  # frames held beyond a window
        self._num_samples = 0  # since the stream began, at the model's rate
        self._num_decisions = 0
        self._decided = 0  # samples at the latest decision

    def accept_waveform(self, waveform: Tensor | NDArray[Any]) -> list[Decision]:
        """Take the next samples and return the decisions that they complete, oldest first.

        Args:
            waveform: Shape (num_samples,), of any length, int16 or floating in [-1, 1]: an array,
                or a tensor on the CPU; kind and dtype as in the first chunk.
        Raises:
            TypeError: The chunk is no array or tensor, or its kind or dtype is not the first's.
            ValueError: It is not (num_samples,), or holds NaN or infinity.
            RuntimeError: The stream was finished and not reset.
        """
        if len(shape := np.shape(waveform)) != 1:
            raise ValueError(f"waveform must be (num_samples,), of one channel, got {shape}")
        if not np.isfinite(np.asarray(waveform)).all():
            raise ValueError("waveform must be finite, got NaN or infinity")
        return self._take(np.asarray(self._resample.accept_waveform(waveform)))

    def finish(self) -> list[Decision]:
        """End the stream and return what is left to decide: at least the window that ends with it.

        That window is left out where a decision was made just there. A stream shorter than a window
        is padded as a file is.

        Raises:
            RuntimeError: No chunk was ever taken, or the stream is finished already.
        """
        decisions = self._take(np.asarray(self._resample.finish()))
        if not self._num_decisions or self._decided < self._num_samples:
            decisions.append(self._decide())
        return decisions

    def _take(self, waveform: NDArray[Any]) -> list[Decision]:
        """Take samples at the model's rate: up to each decision, so that chunks do not matter."""
        samples, decisions = as_int16(waveform), []
        while len(samples) >= (wanted := self._due - self._num_samples):
            self._keep(samples[:wanted])
            decisions.append(self._decide())
            samples = samples[wanted:]
        self._keep(samples)
        return decisions

    @property
    def _due(self) -> int:
        """Samples at which the next decision is made."""
        return round((self.first + self._num_decisions * self.every) * self._rate)

    def _keep(self, samples: NDArray[np.int16]) -> None:
        """Add the frames that samples complete, and forget those before the latest window."""
        frames = np.asarray(self._fbank.accept_waveform(samples))
        self._num_samples += len(samples)
        if len(frames):
            self._frames.append(frames)
            self._spare += len(frames)
        while self._frames and self._spare >= len(self._frames[0]):
            self._spare -= len(self._frames.popleft())

    def _decide(self) -> Decision:
        """Classify the window that ends here, as if the stream did; the stream itself goes on."""
        ending, num_samples = copy(self._fbank), max(self._num_samples, self._shortest)
        silence = np.zeros(num_samples - self._num_samples, np.int16)
        last = ending.accept_waveform(silence), ending.finish()
        frames = np.concatenate((*self._frames, *map(np.asarray, last)))[-self._window :]
        before = ending.config.num_frames(num_samples) - len(frames)
        embeddings, probabilities = self.classifier.outputs(torch.from_numpy(frames[None]))
        self._num_decisions += 1
        self._decided = self._num_samples
        return Decision(
            before * ending.config.window_shift / self._rate,
            self._num_samples / self._rate,
            probabilities[0].numpy(),
            embeddings[0].numpy(),
        )
