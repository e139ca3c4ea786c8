"""The reference against the definition, written out sample by sample with a direct DFT."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ast_fast_kernels import fbank
from ast_fast_kernels.fbank import dither, reference, tables
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.testing.budgets import eps_bound, relative_norm
from ast_fast_kernels.testing.processes import run_program
from ast_fast_kernels.testing.signals import make_signal

AST = FbankConfig()


def sample_at(waveform: np.ndarray, i: int, pad_mode: str) -> float:
    last = len(waveform) - 1
    if pad_mode == "constant":
        return waveform[i] if 0 <= i <= last else 0.0
    if last == 0:
        return waveform[0]
    while not 0 <= i <= last:
        if pad_mode == "symmetric":
            i = -1 - i if i < 0 else 2 * last + 1 - i
        else:
            i = -i if i < 0 else 2 * last - i
    return waveform[i]


def fbank_by_definition(waveform: np.ndarray, config: FbankConfig) -> np.ndarray:
    size, shift, n_fft = config.window_size, config.window_shift, config.fft_size
    phase = np.outer(np.arange(n_fft // 2 + 1), np.arange(size)) * (-2j * math.pi / n_fft)
    dft = np.exp(phase)
    waveform = waveform * config.waveform_scale
    if config.preemphasis_over == "waveform":
        waveform = waveform.copy()
        for n in reversed(range(1, len(waveform))):
            waveform[n] -= config.preemphasis_coefficient * waveform[n - 1]
    pad_mode = "constant" if config.pad_tail else config.pad_mode
    rows = []
    for m in range(config.num_frames(len(waveform))):
        if config.snip_edges:
            start = m * shift
        elif config.center:
            start = m * shift - n_fft // 2 + (n_fft - size) // 2
        else:
            start = m * shift + shift // 2 - size // 2
        frame = np.array([sample_at(waveform, start + n, pad_mode) for n in range(size)])
        if config.remove_dc_offset:
            frame -= frame.sum() / size
        emphasised = frame.copy()
        if config.preemphasis_over == "frame":
            for n in range(size):
                emphasised[n] -= config.preemphasis_coefficient * frame[max(n - 1, 0)]
        spectrum = np.abs(dft @ (emphasised * tables.window(config)))
        energies = tables.mel_banks(config) @ (spectrum**2 if config.use_power else spectrum)
        if config.use_log_fbank:
            energies = energies + config.log_offset
            if config.floor_zeros_only:
                energies[energies == 0] = config.log_floor
            else:
                energies = np.maximum(energies, config.log_floor)
            logarithm = {"ln": np.log, "log10": np.log10, "db": lambda x: 10 * np.log10(x)}
            energies = logarithm[config.log_type](energies)
            energies = (energies + config.output_shift) * config.output_scale
        rows.append(energies)
    return np.stack(rows)


CENTRED = AST.replace(snip_edges=False, center=True)
CONFIGS = {
    "ast": AST,
    "kaldi": FbankConfig.preset("kaldi"),
    "seed": FbankConfig.preset("seed"),
    "mirrored-edges": AST.replace(snip_edges=False),
    "mirrored-edges-long-hop": AST.replace(snip_edges=False, frame_length=8.0, frame_shift=20.0),
    "no-dc-removal": AST.replace(remove_dc_offset=False),
    "int16-scale": AST.replace(waveform_scale=32768.0),
    "before-log": AST.replace(use_log_fbank=False),
    "offset-and-floor": AST.replace(log_offset=1e-6, log_floor=1e-4),
    "exact-fft": AST.replace(n_fft=400),
    "odd-window": AST.replace(frame_length=7.85, frame_shift=3.05),
    "centred-on-zeros": CENTRED.replace(pad_mode="constant"),
    "centred-reflected": CENTRED.replace(pad_mode="reflect", n_fft=400),
    "centred-mirrored": CENTRED,
    "centred-odd-window": CENTRED.replace(frame_length=7.85, n_fft=400, pad_mode="reflect"),
    "edges-of-zeros": AST.replace(snip_edges=False, pad_mode="constant"),
    "padded-tail": AST.replace(pad_tail=True),
    "last-frame-dropped": AST.replace(snip_edges=False, drop_last_frame=True),
    "waveform-emphasised": AST.replace(preemphasis_over="waveform", remove_dc_offset=False),
    "waveform-emphasised-then-padded": CENTRED.replace(
        preemphasis_over="waveform", pad_mode="reflect", waveform_scale=2.0
    ),
    "divided-by-n-fft": AST.replace(divide_by_n_fft=True),
    "decibels": AST.replace(log_type="db", log_floor=1e-4),
    "log10-shifted-and-scaled": AST.replace(
        log_type="log10", output_shift=4.0, output_scale=0.25, log_offset=1e-3
    ),
    "only-zeros-floored": AST.replace(floor_zeros_only=True, log_floor=1e-3),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_reference_in_float64_is_the_definition(config: FbankConfig) -> None:
    assert_is_the_definition(make_signal("bursts", 1511, seed=2), config)


@pytest.mark.parametrize("num_samples", [1, 2, 90, 160, 201, 399])
@pytest.mark.parametrize(
    "name", ["mirrored-edges", "centred-on-zeros", "centred-reflected", "padded-tail"]
)
def test_short_clip_is_padded_by_the_definition(name: str, num_samples: int) -> None:
    waveform = make_signal("bursts", num_samples, seed=2)
    if CONFIGS[name].num_frames(num_samples):
        assert_is_the_definition(waveform, CONFIGS[name])
    else:
        assert name == "mirrored-edges"
        assert num_samples < 80


def assert_is_the_definition(waveform: np.ndarray, config: FbankConfig) -> None:
    expected = fbank_by_definition(waveform, config)
    out = reference.fbank_reference(torch.from_numpy(waveform)[None], config)
    assert out.dtype == torch.float64
    assert np.isfinite(expected).all()
    # Quiet bins carry the loud bins' rounding; a direct DFT of 400 terms errs by about 1e-13.
    np.testing.assert_allclose(out[0].numpy(), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["noise", "bursts", "sweep", "full_scale", "impulse"])
def test_reference_in_float32_keeps_to_its_rounding_before_the_log(name: str) -> None:
    config = AST.replace(use_log_fbank=False)
    waveform = torch.from_numpy(make_signal(name, 16000))[None].float()
    oracle = reference.fbank_reference(waveform.double(), config)
    out = reference.fbank_reference(waveform, config)
    assert out.dtype == torch.float32
    assert relative_norm(out, oracle) < eps_bound(torch.float32, config.fft_size)


@pytest.mark.parametrize("use_power", [True, False], ids=["power", "magnitude"])
def test_reference_is_differentiable(use_power: bool) -> None:
    config = FbankConfig(
        frame_length=2.0, frame_shift=1.0, num_mel_bins=5, use_power=use_power, snip_edges=False
    )
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(2, 70, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda x: reference.fbank_reference(x, config), (waveform,), fast_mode=True
    )


def test_gradient_at_silence_is_zero_not_nan() -> None:
    waveform = torch.zeros(1, 800, requires_grad=True)
    reference.fbank_reference(waveform, AST).sum().backward()
    assert torch.equal(waveform.grad, torch.zeros(1, 800))


@pytest.mark.parametrize("snip_edges", [True, False], ids=["whole-frames", "mirrored-edges"])
def test_gradient_of_a_ragged_batch_stays_within_lengths(snip_edges: bool) -> None:
    waveform = torch.from_numpy(make_signal("noise", 3200)).view(2, 1600).requires_grad_()
    config = AST.replace(snip_edges=snip_edges)
    fbank(waveform, config, lengths=[1600, 560], backend="reference").sum().backward()
    assert waveform.grad[1, :560].count_nonzero() > 500
    assert not waveform.grad[1, 560:].any()


def test_nan_beyond_a_length_reaches_no_gradient() -> None:
    waveform = torch.from_numpy(make_signal("noise", 3200)).view(2, 1600)
    clean = waveform.clone().requires_grad_()
    fbank(clean, lengths=[1600, 900], backend="reference").sum().backward()
    waveform[1, 900:] = math.nan
    waveform.requires_grad_()
    fbank(waveform, lengths=[1600, 900], backend="reference").sum().backward()
    assert torch.equal(waveform.grad, clean.grad)


def test_dither_is_drawn_for_each_frame_with_its_standard_deviation() -> None:
    config = AST.replace(dither=0.25)
    waveform = torch.zeros(1, 199 * 160 + 400)
    torch.manual_seed(0)
    noise = config.dither * dither.noise_of(None, waveform, config)
    assert noise.shape == (1, 200, 400)
    # 80,000 draws: the deviation's own error is 0.25 / sqrt(160,000), here with five sigma.
    assert noise.std().item() == pytest.approx(0.25, abs=5 * 0.25 / 400)
    torch.manual_seed(0)
    assert torch.equal(noise, config.dither * dither.noise_of(None, waveform, config))


def test_out_takes_the_result() -> None:
    waveform = torch.from_numpy(make_signal("noise", 1000))[None]
    out = torch.full((1, AST.num_frames(1000), 128), math.nan, dtype=torch.float64)
    result = reference.fbank_reference(waveform, AST, out)
    assert result is out
    assert torch.equal(out, reference.fbank_reference(waveform, AST))


@pytest.mark.parametrize(
    ("switch", "lowers"),
    [
        ("set_float32_matmul_precision('highest')", False),
        ("set_float32_matmul_precision('high')", True),
        ("set_float32_matmul_precision('medium')", True),
        ("backends.__setattr__('fp32_precision', 'tf32')", True),
        ("backends.mkldnn.matmul.__setattr__('fp32_precision', 'bf16')", True),
        ("backends.cuda.matmul.__setattr__('fp32_precision', 'tf32')", False),
    ],
)
def test_products_keep_their_precision_where_torch_s_are_lowered(switch: str, lowers: bool) -> None:
    """By any of torch's switches, in a process of its own: some cannot be set back."""
    program = f"""
import torch
from ast_fast_kernels import fbank
from ast_fast_kernels._torch.autocast import exact_product, lowers_float32
torch.{switch}
left, right = torch.randn(64, 257), torch.randn(257, 64)
exact = left.double() @ right.double()
product = exact_product(left, right)
print(lowers_float32("cpu"), torch.equal(product, exact.float()))
assert torch.equal(exact_product(left.double(), right.double()), exact)
assert (product - exact).abs().max() < 1e-4  # TF32 and bfloat16 are off by 1e-2 and more
assert fbank(torch.randn(1, 16000), backend="reference").isfinite().all()
"""
    shown = run_program(program).split()
    assert shown[0] == str(lowers)
    assert shown[1] == "True" or not lowers


