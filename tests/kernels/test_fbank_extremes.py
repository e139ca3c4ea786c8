"""Frames of equal samples, and samples near the limits of float32."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ast_fast_kernels import FbankConfig, OnlineFbank, fbank, kaldi
from ast_fast_kernels.fbank.presets import PRESETS
from ast_fast_kernels.testing.budgets import LOG_MEL_MAX, log_mel_error

KALDI = FbankConfig.preset("kaldi")
FLOOR = np.float32(KALDI.log_silence)

backends = pytest.mark.parametrize("backend", ["reference", "numba"])


def constants(values: np.ndarray, num_samples: int) -> np.ndarray:
    """Return a row of equal samples for each value."""
    return np.repeat(values.astype(np.float32)[:, None], num_samples, axis=1)


@backends
@pytest.mark.parametrize("divisor", [1, 30, 32768], ids=lambda n: f"over-{n}")
def test_equal_samples_have_the_features_of_silence(backend: str, divisor: int) -> None:
    for low in range(0, 32768 if divisor == 1 else 8192, 8192):
        values = np.arange(low, low + 8192, dtype=np.float32) / np.float32(divisor)
        waveform = constants(values, 400 if low else 720)
        for sign in (1, -1) if low == 0 else (1,):
            out = fbank(sign * waveform, KALDI, backend=backend)
            assert not values[(out != FLOOR).any(axis=(1, 2))].size


@backends
def test_equal_samples_are_silence_at_any_scale_and_of_any_window(backend: str) -> None:
    rng = np.random.default_rng(0)
    for call in range(120):
        window, hop = int(rng.integers(16, 513)), int(rng.integers(1, 513))
        fields = {
            "sample_frequency": 16000.0,
            "n_fft": 512,
            "preemphasis_coefficient": float(rng.choice([0.0, 0.97, 1.0, rng.random()])),
            "snip_edges": bool(rng.random() < 0.5),
            "waveform_scale": float(rng.choice([1.0, 32768.0])),
            "num_mel_bins": 20,
            "log_floor": float(rng.choice([1e-30, 1e-7])),
            "use_power": bool(rng.random() < 0.5),
        }
        config = FbankConfig.from_samples(window_size=window, window_shift=hop, **fields)
        values = rng.standard_normal(4) * 10.0 ** rng.uniform(-30, 30, 4)
        waveform = constants(values, window + int(rng.integers(0, 1000)))
        out = fbank(waveform, config, backend=backend)
        silence = fbank(np.zeros_like(waveform), config, backend=backend)
        np.testing.assert_array_equal(out, silence, err_msg=f"call {call}: {values} {config}")


@backends
def test_a_window_of_another_fft_length_has_exact_means_too(backend: str) -> None:
    config = KALDI.replace(sample_frequency=44100.0)
    out = fbank(constants(np.linspace(-1e4, 1e4, 200), 3000), config, backend=backend)
    assert (out == FLOOR).all()


@backends
def test_muted_parts_of_a_clip_with_an_offset_are_silence(backend: str) -> None:
    rng = np.random.default_rng(1)
    clip = rng.standard_normal(16000) * 3000 + 12345.0
    clip[4000:8000] = 12345.0
    clip[8000:9000] = 0.0
    clip[12000:] = -7.3
    for waveform in (clip.astype(np.float32), clip.astype(np.int16)):
        starts = np.arange(KALDI.num_frames(len(clip))) * 160
        muted = [np.ptp(waveform[start : start + 400]) == 0 for start in starts]
        out = fbank(waveform, KALDI, backend=backend)
        np.testing.assert_array_equal((out == FLOOR).all(axis=1), muted)
        assert sum(muted) > 40
        online = OnlineFbank(KALDI, backend=backend)
        frames = [online.accept_waveform(waveform[i : i + 777]) for i in range(0, 16000, 777)]
        frames = np.concatenate([*frames, online.finish()])
        np.testing.assert_array_equal((frames == FLOOR).all(axis=1), muted)


def test_torchaudios_signature_has_exact_means_too() -> None:
    for value in (12345.0, 0.1, -7777.7):
        for use_energy in (True, False):
            waveform = torch.full((1, 1600), value)
            out = kaldi.fbank(waveform, use_energy=use_energy, energy_floor=0.0)
            assert (out == torch.tensor(FLOOR)).all()


@pytest.mark.parametrize("backend", ["reference", "numba"])
def test_gradient_of_equal_samples_is_zero(backend: str) -> None:
    waveform = torch.full((2, 1600), 12345.6, requires_grad=True)
    fbank(waveform, KALDI, backend=backend).sum().backward()
    assert (waveform.grad == 0).all()


@backends
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [400, 559, 700, 719])
def test_a_bad_sample_in_an_offset_stays_in_its_frames(
    backend: str, bad: float, place: int
) -> None:
    waveform = constants(np.array([12345.0]), 3200)[0]
    waveform[place] = bad
    out = fbank(waveform, KALDI, backend=backend)
    starts = np.arange(len(out)) * 160
    touched = (starts <= place) & (place < starts + 400)
    assert np.isnan(out[touched]).all()
    assert (out[~touched] == FLOOR).all()


SCALES = [1e-33, 1e-24, 1e-19, 1e-12, 1.0, 1e12, 1e18, 1e19, 1e24, 1e30, 1e35]


@backends
@pytest.mark.parametrize("preset", PRESETS)
def test_magnitudes_hold_at_every_scale_that_samples_have(backend: str, preset: str) -> None:
    # The floor is below every filter's energy but an empty one's.
    config = FbankConfig.preset(
        preset, use_power=False, use_log_fbank=True, log_floor=1.2e-38, log_offset=0.0, top_db=0.0,
        norm_per_feature=False, log_type="ln", output_shift=0.0, output_scale=1.0,
    )  # fmt: skip
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(config.window_size + 20 * config.window_shift)
    for scale in SCALES:
        waveform = (noise * scale / config.waveform_scale).astype(np.float32)
        waveform = torch.from_numpy(waveform)
        expected = fbank(waveform.double(), config, backend="reference")
        out = fbank(waveform, config, backend=backend)
        assert log_mel_error(out, expected, use_power=False).max() < LOG_MEL_MAX, scale


def test_magnitudes_of_a_frame_do_not_depend_on_its_neighbours_scale() -> None:
    config = FbankConfig.preset("vggish", log_offset=0.0, log_floor=1.2e-38)
    rng = np.random.default_rng(0)
    for _ in range(20):
        # Each frame has a scale of its own, and silence, NaN and infinity are among them.
        levels = 10.0 ** rng.uniform(-40, 35, 100)
        levels[rng.integers(0, 100, 20)] = 1.0
        levels[rng.integers(0, 100, 10)] = 0.0
        clip = (rng.standard_normal((100, 400)) * levels[:, None]).astype(np.float32)
        clip[rng.integers(0, 100, 4), 200] = rng.choice([np.nan, np.inf], 4)
        apart = config.replace(frame_shift=25.0)
        together = fbank(clip.reshape(-1), apart, backend="numba")
        alone = fbank(clip, apart, backend="numba")
        np.testing.assert_array_equal(together, alone[:, 0])


@backends
@pytest.mark.parametrize("use_power", [True, False], ids=["power", "magnitude"])
def test_a_loud_sample_under_a_zero_of_the_window_spoils_nothing(
    backend: str, use_power: bool
) -> None:
    config = FbankConfig.preset("whisper", use_power=use_power, use_log_fbank=False)
    config = config.replace(snip_edges=True, center=False)
    waveform = np.zeros(400, np.float32)
    waveform[0], waveform[200] = 1e35, 1e-12
    expected = fbank(waveform.astype(np.float64), config, backend="reference")
    out = fbank(waveform, config, backend=backend)
    np.testing.assert_allclose(out, expected, rtol=1e-4)


@backends
def test_powers_are_those_of_the_reference_until_float32_ends(backend: str) -> None:
    config = KALDI.replace(use_log_fbank=False)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(4000)
    for scale in (1e-19, 1e-17, 1e-10, 1.0, 1e10, 1e16):
        waveform = (noise * scale).astype(np.float32)
        expected = fbank(waveform.astype(np.float64), config, backend="reference")
        np.testing.assert_allclose(fbank(waveform, config, backend=backend), expected, rtol=3e-3)
    loud = fbank((noise * 1e30).astype(np.float32), KALDI, backend=backend)
    assert not np.isfinite(loud).any()
    faint = fbank((noise * 1e-30).astype(np.float32), KALDI, backend=backend)
    assert (faint == FLOOR).all()


@pytest.mark.parametrize("scale", [1e-24, 1e-12, 1.0, 1e12, 1e19, 1e30])
def test_gradient_of_magnitudes_holds_at_every_scale(scale: float) -> None:
    config = FbankConfig.preset("vggish", log_offset=0.0, log_floor=1.2e-38)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 2000, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, config.num_frames(2000), 64, generator=generator)
    grads = []
    for dtype, backend in ((torch.float64, "reference"), (torch.float32, "numba")):
        waveform = (noise * scale).float().to(dtype).requires_grad_()
        (fbank(waveform, config, backend=backend) * weights.to(dtype)).sum().backward()
        grads.append(waveform.grad.double() * scale)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-3, atol=1e-4)
