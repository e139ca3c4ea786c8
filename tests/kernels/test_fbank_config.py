from __future__ import annotations

import math

import pytest
from ast_fast_kernels import FbankConfig


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
        ({"preemphasis_coefficient": 1.5}, r"preemphasis_coefficient must be from 0 to 1, got 1.5"),
        ({"low_freq": -1.0}, r"low_freq must be from 0 to below the upper edge \(8000 Hz\)"),
        ({"low_freq": 8000.0}, r"low_freq must be .* got 8000.0"),
        ({"high_freq": 9000.0}, r"high_freq must be at most Nyquist \(8000 Hz\), got 9000.0"),
        ({"high_freq": -8000.0}, r"low_freq must be from 0 to below the upper edge \(0 Hz\)"),
        ({"log_floor": -1.0}, r"log_floor must be at least 0, got -1.0"),
        ({"log_offset": -1.0}, r"log_offset must be at least 0, got -1.0"),
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


def test_vtln_points_do_not_matter_without_a_warp() -> None:
    assert FbankConfig(vtln_low=0.0).vtln_low == 0.0


def test_preset_takes_changes_and_knows_its_names() -> None:
    assert FbankConfig.preset("kaldi", num_mel_bins=80).num_mel_bins == 80
    with pytest.raises(ValueError, match="preset must be one of ast, kaldi, seed, got 'mfcc'"):
        FbankConfig.preset("mfcc")  # type: ignore[arg-type]


def test_seed_preset_is_the_first_design() -> None:
    config = FbankConfig.preset("seed")
    assert config.window_type == "hanning"
    assert config.window_periodic
    assert not config.use_power
    assert not config.remove_dc_offset
    assert config.preemphasis_coefficient == 0.0
    assert config.log_silence == math.log(1e-10)
