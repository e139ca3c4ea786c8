"""Resampling: the filters' promises, the kernel against float64, whatever shape and strides."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import soxr
import torch

from ast_fast_kernels import FbankConfig, chosen_backend, fbank, resample, use_backend
from ast_fast_kernels.resample import numba_cpu
from ast_fast_kernels.resample.channels import mean_of
from ast_fast_kernels.resample.design import QUALITIES, Design, design
from ast_fast_kernels.resample.reference import resample_reference
from ast_fast_kernels.testing.processes import run_program

RATES = [
    *((rate, 16000) for rate in (8000, 11025, 12000, 22050, 24000, 32000, 44100, 48000)),
    *((88200, 16000), (96000, 16000), (16000, 8000), (16000, 24000), (16000, 44100)),
    *((44100, 48000), (48000, 44100), (16000, 17600), (192000, 8000), (8000, 192000)),
]
rates = pytest.mark.parametrize("rates", RATES, ids=lambda pair: f"{pair[0]}-{pair[1]}")
qualities = pytest.mark.parametrize("quality", QUALITIES)

ROUNDING = 48 * 2**-24
"""Of a sum of 96 numbers in float32, in the worst case; the kernel's is a hundredth of it."""


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def exact(waveform: np.ndarray, plan: Design) -> np.ndarray:
    return resample_reference(torch.from_numpy(waveform).double(), plan).numpy()


