"""The filters of resampling: two stages, whose tables every backend uses unchanged.

Between two rates, of which the lower has the Nyquist frequency f, lies a middle one of 4f:

- Down, to 2f: a bank of filters, one for each phase between the rates, leads to 4f, and a half-band
  filter keeps every second sample.
- Up, from 2f: the half-band filter doubles the rate, and a bank leads from 4f to the higher rate.

Only the half-band filter has to be steep, and every second of its taps is 0. It is flat up to
`edge` times f, and its stop band begins as far above f. The bank may let pass what the half-band
filter removes, so its transition is as wide as 2f, and it has few taps. Filters are Kaiser-windowed
sincs, symmetric about the time of the output sample: there is no delay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Quality:
    """What a quality promises."""

    edge: float
    """End of the pass band, in units of the lower Nyquist frequency."""
    attenuation: float
    """Of the stop band, in dB."""


QUALITIES = {"hq": Quality(0.925, 111.0), "fast": Quality(0.895, 80.0)}

MOST_PHASES = 4096
"""Most filters in a bank: of 44,100 to 11,025 · 3 Hz it has 3, of 11,025 to 16,000 Hz 320."""


@dataclass(frozen=True)
class Bank:
    """Filters from one rate to another, one for each phase.

    With n = phases · q + p, output n is the sum over j of taps[p, j] · x[step · q + first[p] + j].
    """

    step: int
    """Input samples in the time of `phases` output samples."""
    first: Index
    """First input sample of each filter, shape (phases,)."""
    taps: Array
    """Shape (phases, num_taps); the mean of the rows' sums is 1."""

    @property
    def phases(self) -> int:
        """Return how many filters there are."""
        return len(self.first)


@dataclass(frozen=True)
class Design:
    """How to go from one rate to another."""

    rate_from: int
    rate_to: int
    bank: Bank
    """From `rate_from` to twice `rate_to`; or from twice `rate_from` to `rate_to`."""
    half_band: Array
    """Taps of the half-band filter at the odd distances 1, 3, 5 … on either side; the sum is 0.25
    and the middle tap 0.5, as is right for halving a rate."""

    @property
    def goes_up(self) -> bool:
        """Say whether the rate rises."""
        return self.rate_to > self.rate_from

    def num_samples(self, num_samples: int) -> int:
        """Return how many samples come of so many."""
        return -(-num_samples * self.rate_to // self.rate_from)

    @property
    def reach(self) -> int:
        """Input samples before and after an output's time that may change it, rounded up."""
        num_taps = int(self.bank.taps.shape[1])
        if self.goes_up:
            return num_taps // 2 + len(self.half_band) + 2
        middle = 2 * len(self.half_band)
        return middle * self.bank.step // self.bank.phases + num_taps + 2


def num_phases(rate_from: int, rate_to: int) -> int:
    """Return how many filters the bank between these rates has."""
    source, target = _bank_rates(rate_from, rate_to)
    return target // math.gcd(source, target)


@lru_cache(maxsize=32)
def design(rate_from: int, rate_to: int, quality: str) -> Design:
    """Return the filters between two different rates, in Hz."""
    asked = QUALITIES[quality]
    nyquist = min(rate_from, rate_to) / 2
    source, target = _bank_rates(rate_from, rate_to)
    bank = _bank(source, target, nyquist, asked)
    return Design(rate_from, rate_to, bank, _half_band(asked))


def _bank_rates(rate_from: int, rate_to: int) -> tuple[int, int]:
    if rate_to > rate_from:
        return 2 * rate_from, rate_to
    return rate_from, 2 * rate_to


def _half_band(asked: Quality) -> Array:
    """Return the taps at odd distances, in samples of the middle rate; as many as fill fours."""
    width = (2 - 2 * asked.edge) / 4  # of the transition, in units of the middle rate
    count = math.ceil(_duration(asked.attenuation, width) / 4)
    count = -(-count // 4) * 4  # each side; kernels take four at once
    distance = 2 * np.arange(count) + 1.0
    taps: Array = np.sinc(distance / 2) * _kaiser(distance / (2 * count), asked.attenuation)
    return taps / (4 * taps.sum())


def _bank(source: int, target: int, nyquist: float, asked: Quality) -> Bank:
    """Return the filters from one rate to another, flat to `nyquist` and no more at thrice that."""
    common = math.gcd(source, target)
    step, phases = source // common, target // common
    if step == phases:
        return Bank(1, np.zeros(1, np.int64), np.ones((1, 1)))
    half = _duration(asked.attenuation, 2 * nyquist) * source / 2  # in input samples
    centre = np.arange(phases) * step / phases  # time of each output, in input samples
    first = np.ceil(centre - half).astype(np.int64)
    count = math.floor(2 * half) + 1
    time = first[:, None] + np.arange(count) - centre[:, None]
    cutoff = (1 + asked.edge) * nyquist  # halfway between the pass band and the stop band
    taps = np.sinc(2 * cutoff / source * time) * _kaiser(time / half, asked.attenuation)
    # Rows that see images below the cutoff do not have the same sum: only its mean is known.
    return Bank(step, first, taps * (phases / taps.sum()))


def _duration(attenuation: float, transition: float) -> float:
    """Return how long a Kaiser-windowed filter is for a transition of this width; Kaiser's rule."""
    return (attenuation - 7.95) / (2.285 * 2 * math.pi * transition)


def _kaiser(place: Array, attenuation: float) -> Array:
    """Return Kaiser's window at places from -1 to 1, and 0 outside."""
    beta = 0.1102 * (attenuation - 8.7)
    inside = np.sqrt(np.maximum(1 - place**2, 0.0))
    window = np.i0(beta * inside) / np.i0(beta)
    return np.where(np.abs(place) <= 1, window, 0.0)
