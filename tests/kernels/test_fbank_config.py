from __future__ import annotations

import math
import pickle
import re
from dataclasses import Field, fields
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.fbank.presets import PRESETS, PresetName


def test_default_is_ast_five_seconds_give_498_frames() -> None:
    config = FbankConfig()
    assert config == FbankConfig.preset("ast")
    assert (config.window_size, config.window_shift, config.fft_size) == (400, 160, 512)
    assert config.num_frames(80000) == 498
    assert config.replace(snip_edges=False).num_frames(80000) == 500


@pytest.mark.parametrize(
    ("num_samples", "snip_edges", "frames"),
    [
        (0, True, 0),
        (399, True, 0),
        (400, True, 1),
        (559, True, 1),
        (560, True, 2),
        (79, False, 0),
        (80, False, 1),
        (240, False, 2),
    ],
)
def test_num_frames_counts_as_kaldi(num_samples, snip_edges, frames) -> None:
    assert FbankConfig(snip_edges=snip_edges).num_frames(num_samples) == frames


@pytest.mark.parametrize("snip_edges", [True, False], ids=["whole-frames", "mirrored-edges"])
def test_num_frames_takes_arrays_and_tensors_of_lengths(snip_edges: bool) -> None:
    config = FbankConfig(snip_edges=snip_edges)
    counts = [0, 79, 80, 399, 400, 80000]
    frames = [config.num_frames(count) for count in counts]
    assert config.num_frames(np.array(counts)).tolist() == frames
    assert config.num_frames(torch.tensor(counts)).tolist() == frames
    assert {type(value) for value in frames} == {int}


RATES = [8000.0, 11025.0, 16000.0, 22050.0, 44100.0, 48000.0, 96000.0, 16000 / 3, 12345.678]


@pytest.mark.parametrize("sample_frequency", RATES)
def test_from_samples_gives_exactly_these_samples(sample_frequency: float) -> None:
    for size in [*range(2, 1200), 2048, 4096, 44100, 10**6]:
        config = FbankConfig.from_samples(
            window_size=size, window_shift=size - 1, sample_frequency=sample_frequency
        )
        assert (config.window_size, config.window_shift) == (size, size - 1)


def test_from_samples_takes_fields_and_gives_round_milliseconds_where_there_are_some() -> None:
    config = FbankConfig.from_samples(
        window_size=400, window_shift=160, sample_frequency=16000, num_mel_bins=80
    )
    assert config == FbankConfig(num_mel_bins=80)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"window_size": 400.0}, TypeError, "window_size must be an integer, got 400.0"),
        ({"window_shift": 0}, ValueError, "window_shift must be at least 1 sample, got 0"),
        ({"window_size": 1}, ValueError, "frame_length must be at least 2 samples, got 0.0625"),
        ({"sample_frequency": 0}, ValueError, "sample_frequency must be above 0 Hz, got 0.0"),
    ],
)
def test_from_samples_refuses_what_is_no_size(changes, error, message) -> None:
    sizes = {"window_size": 400, "window_shift": 160, "sample_frequency": 16000, **changes}
    with pytest.raises(error, match=re.escape(message)):
        FbankConfig.from_samples(**sizes)


def test_lengths_in_samples_are_truncated() -> None:
    config = FbankConfig(sample_frequency=22050.0)
    assert (config.window_size, config.window_shift, config.fft_size) == (551, 220, 1024)


