"""Audio that is ruined on its way in is found and named, and audio that only looks so is not."""

import numpy as np
import pytest
import soundfile

from ast_fast.data.audio import read_clip, read_windows
from ast_fast_kernels.audio.flaws import FLAWS, Survey, flaw_lines

RATE = 16000


def noise(num_samples=RATE, seed=0, level=0.3):
    return level * np.random.default_rng(seed).standard_normal(num_samples)


def stereo(*channels):
    return np.stack(channels, axis=1)


def share_beyond(share):
    wave = noise(level=0.1)
    wave[: round(share * len(wave))] = 1.5
    return wave


LEFT, RIGHT = noise(seed=1), noise(seed=2)
WAVES = {
    "noise": (noise(), ()),
    "full-scale": (np.sign(noise()), ()),
    "one-percent-beyond": (share_beyond(0.01), ()),
    "more-than-one-percent-beyond": (share_beyond(0.0102), ("clipped",)),
    "scale-of-int16": (32768 * noise(), ("clipped",)),
    "constant-beyond": (np.full(RATE, 2.0), ("clipped", "silent")),
    "channels-beyond-that-cancel": (stereo(2 + LEFT, -2 + LEFT), ()),
    "full-scale-square": (np.sign(np.sin(0.05 * np.arange(RATE))), ()),
    "zeros": (np.zeros(RATE), ("silent",)),
    "stereo-zeros": (np.zeros((RATE, 2)), ("silent",)),
    "below-one-step": (1e-6 * noise(), ("silent",)),
    "an-offset": (np.full(RATE, 0.25), ("silent",)),
    "one-step": (np.r_[np.zeros(RATE - 1), 1 / 32768], ()),
    "stereo": (stereo(LEFT, RIGHT), ()),
    "twice-the-same": (stereo(LEFT, LEFT), ()),
    "inverted": (stereo(LEFT, -LEFT), ("cancelled",)),
    "inverted-and-a-little-more": (stereo(LEFT, -LEFT + 0.03 * RIGHT), ("cancelled",)),
    "inverted-and-louder": (stereo(LEFT, -1.5 * LEFT), ()),
    "one-channel-of-eight": (stereo(LEFT, *[np.zeros(RATE)] * 7), ()),
    "two-of-four-inverted": (stereo(LEFT, -LEFT, RIGHT, -RIGHT), ("cancelled",)),
}


@pytest.mark.parametrize(("wave", "flaws"), WAVES.values(), ids=WAVES.keys())
@pytest.mark.parametrize("rate", [RATE, 44100])
def test_a_flaw_is_found_by_both_readers(tmp_path, wave, flaws, rate):
    path = tmp_path / "a.wav"
    soundfile.write(path, wave, rate, subtype="FLOAT")
    clip, windows = Survey(), Survey()
    settings = {"sample_rate": RATE, "resample_quality": "HQ"}
    read_clip(path, num_samples=len(wave), survey=clip, **settings)
    for _ in read_windows(path, num_samples=300, survey=windows, **settings):
        pass
    assert clip.flaws == windows.flaws == flaws


@pytest.mark.parametrize("suffix", ["mp3", "ogg", "flac"])
def test_an_inverted_channel_is_found_after_lossy_coding(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    wave = 0.2 * np.sin(0.1 * np.arange(RATE))  # of noise, Vorbis does not keep the phase
    soundfile.write(path, stereo(wave, -wave), RATE)
    survey = Survey()
    read_clip(path, sample_rate=RATE, num_samples=RATE, resample_quality="HQ", survey=survey)
    assert survey.flaws == ("cancelled",)


def test_padding_is_no_silence_and_no_measure(tmp_path):
    path = tmp_path / "a.wav"
    wave = noise(100)
    wave[0] = 1.5
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    survey = Survey()
    read_clip(path, sample_rate=RATE, num_samples=RATE, resample_quality="HQ", survey=survey)
    assert survey.flaws == ()  # one of a hundred, though of 16,000 samples in the clip
    wave[1] = 1.5
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    read_clip(
        path, sample_rate=RATE, num_samples=RATE, resample_quality="HQ", survey=(two := Survey())
    )
    assert two.flaws == ("clipped",)


def test_what_follows_a_clip_does_not_count(tmp_path):
    path = tmp_path / "a.wav"
    wave = np.r_[np.zeros(RATE), 2 + noise()]
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    clip, windows = Survey(), Survey()
    settings = {"sample_rate": RATE, "num_samples": RATE, "resample_quality": "HQ"}
    read_clip(path, survey=clip, **settings)
    assert clip.flaws == ("silent",)
    assert len(list(read_windows(path, survey=windows, **settings))) == 2
    assert windows.flaws == ("clipped",)


def test_a_line_for_each_kind_counts_and_names_the_first():
    flaws = {"silent": ["a.wav"], "clipped": [f"{n}.wav" for n in range(2000)]}
    assert flaw_lines(flaws) == [
        "2000 files are clipped: over 1 % of the samples are beyond full scale "
        "(0.wav, 1.wav, 2.wav and 1997 more)",
        "1 file is silent: no change is as large as one step of int16 (a.wav)",
    ]
    assert flaw_lines({}) == []
    assert len(flaw_lines({kind: ["x"] for kind in FLAWS})) == len(FLAWS)
