"""Presets beside their live libraries, over draws of every option that both have."""

from __future__ import annotations

import json
import math
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.testing.budgets import relative_norm
from ast_fast_kernels.testing.signals import make_signal

GOLDEN = Path(__file__).parents[1] / "golden"
RATES = (8000, 11025, 16000, 22050, 44100, 48000)

# As in test_conventions.py: what two correct float32 implementations differ by, in nepers.
MAX_DIFFERENCE = 4e-3
MEAN_DIFFERENCE = 1e-5
MELSPECTROGRAM_NORM = 2e-5

# Lengths for which other tests compile the kernel too: it compiles once for each, in seconds.
COMPILED_FFTS = (400, 512, 2048)

Options = dict[str, Any]
Draw = tuple[Options, Options]  # the library's options, and the preset's changes


def signal(num_samples: int) -> np.ndarray:
    """Return noise over an offset, so that no bin is far below its frame's loudest."""
    return (0.3 * make_signal("noise", num_samples) + 0.02).astype(np.float32)


def draw_lhotse(rng: random.Random) -> Draw:
    rate = rng.choice(RATES)
    length, shift = rng.choice([(25, 10), (25, 10), (32, 16), (20, 12.5), (11, 11)])
    window = rng.choice(["povey", "hanning", "hamming", "rectangular", "blackman"])
    high = rng.choice([-400.0, 0.0, 3500.0, -200.0])
    theirs = {
        "sampling_rate": rate,
        "frame_length": length / 1000,
        "frame_shift": shift / 1000,
        "window_type": window,
        "high_freq": high,
        "low_freq": rng.choice([20.0, 0.0, 60.0]),
        "num_filters": rng.choice([80, 80, 40, 23] if rate < 16000 else [80, 128, 40, 23]),
        "snip_edges": rng.random() < 0.25,
        "remove_dc_offset": rng.random() < 0.7,
        "preemph_coeff": rng.choice([0.97, 0.97, 0.0, 0.5]),
        "use_fft_mag": rng.random() < 0.3,
        "round_to_power_of_two": rng.random() < 0.8 or math.floor(length / 1000 * rate) % 2 == 1,
    }
    ours = {
        "sample_frequency": rate,
        "frame_length": length,
        "frame_shift": shift,
        "window_type": window,
        "high_freq": high,
        "low_freq": theirs["low_freq"],
        "num_mel_bins": theirs["num_filters"],
        "snip_edges": theirs["snip_edges"],
        "remove_dc_offset": theirs["remove_dc_offset"],
        "preemphasis_coefficient": theirs["preemph_coeff"],
        "use_power": not theirs["use_fft_mag"],
    }
    if not theirs["round_to_power_of_two"]:
        ours["n_fft"] = math.floor(length / 1000 * rate)
    return theirs, ours


# In lhotse numpy's fast logarithm, off by units in the last place, places the filters. They are
# compared where they are wider than a bin: 128 below 16 kHz differ by 3e-3 at most, 3e-5 in mean.


def run_lhotse(options: Options, waveform: np.ndarray) -> np.ndarray:
    from lhotse.features.kaldi.extractors import Fbank, FbankConfig

    return Fbank(FbankConfig(**options)).extract(waveform, options["sampling_rate"])


