"""`kaldi.fbank` against torchaudio's own numbers (tests/golden) and for its own errors."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator
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
            lambda waveform: kaldi.fbank(waveform, use_energy=use_energy) + 0.0,
            backend="eager",
            fullgraph=True,
        )
        assert torch.equal(compiled(noise()), expected)


def test_dither_is_right_under_autocast() -> None:
    torch.manual_seed(0)
    expected = kaldi.fbank(noise(), dither=0.1, use_energy=True)
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(kaldi.fbank(noise(), dither=0.1, use_energy=True), expected)


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("changes", [{}, {"use_energy": True}, {"min_duration": 1.0}], ids=str)
def test_int16_is_taken_as_its_numbers_as_kaldi_does(changes: dict, backend: str) -> None:
    samples = (noise() * 32768).to(torch.int16)
    samples[0, 100] = -32768  # whose negative is none
    with use_backend(backend):
        out = kaldi.fbank(samples, **changes)
        assert out.dtype == torch.float32
        assert torch.equal(out, kaldi.fbank(samples.float(), **changes))
    torch.manual_seed(0)
    dithered = kaldi.fbank(samples, dither=-1.0, **changes)
    torch.manual_seed(0)
    assert torch.equal(dithered, kaldi.fbank(samples.float(), dither=-1.0, **changes))


def test_float64_waveforms_are_taken() -> None:
    out = kaldi.fbank(noise(dtype=torch.float64), use_energy=True)
    assert out.dtype == torch.float64


@pytest.mark.parametrize(
    "dtype",
    [
        torch.int8,
        torch.uint8,
        torch.int32,
        torch.int64,
        torch.bool,
        torch.float16,
        torch.bfloat16,
        torch.complex64,
    ],
    ids=str,
)
def test_other_waveforms_are_refused_never_rescaled(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    message = f"waveform must be float32, float64 or int16, got {name}"
    with pytest.raises(TypeError, match=re.escape(message)):
        kaldi.fbank(torch.ones(1, 4000, dtype=dtype))


# Values that every kind of number holds exactly, unlike the defaults.
NUMBERS: dict[str, tuple[float, ...]] = {
    "blackman_coeff": (0.375,),
    "channel": (1,),
    "energy_floor": (0.5, 2),
    "frame_length": (18.75, 20),
    "frame_shift": (12.5, 8),
    "high_freq": (3500.5, -400),
    "low_freq": (62.5, 50),
    "min_duration": (0.25, 0),
    "num_mel_bins": (40,),
    "preemphasis_coefficient": (0.5, 1),
    "sample_frequency": (15999.5, 12000),
    "vtln_high": (3000.5, -300),
    "vtln_low": (350.5, 400),
    "vtln_warp": (1.125, 2),
}
FLAGS = [
    name
    for name, parameter in inspect.signature(kaldi.fbank).parameters.items()
    if isinstance(parameter.default, bool)
]
FLOATS = {
    "float": float,
    "numpy-float16": np.float16,
    "numpy-float32": np.float32,
    "numpy-float64": np.float64,
    "array-float64": lambda value: np.array(value, np.float64),
    "tensor-float32": lambda value: torch.tensor(value, dtype=torch.float32),
    "tensor-float64": lambda value: torch.tensor(value, dtype=torch.float64),
    "tensor-of-one": lambda value: torch.tensor([value], dtype=torch.float32),
    "parameter": lambda value: torch.nn.Parameter(
        torch.tensor(value, dtype=torch.float32), requires_grad=False
    ),
}
INTEGERS = {
    "int": int,
    "numpy-int16": np.int16,
    "numpy-int64": np.int64,
    "array-int32": lambda value: np.array(value, np.int32),
    "tensor-int16": lambda value: torch.tensor(value, dtype=torch.int16),
    "tensor-int64": lambda value: torch.tensor(value, dtype=torch.int64),
}
# With what an argument is seen at all.
SEEN = {
    "blackman_coeff": {"window_type": "blackman"},
    "energy_floor": {"use_energy": True},
    "htk_compat": {"use_energy": True},
    "raw_energy": {"use_energy": True},
    "min_duration": {"sample_frequency": 15999.0},
    "vtln_high": {"vtln_warp": 1.1},
    "vtln_low": {"vtln_warp": 1.1},
}


@pytest.fixture
def no_kernel() -> Iterator[None]:
    """What is tested is what comes before the backend; the kernel compiles for each FFT length."""
    with use_backend(fbank="reference"):
        yield


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize("argument", NUMBERS)
def test_a_number_may_be_of_any_type(argument: str) -> None:
    waveform = torch.cat((noise(), noise().flip(-1)))
    others = SEEN.get(argument, {})
    tried = 0
    for value in NUMBERS[argument]:
        whole = float(value).is_integer()
        expected = kaldi.fbank(waveform, **others, **{argument: value})
        for kind, make in {**FLOATS, **(INTEGERS if whole else {})}.items():
            if kind == "numpy-float16" and float(np.float16(value)) != value:
                continue
            with np.errstate(over="ignore"):
                out = kaldi.fbank(waveform, **others, **{argument: make(value)})
            assert torch.equal(out, expected), (kind, value)
            tried += 1
    assert tried >= len(FLOATS)


def test_every_argument_but_the_waveform_and_the_window_is_a_number_or_a_flag() -> None:
    names = set(inspect.signature(kaldi.fbank).parameters)
    assert names == {*NUMBERS, *FLAGS, "waveform", "window_type", "dither"}


@pytest.mark.usefixtures("no_kernel")
@pytest.mark.parametrize("argument", FLAGS)
def test_a_flag_may_be_of_any_type(argument: str) -> None:
    others = SEEN.get(argument, {})
    # 440 samples are no power of two, and even.
    changes = {"frame_length": 27.5, **others}
    results = []
    for flag in (False, True):
        expected = kaldi.fbank(noise(), **{**changes, argument: flag})
        for make in (int, float, np.bool_, np.int64, torch.tensor, np.array, lambda x: [0] * x):
            out = kaldi.fbank(noise(), **{**changes, argument: make(flag)})
            assert torch.equal(out, expected)
        results.append(expected)
    assert results[0].shape != results[1].shape or not torch.equal(*results)


@pytest.mark.parametrize(
    "dither", [-0.1, torch.tensor(-0.1), np.float32(-0.1), torch.tensor([-0.1]), -1, True], ids=str
)
@pytest.mark.parametrize("use_energy", [False, True])
def test_dither_is_a_factor_of_either_sign(dither, use_energy: bool) -> None:
    torch.manual_seed(0)
    out = kaldi.fbank(noise(), dither=dither, use_energy=use_energy)
    torch.manual_seed(0)
    noises = torch.randn(1, 23, 400)
    frames = noise().unfold(-1, 400, 160) + float(dither) * noises
    frames = frames[0].reshape(1, -1)  # frames that do not overlap
    expected = kaldi.fbank(frames, frame_shift=25.0, use_energy=use_energy)
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dither", [False, 0, -0.0, np.False_, torch.tensor(0.0)], ids=repr)
def test_dither_of_zero_is_none_whatever_its_type(dither) -> None:
    with use_backend(fbank="numba"):
        state = torch.get_rng_state()
        assert torch.equal(kaldi.fbank(noise(), dither=dither), kaldi.fbank(noise()))
        assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.usefixtures("no_kernel")
def test_sizes_are_torchaudios_in_the_precision_of_what_it_is_given() -> None:
    # int(10000 · tensor(25.3) · 0.001) is 253 in float32; 25.3 in float32 is below 25.3.
    for length in (torch.tensor(25.3), np.float32(25.3)):
        for argument in ("frame_length", "frame_shift"):
            arguments = {"sample_frequency": 10000.0, argument: length}
            expected = kaldi.fbank(noise(), **{**arguments, argument: 25.3})
            assert torch.equal(kaldi.fbank(noise(), **arguments), expected)
    # 0.1 in float32 is above 0.1; 16000 times it is 1600 in float32.
    assert kaldi.fbank(noise(1600), min_duration=torch.tensor(0.1)).shape == (8, 23)


class NoNumber:
    def __repr__(self) -> str:
        return "no number"


@pytest.mark.parametrize("argument", [*NUMBERS, "dither"])
def test_what_is_no_number_is_refused_by_name(argument: str) -> None:
    for value in ("20", None, [20.0], torch.ones(2), np.ones(2), 1j, NoNumber()):
        with pytest.raises(TypeError, match=rf"^{argument} must be a number, got "):
            kaldi.fbank(noise(), **{argument: value})
    # torchaudio only compares min_duration, and takes any.
    infinite = [] if argument == "min_duration" else [math.nan, math.inf, torch.tensor(-math.inf)]
    for value in (*infinite, 10**400):
        message = rf"^{argument} must be (.* and )?(finite|a whole number), got "
        with pytest.raises(ValueError, match=message):
            kaldi.fbank(noise(), **{argument: value})
    learnt = torch.tensor(20.0, requires_grad=True)
    with pytest.raises(ValueError, match=f"^{argument} must need no gradient, because it would"):
        kaldi.fbank(noise(), **{argument: learnt})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_mel_bins": 80.5}, ValueError, "num_mel_bins must be a whole number, got 80.5"),
        ({"channel": 0.5}, ValueError, "channel must be a whole number, got 0.5"),
        ({"channel": True}, TypeError, "channel must be a number, got True"),
        ({"use_power": torch.ones(2)}, ValueError, "use_power must be true or false, got tensor"),
        ({"htk_compat": np.ones(2)}, ValueError, "htk_compat must be true or false, got array"),
        ({"frame_length": 1e308}, ValueError, "frame_length must be a finite number of samples"),
        ({"window_type": None}, TypeError, "window_type must be a string, got None"),
    ],
)
def test_what_torchaudio_cannot_mean_is_refused(arguments, error, message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        kaldi.fbank(noise(), **arguments)


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


def test_dither_with_a_gradient_is_the_references_own() -> None:
    waveform = noise().requires_grad_()
    torch.manual_seed(0)
    out = kaldi.fbank(waveform, dither=1.0)
    out.sum().backward()
    assert waveform.grad.count_nonzero() > 3000
    torch.manual_seed(0)
    torch.testing.assert_close(kaldi.fbank(noise(), dither=1.0), out, atol=1e-4, rtol=0)
    with use_backend(fbank="numba"), pytest.raises(RuntimeError, match="numba has no gradient of"):
        kaldi.fbank(waveform, dither=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channel": 1}, "channel must be below the waveform's 1 channels, got 1"),
        ({"energy_floor": -1.0}, "energy_floor must be at least 0 and finite, got -1.0"),
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
