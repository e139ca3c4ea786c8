"""Dither: its noise, its keys, and the kernel's against the reference's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ast_fast_kernels import FbankConfig, OnlineFbank, fbank, kaldi, use_backend
from ast_fast_kernels.fbank import arrays, dither, numba_randn
from ast_fast_kernels.fbank.numba_cpu import run_blocks
from ast_fast_kernels.fbank.reference import fbank_reference
from ast_fast_kernels.testing.budgets import relative_norm

AST = FbankConfig(dither=0.1)
CONFIGS = {
    "frames": AST,
    "int16-scale": AST.replace(waveform_scale=32768.0, dither=1.0),
    "no-dc-no-preemphasis": AST.replace(remove_dc_offset=False, preemphasis_coefficient=0.0),
    "odd-window": FbankConfig.from_samples(
        window_size=399, window_shift=161, sample_frequency=16000.0, dither=0.1
    ),
    "magnitudes": AST.replace(use_power=False),
    "faint-magnitudes": AST.replace(use_power=False, dither=1e-24),
    "waveform": AST.replace(dither_over="waveform"),
    "waveform-mirrored": AST.replace(dither_over="waveform", snip_edges=False),
    "waveform-emphasised": AST.replace(
        dither_over="waveform", preemphasis_over="waveform", snip_edges=False, center=True,
        pad_mode="reflect",
    ),
}  # fmt: skip


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def keys_of(count: int) -> torch.Tensor:
    torch.manual_seed(0)
    return dither.draw_keys((count,), torch.device("cpu"))


@pytest.mark.parametrize("kind", ["float32", "int16"])
@pytest.mark.parametrize("name", CONFIGS)
def test_numba_adds_the_noise_of_the_reference(name: str, kind: str) -> None:
    config = CONFIGS[name].replace(use_log_fbank=False)
    waveform = noise(2, 9001) * (name != "faint-magnitudes")
    if kind == "int16":
        waveform = (waveform * 32768).to(torch.int16)
    for num_samples in (config.window_size, 9001):
        part = waveform[:, :num_samples]
        outs = []
        exact = part.double() / 32768 if kind == "int16" else part.double()
        for given, backend in ((exact, "reference"), (part, "reference"), (part, "numba")):
            torch.manual_seed(0)
            outs.append(fbank(given, config, backend=backend))
        budget = max(2 * relative_norm(outs[1], outs[0]), 400 * 1.2e-7 / 16)
        assert relative_norm(outs[2], outs[0]) <= budget
        assert relative_norm(outs[2], fbank(part, config.replace(dither=0.0))) > 1e-5


@pytest.mark.parametrize("name", ["frames", "waveform"])
def test_neither_threads_nor_batches_nor_lengths_change_a_bit(name: str) -> None:
    waveform, config = noise(20, 40007), CONFIGS[name]
    torch.manual_seed(0)
    together = fbank(waveform, config, backend="numba")
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    torch.manual_seed(0)
    try:
        assert torch.equal(fbank(waveform, config, backend="numba"), together)
    finally:
        torch.set_num_threads(before)
    torch.manual_seed(0)
    alone = torch.stack([fbank(clip, config, backend="numba") for clip in waveform])
    assert torch.equal(alone, together)
    torch.manual_seed(0)
    shorter = fbank(waveform, config, lengths=[8000] * 20, backend="numba")
    assert torch.equal(shorter[:, :48], together[:, :48])
    assert not torch.equal(fbank(waveform, config, backend="numba"), together)


@pytest.mark.parametrize("name", ["frames", "waveform"])
@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_a_stream_has_the_noise_of_the_whole(name: str, backend: str) -> None:
    waveform, config = noise(2, 9001).numpy(), CONFIGS[name].replace(use_log_fbank=False)
    np.random.seed(0)  # noqa: NPY002 - what keys of arrays come from
    whole = fbank(waveform, config, backend=backend)
    np.random.seed(0)  # noqa: NPY002
    stream = OnlineFbank(config, backend=backend)
    parts = [stream.accept_waveform(part) for part in np.split(waveform, [100, 1777, 4000], -1)]
    out = np.concatenate([*parts, stream.finish()], axis=-2)
    if backend == "numba":
        np.testing.assert_array_equal(out, whole)
    np.testing.assert_allclose(out, whole, rtol=1e-3)
    stream.reset()
    assert not np.array_equal(stream.accept_waveform(waveform), whole)


def test_keys_come_from_the_generator_of_the_waveform_s_kind() -> None:
    torch.manual_seed(0)
    together = dither.draw_keys((2, 3), torch.device("cpu"))
    torch.manual_seed(0)
    alone = [dither.draw_keys((), torch.device("cpu")) for _ in range(6)]
    assert torch.equal(torch.stack(alone).view(2, 3, 2), together)
    np.random.seed(0)  # noqa: NPY002
    of_arrays = arrays.draw_keys((6,))
    np.random.seed(0)  # noqa: NPY002
    np.testing.assert_array_equal(of_arrays, [arrays.draw_keys(()) for _ in range(6)])
    assert len({*of_arrays[:, 0], *together[..., 0].flatten().tolist()}) == 12


def test_noise_is_normal_white_and_independent() -> None:
    clips, frames, size = 12, 300, 400
    keys = keys_of(clips)
    z = dither.noise_at(
        keys[:, None, 0], torch.arange(frames).expand(clips, -1), torch.arange(size)
    )
    count, flat = z.numel(), z.flatten().numpy()
    # Five standard errors each; six of noise's own at most.
    assert abs(z.mean()) < 5 / math.sqrt(count)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / count)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / count)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / count)
    assert z.abs().max() < 6
    for limit in (2.0, 3.0, 4.0, 4.5):
        expected = count * math.erfc(limit / math.sqrt(2))
        assert abs((z.abs() > limit).sum() - expected) < 5 * math.sqrt(expected)
    assert stats.kstest(flat, "norm").pvalue > 1e-4
    for values in (z, (z.square() - 1) / math.sqrt(2)):
        pairs = [
            *((values[..., lag:], values[..., :-lag]) for lag in (1, 2, 3, 4, 5, 16, 32, 200)),
            *((values[:, 1:, lag:], values[:, :-1, : size - lag]) for lag in range(8)),
            (values[1:], values[:-1]),
            (values[..., 1::2], values[..., ::2].square() - 1),
        ]
        for left, right in pairs:
            error = left.std() * right.std() / math.sqrt(left.numel())
            assert abs((left * right).mean()) < 5 * error
    # Quantiles of two numbers, 32 by 32: any dependence between pairs, and between frames.
    of_32 = (torch.special.ndtr(z) * 32).long().clamp(0, 31)
    for left, right in (
        *((of_32[..., lag:], of_32[..., :-lag]) for lag in (1, 2, 3, 4, 8, 16, 32)),
        (of_32[:, 1:], of_32[:, :-1]),
    ):
        cells = torch.bincount((32 * left + right).flatten(), minlength=1024)
        assert stats.chisquare(cells.numpy()).pvalue > 1e-5
    power = torch.fft.rfft(z[..., :256]).abs().square().mean(dim=(0, 1)) / 256
    assert (power[1:-1] - 1).abs().max() < 6 / math.sqrt(clips * frames)


def test_dither_has_a_gradient_by_every_way() -> None:
    results = []
    config = AST.replace(use_log_fbank=False)
    for given, backend in ((noise(2, 4000).double(), "reference"), (noise(2, 4000), "numba")):
        waveform = given.requires_grad_()
        torch.manual_seed(0)
        fbank(waveform, config, lengths=[4000, 3000], backend=backend).square().sum().backward()
        results.append(waveform.grad)
    assert relative_norm(results[1], results[0]) < 1e-5


@pytest.mark.parametrize("count", [16, 17, 31, 400, 623, 624, 640, 1249, 9200])
@pytest.mark.parametrize("drawn_before", [0, 1, 623, 624])
def test_draws_are_torchs_and_leave_its_generator_as_it_would(
    count: int, drawn_before: int
) -> None:
    assert numba_randn._is_known()
    torch.manual_seed(count)
    torch.rand(drawn_before)
    torch.randn(3)  # leaves a normal for the next draw of few
    state = torch.get_rng_state()
    expected = torch.randn(count)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.testing.assert_close(numba_randn.draw(count), expected, atol=3e-6, rtol=0)
    assert torch.equal(torch.get_rng_state(), after)


def test_torch_draws_itself_where_its_generator_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba_randn, "_is_known", lambda: False)
    for count in (3, 100):
        torch.manual_seed(0)
        expected = torch.randn(count)
        torch.manual_seed(0)
        assert torch.equal(numba_randn.draw(count, room=400), expected)


@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("count", [3, 400])
def test_torch_s_defaults_change_no_draw(
    count: int, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    expected = numba_randn.draw(count).clone()
    monkeypatch.setattr(numba_randn._of_thread, "memory", None)
    known = numba_randn._is_known.__wrapped__ if is_known else lambda: False
    monkeypatch.setattr(numba_randn, "_is_known", known)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        torch.manual_seed(0)
        drawn = numba_randn.draw(count)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    torch.testing.assert_close(drawn, expected, atol=3e-6, rtol=0)


@pytest.mark.parametrize("use_energy", [False, True])
@pytest.mark.parametrize("frame_length", [25.0, 23.1])  # 369 samples: no whole blocks of draws
@pytest.mark.parametrize("num_samples", [400, 1000, 9001])
def test_kaldi_s_kernel_and_reference_draw_the_same(
    num_samples: int, frame_length: float, use_energy: bool
) -> None:
    outs = []
    for backend in ("numba", "reference", "numba"):
        torch.manual_seed(0)
        with use_backend(fbank=backend):
            outs.append(
                kaldi.fbank(
                    noise(1, num_samples), dither=1.0, use_energy=use_energy,
                    frame_length=frame_length,
                )
            )  # fmt: skip
        outs.append(torch.get_rng_state())
    torch.testing.assert_close(outs[0], outs[2], atol=1e-4, rtol=0)
    assert torch.equal(outs[4], outs[0])
    assert torch.equal(outs[1], outs[3])


@pytest.mark.parametrize("kind", ["tensor", "array"])
def test_a_call_like_the_last_one_draws_its_own_keys(kind: str) -> None:
    waveform = noise(2, 4000) if kind == "tensor" else noise(2, 4000).numpy()
    outs = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - what keys of arrays come from
        fbank(noise(1, 400))  # a call of another kind lies before
        outs.append([torch.as_tensor(fbank(waveform, AST, backend="numba")) for _ in range(3)])
    assert all(map(torch.equal, *outs))
    assert not torch.equal(outs[0][0], outs[0][1])
    assert not torch.equal(outs[0][1], outs[0][2])
    if kind == "tensor":
        torch.manual_seed(0)
        with use_backend(fbank="reference"):
            expected = [fbank(waveform, AST) for _ in range(3)]
        torch.testing.assert_close(outs[0], expected, atol=1e-3, rtol=0)


def test_a_scale_of_zero_leaves_the_noise_alone() -> None:
    silence, nothing = torch.zeros(1, 1600), AST.replace(waveform_scale=0.0)
    outs = []
    for waveform, config in ((silence, AST), (noise(1, 1600), nothing)):
        torch.manual_seed(0)
        outs.append(fbank(waveform, config))
    torch.testing.assert_close(outs[1], outs[0], atol=1e-4, rtol=0)
    for scale in (0.0, -1e-40):
        with pytest.raises(RuntimeError, match="numba needs a waveform_scale that dither can be"):
            fbank(silence, AST.replace(waveform_scale=scale), backend="numba")
    without = nothing.replace(dither=0.0)
    expected = torch.full((1, 8, 128), without.log_silence)
    torch.testing.assert_close(fbank(noise(1, 1600), without, backend="numba"), expected)


@pytest.mark.parametrize("lanes", [4, 16])
def test_every_vector_width_adds_the_same_noise(lanes: int) -> None:
    config = FbankConfig.from_samples(
        window_size=32, window_shift=10, sample_frequency=16000.0, num_mel_bins=8, dither=0.1,
        dither_over="waveform", use_log_fbank=False,
    )  # fmt: skip
    waveform, keys = noise(2, 1001), keys_of(2)
    for changed in (config, config.replace(dither_over="frame")):
        out = torch.full((2, config.num_frames(1001), 8), torch.nan)
        run_blocks(waveform, out, changed, lanes, None, keys)
        expected = fbank_reference(waveform.double(), changed, keys=keys)
        assert relative_norm(out, expected) < 3e-6
