"""Synthesise a data set in ESC-50's layout, for runs without data.

Ten classes of plain sounds, in files and folds like ESC-50's. Some files are stereo, at 44.1 kHz,
short or long, so that a run on them exercises the loader as well.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
from filelock import FileLock
from numpy.typing import NDArray
from rich.console import Console

from ast_fast.data.metadata import AUDIO, COLUMNS, METADATA
from ast_fast_kernels.console import show_progress
from ast_fast_kernels.files.atomic import atomic_folder

SAMPLE_RATE = 16000
CLIP_SECONDS = 5.0
NUM_FOLDS = 5
CLIPS_PER_FOLD = 6
"""Clips of each class in each fold."""
VERSION = 1
"""Increased when the sounds change."""

Waveform = NDArray[np.float64]


def synthesise(cache: Path, *, console: Console) -> Path:
    """Return the folder of the synthesised data set; make it on the first call.

    The module's constants determine every byte. The folder appears complete or not at all, and two
    processes that ask at once get the same one.

    Args:
        cache: The folder above it; must exist.
        console: Where progress goes.
    """
    root = cache / f"synthetic-v{VERSION}-{SAMPLE_RATE}"
    if root.is_dir():
        return root
    with FileLock(cache / f"{root.name}.lock"):
        if not root.is_dir():
            with atomic_folder(root) as temporary:
                _write_set(temporary, console)
    return root


def _write_set(root: Path, console: Console) -> None:
    (root / AUDIO).mkdir()
    (root / METADATA.parent).mkdir()
    total = NUM_FOLDS * CLIPS_PER_FOLD * len(SOUNDS)
    with (
        (root / METADATA).open("w", encoding="utf-8", newline="") as file,
        show_progress(console, "Synthesising audio", total) as advance,
    ):
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for fold in range(1, NUM_FOLDS + 1):
            for target, (category, sound) in enumerate(SOUNDS.items()):
                for take in range(CLIPS_PER_FOLD):
                    number = (fold - 1) * CLIPS_PER_FOLD + take
                    letter = chr(ord("A") + take)
                    filename = f"{fold}-{number:06d}-{letter}-{target}.wav"
                    _write_clip(root / AUDIO / filename, target, number, sound)
                    table.writerow([filename, fold, target, category, True, number, letter])
                    advance(1)


def _write_clip(
    path: Path, target: int, number: int, sound: Callable[[np.random.Generator, Waveform], Waveform]
) -> None:
    """Write one clip; one in six each is short, long, stereo or at 44.1 kHz."""
    rng = np.random.default_rng([VERSION, target, number])
    kind = (number + target) % 6
    rate = 44100 if kind == 1 else SAMPLE_RATE
    seconds = CLIP_SECONDS * {2: rng.uniform(0.6, 0.95), 3: rng.uniform(1.05, 1.3)}.get(kind, 1.0)
    times = np.arange(int(seconds * rate)) / rate
    waveform = sound(rng, times)
    waveform *= 10 ** (rng.uniform(-14, -2) / 20) / np.abs(waveform).max()
    waveform += 10 ** (rng.uniform(-70, -50) / 20) * rng.standard_normal(len(waveform))
    if kind == 4:
        balance = rng.uniform(0.4, 1.0)
        waveform = np.stack([waveform, balance * waveform], axis=1)
    encoded = io.BytesIO()  # so that a full disk raises OSError, not an unclear libsndfile error
    soundfile.write(encoded, waveform, rate, format="WAV", subtype="PCM_16")
    path.write_bytes(encoded.getvalue())


def _sweep(rng: np.random.Generator, times: Waveform, *, rising: bool) -> Waveform:
    """Return consecutive sweeps over two octaves or more."""
    low = rng.uniform(200, 600)
    high = low * rng.uniform(4, 9)
    period = rng.uniform(0.6, 1.2)
    position = ((times + rng.uniform(0, period)) / period) % 1.0
    rate = np.log(high / low)
    # the phase of low·e^(±rate·position), integrated within each sweep
    if rising:
        cycles = low * period / rate * np.expm1(rate * position)
    else:
        cycles = -high * period / rate * np.expm1(-rate * position)
    waveform: Waveform = np.sin(2 * np.pi * cycles) * np.sin(np.pi * position) ** 0.5
    return waveform


def _chirp_up(rng: np.random.Generator, times: Waveform) -> Waveform:
    return _sweep(rng, times, rising=True)


def _chirp_down(rng: np.random.Generator, times: Waveform) -> Waveform:
    return _sweep(rng, times, rising=False)


def _pure_tone(rng: np.random.Generator, times: Waveform) -> Waveform:
    waveform: Waveform = np.sin(2 * np.pi * (rng.uniform(300, 4000) * times + rng.uniform()))
    return waveform


def _harmonic_buzz(rng: np.random.Generator, times: Waveform) -> Waveform:
    """Return 24 harmonics of a low pitch, each with its own strength and phase."""
    fundamental = np.exp(2j * np.pi * rng.uniform(80, 250) * times)
    harmonics = np.zeros_like(fundamental)
    for k in range(24, 0, -1):  # Horner's scheme: one product a harmonic instead of one sine
        strength = rng.uniform(0.5, 1.0) / k**0.7
        harmonics = (harmonics + strength * np.exp(2j * np.pi * rng.uniform())) * fundamental
    waveform: Waveform = harmonics.imag
    return waveform


def _noise_bursts(rng: np.random.Generator, times: Waveform) -> Waveform:
    period = rng.uniform(0.5, 1.0)
    on = ((times + rng.uniform(0, period)) / period) % 1.0 < rng.uniform(0.25, 0.5)
    return on * rng.standard_normal(len(times))


def _clicks(rng: np.random.Generator, times: Waveform) -> Waveform:
    """Return a train of clicks, each a millisecond long."""
    since = (times + rng.uniform(0, 1)) % (1 / rng.uniform(4, 12))
    waveform: Waveform = np.exp(-since / 0.001) * (since < 0.02)
    return waveform


def _wavering_noise(rng: np.random.Generator, times: Waveform) -> Waveform:
    """Return noise whose loudness swings slowly, never to silence."""
    swing = 1.0 + 0.9 * np.sin(2 * np.pi * (rng.uniform(1.5, 3.0) * times + rng.uniform()))
    return swing * rng.standard_normal(len(times))


def _siren(rng: np.random.Generator, times: Waveform) -> Waveform:
    """Return a tone whose pitch swings up and down, with its first harmonics."""
    centre = rng.uniform(600, 1200)
    depth = rng.uniform(0.3, 0.5) * centre
    speed = rng.uniform(0.4, 1.0)
    swing = np.cos(2 * np.pi * (speed * times + rng.uniform()))
    phase = 2 * np.pi * centre * times + depth / speed * swing
    waveform: Waveform = np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.25 * np.sin(3 * phase)
    return waveform


def _bell(rng: np.random.Generator, times: Waveform) -> Waveform:
    """Return strokes of inharmonic partials that die away."""
    pitch = rng.uniform(400, 900)
    since = (times + rng.uniform(0, 1)) % rng.uniform(1.2, 2.2)
    partials: list[Waveform] = [
        rng.uniform(0.4, 1.0) * np.exp(-since * decay) * np.sin(2 * np.pi * pitch * ratio * since)
        for ratio, decay in ((1.0, 1.5), (2.76, 2.5), (5.4, 4.0), (8.93, 6.0))
    ]
    waveform: Waveform = np.sum(partials, axis=0)
    return waveform


def _rumble(rng: np.random.Generator, times: Waveform) -> Waveform:
    """Return noise below about 150 Hz."""
    rate = len(times) / (times[-1] + times[1])
    frequencies = np.fft.rfftfreq(len(times), 1 / rate)
    spectrum = np.fft.rfft(rng.standard_normal(len(times)))
    spectrum *= np.exp(-((frequencies / rng.uniform(80, 150)) ** 2))
    return np.fft.irfft(spectrum, len(times))


SOUNDS: dict[str, Callable[[np.random.Generator, Waveform], Waveform]] = {
    "chirp_up": _chirp_up,
    "chirp_down": _chirp_down,
    "pure_tone": _pure_tone,
    "harmonic_buzz": _harmonic_buzz,
    "noise_bursts": _noise_bursts,
    "clicks": _clicks,
    "wavering_noise": _wavering_noise,
    "siren": _siren,
    "bell": _bell,
    "rumble": _rumble,
}
"""The classes, in the order of their targets."""
