"""Copies of clips at other speeds."""

from __future__ import annotations

import numpy as np
import pytest

from ast_fast.data import speeds
from ast_fast.data.speeds import with_speeds

RATE = 16000


def tones(*pitches: float, num_samples: int = 8000) -> np.ndarray:
    """Tones of these Hz, at a quarter of full scale."""
    times = np.arange(num_samples) / RATE
    waves = [8192 * np.sin(2 * np.pi * pitch * times) for pitch in pitches]
    return np.rint(waves).astype(np.int16)


def pitch_of(clip: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(clip * np.hanning(len(clip))))
    return float(spectrum.argmax()) * RATE / len(clip)


def test_copies_follow_the_clips_and_have_another_pitch(monkeypatch) -> None:
    monkeypatch.setattr(speeds, "BATCH", 2)  # and the third clip by itself
    clips = tones(400, 800, 1600)
    copies = with_speeds(clips, (0.8, 1.25), RATE)
    assert (copies.shape, copies.dtype) == ((9, 8000), np.int16)
    np.testing.assert_array_equal(copies[:3], clips)
    found = [pitch_of(clip) for clip in copies]
    expected = [400, 800, 1600, 320, 640, 1280, 500, 1000, 2000]
    np.testing.assert_allclose(found, expected, atol=RATE / 8000)


def test_a_slower_clip_is_cut_and_a_faster_one_begins_anew() -> None:
    clip = tones(400)
    clip[:, 4000:] = 0
    _, slow, fast = with_speeds(clip, (0.8, 1.25), RATE)
    sounds = [np.flatnonzero(np.abs(heard.astype(int)) > 4000) for heard in (slow, fast)]
    assert abs(sounds[0][-1] - 5000) < 20  # 4,000 samples at 0.8
    assert not ((sounds[1] > 3220) & (sounds[1] < 6380)).any()  # 3,200 of 6,400, then again
    assert abs(sounds[1][-1] - 7999) < 20
    half = slice(100, 1500)
    np.testing.assert_allclose(fast[6400:][half], fast[half], atol=1)


def test_a_copy_does_not_depend_on_the_clips_beside_it() -> None:
    clips = tones(400, 800, 1600)
    alone = with_speeds(clips[1:2], (0.9,), RATE)
    np.testing.assert_array_equal(with_speeds(clips, (0.9,), RATE)[4], alone[1])


@pytest.mark.parametrize("amplitude", [32767, -32768])
def test_what_overshoots_full_scale_is_clipped(amplitude: int) -> None:
    clip = np.where(np.arange(2000) % 20 < 10, amplitude, -amplitude).clip(-32768, 32767)
    copies = with_speeds(clip[None].astype(np.int16), (1.25,), RATE)
    assert np.abs(copies[1].astype(int)).max() >= 32767