def draw_kaldi(rng: random.Random) -> Draw:
    rate = rng.choice(RATES)
    theirs = {
        "samp_freq": rate,
        "frame_length_ms": rng.choice([25.0, 25.0, 32.0, 20.0]),
        "frame_shift_ms": rng.choice([10.0, 10.0, 12.5, 33.0]),
        "window_type": rng.choice(["povey", "hanning", "hamming", "rectangular", "blackman"]),
        "blackman_coeff": rng.choice([0.42, 0.3]),
        "preemph_coeff": rng.choice([0.97, 0.97, 0.0, 0.5]),
        "remove_dc_offset": rng.random() < 0.7,
        "snip_edges": rng.random() < 0.5,
        "round_to_power_of_two": True,
        "num_bins": rng.choice([23, 40, 80]),
        "low_freq": rng.choice([20.0, 0.0, 60.0]),
        "high_freq": rng.choice([0.0, -400.0, 3500.0]),
        "use_power": rng.random() < 0.7,
        "use_log_fbank": True,
    }
    names = {
        "samp_freq": "sample_frequency",
        "frame_length_ms": "frame_length",
        "frame_shift_ms": "frame_shift",
        "preemph_coeff": "preemphasis_coefficient",
        "num_bins": "num_mel_bins",
    }
    ours = {names.get(name, name): value for name, value in theirs.items()}
    del ours["round_to_power_of_two"]
    return theirs, ours


def run_kaldi(options: Options, waveform: np.ndarray) -> np.ndarray:
    import kaldi_native_fbank as knf

    given = knf.FbankOptions()
    given.frame_opts.dither = 0.0
    for name, value in options.items():
        for group in (given.frame_opts, given.mel_opts, given):
            if hasattr(group, name):
                setattr(group, name, value)
    computer = knf.OnlineFbank(given)
    computer.accept_waveform(options["samp_freq"], waveform.tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])


def draw_librosa(rng: random.Random) -> Draw:
    theirs: Options = {"sr": rng.choice(RATES)}
    ours: Options = {"sample_frequency": theirs["sr"]}
    if rng.random() < 0.5:
        ours["n_fft"] = theirs["n_fft"] = rng.choice([400, 512, 1024])
    center = rng.random() < 0.7
    if not center:
        ours["center"] = theirs["center"] = False
    elif rng.random() < 0.5:
        ours["window_size"] = theirs["win_length"] = rng.choice([301, 400])
    if rng.random() < 0.5:
        ours["window_shift"] = theirs["hop_length"] = rng.choice([160, 147, 256])
    window = rng.choice(["hann", "hann", "hamming", "blackman", "boxcar"])
    theirs["window"] = window
    ours["window_type"] = {"hann": "hanning", "boxcar": "rectangular"}.get(window, window)
    ours["pad_mode"] = theirs["pad_mode"] = rng.choice(["constant", "reflect", "symmetric"])
    theirs["power"] = rng.choice([2.0, 2.0, 1.0])
    ours["use_power"] = theirs["power"] == 2.0
    ours["num_mel_bins"] = theirs["n_mels"] = rng.choice([128, 80, 40])
    ours["low_freq"] = theirs["fmin"] = rng.choice([0.0, 0.0, 50.0])
    if rng.random() < 0.5:
        ours["high_freq"] = theirs["fmax"] = rng.choice([3500.0, 4000.0])
    if rng.random() < 0.4:
        theirs["htk"], ours["mel_scale"] = True, "htk"
    if rng.random() < 0.4:
        theirs["norm"], ours["mel_norm"] = None, "none"
    theirs["top_db"] = rng.choice([80.0, 20.0, None])
    ours["top_db"] = theirs["top_db"] or 0.0
    ours["log_floor"] = theirs["amin"] = rng.choice([1e-10, 1e-5])
    return theirs, ours


def run_librosa(options: Options, waveform: np.ndarray) -> np.ndarray:
    import librosa

    options = dict(options)
    decibels = {name: options.pop(name) for name in ("top_db", "amin")}
    mel = librosa.feature.melspectrogram(y=waveform, **options)
    return librosa.power_to_db(mel, **decibels).T


