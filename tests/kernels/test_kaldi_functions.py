"""kaldi's functions besides `fbank`: torchaudio's own numbers, the definitions, traces, errors."""

from __future__ import annotations

import inspect
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ast_fast_kernels import FbankConfig, fbank, kaldi, use_backend
from ast_fast_kernels.fbank import energy, numba_columns, tables
from ast_fast_kernels.kaldi import arguments, ops  # registers the operator
from ast_fast_kernels.testing.budgets import relative_norm
from ast_fast_kernels.testing.signals import make_signal

GOLDEN = Path(__file__).parents[1] / "golden"
with np.load(GOLDEN / "kaldi_grid.npz") as archive:
    GRID = json.loads(archive["cases"].tobytes())
    SUMS = archive["sums"]
ENDS = np.cumsum([case[3] for case in GRID])
WAVEFORM = torch.from_numpy(np.load(GOLDEN / "inputs.npz")["stereo"][:, :2000]) / 32768.0

FEATURES = ("mfcc", "spectrogram")

# Sums over eight columns of a mean frame, with weights up to 8: 36 times the 3e-4 that mean frames
# of log-mel energies are held to; cepstra have a lifter of up to 12 on that.
MAX_DIFFERENCE = {"mfcc": 4e-3, "spectrogram": 1e-2}
# Of a filter's weights, in float32 mel of up to 3000: a unit in the last place of torch's logarithm
# is 2.4e-4 mel, and filters are as narrow as 20 mel.
MAX_WEIGHT = 1e-4


