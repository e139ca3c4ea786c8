"""`kaldi.fbank` against torchaudio's own numbers (tests/golden) and for its own errors."""

from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from ast_fast_kernels import FbankConfig, kaldi, use_backend
from ast_fast_kernels import fbank as batched_fbank
from ast_fast_kernels.testing.budgets import relative_norm
from ast_fast_kernels.testing.signals import make_signal

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = {case["name"]: case for case in json.loads((GOLDEN / "torchaudio.json").read_text())}

with np.load(GOLDEN / "torchaudio_grid.npz") as archive:
    GRID = json.loads(archive["cases"].tobytes())
    GRID_OUTPUTS = torch.from_numpy(archive["mean_frames"])
GRID_WAVEFORM = torch.from_numpy(np.load(GOLDEN / "inputs.npz")["stereo"][:, :2000]) / 32768.0
# Where each case's mean frame ends; an empty or refused one has none.
GRID_ENDS = np.cumsum([case["shape"][1] if len(case["shape"] or "") == 2 else 0 for case in GRID])

# What two correct float32 implementations differ by, from clips of five seconds: a bin far below
# its frame's loudest carries that one's rounding. The mean gets twice its 5e-6: excerpts are short.
MAX_DIFFERENCE = 4e-3
P9999_DIFFERENCE = 1e-3
MEAN_DIFFERENCE = 1e-5
RELATIVE_NORM = 1e-5

# A mean of ten or so frames of noise, in which no bin is 60 dB down: the float64 budget.
GRID_MAX_DIFFERENCE = 3e-4
# subtract_mean leaves little of a mean frame but the rounding of what it took away.
GRID_RELATIVE_NORM = 3e-5


