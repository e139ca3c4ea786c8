"""A trained model on a stream: a decision every so many seconds, each on the latest window."""

from __future__ import annotations

import math
from collections import deque
from copy import copy
from dataclasses import dataclass
from itertools import count, takewhile
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
    """What the model's head classifies, shape (pooled_width,)."""


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
        newest_only: bool = False,
        sample_rate: float | None = None,
        quality: str = "hq",
    ) -> None:
        """Begin a stream.

        Args:
            classifier: The model.
            every: Seconds from one decision to the next, at least a frame's shift.
            first: Seconds to the first decision; None waits for a whole window. A window that is
                not yet whole is padded as a short file is.
            newest_only: Of decisions that are due in one call, make only the last: where the model
                is slower than the stream, give it all samples that wait in one chunk.
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
        self.newest_only = newest_only
        self._window = fbank.num_frames(clip.num_samples)
        self._shortest = clip.num_samples if classifier.shortest is None else classifier.shortest
        self._resample = OnlineResample(int(rate), self._rate, quality=quality)
        self._fbank = OnlineFbank(fbank)
        self.reset()

    def reset(self) -> None:
        """Begin a new stream."""
        self._resample.reset()
        self._fbank.reset()
        self._waiting = np.zeros(0, np.int16)  # samples at the model's rate, not yet features
        self._frames: deque[NDArray[Any]] = deque()  # a latest window of them, in pieces
        self._spare = -self._window  # frames held beyond a window
        self._num_samples = 0  # that are features, since the stream began
        self._next = 0  # number of the next decision
        self._decided = -1  # samples at the latest decision
        self._made: list[Decision] = []  # not yet returned
        self._finishing = False

    def accept_waveform(self, waveform: Tensor | NDArray[Any]) -> list[Decision]:
        """Take the next samples and return the decisions that they complete, oldest first.

        An error of the model loses nothing: the samples are taken, and the next call, which may
        bring none, begins with the decision that failed and also returns those made before it.

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
        self._wait(self._resample.accept_waveform(waveform))
        return self._decide_at(self._due())

    def finish(self) -> list[Decision]:
        """End the stream and return what is left to decide: at least the window that ends with it.

        That window is left out where a decision was made just there. A stream shorter than a window
        is padded as a file is. After an error of the model, call `finish` again.

        Raises:
            RuntimeError: No chunk was ever taken, or the stream is finished already.
        """
        if not self._finishing:
            self._wait(self._resample.finish())
            self._finishing = True
        ends = self._due()
        if self._arrived > max([self._decided, *ends]):
            ends.append(self._arrived)
        decisions = self._decide_at(ends)
        self._finishing = False
        return decisions

    def _wait(self, waveform: Tensor | NDArray[Any]) -> None:
        """Let samples at the model's rate wait."""
        self._waiting = np.concatenate((self._waiting, as_int16(np.asarray(waveform))))

    @property
    def _arrived(self) -> int:
        """Samples since the stream began, at the model's rate."""
        return self._num_samples + len(self._waiting)

    def _due(self) -> list[int]:
        """Return the samples at which decisions are due that are not yet made."""
        ends = takewhile(lambda end: end <= self._arrived, map(self._end, count(self._next)))
        return list(ends)

    def _end(self, number: int) -> int:
        """Return the samples at which a decision is made."""
        return round((self.first + number * self.every) * self._rate)

    def _decide_at(self, ends: list[int]) -> list[Decision]:
        """Decide at each end, or the last, and compute the features beyond.

        Samples are taken up to each decision, so that chunks do not matter.
        """
        step = len(ends) if self.newest_only else 1
        for end in ends[step - 1 :]:
            self._keep(end - self._num_samples)
            self._made.append(self._decide())
            self._next += step
            self._decided = end
        self._keep(len(self._waiting))
        made, self._made = self._made, []
        return made

    def _keep(self, num_samples: int) -> None:
        """Add the frames that waiting samples complete; forget those before the latest window."""
        frames = np.asarray(self._fbank.accept_waveform(self._waiting[:num_samples]))
        self._waiting = self._waiting[num_samples:]
        self._num_samples += num_samples
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
        return Decision(
            before * ending.config.window_shift / self._rate,
            self._num_samples / self._rate,
            probabilities[0].numpy(),
            embeddings[0].numpy(),
        )