def noise(num_samples: int = 4000, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(make_signal("noise", num_samples)).to(dtype)[None]


def summary(result: Any) -> np.ndarray:
    """As in make_kaldi_golden.py: weighted means of frames, then of eight columns."""
    sums = []
    for part in result if isinstance(result, tuple) else (result,):
        values = part.double()
        if values.dim() == 2:
            weights = torch.arange(1.0, values.shape[0] + 1.0, dtype=torch.float64)
            values = weights @ values / weights.sum()
        eights = torch.nn.functional.pad(values, (0, -len(values) % 8)).view(-1, 8)
        sums.append(eights @ torch.arange(1.0, 9.0, dtype=torch.float64))
    return torch.cat(sums).numpy()


def run_case(function: str, listed: list) -> Any:
    call = getattr(kaldi, function)
    if function in FEATURES:
        return call(WAVEFORM, **listed[0])
    return call(*(torch.tensor(a) if isinstance(a, list) else a for a in listed))


OTHER_SIZES = {"frame_length", "round_to_power_of_two", "sample_frequency"}
"""What changes the FFT's length or its part in use, for each of which a kernel is compiled."""


@pytest.mark.parametrize(
    ("function", "backend"),
    [
        *((function, backend) for function in FEATURES for backend in ("reference", "auto")),
        ("get_mel_banks", "auto"),
        ("vtln_warp_freq", "auto"),
    ],
)
def test_torchaudio_gives_or_refuses_the_same(function: str, backend: str) -> None:
    compared = refused = 0
    for (name, listed, shape, size), end in zip(GRID, ENDS, strict=True):
        if name != function:
            continue
        is_compiled = function in FEATURES and backend == "auto" and shape is not None
        if is_compiled and OTHER_SIZES & set(listed[0]):
            continue
        with use_backend(fbank=backend):
            if shape is None:
                with pytest.raises(ValueError, match=" must be "):
                    run_case(name, listed)
                refused += 1
                continue
            result = run_case(name, listed)
        first = result[0] if isinstance(result, tuple) else result
        assert list(first.shape) == shape
        if size == 0:
            continue
        out, expected = summary(result), SUMS[end - size : end]
        if function in FEATURES:
            assert np.abs(out - expected).max() <= MAX_DIFFERENCE[function], listed
        else:
            np.testing.assert_allclose(out, expected, rtol=1e-5, atol=8 * MAX_WEIGHT)
        compared += 1
    assert compared > 10
    assert refused > 10


def test_names_are_torchaudios() -> None:
    assert kaldi.__all__ == [
        "fbank", "get_mel_banks", "inverse_mel_scale", "inverse_mel_scale_scalar", "mel_scale",
        "mel_scale_scalar", "mfcc", "spectrogram", "vtln_warp_freq", "vtln_warp_mel_freq",
    ]  # fmt: skip
    private = (
        "EPSILON MILLISECONDS_TO_SECONDS HAMMING HANNING POVEY RECTANGULAR BLACKMAN WINDOWS "
        "_get_epsilon _next_power_of_2 _get_strided _feature_window_function _get_log_energy "
        "_get_waveform_and_window_properties _get_window _subtract_column_mean _get_dct_matrix "
        "_get_lifter_coeffs"
    )
    for name in [*kaldi.__all__, *private.split(" ")]:
        assert getattr(kaldi, name) is not None


SIGNATURES = {
    "mfcc": (
        "waveform, blackman_coeff=0.42, cepstral_lifter=22.0, channel=-1, dither=0.0, "
        "energy_floor=1.0, frame_length=25.0, frame_shift=10.0, high_freq=0.0, htk_compat=False, "
        "low_freq=20.0, num_ceps=13, min_duration=0.0, num_mel_bins=23, "
        "preemphasis_coefficient=0.97, raw_energy=True, remove_dc_offset=True, "
        "round_to_power_of_two=True, sample_frequency=16000.0, snip_edges=True, "
        "subtract_mean=False, use_energy=False, vtln_high=-500.0, vtln_low=100.0, vtln_warp=1.0, "
        "window_type='povey'"
    ),
    "spectrogram": (
        "waveform, blackman_coeff=0.42, channel=-1, dither=0.0, energy_floor=1.0, "
        "frame_length=25.0, frame_shift=10.0, min_duration=0.0, preemphasis_coefficient=0.97, "
        "raw_energy=True, remove_dc_offset=True, round_to_power_of_two=True, "
        "sample_frequency=16000.0, snip_edges=True, subtract_mean=False, window_type='povey'"
    ),
    "get_mel_banks": (
        "num_bins, window_length_padded, sample_freq, low_freq, high_freq, vtln_low, vtln_high, "
        "vtln_warp_factor"
    ),
    "_get_window": (
        "waveform, padded_window_size, window_size, window_shift, window_type, blackman_coeff, "
        "snip_edges, raw_energy, energy_floor, dither, remove_dc_offset, preemphasis_coefficient"
    ),
    "_get_waveform_and_window_properties": (
        "waveform, channel, sample_frequency, frame_shift, frame_length, round_to_power_of_two, "
        "preemphasis_coefficient"
    ),
}


@pytest.mark.parametrize("function", SIGNATURES)
def test_signature_is_torchaudios(function: str) -> None:
    parameters = inspect.signature(getattr(kaldi, function)).parameters.values()
    ours = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    assert ", ".join(map(str, ours)) == SIGNATURES[function]


@pytest.mark.parametrize("function", ["fbank", *FEATURES])
def test_arguments_are_read_in_the_signatures_order(function: str) -> None:
    names = list(inspect.signature(getattr(kaldi, function)).parameters)
    assert names == ["waveform", *arguments.NAMES[function]]


@pytest.mark.parametrize("raw_energy", [True, False])
@pytest.mark.parametrize("snip_edges", [True, False])
def test_spectrogram_is_its_steps_one_by_one(raw_energy: bool, snip_edges: bool) -> None:
    """The steps are those that projects call by torchaudio's private names."""
    waveform = noise(dtype=torch.float64)
    samples, shift, size, padded = kaldi._get_waveform_and_window_properties(
        waveform, -1, 16000.0, 10.0, 25.0, True, 0.97
    )
    assert (shift, size, padded) == (160, 400, 512)
    frames, log_energy = kaldi._get_window(
        samples, padded, size, shift, "povey", 0.42, snip_edges, raw_energy, 0.0, 0.0, True, 0.97
    )
    power = torch.fft.rfft(frames).abs().square()
    expected = power.clamp(min=float(kaldi.EPSILON)).log()
    expected[:, 0] = log_energy
    expected = kaldi._subtract_column_mean(expected, True)
    given = {"raw_energy": raw_energy, "snip_edges": snip_edges, "energy_floor": 0.0}
    exact = kaldi.spectrogram(waveform, subtract_mean=True, **given)
    torch.testing.assert_close(exact, expected, atol=1e-9, rtol=0)
    # In float32: a bin far below its frame's loudest carries that one's rounding.
    out = kaldi.spectrogram(waveform.float(), **given).double()
    exact = kaldi.spectrogram(waveform, **given)
    assert (out[:, 0] - exact[:, 0]).abs().max() <= 1e-5
    assert relative_norm(out[:, 1:].exp(), exact[:, 1:].exp()) <= 1e-6


@pytest.mark.parametrize("warp", [1.0, 1.1])
def test_mel_banks_are_those_of_fbank(warp: float) -> None:
    banks, centres = kaldi.get_mel_banks(40, 512, 16000.0, 20.0, 0.0, 100.0, -500.0, warp)
    assert banks.shape == (40, 256)
    assert centres.shape == (40, 1)
    config = FbankConfig(num_mel_bins=40, mel_dtype="float32", vtln_warp=warp)
    expected = torch.tensor(tables.mel_banks(config)[:, :-1], dtype=torch.float32)
    torch.testing.assert_close(banks, expected, atol=MAX_WEIGHT, rtol=0)
    if warp == 1.0:
        edges = tables.filter_edges(config)[1:-1]
        np.testing.assert_allclose(centres[:, 0].numpy(), edges, rtol=1e-5)


def test_mel_scale_and_warp_are_inverses_and_keep_the_edges() -> None:
    hertz = torch.linspace(0.0, 8000.0, 9, dtype=torch.float64)
    torch.testing.assert_close(kaldi.inverse_mel_scale(kaldi.mel_scale(hertz)), hertz)
    assert kaldi.inverse_mel_scale_scalar(kaldi.mel_scale_scalar(440.0)) == pytest.approx(440.0)
    assert kaldi.mel_scale_scalar(1000.0) == pytest.approx(999.99, abs=0.02)
    edges = (100.0, 7500.0, 20.0, 8000.0)
    some = torch.tensor([10.0, 20.0, 1100.0, 8000.0, 9000.0])
    warped = kaldi.vtln_warp_freq(*edges, 1.1, some)
    torch.testing.assert_close(warped, torch.tensor([10.0, 20.0, 1000.0, 8000.0, 9000.0]))
    in_mel = kaldi.vtln_warp_mel_freq(*edges, 1.1, kaldi.mel_scale(some))
    torch.testing.assert_close(kaldi.inverse_mel_scale(in_mel), warped, atol=1e-4, rtol=1e-6)


def test_mfcc_is_the_cosine_transform_of_fbank() -> None:
    log_mel = kaldi.fbank(noise(), use_energy=True)
    columns = kaldi._get_dct_matrix(13, 23) * kaldi._get_lifter_coeffs(13, 22.0)
    expected = log_mel[:, 1:] @ columns
    out = kaldi.mfcc(noise())
    # Of 1e-5 or so in a log-mel energy, times a lifter of up to 12.
    torch.testing.assert_close(out, expected, atol=5e-4, rtol=0)
    with_energy = kaldi.mfcc(noise(), use_energy=True)
    assert torch.equal(with_energy[:, 0], log_mel[:, 0])
    assert torch.equal(with_energy[:, 1:], out[:, 1:])
    htk = kaldi.mfcc(noise(), htk_compat=True)
    assert torch.equal(htk[:, :-1], out[:, 1:])
    torch.testing.assert_close(htk[:, -1], out[:, 0] * math.sqrt(2))
    both = kaldi.mfcc(noise(), htk_compat=True, use_energy=True)
    assert torch.equal(both, torch.cat((out[:, 1:], log_mel[:, :1]), dim=1))


CALLS = {
    "fbank": {"use_energy": True},
    "mfcc": {"use_energy": True, "htk_compat": True},
    "spectrogram": {"raw_energy": False, "subtract_mean": True},
}
every = pytest.mark.parametrize("function", CALLS)


@every
@pytest.mark.parametrize("dither", [0.0, -1.0])
def test_one_compiled_graph_gives_the_same(function: str, dither: float) -> None:
    torch.compiler.reset()
    call, options = getattr(kaldi, function), {**CALLS[function], "dither": dither}

    def scaled(waveform: torch.Tensor) -> torch.Tensor:
        return call(2.0 * waveform, **options) + 0.0

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    for num_samples in (4000, 3000):
        waveform, leaf = noise(num_samples).requires_grad_(), noise(num_samples).requires_grad_()
        torch.manual_seed(0)
        out = compiled(leaf)
        torch.manual_seed(0)
        assert torch.equal(out.detach(), scaled(waveform.detach()))
        slope = noise(out.numel()).view(out.shape)
        out.backward(slope)
        torch.manual_seed(0)
        scaled(waveform).backward(slope)
        # The logarithm's slope is large in a quiet bin; both are off there.
        assert relative_norm(leaf.grad, waveform.grad) <= 1e-3


@every
def test_compiled_shapes_and_numbers_may_be_symbols(function: str) -> None:
    torch.compiler.reset()
    call = getattr(kaldi, function)
    compiled = torch.compile(
        lambda waveform, energy_floor: call(waveform, energy_floor=energy_floor),
        fullgraph=True, dynamic=True, backend="eager",
    )  # fmt: skip
    for num_samples, floor in ((4000, 1.0), (3000, 0.1), (3500, 1e-9)):
        waveform = noise(num_samples)
        assert torch.equal(compiled(waveform, floor), call(waveform, energy_floor=floor))
    short = torch.compile(lambda waveform: call(waveform, min_duration=1.0), fullgraph=True,
                          backend="eager")  # fmt: skip
    assert short(noise()).shape == (0,)


@every
@pytest.mark.parametrize("changes", [{}, {"dither": -0.1, "raw_energy": False}], ids=str)
def test_operators_gradient_is_autograds(function: str, changes: dict) -> None:
    given = {**CALLS[function], "snip_edges": False, **changes}
    defaults = inspect.signature(getattr(kaldi, function)).parameters
    ordered = tuple(given.get(n, defaults[n].default) for n in arguments.NAMES[function])
    waveform = noise(1000, torch.float64)
    torch.manual_seed(0)
    out = ops.call(waveform.requires_grad_(), function, ordered)
    slope = noise(out.numel(), torch.float64).view(out.shape)
    gradient = torch.autograd.grad(out, waveform, slope)[0]
    torch.manual_seed(0)
    expected = getattr(kaldi, function)(waveform, **given)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, waveform, slope)[0])


