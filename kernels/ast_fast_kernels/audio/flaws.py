"""Audio that is ruined on its way in: found while it is decoded, said once, kept in the report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ast_fast_kernels.files.text import one_name

CLIPPED_SHARE = 0.01
"""Share of the samples beyond full scale from which a file counts as clipped."""
CANCELLED_SHARE = 0.01
"""Share of their energy below which channels cancel out in the mean. Unrelated channels keep all
of it by this count; two that are alike, but inverted, keep none."""
INT16_STEP = 1 / 32768
"""What changes by less is lost."""

FLAWS = {
    "clipped": f"clipped: over {100 * CLIPPED_SHARE:.0f} % of the samples are beyond full scale",
    "cancelled": "nearly silent: a channel is inverted, and the mean of all is taken",
    "silent": "silent: no change is as large as one step of int16",
    "unfinished": "unfinished: without the end that the format asks for; all there is was read",
}
"""Kinds of flaws, and how each is said of a file."""
NAMED = 3
"""Files of a kind that a line names."""

Flaws = Mapping[str, Sequence[str]]
"""File names by kind of flaw."""


class Survey:
    """Measures the audio of one file while it is decoded. All but `add_...` is for reading."""

    def __init__(self) -> None:
        self.is_unfinished = False
        """Whether the file ends without the mark that its format asks for."""
        self._frames = self._clipped = 0
        self._lowest, self._highest = math.inf, -math.inf
        self._energy = self._mean_energy = 0.0

    def add_channels(self, channels: NDArray[Any], mean: NDArray[np.float32]) -> None:
        """Compare the energy of channels, shape (frames, channels), with that of their mean."""
        every = channels.reshape(-1)
        if every.dtype == np.int16:
            every = np.multiply(every, np.float32(INT16_STEP), dtype=np.float32)
        self._energy += float(np.dot(every, every)) / channels.shape[1]
        self._mean_energy += float(np.dot(mean, mean)) * channels.shape[1]

    def add_block(self, block: NDArray[Any]) -> bool:
        """Count what is beyond full scale, before resampling; return whether all is finite.

        Samples are float32, or int16 of which 32768 is full scale.
        """
        if not len(block):
            return True
        low, high = float(block.min()), float(block.max())  # NaN if there is one
        if block.dtype == np.int16:
            low, high = INT16_STEP * low, INT16_STEP * high
        if not (math.isfinite(low) and math.isfinite(high)):
            return False
        self._frames += len(block)
        self._lowest, self._highest = min(self._lowest, low), max(self._highest, high)
        if low < -1.0 or high > 1.0:
            self._clipped += int(np.count_nonzero(np.abs(block) > 1.0))
        return True

    @property
    def flaws(self) -> tuple[str, ...]:
        """Kinds of flaws found, in the order of FLAWS."""
        cancelled = self._mean_energy < CANCELLED_SHARE * self._energy
        found = {
            "clipped": self._clipped > CLIPPED_SHARE * self._frames,
            "cancelled": cancelled,
            "silent": 0 <= self._highest - self._lowest < INT16_STEP and not cancelled,
            "unfinished": self.is_unfinished,
        }
        return tuple(kind for kind in FLAWS if found[kind])


def flaw_lines(flaws: Flaws) -> list[str]:
    """Return one line for each kind of flaw: how many files have it, and the first names."""
    lines = []
    for kind, text in FLAWS.items():
        names = flaws.get(kind, ())
        if names:
            rest = len(names) - NAMED
            listed = ", ".join(map(one_name, names[:NAMED])) + (
                f" and {rest} more" if rest > 0 else ""
            )
            count = "1 file is" if len(names) == 1 else f"{len(names)} files are"
            lines.append(f"{count} {text} ({listed})")
    return lines