def test_tables_first_used_in_inference_can_be_differentiated_through():
    """They are kept on the device, for a stream that captures a CUDA graph."""
    config = FbankConfig(num_mel_bins=21)  # of no other test
    waveform = torch.rand(1, 800, dtype=torch.float64)
    with torch.inference_mode():
        expected = reference.fbank_reference(waveform, config)
    waveform.requires_grad_()
    log_mel = reference.fbank_reference(waveform, config)
    log_mel.sum().backward()
    assert torch.equal(log_mel.detach(), expected)
    assert waveform.grad is not None


@pytest.mark.parametrize("transform", ["functionalize", "grad"])
def test_tables_first_used_in_a_transform_are_none_of_its_tensors(transform: str) -> None:
    config = FbankConfig(num_mel_bins={"functionalize": 19, "grad": 22}[transform])  # of no other
    waveform = torch.rand(1, 800)
    getattr(torch.func, transform)(lambda x: reference.fbank_reference(x, config).sum())(waveform)
    log_mel = reference.fbank_reference(waveform, config)
    assert not torch._is_functional_tensor(log_mel)
    kept = reference._table(tables.window, config, waveform)
    assert not torch._C._functorch.is_functorch_wrapped_tensor(kept)
    assert reference._table(tables.window, config, waveform) is kept