def test_operators_are_well_formed() -> None:
    names = arguments.NAMES["mfcc"]
    defaults = inspect.signature(kaldi.mfcc).parameters
    given = tuple(1.0 if name == "dither" else defaults[name].default for name in names)
    text = arguments.read("mfcc", given, False).as_json
    drawn = torch.ops.ast_fast.kaldi_noise(noise(), text)
    assert drawn.shape == (23, 400)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    leaf = noise().requires_grad_()
    torch.library.opcheck(torch.ops.ast_fast.kaldi, (leaf, text, drawn), test_utils=checks)
    torch.library.opcheck(torch.ops.ast_fast.kaldi_noise, (noise(), text), test_utils=checks[:2])
    grad = torch.ones(23, 13)
    torch.library.opcheck(
        torch.ops.ast_fast.kaldi_backward, (grad, noise(), text, drawn), test_utils=checks[:2]
    )
    slope = torch.autograd.grad(
        torch.ops.ast_fast.kaldi(leaf, text, drawn).sum(), leaf, create_graph=True
    )[0]
    with pytest.raises(RuntimeError, match="ast_fast::kaldi_backward has no gradient; call kaldi"):
        slope.sum().backward()


@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("function", FEATURES)
def test_int16_is_taken_as_its_numbers(function: str, backend: str) -> None:
    samples, call = (noise() * 32768).to(torch.int16), getattr(kaldi, function)
    with use_backend(fbank=backend):
        out = call(samples, **CALLS[function])
        assert torch.equal(out, call(samples.float(), **CALLS[function]))
    with torch.autocast("cpu", dtype=torch.bfloat16), use_backend(fbank=backend):
        assert torch.equal(call(samples, **CALLS[function]), out)