def golden_waveform(case: dict, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    samples = np.load(GOLDEN / "inputs.npz")[case["input"]]
    waveform = torch.from_numpy(samples).to(dtype) / 32768.0
    return waveform - waveform.mean() if case["minus_mean"] else waveform


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_torchaudio_gives_the_same(case: dict, backend: str) -> None:
    expected = torch.from_numpy(np.load(GOLDEN / "torchaudio.npz")[case["name"]])
    with use_backend(backend):
        out = kaldi.fbank(golden_waveform(case), **case["arguments"])
    assert out.shape == expected.shape
    assert out.dtype == torch.float32
    if expected.numel() == 0:
        return
    if case["arguments"].get("use_log_fbank", True):
        difference = (out - expected).abs()
        assert difference.max() <= MAX_DIFFERENCE
        assert difference.mean() <= MEAN_DIFFERENCE
    else:
        assert relative_norm(out, expected) <= RELATIVE_NORM


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_one_value_in_ten_thousand_is_further_from_torchaudios(backend: str) -> None:
    differences = []
    with use_backend(backend):
        for name, case in CASES.items():
            expected = torch.from_numpy(np.load(GOLDEN / "torchaudio.npz")[name])
            if expected.numel() and case["arguments"].get("use_log_fbank", True):
                out = kaldi.fbank(golden_waveform(case), **case["arguments"])
                differences.append((out - expected).abs().flatten())
    difference = torch.cat(differences)
    assert difference.numel() > 30_000
    assert difference.quantile(0.9999) <= P9999_DIFFERENCE
    assert difference.mean() <= MEAN_DIFFERENCE


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("index", range(len(GRID)))
def test_torchaudio_gives_or_refuses_the_same(index: int, backend: str) -> None:
    case = GRID[index]
    with use_backend(backend):
        if case["shape"] is None:
            with pytest.raises(ValueError, match=" must be "):
                kaldi.fbank(GRID_WAVEFORM, **case["arguments"])
            return
        out = kaldi.fbank(GRID_WAVEFORM, **case["arguments"])
    assert list(out.shape) == case["shape"]
    if out.numel() == 0:
        return
    expected = GRID_OUTPUTS[: GRID_ENDS[index]][-out.shape[1] :]
    weights = torch.arange(1.0, out.shape[0] + 1.0)
    mean_frame = weights @ out / weights.sum()
    if case["arguments"].get("use_log_fbank", True):
        assert (mean_frame - expected).abs().max() <= GRID_MAX_DIFFERENCE
    else:
        assert relative_norm(mean_frame, expected) <= GRID_RELATIVE_NORM


def test_grid_has_more_than_500_results_and_100_refusals() -> None:
    refused = sum(case["shape"] is None for case in GRID)
    assert refused > 100
    assert len(GRID) - refused > 500


def test_signature_is_torchaudios() -> None:
    torchaudios = (
        "waveform, blackman_coeff=0.42, channel=-1, dither=0.0, energy_floor=1.0, "
        "frame_length=25.0, frame_shift=10.0, high_freq=0.0, htk_compat=False, low_freq=20.0, "
        "min_duration=0.0, num_mel_bins=23, preemphasis_coefficient=0.97, raw_energy=True, "
        "remove_dc_offset=True, round_to_power_of_two=True, sample_frequency=16000.0, "
        "snip_edges=True, subtract_mean=False, use_energy=False, use_log_fbank=True, "
        "use_power=True, vtln_high=-500.0, vtln_low=100.0, vtln_warp=1.0, window_type='povey'"
    )
    parameters = inspect.signature(kaldi.fbank).parameters.values()
    ours = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert ", ".join(map(str, ours)) == torchaudios


def noise(num_samples: int = 4000, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(make_signal("noise", num_samples)).to(dtype)[None]


def test_defaults_are_the_kaldi_preset_with_torchaudios_rounding() -> None:
    expected = batched_fbank(noise(), FbankConfig.preset("kaldi", mel_dtype="float32"))[0]
    assert torch.equal(kaldi.fbank(noise()), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_clip_below_min_duration_gives_an_empty_tensor_of_its_dtype(dtype: torch.dtype) -> None:
    out = kaldi.fbank(noise(dtype=dtype), min_duration=0.2501)
    assert out.shape == (0,)
    assert out.dtype == dtype
    assert kaldi.fbank(noise(dtype=dtype), min_duration=0.25).shape == (23, 23)


def test_below_min_duration_only_the_framing_is_checked() -> None:
    unchecked = {"num_mel_bins": 3, "window_type": "kaiser", "low_freq": 9e3, "energy_floor": -1.0}
    out = kaldi.fbank(noise(), min_duration=1.0, **unchecked)  # type: ignore[arg-type]
    assert out.shape == (0,)
    with pytest.raises(ValueError, match="preemphasis_coefficient must be from 0 to 1, got 2"):
        kaldi.fbank(noise(), min_duration=1.0, preemphasis_coefficient=2.0)
    with pytest.raises(ValueError, match="channel must be below"):
        kaldi.fbank(noise(), min_duration=1.0, channel=1)


def test_clip_below_one_frame_raises_with_mirrored_edges_too() -> None:
    with pytest.raises(ValueError, match=re.escape("num_samples >= 400 (frame_length 25 ms at")):
        kaldi.fbank(noise(399), snip_edges=False)


def test_flags_may_be_numbers() -> None:
    out = kaldi.fbank(noise(), snip_edges=0, use_power=1, use_energy=1, round_to_power_of_two=1)  # type: ignore[arg-type]
    assert torch.equal(out, kaldi.fbank(noise(), snip_edges=False, use_energy=True))


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("use_energy", [False, True])
def test_autocast_and_compilation_change_nothing(backend: str, use_energy: bool) -> None:
    torch.compiler.reset()
    with use_backend(fbank=backend):
        expected = kaldi.fbank(noise(), use_energy=use_energy)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(kaldi.fbank(noise(), use_energy=use_energy), expected)
        compiled = torch.compile(
            lambda waveform: kaldi.fbank(waveform, use_energy=use_energy) + 0.0, backend="eager"
        )
        assert torch.equal(compiled(noise()), expected)


def test_dither_is_right_under_autocast() -> None:
    torch.manual_seed(0)
    expected = kaldi.fbank(noise(), dither=0.1, use_energy=True)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kaldi.fbank(noise(), dither=0.1, use_energy=True), expected)


def test_float64_and_int16_waveforms_are_taken() -> None:
    samples = (noise() * 32768).to(torch.int16)
    from_int16 = kaldi.fbank(samples, use_energy=True)
    assert torch.equal(from_int16, kaldi.fbank(samples.float() / 32768, use_energy=True))
    out = kaldi.fbank(noise(dtype=torch.float64), use_energy=True)
    assert out.dtype == torch.float64


def test_gradient_reaches_the_waveform() -> None:
    waveform = noise(800, torch.float64).requires_grad_()
    kaldi.fbank(waveform, use_energy=True, subtract_mean=True).square().sum().backward()
    assert waveform.grad is not None
    assert waveform.grad.isfinite().all()
    assert waveform.grad[:, :720].count_nonzero() > 700


def test_dither_is_torchs_generator_and_repeats_with_its_seed() -> None:
    waveform = torch.zeros(1, 1600)
    torch.manual_seed(0)
    first = kaldi.fbank(waveform, dither=0.1)
    torch.manual_seed(0)
    assert torch.equal(first, kaldi.fbank(waveform, dither=0.1))
    assert not torch.equal(first, kaldi.fbank(waveform, dither=0.1))
    assert (first > math.log(1e-7)).all()


def test_energy_and_filters_see_the_same_dither() -> None:
    # A rectangular window and no pre-emphasis: by Parseval the energy follows from the frames that
    # the filters saw, so one loud frame is loud in both.
    torch.manual_seed(0)
    out = kaldi.fbank(
        torch.zeros(1, 16000),
        dither=0.1,
        use_energy=True,
        energy_floor=0.0,
        preemphasis_coefficient=0.0,
        window_type="rectangular",
        use_log_fbank=False,
        low_freq=0.0,
    )
    energy, total = out[:, 0].exp(), out[:, 1:].sum(dim=1)
    assert torch.corrcoef(torch.stack((energy, total)))[0, 1] > 0.3


def test_dither_with_a_backend_that_has_none_raises() -> None:
    with use_backend(fbank="numba"):
        for use_energy in (False, True):
            with pytest.raises(RuntimeError, match="numba adds no dither, got dither 1; use back"):
                kaldi.fbank(noise(), dither=1.0, use_energy=use_energy)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel": 1}, "channel must be below the waveform's 1 channels, got 1"),
        ({"energy_floor": -1.0}, "energy_floor must be at least 0, got -1.0"),
        ({"frame_length": 300.0}, "num_samples >= 4800 (frame_length 300 ms at 16000 Hz), got (40"),
        ({"frame_length": 0.1}, "frame_length must be at least 2 samples, got 0.1"),
        ({"frame_shift": 0.0}, "frame_shift must be at least 1 sample, got 0.0"),
        (
            {"frame_length": 25.1, "round_to_power_of_two": False},
            "frame_length must be an even number of samples when round_to_power_of_two is False, "
            "got 25.1 ms (401 samples)",
        ),
        ({"preemphasis_coefficient": 1.1}, "preemphasis_coefficient must be from 0 to 1, got 1.1"),
        ({"sample_frequency": 0.0}, "sample_frequency must be above 0 Hz, got 0.0"),
        ({"num_mel_bins": 3}, "num_mel_bins must be at least 4, got 3"),
        ({"low_freq": 8000.0}, "low_freq must be from 0 to below the upper edge (8000 Hz)"),
        ({"high_freq": 8001.0}, "high_freq must be at most Nyquist (8000 Hz), got 8001.0"),
        ({"vtln_warp": 1.1, "vtln_low": 10.0}, "vtln_low must be above low_freq (20 Hz)"),
        ({"window_type": "kaiser"}, "window_type must be one of hanning, hamming, povey"),
    ],
)
def test_what_torchaudio_asserts_is_a_value_error(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        kaldi.fbank(noise(), **arguments)


def test_waveform_must_be_a_tensor_of_channels() -> None:
    with pytest.raises(
        ValueError, match=re.escape("waveform must be (channels, samples), got (4000,)")
    ):
        kaldi.fbank(noise()[0])
    with pytest.raises(TypeError, match="waveform must be a tensor, got ndarray"):
        kaldi.fbank(noise().numpy())  # type: ignore[arg-type]
