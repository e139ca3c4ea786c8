"""Resampling 5 s of audio against libsoxr, on one thread and on all.

Each case checks ours against libsoxr's best in the band that both keep, then times all in turns.
libsoxr gets float32; of stereo it first needs the mean. `extra_info` has every median in
microseconds and the speed-up of each of ours over libsoxr's HQ from as many channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import soxr

from ast_fast_kernels import resample
from ast_fast_kernels.testing.timing import interleaved_medians

SECONDS = 5
RATES = [
    *((44100, 16000), (48000, 16000), (32000, 16000), (22050, 16000), (8000, 16000)),
    *((96000, 16000), (16000, 8000), (16000, 24000), (16000, 44100), (44100, 48000)),
    (48000, 44100),
]

OURS = ("hq", "hq int16", "hq stereo", "hq stereo int16", "fast")


def band_limited(rate: int, hertz: float) -> np.ndarray:
    """Return noise without anything above a frequency."""
    spectrum = np.fft.rfft(np.random.default_rng(0).normal(0, 0.1, SECONDS * rate))
    spectrum[int(SECONDS * hertz) :] = 0
    return np.fft.irfft(spectrum).astype(np.float32)


@pytest.mark.parametrize("rates", RATES, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def test_resample(benchmark: Any, rates: tuple[int, int], threads: int, rounds: int) -> None:
    """Resample a clip: float32 in both qualities, int16, and stereo mixed on the way."""
    benchmark.group = f"resample-{rates[0]}-{rates[1]}"
    samples = band_limited(rates[0], 0.88 * min(rates) / 2)
    shorts = (samples * 32767).astype(np.int16)
    stereo = np.stack((shorts, shorts), 1)
    levels = np.stack((samples, samples), 1)
    ways: dict[str, Callable[[], np.ndarray]] = {
        "hq": lambda: resample(samples, *rates),
        "hq int16": lambda: resample(shorts, *rates),
        "hq stereo": lambda: resample(levels, *rates, channel_axis=-1),
        "hq stereo int16": lambda: resample(stereo, *rates, channel_axis=-1),
        "fast": lambda: resample(samples, *rates, quality="fast"),
        "soxr HQ": lambda: soxr.resample(samples, *rates, quality="HQ"),
        "soxr HQ stereo": lambda: soxr.resample(
            (levels[:, 0] + levels[:, 1]) / 2, *rates, quality="HQ"
        ),
        "soxr VHQ": lambda: soxr.resample(samples, *rates, quality="VHQ"),
    }
    best = ways["soxr VHQ"]()[2000:-2000]
    for name in OURS:
        error = np.abs(ways[name]()[2000:-2000] - best[: len(best)]).max()
        assert error <= 1e-3 * np.abs(best).max(), name
    medians = interleaved_medians(ways, rounds=rounds)
    benchmark.extra_info |= {
        "microseconds": {name: 1e6 * seconds for name, seconds in medians.items()},
        "faster_than_soxr_by": {
            name: medians["soxr HQ stereo" if "stereo" in name else "soxr HQ"] / medians[name]
            for name in OURS
        },
    }
    benchmark(ways["hq"])