@pytest.mark.parametrize("function", FEATURES)
def test_dither_is_torchaudios_noise(function: str) -> None:
    call, options = getattr(kaldi, function), CALLS[function]
    torch.manual_seed(0)
    out = call(noise(), dither=0.1, **options)
    torch.manual_seed(0)
    frames = noise().unfold(-1, 400, 160)[0] + 0.1 * torch.randn(23, 400)
    apart = frames.reshape(1, -1)  # frames that do not overlap
    expected = call(apart, frame_shift=25.0, **options)
    torch.testing.assert_close(out, expected, atol=3e-3, rtol=0)


@pytest.mark.parametrize("function", FEATURES)
def test_clip_below_min_duration_gives_an_empty_tensor_of_its_dtype(function: str) -> None:
    out = getattr(kaldi, function)(noise(dtype=torch.float64), min_duration=0.2501)
    assert out.shape == (0,)
    assert out.dtype == torch.float64


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (400, {}),
        (401, {"snip_edges": False}),
        (160, {"snip_edges": False, "window_shift": 330}),
        (37, {"remove_dc_offset": False, "preemphasis_coefficient": 0.0}),
        (7, {}),
    ],
    ids=str,
)
@pytest.mark.parametrize("is_raw", [True, False])
@pytest.mark.parametrize("dither", [0.0, 0.3])
def test_compiled_energy_is_the_references(
    size: int, changes: dict, is_raw: bool, dither: float
) -> None:
    sizes = {"window_size": size, "window_shift": 100, "sample_frequency": 16000.0, "low_freq": 0.0}
    config = FbankConfig.from_samples(**{**sizes, **changes}, dither=dither)
    samples = noise(2000)[0] + 0.5
    num_frames = config.num_frames(2000)
    drawn = None if dither == 0.0 else noise(num_frames * size).view(num_frames, size)
    given = numba_columns.Energy(
        samples.numpy(), is_raw, 1e-4, 0, None if drawn is None else drawn.numpy()
    )
    log_mel = np.full((num_frames, 3), np.nan, np.float32)
    out = numba_columns.finish(log_mel, None, 0, given, config, one_more=False)
    exact = energy.log_energy(
        samples.double(),
        config,
        is_raw=is_raw,
        floor=1e-4,
        noise=None if drawn is None else drawn.double(),
    )
    # eps times a few roundings of a sum of eight lanes, and the logarithm's own.
    np.testing.assert_allclose(out[:, 0], exact.numpy(), rtol=2e-6, atol=2e-6)
    assert np.isnan(out[:, 1:]).all()