def draw_psf(rng: random.Random) -> Draw:
    rate = rng.choice(RATES)
    length, shift = rng.choice([(25, 10), (25, 10), (20, 12.5), (10, 20)])
    theirs: Options = {"samplerate": rate, "winlen": length / 1000, "winstep": shift / 1000}
    ours: Options = {"sample_frequency": rate, "frame_length": length, "frame_shift": shift}
    if rate > 20000 or rng.random() < 0.3:
        ours["n_fft"] = theirs["nfft"] = rng.choice([2048, 1200])
    ours["num_mel_bins"] = theirs["nfilt"] = rng.choice([26, 13, 40])
    ours["low_freq"] = theirs["lowfreq"] = rng.choice([0, 133.0])
    if rng.random() < 0.5:
        ours["high_freq"] = theirs["highfreq"] = rng.choice([3500.0, 4000.0])
    ours["preemphasis_coefficient"] = theirs["preemph"] = rng.choice([0.97, 0.0, 0.5])
    theirs["winfunc"] = window = rng.choice(["ones", "hamming", "hanning", "blackman"])
    ours["window_type"] = {"ones": "rectangular"}.get(window, window)
    return theirs, ours


def run_psf(options: Options, waveform: np.ndarray) -> np.ndarray:
    import python_speech_features

    winfunc = getattr(np, options["winfunc"])
    energies, _ = python_speech_features.fbank(waveform, **{**options, "winfunc": winfunc})
    return np.log(energies)


def draw_whisper(rng: random.Random) -> Draw:
    theirs: Options = {"sampling_rate": rng.choice([16000, 22050, 44100, 48000, 17001])}
    ours: Options = {"sample_frequency": theirs["sampling_rate"]}
    if rng.random() < 0.6:
        ours["n_fft"] = theirs["n_fft"] = rng.choice([400, 512, 640])
    if rng.random() < 0.6:
        ours["window_shift"] = theirs["hop_length"] = rng.choice([160, 147, 200])
    if rng.random() < 0.6:
        ours["num_mel_bins"] = theirs["feature_size"] = rng.choice([40, 128])
    return theirs, ours


def run_whisper(options: Options, waveform: np.ndarray) -> np.ndarray:
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor(**options)
    rate = options["sampling_rate"]
    features = extractor(waveform, sampling_rate=rate, padding="longest", return_tensors="np")
    return features["input_features"][0].T


def draw_ast(rng: random.Random) -> Draw:
    bins = rng.choice([64, 80, 128])
    return {"num_mel_bins": bins}, {"num_mel_bins": bins}


def run_ast(options: Options, waveform: np.ndarray) -> np.ndarray:
    from transformers import ASTFeatureExtractor

    frames = 1 + (len(waveform) - 400) // 160
    extractor = ASTFeatureExtractor(max_length=frames, do_normalize=False, **options)
    features = extractor(waveform, sampling_rate=16000, return_tensors="np")
    return features["input_values"][0]


Run = Callable[[Options, np.ndarray], np.ndarray]
LIBRARIES: dict[str, tuple[str, int, Callable[[random.Random], Draw], Run]] = {
    "ast": ("transformers", 6, draw_ast, run_ast),
    "kaldi": ("kaldi_native_fbank", 150, draw_kaldi, run_kaldi),
    "lhotse": ("lhotse", 150, draw_lhotse, run_lhotse),
    "librosa": ("librosa", 100, draw_librosa, run_librosa),
    "python_speech_features": ("python_speech_features", 150, draw_psf, run_psf),
    "whisper": ("transformers", 60, draw_whisper, run_whisper),
}
"""Each preset's module, how many draws are compared, and how one is drawn and run."""


@pytest.mark.parametrize("preset", LIBRARIES)
def test_preset_follows_its_library_in_every_option(preset: str) -> None:
    module, draws, draw, run = LIBRARIES[preset]
    pytest.importorskip(module)
    rng = random.Random(0)
    for _ in range(draws):
        theirs, ours = draw(rng)
        rate = ours.get("sample_frequency", 16000)
        waveform = signal(round(0.3 * rate) + rng.randrange(500))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = run(theirs, waveform)
        config = FbankConfig.preset(preset, **ours)
        for backend in ("reference", "numba")[: 1 + (config.fft_size in COMPILED_FFTS)]:
            out = fbank(waveform, config, backend=backend)
            said = f"{theirs}, {len(waveform)} samples, {backend}"
            assert out.shape == expected.shape, said
            difference = np.abs(out.astype(np.float64) - expected) / config.log_factor
            assert difference.max() <= MAX_DIFFERENCE, said
            assert difference.mean() <= MEAN_DIFFERENCE, said


