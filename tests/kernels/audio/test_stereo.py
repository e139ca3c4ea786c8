"""The survey of 16-bit stereo that stays unmixed, beside that of its mean."""

import numpy as np
import pytest
import soundfile

from ast_fast_kernels import fbank_files
from ast_fast_kernels.audio.decode import as_float
from ast_fast_kernels.audio.flaws import Survey
from ast_fast_kernels.audio.numba_stereo import energies_of


@pytest.mark.parametrize("num_frames", [1, 7, 256, 257, 5000])
def test_energies_are_those_of_every_sample(num_frames):
    rng = np.random.default_rng(num_frames)
    channels = rng.integers(-32768, 32768, (num_frames, 2)).astype(np.int16)
    left, right = (channels / 32768.0).T
    squares, products = energies_of(channels)
    assert squares == pytest.approx((left**2 + right**2).sum(), rel=1e-5)
    assert products == pytest.approx((left * right).sum(), rel=1e-5, abs=1e-5 * squares)


def pairs():
    rng = np.random.default_rng(0)
    noise = rng.integers(-9000, 9000, 30000)
    late = np.concatenate([np.zeros(29000, int), noise[:1000]])
    return {
        "usual": (noise, np.roll(noise, 9)),
        "inverted": (noise, -noise),
        "nearly inverted": (noise, -noise + noise[::-1] // 9),
        "half inverted": (noise, -noise // 2),
        "silent": (np.zeros(30000, int), np.full(30000, 3)),
        "silent mean": (np.arange(30000) % 2, np.zeros(30000, int)),
        "late": (late, late),
    }


@pytest.mark.parametrize("name", pairs())
def test_flaws_are_those_of_the_mean(name):
    channels = np.stack(pairs()[name], axis=1).astype(np.int16)
    unmixed, mixed = Survey(), Survey()
    unmixed.add_stereo(channels)
    mean = as_float(channels).mean(axis=1)
    mixed.add_channels(channels, mean)
    assert mixed.add_block(mean)
    assert unmixed.flaws == mixed.flaws
    expected = {"inverted": "cancelled", "silent": "silent", "silent mean": "silent"}
    assert unmixed.flaws == ((expected[name],) if name in expected else ()) or "nearly" in name


def test_files_tell_what_is_ruined(tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal(44100)
    soundfile.write(tmp_path / "a.wav", np.stack([noise, -noise], axis=1), 44100)
    soundfile.write(tmp_path / "b.wav", np.stack([20 * noise, 20 * noise], 1), 44100, "FLOAT")
    found = [one.flaws for one in fbank_files(sorted(tmp_path.iterdir()))]
    assert found == [("cancelled",), ("clipped",)]