@pytest.mark.parametrize("num_ceps", [1, 8, 13, 23])
def test_compiled_cepstra_are_the_product_and_all_frames_are_alike(num_ceps: int) -> None:
    log_mel = noise(5000 * 23).view(5000, 23)
    columns = kaldi._get_dct_matrix(num_ceps, 23)
    padded = torch.nn.functional.pad(columns, (0, -num_ceps % numba_columns.LANES))
    config = FbankConfig(num_mel_bins=23)
    run = numba_columns.finish
    rows, table = log_mel.numpy(), padded.contiguous().numpy()
    out = run(rows, table, num_ceps, None, config, one_more=False)  # on several threads
    np.testing.assert_allclose(out, (log_mel.double() @ columns.double()).numpy(), atol=2e-6)
    alone = run(rows[4321:4322], table, num_ceps, None, config, one_more=False)
    np.testing.assert_array_equal(alone, out[4321:4322])


SPECTRUM = FbankConfig.preset("kaldi", mel_filters=False, num_mel_bins=257)


def test_fbank_without_mel_filters_is_the_log_power_spectrum() -> None:
    batch = torch.cat((noise(), noise().flip(-1)))
    exact = fbank(batch.double(), SPECTRUM, backend="reference")
    frames = kaldi._get_window(
        batch[0].double(), 512, 400, 160, "povey", 0.42, True, True, 1.0, 0.0, True, 0.97
    )[0]
    power = torch.fft.rfft(frames).abs().square()
    torch.testing.assert_close(exact[0].exp(), power.clamp(min=float(kaldi.EPSILON)))
    out = fbank(batch, SPECTRUM, backend="numba")
    assert relative_norm(out.double().exp(), exact.exp()) <= 1e-6
    halved = fbank(batch, SPECTRUM.replace(divide_by_n_fft=True), backend="reference")
    assert relative_norm(512 * halved.double().exp(), exact.exp()) <= 1e-6
    edges = tables.filter_edges(SPECTRUM)
    assert len(edges) == 259
    assert (edges[1], edges[2], edges[-2]) == (0.0, 31.25, 8000.0)
    with pytest.raises(ValueError, match="num_mel_bins must be the spectrum's 257 bins when mel_f"):
        FbankConfig(mel_filters=False)