def test_melspectrogram_follows_torchaudio_in_every_option() -> None:
    with np.load(GOLDEN / "melspectrogram_grid.npz") as archive:
        cases, outputs = json.loads(archive["cases"].tobytes()), archive["mean_frames"]
    dog = np.load(GOLDEN / "inputs.npz")["dog"][0].astype(np.float32) / np.float32(32768.0)
    names = {
        "sample_rate": "sample_frequency",
        "win_length": "window_size",
        "hop_length": "window_shift",
        "f_min": "low_freq",
        "f_max": "high_freq",
        "n_mels": "num_mel_bins",
        "norm": "mel_norm",
        "window_fn": "window_type",
    }
    assert len(cases) >= 100
    for case in cases:
        changes = {names.get(name, name): value for name, value in case["arguments"].items()}
        changes["use_power"] = changes.pop("power", 2.0) == 2.0
        config = FbankConfig.preset("melspectrogram", **changes)
        expected, outputs = outputs[: case["shape"][1]], outputs[case["shape"][1] :]
        for backend in ("reference", "numba")[: 1 + (config.fft_size in COMPILED_FFTS)]:
            out = fbank(dog[: case["samples"]], config, backend=backend)
            assert list(out.shape) == case["shape"], case
            weights = np.arange(1.0, len(out) + 1.0)
            mean_frame = torch.from_numpy(weights @ out / weights.sum())
            error = relative_norm(mean_frame, torch.from_numpy(expected))
            assert error <= MELSPECTROGRAM_NORM, (error, case)
    assert not len(outputs)


@pytest.mark.filterwarnings("ignore:__array_wrap__")
@pytest.mark.parametrize("preset", ["lhotse", "whisper"])
def test_dither_raises_features_as_the_librarys_does(preset: str) -> None:
    """Noise of another generator: so means over frames are compared, of a faint signal."""
    module, _, _, run = LIBRARIES[preset]
    pytest.importorskip(module)
    waveform = 1e-3 * signal(48001)
    torch.manual_seed(0)
    expected = run({"sampling_rate": 16000, "dither": 0.05}, waveform.copy())
    config = FbankConfig.preset(preset, dither=0.05)
    np.random.seed(0)  # noqa: NPY002 - what keys of arrays come from
    out = fbank(waveform, config)
    difference = (out.mean(axis=0) - expected.mean(axis=0)) / config.log_factor
    # 300 frames of chi-square energies of a few degrees: 0.03 to 0.06 each.
    assert np.abs(difference).max() < 0.4
    assert np.abs(difference).mean() < 0.1
    without = fbank(waveform, config.replace(dither=0.0))
    assert np.abs(out - without).max() / config.log_factor > 0.1


