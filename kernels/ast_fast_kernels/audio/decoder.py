"""What every decoder gives: frames, one block after another, and what is known of their number.

The length of a file is of one of three sorts:

- exact, if the header or the size of the file has it: a file that yields less is cut short;
- estimated, in MPEG audio without a Xing or Info tag, where libsndfile goes by the first frame's
  bit rate: the frames are counted instead;
- unknown, in FLAC from a pipe: all is taken that the decoder yields.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

from numpy.typing import NDArray

from ast_fast_kernels.audio.errors import BadAudioError
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.rates import SAMPLE_RATES

Length = Literal["exact", "estimated", "unknown"]

HEADER = "its header promises"
COUNTED = "its frames promise"


class Decoder(ABC):
    """An open file of audio.

    Args:
        sample_rate: In Hz.
        num_channels: At least 1.
        frames: Frames to read at most; None if that is unknown.
    Raises:
        BadAudioError: The sample rate is one that only a damaged header claims.
    """

    promise: str | None = HEADER
    """Who says how many frames there are; None if nobody does, and what comes is taken."""
    tolerance = 0
    """Frames that may be missing all the same: one incomplete frame of MPEG audio at the end."""

    def __init__(self, sample_rate: int, num_channels: int, frames: int | None) -> None:
        lowest, highest = SAMPLE_RATES
        if not lowest <= sample_rate <= highest:
            raise BadAudioError(f"claims a sample rate of {sample_rate} Hz")
        self.sample_rate = sample_rate
        self.num_channels = num_channels
        self.frames = frames

    @property
    def length(self) -> Length:
        """How the file's length is known."""
        if self.promise is None:
            return "unknown"
        return "estimated" if self.promise == COUNTED else "exact"

    @abstractmethod
    def read(self, count: int) -> NDArray[Any]:
        """Return up to `count` frames, shape (frames, num_channels); none at the end.

        Samples are int16, of which 32768 is full scale, where that loses nothing; else float32.
        """

    @abstractmethod
    def skip(self, count: int) -> int:
        """Move forward by up to `count` frames, and return by how many."""

    @abstractmethod
    def check_whole(self, survey: Survey) -> None:
        """Raise if a file ends before its header says; note if it only lacks its end's mark.

        Raises:
            BadAudioError: It is cut short.
        """
