"""Waveforms by name and seed: what tests and benchmarks feed a filterbank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Waveform = npt.NDArray[np.float64]

SAMPLE_RATE = 16000
"""In Hz; the frequencies below are meant at this rate."""


def make_signal(name: str, num_samples: int, *, seed: int = 0) -> Waveform:
    """Return the named signal in [-1, 1], shape (num_samples,), float64.

    Raises:
        ValueError: `name` is none of `SIGNALS`.
    """
    if name not in SIGNALS:
        raise ValueError(f"name must be one of {', '.join(SIGNALS)}, got {name!r}")
    time = np.arange(num_samples) / SAMPLE_RATE  # seconds
    return SIGNALS[name](time, np.random.default_rng(seed))


def _silence(time: Waveform, _: np.random.Generator) -> Waveform:
    return np.zeros_like(time)


def _dc(time: Waveform, _: np.random.Generator) -> Waveform:
    return np.full_like(time, 0.5)


def _impulse(time: Waveform, _: np.random.Generator) -> Waveform:
    wave = np.zeros_like(time)
    wave[len(wave) // 2] = 1.0
    return wave


def _full_scale(time: Waveform, _: np.random.Generator) -> Waveform:
    """A 440 Hz square wave at the limits of int16."""
    return np.where(np.sin(2 * np.pi * 440.0 * time) >= 0, 1.0, -1.0)


def _sine_on_bin(time: Waveform, _: np.random.Generator) -> Waveform:
    """1 kHz: bin 32 of a 512-point FFT."""
    return 0.5 * np.sin(2 * np.pi * 1000.0 * time)


def _sweep(time: Waveform, _: np.random.Generator) -> Waveform:
    """0 Hz to Nyquist, linearly over the whole length."""
    duration = len(time) / SAMPLE_RATE
    return 0.8 * np.sin(np.pi * (SAMPLE_RATE / 2) / duration * time**2)


def _noise(time: Waveform, rng: np.random.Generator) -> Waveform:
    return np.clip(0.1 * rng.standard_normal(len(time)), -1.0, 1.0)


def _bursts(time: Waveform, rng: np.random.Generator) -> Waveform:
    """Harmonics of a wandering pitch in syllables, over noise 60 dB down; as wide as speech."""
    pitch = 2 * np.pi * np.cumsum(120.0 + 30.0 * np.sin(2 * np.pi * 1.3 * time)) / SAMPLE_RATE
    voice = np.zeros_like(time)
    for harmonic in range(1, 25):
        voice += np.sin(harmonic * pitch + rng.uniform(0, 2 * np.pi)) / harmonic
    syllables = np.maximum(0.0, np.sin(2 * np.pi * 3.7 * time)) ** 2
    return 0.3 * syllables * voice + 3e-4 * rng.standard_normal(len(time))


SIGNALS: dict[str, Callable[[Waveform, np.random.Generator], Waveform]] = {
    "silence": _silence,
    "dc": _dc,
    "impulse": _impulse,
    "full_scale": _full_scale,
    "sine_on_bin": _sine_on_bin,
    "sweep": _sweep,
    "noise": _noise,
    "bursts": _bursts,
}