@pytest.mark.parametrize(
    ("preset", "changes", "sizes"),  # window, shift, FFT
    [
        ("kaldi", {"sample_frequency": 11025}, (275, 110, 512)),
        ("lhotse", {"sample_frequency": 12000, "frame_length": 18.0}, (215, 120, 256)),
        ("nemo", {"sample_frequency": 22050}, (441, 220, 512)),
        ("nemo", {"sample_frequency": 12000, "frame_length": 18.0}, (215, 120, 256)),
        ("python_speech_features", {"sample_frequency": 8000}, (200, 80, 512)),
        ("python_speech_features", {"sample_frequency": 11025}, (276, 110, 512)),
        ("python_speech_features", {"sample_frequency": 44100, "n_fft": 2048}, (1103, 441, 2048)),
        ("vggish", {"sample_frequency": 44100}, (1102, 441, 2048)),  # 1102.5, to even
        ("vggish", {"sample_frequency": 22050}, (551, 220, 1024)),  # 220.5, to even
        ("vggish", {"sample_frequency": 15100}, (378, 151, 512)),  # 377.5, to even
        ("librosa", {"n_fft": 1024}, (1024, 512, 1024)),
        ("librosa", {"window_size": 1000}, (1000, 512, 2048)),
        ("librosa", {"n_fft": 1024, "frame_length": 20}, (441, 512, 1024)),
        ("melspectrogram", {"n_fft": 512}, (512, 256, 512)),
        ("melspectrogram", {"window_size": 301}, (301, 150, 400)),
        ("melspectrogram", {"n_fft": 512, "window_shift": 160}, (512, 160, 512)),
        ("whisper", {"n_fft": 512}, (512, 160, 512)),
        ("whisper", {"frame_length": 20}, (320, 160, 320)),
        ("whisper", {"n_fft": 512, "window_size": 400}, (400, 160, 512)),
    ],
)
def test_sizes_follow_the_library(preset: str, changes: Options, sizes: tuple[int, ...]) -> None:
    config = FbankConfig.preset(preset, **changes)
    assert (config.window_size, config.window_shift, config.fft_size) == sizes


def test_what_a_caller_sets_is_never_derived() -> None:
    config = FbankConfig.preset("lhotse", window_type="blackman", window_periodic=False)
    assert not config.window_periodic
    config = FbankConfig.preset("librosa", center=False, snip_edges=False)
    assert not config.snip_edges


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        (
            "librosa",
            {"center": False, "window_size": 1024},
            "window_size must be n_fft (2048) when center is False in preset librosa, which cuts "
            "frames of n_fft samples, got 1024",
        ),
        (
            "melspectrogram",
            {"center": False, "n_fft": 512, "frame_length": 25},
            "window_size must be n_fft (512) when center is False in preset melspectrogram",
        ),
        (
            "lhotse",  # its frames then begin at other places, whatever the clip
            {"frame_shift": 30.0},
            "left_padding must be kaldi when the shift (480 samples) is above the window's 400, "
            "got lhotse",
        ),
        (  # it truncates each frame to its FFT
            "python_speech_features",
            {"sample_frequency": 44100},
            "n_fft must be even and at least the window's 1103 samples, got 512",
        ),
        (  # its filters go to 8 kHz at any rate
            "whisper",
            {"sample_frequency": 8000},
            "high_freq must be at most Nyquist (4000 Hz), got 8000.0",
        ),
        ("lhotse", {"mel_norm": "slaney"}, "mel_dtype must be float64 unless mel_scale is htk"),
        (
            "nemo",
            {"window_size": 400, "frame_length": 20},
            "window_size must be left out when frame_length is given, got 400",
        ),
    ],
)
def test_preset_refuses_what_it_cannot_follow(preset: str, changes: Options, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        FbankConfig.preset(preset, **changes)


@pytest.mark.parametrize("num_mel_bins", [40, 80])
def test_kaldi_preset_in_int16_scale_is_what_seamless_m4t_takes(num_mel_bins: int) -> None:
    transformers = pytest.importorskip("transformers")
    waveform = signal(5123)
    extractor = transformers.SeamlessM4TFeatureExtractor(num_mel_bins=num_mel_bins)
    expected = extractor._extract_fbank_features(waveform)  # before it normalises and stacks
    config = FbankConfig.preset("kaldi", num_mel_bins=num_mel_bins, waveform_scale=32768.0)
    for backend in ("reference", "numba"):
        difference = np.abs(fbank(waveform, config, backend=backend) - expected)
        assert difference.max() <= MAX_DIFFERENCE
        assert difference.mean() <= MEAN_DIFFERENCE
