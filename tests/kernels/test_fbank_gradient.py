"""The filterbank's compiled gradient: whose samples are whose, and that no division shows."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels._cpu.simd import host_lanes
from ast_fast_kernels.fbank import numba_gradient  # registers the operators
from ast_fast_kernels.fbank.gradient import waveform_gradient
from ast_fast_kernels.fbank.numba_gradient import gradient_numba, run_pieces
from ast_fast_kernels.testing.budgets import eps_bound, relative_norm

AST = FbankConfig()
CONFIGS = {
    "ast": AST,
    "mirrored": FbankConfig.preset("lhotse", window_shift=161),
    "kaldi-padded": FbankConfig.preset("kaldi", num_mel_bins=80, snip_edges=False),
    "magnitudes-apart": FbankConfig.preset("vggish", frame_shift=31.0),
    "whole-waveform-preemphasis": FbankConfig.preset("python_speech_features"),
    "loudest-of-a-clip": FbankConfig.preset("whisper"),
    "mean-of-a-clip": FbankConfig.preset("nemo"),
}
configs = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(config: FbankConfig, clips: int, num_samples: int) -> tuple[Tensor, Tensor]:
    """Gradient of the energies, and waveforms."""
    grad = noise(clips, config.num_frames(num_samples), config.num_mel_bins, seed=1)
    return grad, noise(clips, num_samples)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@configs
def test_clips_of_real_size_are_as_near_to_float64_as_the_definition(config: FbankConfig) -> None:
    num_samples = 5 * int(config.sample_frequency) + 3
    grad, waveform = inputs(config, 6, num_samples)
    for counts in (None, [num_samples - 9973 * clip for clip in range(6)]):
        exact = waveform_gradient(grad.double(), waveform.double(), config, counts)
        own = waveform_gradient(grad, waveform, config, counts)
        out = gradient_numba(grad, waveform, config, counts)
        # One nearly silent bin can be most of a clip's error, so the median of clips is compared.
        assert median_error(out, exact) <= 2.0 * median_error(own, exact)


def median_error(gradients: Tensor, exact: Tensor) -> float:
    return statistics.median(map(relative_norm, gradients, exact))


@configs
def test_neither_threads_nor_neighbours_change_a_bit(config: FbankConfig, set_threads) -> None:
    num_samples = 2 * int(config.sample_frequency) + 77
    grad, waveform = inputs(config, 3, num_samples)
    counts = [num_samples, num_samples // 2, 1]
    set_threads(1)
    expected = gradient_numba(grad, waveform, config, counts)
    for threads in (2, 3, 7):
        set_threads(threads)
        assert torch.equal(gradient_numba(grad, waveform, config, counts), expected)
        alone = [
            gradient_numba(grad[i, None], waveform[i, None], config, counts[i : i + 1])
            for i in range(3)
        ]
        assert torch.equal(torch.cat(alone), expected)


@pytest.mark.parametrize("name", ["ast", "mean-of-a-clip"])
def test_torch_s_defaults_change_no_bit(name: str) -> None:
    grad, waveform = inputs(CONFIGS[name], 2, 8000)
    expected = gradient_numba(grad, waveform, CONFIGS[name], None)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        out = gradient_numba(grad, waveform, CONFIGS[name], None)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert torch.equal(out, expected)


@configs
def test_pieces_of_a_clip_change_no_bit(
    config: FbankConfig, monkeypatch: pytest.MonkeyPatch, set_threads
) -> None:
    set_threads(2)
    grad, waveform = inputs(config, 2, 3 * int(config.sample_frequency))
    results = []
    # So few frames a piece that the last one would be too short to stand alone.
    for frames in (10_000, 96, 37, 1):
        piece = max(frames, numba_gradient._least_piece(config))
        if numba_gradient.emphasises_waveform(config):
            piece = 10_000
        monkeypatch.setattr(numba_gradient, "_piece", lambda *_, piece=piece: piece)
        out = torch.full_like(waveform, torch.nan)
        run_pieces(grad, waveform, out, config, host_lanes())
        results.append(out)
    assert not results[0].isnan().any()
    assert all(torch.equal(out, results[0]) for out in results)


@pytest.mark.parametrize("lanes", [4, 16])
def test_every_vector_width_gives_the_same_gradient(lanes: int) -> None:
    config = FbankConfig.preset("kaldi", log_offset=1.0)
    grad, waveform = inputs(config, 2, 16123)
    exact = waveform_gradient(grad.double(), waveform.double(), config, None)
    out = torch.full_like(waveform, torch.nan)
    run_pieces(grad, waveform, out, config, lanes)
    assert relative_norm(out, exact) < eps_bound(torch.float32, config.fft_size)


@pytest.mark.parametrize("num_samples", [400, 559, 560, 561, 1679, 1680, 1681])
@pytest.mark.parametrize("padded", [False, True], ids=["whole-frames", "padded"])
def test_every_sample_of_a_short_clip_is_written(num_samples: int, padded: bool) -> None:
    config = AST.replace(snip_edges=not padded, use_log_fbank=False)
    grad, waveform = inputs(config, 2, num_samples)
    out = torch.full_like(waveform, torch.nan)
    run_pieces(grad, waveform, out, config, host_lanes())
    exact = waveform_gradient(grad.double(), waveform.double(), config, None)
    assert relative_norm(out, exact) < eps_bound(torch.float32, config.fft_size)


def test_a_clip_of_one_sample_has_a_gradient_as_mirrored() -> None:
    config = FbankConfig.preset("lhotse", use_log_fbank=False, window_shift=1, window_size=400)
    grad, waveform = inputs(config, 1, 3)
    out = gradient_numba(grad, waveform, config, [1])
    exact = waveform_gradient(grad.double(), waveform.double(), config, [1])
    assert relative_norm(out, exact) < eps_bound(torch.float32, config.fft_size)


def test_any_layout_is_read() -> None:
    grad, waveform = inputs(AST, 3, 4000)
    expected = gradient_numba(grad, waveform, AST, None)
    wide = noise(3, 8000)
    wide[:, 1::2] = waveform
    by_mel = grad.transpose(1, 2).contiguous().transpose(1, 2)
    for of_energies, samples in (
        (by_mel, waveform),
        (grad, wide[:, 1::2]),
        (torch._neg_view(-grad), torch._neg_view(-waveform)),
    ):
        assert torch.equal(gradient_numba(of_energies, samples, AST, None), expected)
    sums = gradient_numba(torch.ones(()).expand_as(grad), waveform, AST, None)
    assert torch.equal(sums, gradient_numba(torch.ones_like(grad), waveform, AST, None))


def test_a_second_gradient_is_that_of_the_formula() -> None:
    _, waveform = inputs(AST, 1, 1600)
    both = []
    for dtype, backend in ((torch.float64, "reference"), (torch.float32, "numba")):
        leaf = waveform.to(dtype).requires_grad_()
        energies = fbank(leaf, AST.replace(use_log_fbank=False), backend=backend)
        (slope,) = torch.autograd.grad(energies.sum(), leaf, create_graph=True)
        both.append(torch.autograd.grad(slope.square().sum(), leaf)[0])
    assert relative_norm(both[1], both[0]) < 1e-5