@pytest.mark.parametrize(
    ("changes", "silence"),
    [
        ({}, math.log(2.0**-23)),
        ({"log_floor": 0.0, "log_offset": 1e-10}, math.log(1e-10)),
        ({"log_floor": 1e-3, "log_offset": 1e-10}, math.log(1e-3)),
        ({"log_floor": 0.0}, -math.inf),
        ({"use_log_fbank": False}, 0.0),
        ({"norm_per_feature": True}, 0.0),
        ({"log_type": "db", "log_floor": 1e-10, "top_db": 80.0}, pytest.approx(-100.0)),
        ({"log_type": "log10", "log_floor": 1e-10, "output_shift": 4.0}, pytest.approx(-6.0)),
        ({"floor_zeros_only": True, "log_floor": 1e-3}, math.log(1e-3)),
    ],
)
def test_log_silence_is_what_silence_becomes(changes, silence) -> None:
    assert FbankConfig(**changes).log_silence == silence


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_frequency": 0.0}, r"sample_frequency must be above 0 Hz, got 0.0"),
        ({"frame_length": 0.1}, r"frame_length must be at least 2 samples, got 0.1"),
        ({"frame_shift": 0.01}, r"frame_shift must be at least 1 sample, got 0.01"),
        ({"n_fft": 398}, r"n_fft must be even and at least the window's 400 samples, got 398"),
        ({"n_fft": 401}, r"n_fft must be even .* got 401"),
        ({"window_type": "kaiser"}, r"window_type must be one of hanning, .*, got kaiser"),
        ({"num_mel_bins": 0}, r"num_mel_bins must be at least 1, got 0"),
        ({"dither": -1.0}, r"dither must be at least 0, got -1.0"),
        ({"dither_over": "clip"}, r"dither_over must be one of frame, waveform, got clip"),
        ({"left_padding": "left"}, r"left_padding must be one of kaldi, lhotse, got left"),
        (
            {"left_padding": "lhotse", "snip_edges": False, "frame_shift": 26.0},
            r"left_padding must be kaldi when the shift \(416 samples\) is above the window's 400",
        ),
        ({"low_freq": 10**400}, r"low_freq must be finite, got 1000.*000"),
        ({"frame_length": 1e308}, r"frame_length must be a finite number of samples, got 1e\+308"),
        ({"frame_shift": -1e308}, r"frame_shift must be a finite number of samples, got -1e\+308"),
        ({"preemphasis_coefficient": 1.5}, r"preemphasis_coefficient must be from 0 to 1, got 1.5"),
        ({"low_freq": -1.0}, r"low_freq must be from 0 to below the upper edge \(8000 Hz\)"),
        ({"low_freq": 8000.0}, r"low_freq must be .* got 8000.0"),
        ({"high_freq": 9000.0}, r"high_freq must be at most Nyquist \(8000 Hz\), got 9000.0"),
        ({"high_freq": -8000.0}, r"low_freq must be from 0 to below the upper edge \(0 Hz\)"),
        (
            {"log_floor": -1.0},
            r"log_floor must be 0 or at least .* \(1.18e-38\), got -1.0",
        ),
        ({"log_floor": 1e-50}, r"log_floor must be 0 or at least float32's .* got 1e-50"),
        ({"log_offset": -1.0}, r"log_offset must be 0 or at least .* got -1.0"),
        ({"center": True}, r"center must be False when snip_edges is True, got True"),
        (
            {"snip_edges": False, "pad_tail": True},
            r"pad_tail must be False when snip_edges is False, got True",
        ),
        ({"top_db": -1.0}, r"top_db must be at least 0, got -1.0"),
        ({"output_scale": 0.0}, r"output_scale must be above 0, got 0.0"),
        (
            {"mel_dtype": "float32", "mel_norm": "slaney"},
            r"mel_dtype must be float64 unless mel_scale is htk, mel_norm is none and "
            r"triangle_axis is mel, got float32",
        ),
        (
            {"filter_shape": "gaussian"},
            r"filter_shape must be triangular unless triangle_axis is hertz and mel_norm is none, "
            r"got gaussian",
        ),
        ({"filter_shape": "round"}, r"filter_shape must be one of triangular, symmetric, rect"),
        ({"pad_mode": "edge"}, r"pad_mode must be one of symmetric, reflect, constant, got edge"),
        ({"log_type": "dB"}, r"log_type must be one of ln, log10, db, got dB"),
        ({"mel_dtype": "float16"}, r"mel_dtype must be one of float64, float32, got float16"),
        ({"vtln_warp": 0.0}, r"vtln_warp must be above 0, got 0.0"),
        (
            {"vtln_warp": 1.1, "vtln_low": 10.0},
            r"vtln_low must be above low_freq \(20 Hz\) and below vtln_high \(7500 Hz\), got 10.0",
        ),
        ({"vtln_warp": 1.1, "vtln_low": 7600.0}, r"vtln_low must be .* got 7600.0"),
        (
            {"vtln_warp": 1.1, "vtln_high": 8000.0},
            r"vtln_high must be below the upper edge \(8000 Hz\), got 8000.0",
        ),
    ],
)
def test_bad_value_names_argument_rule_and_value(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        FbankConfig(**changes)


@pytest.mark.parametrize("field", fields(FbankConfig), ids=lambda field: field.name)
def test_value_of_another_type_is_refused_in_every_field(field: Field) -> None:
    wrong = ["16000", None, [1.0], True] if field.type != "bool" else ["True", None, 1, 0.0]
    if field.type == "int | None":
        wrong.remove(None)
    if "Literal" in str(get_type_hints(FbankConfig)[field.name]):
        wrong = [None, 3, ["hanning"]]
    for value in wrong:
        with pytest.raises(TypeError, match=f"^{field.name} must be .*{re.escape(repr(value))}$"):
            FbankConfig(**{field.name: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", [f.name for f in fields(FbankConfig) if f.type == "float"])
def test_no_number_is_nan_or_infinite(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be finite, got {value}"):
        FbankConfig(**{name: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_fft": 512.0}, "n_fft must be an integer, got 512.0"),
        ({"num_mel_bins": 23.5}, "num_mel_bins must be an integer, got 23.5"),
        ({"num_mel_bins": True}, "num_mel_bins must be an integer, got True"),
        ({"sample_frequency": "16000"}, "sample_frequency must be a number, got '16000'"),
        ({"use_power": 1}, "use_power must be True or False, got 1"),
        ({"window_type": None}, "window_type must be a string, got None"),
    ],
)
def test_wrong_type_names_argument_rule_and_value(changes, message) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        FbankConfig(**changes)


def test_values_are_kept_as_plain_python_ones() -> None:
    config = FbankConfig(
        sample_frequency=np.float32(16000),
        num_mel_bins=np.int64(128),
        n_fft=np.int32(512),
        use_power=np.True_,
    )
    assert config == FbankConfig(n_fft=512)
    assert {type(value) for value in vars(config).values()} == {float, int, bool, str}
    assert repr(FbankConfig(sample_frequency=16000)) == repr(FbankConfig())


def test_json_holds_what_differs_and_gives_the_config_back() -> None:
    assert FbankConfig().as_json == "{}"
    assert FbankConfig(num_mel_bins=40, low_freq=30).as_json == (
        '{"num_mel_bins": 40, "low_freq": 30.0}'
    )
    for name in PRESETS:
        config = FbankConfig.preset(name, frame_length=7.5 * math.pi, high_freq=-1 / 3)
        assert FbankConfig.from_json(config.as_json) == config
        assert pickle.loads(pickle.dumps(config)).as_json == config.as_json


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ValueError, "Expecting property name"),
        ('{"num_bins": 40}', TypeError, "unexpected keyword argument 'num_bins'"),
        ('{"num_mel_bins": 0}', ValueError, "num_mel_bins must be at least 1, got 0"),
        ("[]", TypeError, "argument after ** must be a mapping, not list"),
    ],
)
def test_bad_json_is_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        FbankConfig.from_json(text)


def test_vtln_points_do_not_matter_without_a_warp() -> None:
    assert FbankConfig(vtln_low=0.0).vtln_low == 0.0


def test_preset_takes_changes_and_knows_its_names() -> None:
    assert FbankConfig.preset("kaldi", num_mel_bins=80).num_mel_bins == 80
    with pytest.raises(ValueError, match=r"preset must be one of ast, kaldi, .*, got 'mfcc'"):
        FbankConfig.preset("mfcc")  # type: ignore[arg-type]


def test_preset_names_are_the_table() -> None:
    assert set(get_args(PresetName)) == set(PRESETS)
    configs = [FbankConfig.preset(name) for name in PRESETS]
    assert len(set(configs)) == len(configs)


@pytest.mark.parametrize(
    ("name", "num_samples", "frames"),
    [
        ("ast", 80000, 498),
        ("kaldi", 80000, 498),
        ("seed", 80000, 498),
        ("lhotse", 80000, 500),
        ("librosa", 110250, 216),
        ("melspectrogram", 80000, 401),
        ("nemo", 80000, 500),
        ("python_speech_features", 80000, 499),
        ("vggish", 80000, 498),
        ("whisper", 480000, 3000),
    ],
)
def test_preset_gives_as_many_frames_as_its_library(name, num_samples, frames) -> None:
    assert FbankConfig.preset(name).num_frames(num_samples) == frames


def test_preset_in_samples_keeps_them_at_another_rate_unless_times_are_given() -> None:
    config = FbankConfig.preset("librosa", sample_frequency=16000.0, window_shift=160)
    assert (config.window_size, config.window_shift, config.fft_size) == (2048, 160, 2048)
    config = FbankConfig.preset("librosa", sample_frequency=16000.0, frame_length=25.0)
    assert (config.window_size, config.window_shift, config.fft_size) == (400, 512, 2048)
    assert FbankConfig.preset("ast", sample_frequency=8000.0).window_size == 200


@pytest.mark.parametrize(
    ("changes", "num_samples", "frames"),
    [
        ({"pad_tail": True}, [0, 1, 400, 401, 560, 561], [0, 1, 1, 2, 2, 3]),
        ({"snip_edges": False, "center": True}, [0, 1, 159, 160, 400], [0, 1, 1, 2, 3]),
        ({"drop_last_frame": True}, [0, 399, 400, 560], [0, 0, 0, 1]),
    ],
    ids=["padded-tail", "centred", "last-dropped"],
)
def test_num_frames_of_other_framings(changes, num_samples, frames) -> None:
    config = FbankConfig(**changes)
    assert [config.num_frames(count) for count in num_samples] == frames
    assert config.num_frames(np.array(num_samples)).tolist() == frames
    assert config.num_frames(torch.tensor(num_samples)).tolist() == frames


def test_seed_preset_is_the_first_design() -> None:
    config = FbankConfig.preset("seed")
    assert config.window_type == "hanning"
    assert config.window_periodic
    assert not config.use_power
    assert not config.remove_dc_offset
    assert config.preemphasis_coefficient == 0.0
    assert config.log_silence == math.log(1e-10)


@pytest.mark.parametrize("preset", ["ast", "seed", "librosa", "whisper"])
def test_a_decibel_of_level_adds_what_the_config_says(preset: str) -> None:
    config = FbankConfig.preset(preset, num_mel_bins=40)
    noise = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    config = config.replace(log_floor=0.0, log_offset=1e-30, top_db=0.0)
    louder = fbank(10 ** (1 / 20) * noise, config) - fbank(noise, config)
    torch.testing.assert_close(louder, torch.full_like(louder, config.log_per_decibel))