@cache
def responses(pair: tuple[int, int], quality: str) -> np.ndarray:
    """Return the filters' impulse responses, one a row: what an output is made of, by phase."""
    plan = design(*pair, quality)
    period_in = plan.period
    period_out = period_in * plan.rate_to // plan.rate_from
    before = -(-plan.reach // period_in) + 1
    impulses = torch.eye(period_in * (2 * before + 1), dtype=torch.float64)
    found = resample_reference(impulses, plan).numpy()[:, before * period_out :][:, :period_out]
    return found.T


def gains(pair: tuple[int, int], quality: str, hertz: np.ndarray) -> np.ndarray:
    """Return how loud tones of some frequencies come out, whatever they are aliased to.

    A tone e^(iwt) gives output n the value of its filter's response; its power is averaged over
    the phases, so that tones that are aliased or imaged count in full.
    """
    filters = responses(pair, quality)
    time = np.arange(filters.shape[1]) / pair[0]
    tones = np.exp(2j * np.pi * hertz[:, None] * time)
    return np.sqrt((np.abs(tones @ filters.T) ** 2).mean(1))


SMALL = [(32000, 16000), (48000, 16000), (24000, 16000), (8000, 16000), (16000, 24000)]
"""Ratios with few phases: their impulse responses are small tables. The filters of all ratios are
the same functions of time, at other places."""


@pytest.mark.parametrize("pair", SMALL, ids=str)
@qualities
def test_the_pass_band_is_flat_and_the_stop_band_silent(pair, quality):
    edge = QUALITIES[quality].edge
    nyquist = min(pair) / 2
    inside = gains(pair, quality, np.linspace(0, edge * nyquist, 200))
    ripple = {"hq": 1e-4, "fast": 3e-3}[quality]  # in dB, as the docstring says
    assert np.abs(20 * np.log10(inside)).max() <= ripple
    if pair[0] > pair[1]:
        outside = gains(pair, quality, np.linspace((2 - edge) * nyquist, pair[0] / 2, 400))
        assert 20 * np.log10(outside.max()) <= {"hq": -110.0, "fast": -80.0}[quality]


@rates
@qualities
def test_a_tone_keeps_its_phase_and_has_no_image(rates, quality):
    """A tone in the pass band comes out as itself: no delay, no alias, no image, no change."""
    rate_from, rate_to = rates
    seconds = 0.25 if max(rates) < 100000 else 0.05
    frequencies = np.array([0.011, 0.37, 0.71, QUALITIES[quality].edge]) * min(rates) / 2
    time = np.arange(int(seconds * rate_from)) / rate_from
    for hertz in frequencies:
        out = exact(np.cos(2 * np.pi * hertz * time + 1.0)[None], design(*rates, quality))[0]
        expected = np.cos(2 * np.pi * hertz * np.arange(len(out)) / rate_to + 1.0)
        ends = int(0.016 * 8000 / min(rates) * rate_to)
        error = np.abs(out - expected)[ends:-ends].max()
        assert error <= {"hq": 1e-5, "fast": 4e-4}[quality]


@pytest.mark.parametrize("rate_from", [44100, 48000, 32000])
def test_what_soxr_s_best_keeps_is_kept_alike(rate_from):
    """Below the edge of soxr's pass band, against the periodic signal's own samples.

    libsoxr's VHQ is 1.4e-4 away from them at 44.1 kHz, and 1e-7 at the others.
    """
    spectrum = np.fft.rfft(noise(rate_from).astype(np.float64))
    spectrum[int(0.91 * 8000) :] = 0
    samples = np.fft.irfft(spectrum).astype(np.float32)
    expected = np.fft.irfft(spectrum[:8001]) * 16000 / rate_from
    best = soxr.resample(samples, rate_from, 16000, quality="VHQ")
    ours = resample(samples, rate_from, 16000)
    middle, scale = slice(1500, -1500), np.abs(expected).max()
    assert np.abs(ours - expected)[middle].max() <= 10 ** (-105 / 20) * scale
    assert np.abs(ours - best)[middle].max() <= 3e-4 * scale


@rates
@qualities
@pytest.mark.parametrize("num_samples", [1, 37, 5003])
def test_the_kernel_is_the_reference(rates, quality, num_samples):
    waveform, plan = noise(2, num_samples), design(*rates, quality)
    expected = exact(waveform, plan)
    out = resample(waveform, *rates, quality=quality, backend="numba")
    assert out.dtype == np.float32
    assert out.shape == (2, -(-num_samples * rates[1] // rates[0]))
    assert np.linalg.norm(out - expected) <= ROUNDING * np.linalg.norm(expected)
    reference = resample(waveform, *rates, quality=quality, backend="reference")
    assert np.linalg.norm(reference - expected) <= ROUNDING * np.linalg.norm(expected)


def test_a_long_waveform_is_the_reference():
    waveform, plan = noise(1, 44100 * 30), design(44100, 16000, "hq")
    expected = exact(waveform, plan)
    out = resample(waveform, 44100, 16000, backend="numba")
    assert np.linalg.norm(out - expected) <= ROUNDING * np.linalg.norm(expected)


def test_log_mel_features_are_those_of_soxr_s_best():
    """The mean difference is less than that between soxr's HQ and its VHQ."""
    waveform = noise(5 * 44100)
    waveform *= np.linspace(0, 1, len(waveform), dtype=np.float32)
    config = FbankConfig.preset("kaldi", num_mel_bins=80, high_freq=7400.0)
    features = {
        name: fbank(samples, config, backend="reference")
        for name, samples in {
            "ours": resample(waveform, 44100, 16000),
            "HQ": soxr.resample(waveform, 44100, 16000, quality="HQ"),
            "VHQ": soxr.resample(waveform, 44100, 16000, quality="VHQ"),
        }.items()
    }
    ours = np.abs(features["ours"] - features["VHQ"]).mean()
    assert ours <= np.abs(features["HQ"] - features["VHQ"]).mean() + 1e-3


@pytest.mark.parametrize("rates", [(44100, 16000), (16000, 44100), (8000, 16000)], ids=str)
def test_no_bit_depends_on_batch_threads_or_length(rates):
    waveform = noise(5, 20011)
    out = resample(waveform, *rates)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            np.testing.assert_array_equal(resample(waveform, *rates), out)
    finally:
        torch.set_num_threads(threads)
    for row, expected in zip(waveform, out, strict=True):
        np.testing.assert_array_equal(resample(row, *rates), expected)
    certain = 9000 * rates[1] // rates[0]
    part = resample(waveform[:, :10000], *rates)
    np.testing.assert_array_equal(part[:, :certain], out[:, :certain])


@pytest.mark.parametrize("lanes", [4, 16])
def test_no_bit_depends_on_the_width_of_vectors(lanes, monkeypatch):
    """LLVM splits vectors that this machine does not have, so that any width runs here."""
    pairs = [(44100, 16000), (8000, 16000), (16000, 44100), (48000, 16000)]
    waveform = noise(3, 2, 9001)
    expected = [resample(waveform, *pair, channel_axis=1) for pair in pairs]
    monkeypatch.setattr(numba_cpu, "host_lanes", lambda: lanes)
    for pair, out in zip(pairs, expected, strict=True):
        np.testing.assert_array_equal(resample(waveform, *pair, channel_axis=1), out)


SHORTS = (noise(3, 2, 6007) * 32767).astype(np.int16)
LEVELS = SHORTS.astype(np.float32) / 32768


def test_int16_gives_the_bits_of_its_levels():
    np.testing.assert_array_equal(resample(SHORTS, 44100, 16000), resample(LEVELS, 44100, 16000))
    doubles = LEVELS.astype(np.float64)
    np.testing.assert_array_equal(resample(doubles, 44100, 16000), resample(LEVELS, 44100, 16000))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("backend", ["numba", "reference", "soxr"])
def test_channels_are_mixed_whichever_axis_they_are_on(channels, dtype, backend):
    levels = (noise(channels, 4, 3001) * 32767).astype(np.int16)
    samples = levels if dtype == np.int16 else levels.astype(np.float32) / 32768
    expected = resample(mean_of(samples), 44100, 16000, backend=backend)
    # torch's sums depend on the shape
    near = {"rtol": 1e-5, "atol": 1e-6} if backend == "reference" else {"rtol": 0.0, "atol": 0.0}
    for axis in (0, 1, 2, -1):
        moved = np.moveaxis(samples, 0, axis)
        for given in (moved, np.ascontiguousarray(moved)):
            out = resample(given, 44100, 16000, channel_axis=axis, backend=backend)
            np.testing.assert_allclose(out, expected, **near)
    interleaved = np.ascontiguousarray(samples[:, 0].T)
    out = resample(interleaved, 44100, 16000, channel_axis=-1, backend=backend)
    np.testing.assert_allclose(out, expected[0], **near)
    same = resample(interleaved, 16000, 16000, channel_axis=1, backend=backend)
    np.testing.assert_array_equal(same, mean_of(samples[:, 0]))


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_any_strides_are_read(dtype):
    wide = (noise(4, 3, 8010) * 32767).astype(dtype)
    raw = np.zeros(3001 * 5, np.uint8)
    odd = np.ndarray((3001,), dtype, raw, strides=(5,))  # not a whole number of samples
    odd[:] = wide[0, 0, :3001]
    for view in (wide[:, 1], wide[..., ::2], wide[::-1, :, 5:77], wide[..., ::-1], odd):
        np.testing.assert_array_equal(
            resample(view, 16000, 8000), resample(np.ascontiguousarray(view), 16000, 8000)
        )


WITHIN = """
import numpy as np
from ast_fast_kernels import resample
from ast_fast_kernels.testing.guards import guarded

for shape in ((1, 20000), (3, 7000), (37, 900), (1, 220500), (20000, 2), (20001, 2), (220500, 2)):
    for dtype in (np.float32, np.int16):
        for at_end in (False, True):
            size = int(np.prod(shape))
            samples = guarded(size, at_end, dtype).reshape(shape)
            samples[:] = 1
            for rates in ((44100, 16000), (48000, 16000), (16000, 44100)):
                resample(samples, *rates, channel_axis=-1 if shape[1] == 2 else None)
"""


def test_nothing_beyond_the_samples_is_read() -> None:
    """Where there is no row for a column: a page there without access would end the process."""
    run_program(WITHIN)


def test_the_caller_s_samples_stay_as_they_are():
    same = resample(LEVELS, 16000, 16000)
    np.testing.assert_array_equal(same, LEVELS)
    assert not np.may_share_memory(same, LEVELS)
    tensor = torch.from_numpy(LEVELS)
    assert resample(tensor, 16000, 16000, backend="reference").data_ptr() != tensor.data_ptr()


@pytest.mark.parametrize("rates", [(44100, 16000), (16000, 44100), (16000, 16000)], ids=str)
@pytest.mark.parametrize("backend", ["numba", "reference", "soxr"])
def test_nothing_gives_nothing(rates, backend):
    for shape in ((0,), (0, 100), (3, 0)):
        out = resample(np.zeros(shape, np.float32), *rates, backend=backend)
        assert out.shape == (*shape[:-1], -(-shape[-1] * rates[1] // rates[0]))
    one = resample(np.ones(1, np.float32), *rates, backend=backend)
    assert one.shape == (-(-rates[1] // rates[0]),)


@pytest.mark.parametrize("rates", [(44100, 16000), (16000, 44100)], ids=str)
@pytest.mark.parametrize("backend", ["numba", "reference"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_sample_stays_where_it_is(rates, backend, bad):
    waveform = noise(3, 9000)
    spoilt = waveform.copy()
    spoilt[1, 4000] = bad
    out = resample(spoilt, *rates, backend=backend)
    clean = resample(waveform, *rates, backend=backend)
    np.testing.assert_array_equal(out[[0, 2]], clean[[0, 2]])
    reach = design(*rates, "hq").reach + 2
    first, last = ((4000 + side * reach) * rates[1] // rates[0] for side in (-1, 1))
    assert not np.isfinite(out[1, 4000 * rates[1] // rates[0]])
    np.testing.assert_array_equal(out[1, :first], clean[1, :first])
    np.testing.assert_array_equal(out[1, last:], clean[1, last:])


def test_huge_and_tiny_samples_are_scaled_alike():
    plan = design(44100, 16000, "hq")
    for scale in (1e-30, 1e30):
        waveform = (noise(1, 5000) * scale).astype(np.float32)
        expected = exact(waveform, plan)
        out = resample(waveform, 44100, 16000)
        assert np.linalg.norm(out / scale - expected / scale) <= ROUNDING * np.linalg.norm(
            expected / scale
        )


def test_tensors_give_tensors_with_the_bits_of_arrays():
    for samples in (SHORTS, LEVELS, LEVELS.astype(np.float64)):
        out = resample(torch.from_numpy(samples), 44100, 16000, channel_axis=1)
        assert isinstance(out, torch.Tensor)
        assert out.dtype == torch.float32
        np.testing.assert_array_equal(out, resample(samples, 44100, 16000, channel_axis=1))


@pytest.mark.parametrize("backend", ["numba", "reference", "soxr"])
@pytest.mark.parametrize("rates", [(44100, 16000), (16000, 44100)], ids=str)
def test_the_gradient_is_the_transposed_filter(rates, backend):
    waveform = torch.from_numpy(noise(2, 2, 700)).requires_grad_()
    out = resample(waveform, *rates, channel_axis=1, backend=backend)
    upstream = torch.from_numpy(noise(*out.shape, seed=1))
    out.backward(upstream)
    assert waveform.grad is not None
    # <A x, u> = <x, At u> for any x
    other = torch.from_numpy(noise(2, 2, 700, seed=2))
    left = (resample(other, *rates, channel_axis=1, backend="reference") * upstream).sum()
    right = (other * waveform.grad).sum()
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traced_code_runs_the_reference():
    waveform = torch.from_numpy(noise(2, 2000))
    traced = torch.jit.trace(lambda x: resample(x, 44100, 16000), waveform, check_trace=False)
    torch.testing.assert_close(
        traced(waveform), resample(waveform, 44100, 16000, backend="reference")
    )


def test_auto_takes_the_kernel_and_soxr_for_large_tables():
    waveform = LEVELS[0]
    assert chosen_backend("resample", waveform, 44100, 16000) == "numba"
    assert chosen_backend("resample", waveform, 44100, 16001) == "soxr"
    meta = torch.zeros(100, device="meta")
    assert chosen_backend("resample", meta, 44100, 16000) == "reference"
    assert resample(meta, 44100, 16000).shape == (37,)
    with use_backend(resample="reference"):
        assert chosen_backend("resample", waveform, 44100, 16000) == "reference"


def test_soxr_gives_as_many_samples():
    for num_samples in (1, 2, 3, 1000, 44100):
        out = resample(LEVELS[0, 0, :1].repeat(num_samples), 44100, 16000, backend="soxr")
        assert out.shape == (-(-num_samples * 160 // 441),)


ZEROS = np.zeros((2, 8), np.float32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"waveform": [0.0]}, TypeError, "waveform must be a tensor or a numpy array, got list"),
        ({"waveform": np.zeros(4, np.int32)}, TypeError, "float32, float64, int16, got int32"),
        ({"waveform": torch.zeros(4).half()}, TypeError, "float32, float64, int16, got float16"),
        ({"waveform": np.float32(1.0)}, TypeError, "numpy array, got float32"),
        ({"waveform": np.zeros((), np.float32)}, ValueError, r"\(..., num_samples\), got \(\)"),
        ({"waveform": np.ma.masked_array(ZEROS)}, TypeError, "without a mask, got MaskedArray"),
        ({"rate_from": 0}, ValueError, "rate_from must be from 1 to 1000000 Hz, got 0"),
        ({"rate_to": 1_000_001}, ValueError, "rate_to must be from 1 to 1000000 Hz, got 1000001"),
        ({"rate_to": 16000.5}, TypeError, r"rate_to must be a whole number of Hz, got 16000\.5"),
        ({"rate_to": "16k"}, TypeError, "rate_to must be a whole number of Hz, got '16k'"),
        ({"quality": "best"}, ValueError, "quality must be one of hq, fast, got 'best'"),
        ({"channel_axis": 2}, ValueError, "channel_axis must be from -2 to 1, got 2"),
        ({"channel_axis": 0.5}, TypeError, r"channel_axis must be an integer or None, got 0\.5"),
        (
            {"waveform": ZEROS[0], "channel_axis": 0},
            ValueError,
            r"must have an axis of channels and one of samples, got \(8,\)",
        ),
        (
            {"waveform": ZEROS[:0], "channel_axis": 0},
            ValueError,
            r"must have at least one channel, got \(0, 8\)",
        ),
        ({"backend": "triton"}, ValueError, "backend must be one of auto, reference, numba, soxr"),
        (
            {"rate_to": 16001, "backend": "numba"},
            RuntimeError,
            "numba needs rates whose filter bank has at most 4096 phases, got 16001 for 44100 to "
            '16001 Hz; use backend="soxr"',
        ),
        (
            {"waveform": torch.zeros(4, device="meta"), "backend": "numba"},
            RuntimeError,
            'numba needs a waveform on the CPU, got meta; use backend="reference"',
        ),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(changes: dict[str, Any], error: type, message: str) -> None:
    arguments = {"waveform": ZEROS, "rate_from": 44100, "rate_to": 16000, **changes}
    waveform = arguments.pop("waveform")
    for call in (resample, lambda *args, **options: chosen_backend("resample", *args, **options)):
        with pytest.raises(error, match=message):
            call(waveform, arguments["rate_from"], arguments["rate_to"], **{
                name: value for name, value in arguments.items() if not name.startswith("rate")
            })  # fmt: skip


def test_without_soxr_its_error_says_what_to_install(monkeypatch):
    from ast_fast_kernels.resample import checks

    monkeypatch.setattr(checks, "soxr_obstacle", lambda: "soxr is not installed")
    with pytest.raises(RuntimeError, match='soxr is not installed; use backend="reference"'):
        resample(ZEROS, 44100, 16000, backend="soxr")
    assert chosen_backend("resample", ZEROS, 44100, 16001) == "reference"