@pytest.mark.parametrize("changes", [{}, {"divide_by_n_fft": True, "use_power": False}], ids=str)
def test_fbank_without_mel_filters_has_a_gradient(changes: dict) -> None:
    config = SPECTRUM.replace(log_offset=1e-3, **changes)
    leaf, exact = noise().requires_grad_(), noise(dtype=torch.float64).requires_grad_()
    fbank(leaf, config, backend="numba").square().sum().backward()
    fbank(exact, config, backend="reference").square().sum().backward()
    assert relative_norm(leaf.grad.double(), exact.grad) <= 1e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kaldi.mfcc(noise(), num_ceps=24), "num_ceps must be from 1 to num_mel_bins (23)"),
        (lambda: kaldi.mfcc(noise(), num_ceps=0), "num_ceps must be from 1 to num_mel_bins (23)"),
        (
            lambda: kaldi.mfcc(noise(), cepstral_lifter=math.inf),
            "cepstral_lifter must be finite, got inf",
        ),
        (lambda: kaldi.spectrogram(noise()[0]), "waveform must be (channels, samples), got (4000,"),
        (lambda: kaldi.spectrogram(noise(), channel=1), "channel must be below the waveform's 1"),
        (
            lambda: kaldi.get_mel_banks(3, 512, 16e3, 20.0, 0.0, 100.0, -500.0, 1.0),
            "num_bins must be at least 4, got 3",
        ),
        (
            lambda: kaldi.get_mel_banks(23, 401, 16e3, 20.0, 0.0, 100.0, -500.0, 1.0),
            "window_length_padded must be even, got 401",
        ),
        (
            lambda: kaldi.get_mel_banks(23, 512, 16e3, 9e3, 0.0, 100.0, -500.0, 1.0),
            "low_freq must be from 0 to below the upper edge (8000 Hz), got 9000.0",
        ),
        (
            lambda: kaldi.get_mel_banks(23, 512, 16e3, 20.0, 8001.0, 100.0, -500.0, 1.0),
            "high_freq must be at most Nyquist (8000 Hz), got 8001.0",
        ),
        (
            lambda: kaldi.vtln_warp_freq(10.0, 7500.0, 20.0, 8000.0, 1.1, torch.ones(1)),
            "vtln_low_cutoff must be above low_freq (20 Hz), got 10.0",
        ),
        (
            lambda: kaldi.vtln_warp_freq(100.0, 8000.0, 20.0, 8000.0, 1.1, torch.ones(1)),
            "vtln_high_cutoff must be below high_freq (8000 Hz), got 8000.0",
        ),
        (lambda: kaldi._get_strided(noise(), 400, 160, True), "waveform must be (num_samples,)"),
        (lambda: kaldi._get_strided(noise()[0], 400, 0, True), "window_shift must be at least 1"),
        (
            lambda: kaldi._feature_window_function("kaiser", 400, 0.42, "cpu", torch.float32),  # type: ignore[arg-type]
            "window_type must be one of hamming, hanning, povey, rectangular, blackman, got kaiser",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(call, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_next_power_of_2_and_too_short_a_clip() -> None:
    assert [kaldi._next_power_of_2(n) for n in (0, 1, 2, 3, 400, 512)] == [1, 1, 2, 4, 512, 512]
    assert kaldi._get_strided(torch.ones(3), 4, 1, True).shape == (0, 0)
    frames = kaldi._get_strided(torch.arange(5.0), 4, 2, False)
    assert frames.tolist() == [[0, 0, 1, 2], [1, 2, 3, 4], [3, 4, 4, 3]]
