"""Triton's filterbank against float64, in the interpreter and on a GPU."""

from __future__ import annotations

import math
import mmap
import re

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.fbank import triton_gpu
from ast_fast_kernels.fbank.presets import PRESETS
from ast_fast_kernels.testing.budgets import LOG_MEL_MAX, LOG_MEL_MEAN, log_mel_error, relative_norm

AST = FbankConfig()
source_index = triton_gpu._source_index

LAZY = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Flags of memory of which only the pages exist that are written to."""

WINDOWS = ("hanning", "hamming", "povey", "rectangular", "blackman")


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Noise whose loudness varies, so that frames differ."""
    generator = torch.Generator().manual_seed(seed)
    samples = 0.1 * torch.randn(shape, generator=generator)
    return samples * torch.linspace(0.01, 3.0, shape[-1])


def check(waveform: Tensor, config: FbankConfig, lengths: list[int] | None = None) -> None:
    """Hold features of a CPU waveform, computed on `device`, to the reference in float64."""
    exact = waveform.double() / 32768 if waveform.dtype == torch.int16 else waveform.double()
    exact = exact.cpu()
    out = fbank(waveform, config, lengths=lengths, backend="triton")
    energies = config.replace(use_log_fbank=False)
    before_log = fbank(waveform, energies, lengths=lengths, backend="triton")
    true = fbank(exact, energies, lengths=lengths, backend="reference")
    assert out.dtype == torch.float32
    assert out.shape == true.shape
    # Sums of 512 products twice, in float32: 8 eps sqrt(9 + 9) at the most.
    assert relative_norm(before_log.cpu(), true) < 4e-6
    expected = fbank(exact, config, lengths=lengths, backend="reference")
    if config.use_log_fbank:
        plain = config.replace(top_db=0.0, norm_per_feature=False, log_type="ln", output_scale=1.0)
        plain = plain.replace(output_shift=0.0)
        logs = fbank(waveform, plain, lengths=lengths, backend="triton").cpu()
        true_logs = fbank(exact, plain, lengths=lengths, backend="reference")
        assert log_mel_error(logs, true_logs, use_power=config.use_power).max() < LOG_MEL_MAX
        if not config.norm_per_feature:  # which magnifies quiet columns
            scale = max(config.log_factor, 1.0)
            assert (out.cpu() - expected).abs().max() < 20 * scale * LOG_MEL_MAX


def samples_of(config: FbankConfig, frames: int) -> int:
    return config.window_size + frames * config.window_shift + 13


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset(device: torch.device, preset: str) -> None:
    config = FbankConfig.preset(preset)
    check(noise(2, samples_of(config, 9)).to(device), config)


@pytest.mark.parametrize("preset", ["ast", "lhotse", "whisper"])
def test_int16(device: torch.device, preset: str) -> None:
    config = FbankConfig.preset(preset)
    waveform = noise(2, samples_of(config, 9)).clamp(-1, 1) * 32767
    check(waveform.to(device, torch.int16), config)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_ragged(device: torch.device, preset: str) -> None:
    config = FbankConfig.preset(preset)
    num_samples = samples_of(config, 6)
    lengths = [num_samples, num_samples - config.window_shift, config.window_size, 1, 0]
    waveform = noise(5, num_samples).to(device)
    check(waveform, config, lengths)
    out = fbank(waveform, config, lengths=lengths, backend="triton")
    poisoned = waveform.clone()
    for row, length in zip(poisoned, lengths, strict=True):
        row[length:] = math.nan
    assert torch.equal(fbank(poisoned, config, lengths=lengths, backend="triton"), out)
    for row, features, length in zip(waveform, out, lengths, strict=True):
        num_frames = config.num_frames(length)
        if num_frames and not config.needs_whole_clip:
            alone = fbank(row[:length], config, backend="triton")
            if config.fft_size == 512:
                assert torch.equal(features[:num_frames], alone)
            else:  # cuFFT may choose another algorithm for another batch
                torch.testing.assert_close(features[:num_frames], alone, rtol=1e-5, atol=1e-6)
            assert (features[num_frames:] == np.float32(config.log_silence)).all()


@pytest.mark.parametrize(
    "changes",
    [
        *({"window_type": name} for name in WINDOWS),
        {"remove_dc_offset": False, "preemphasis_coefficient": 0.0},
        {"use_log_fbank": False},
        {"use_power": False},
        {"snip_edges": False},
        {"snip_edges": False, "left_padding": "lhotse", "frame_shift": 10.0625},  # 161 samples
        {"snip_edges": False, "pad_mode": "reflect"},
        {"snip_edges": False, "center": True, "pad_mode": "constant"},
        {"preemphasis_over": "waveform", "snip_edges": False},
        {"n_fft": 480},
        {"n_fft": 480, "window_type": "rectangular"},  # which sees a frame's first sample
        {"n_fft": 1000},
        {"n_fft": 8192},
        {"num_mel_bins": 1},
        {"num_mel_bins": 200},
        {"frame_length": 1.0, "frame_shift": 3.0},
        {"vtln_warp": 1.1, "num_mel_bins": 40},
        {"floor_zeros_only": True},
        {"filter_shape": "rectangular", "triangle_axis": "hertz"},
        {"filter_shape": "gaussian", "triangle_axis": "hertz"},  # which reaches Nyquist
    ],
    ids=str,
)
def test_any_convention(device: torch.device, changes: dict[str, object]) -> None:
    config = FbankConfig(**changes)
    check(noise(1, samples_of(config, 5)).to(device), config)


@pytest.mark.parametrize("num_samples", [1, 2, 79, 80, 159, 399])
@pytest.mark.parametrize("pad_mode", ["symmetric", "reflect", "constant"])
def test_a_clip_shorter_than_its_frames(device, num_samples: int, pad_mode: str) -> None:
    config = AST.replace(snip_edges=False, pad_mode=pad_mode, low_freq=100.0, num_mel_bins=20)
    waveform = noise(2, num_samples, seed=3).to(device)
    out = fbank(waveform, config, backend="triton")
    expected = fbank(waveform.cpu().double(), config, backend="reference")
    assert out.shape == expected.shape
    if out.numel():
        assert (out.cpu() - expected).abs().max() < 20 * LOG_MEL_MAX


@pytest.mark.data
def test_real_clips_keep_to_the_budget(device: torch.device, clips: np.ndarray) -> None:
    waveform = torch.from_numpy(clips)[:, 16000:20000]
    out = fbank(waveform.to(device), AST, backend="triton").cpu()
    errors = log_mel_error(out, fbank(waveform.double(), AST, backend="reference"))
    assert errors.max() < LOG_MEL_MAX
    assert errors.mean() < LOG_MEL_MEAN


@pytest.mark.data
def test_a_dft_by_tf32_loses_quiet_bins(clips: np.ndarray) -> None:
    """Why frames go through a float32 FFT: tensor cores' own precision breaks the budget."""
    from ast_fast_kernels.fbank import reference
    from ast_fast_kernels.testing.interpreter import to_tf32

    waveform = torch.from_numpy(clips[:2, 16000:32000])
    frames = reference.preemphasise(reference.prepare_frames(waveform, AST), AST)
    frames = reference.apply_window(frames, AST).numpy()
    angles = 2 * np.pi / AST.fft_size * np.outer(np.arange(AST.window_size), np.arange(257))
    exact = fbank(waveform.double(), AST, backend="reference")
    errors = {}
    for name, rounded in (("float32", np.float32), ("tf32", to_tf32)):
        parts = [
            rounded(frames) @ rounded(basis.astype(np.float32))
            for basis in (np.cos(angles), np.sin(angles))
        ]
        power = torch.from_numpy(parts[0] ** 2 + parts[1] ** 2)
        out = reference.log_energies(reference.apply_mel_banks(power, AST), AST)
        errors[name] = log_mel_error(out, exact).max().item()
    assert errors["float32"] < 4 * LOG_MEL_MAX
    assert errors["tf32"] > 100 * LOG_MEL_MAX


@pytest.mark.parametrize(
    ("waveform", "expected"),
    [
        (torch.zeros(1, 1000), "floor"),
        (torch.full((1, 1000), 0.7), "floor"),
        (torch.full((1, 1000), 1e-42), "floor"),
        (torch.full((1, 1000), 32767, dtype=torch.int16), "floor"),
        (torch.tensor([1.0, -1.0]).repeat(1, 500), "loud"),
    ],
    ids=["silence", "constant", "denormal", "full-scale", "nyquist"],
)
def test_extremes(device: torch.device, waveform: Tensor, expected: str) -> None:
    out = fbank(waveform.to(device), AST, backend="triton").cpu()
    assert out.isfinite().all()
    if expected == "floor":
        assert (out - AST.log_silence).abs().max() < 1e-5
    else:
        assert out.max() > 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_stays_in_its_frames(device: torch.device, value: float) -> None:
    waveform = noise(2, 2000)
    waveform[0, 700] = value
    out = fbank(waveform.to(device), AST, backend="triton").cpu()
    touched = [start * 160 <= 700 < start * 160 + 400 for start in range(out.shape[1])]
    assert out[0, touched].isnan().all()
    assert out[0, [not hit for hit in touched]].isfinite().all()
    assert out[1].isfinite().all()


def test_clips_are_read_where_they_lie(device: torch.device) -> None:
    wide = noise(4, 2000).to(device)
    for view in (wide[::2], wide[:, ::2], wide[:, 3:1500], wide.T[:1500].T):
        dense = fbank(view.contiguous(), AST, backend="triton")
        assert torch.equal(fbank(view, AST, backend="triton"), dense)
    assert torch.equal(fbank(wide[0], AST, backend="triton"), fbank(wide, backend="triton")[0])


def test_out_takes_the_result(device: torch.device) -> None:
    waveform = noise(2, 1000).to(device)
    out = torch.empty(2, 4, 128, device=device)
    assert fbank(waveform, AST, out=out, backend="triton") is out
    assert torch.equal(out, fbank(waveform, AST, backend="triton"))


@pytest.mark.parametrize("preset", ["librosa", "whisper"])
def test_chunks_change_nothing(device: torch.device, preset: str, monkeypatch) -> None:
    from ast_fast_kernels.fbank import triton_gpu

    config = FbankConfig.preset(preset)
    waveform = noise(3, 1700).to(device)
    whole = fbank(waveform, config, backend="triton")
    monkeypatch.setattr(triton_gpu, "_frames_of_a_chunk", lambda *_: 7)
    chunked = fbank(waveform, config, backend="triton")
    # cuFFT may choose another algorithm for another batch.
    torch.testing.assert_close(chunked, whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(0, 1000), (2, 400), (1, 2, 500)], ids=str)
def test_any_leading_shape(device: torch.device, shape: tuple[int, ...]) -> None:
    waveform = noise(*shape).to(device)
    out = fbank(waveform, AST, backend="triton")
    expected = fbank(waveform.cpu().double(), AST, backend="reference")
    assert out.shape == expected.shape
    torch.testing.assert_close(out.cpu().double(), expected, rtol=0, atol=20 * LOG_MEL_MAX)


def test_lengths_may_be_on_the_device(device: torch.device) -> None:
    waveform = noise(3, 2000).to(device)
    listed = fbank(waveform, AST, lengths=[2000, 700, 0], backend="triton")
    counts = torch.tensor([2000, 700, 0], device=device)
    assert torch.equal(fbank(waveform, AST, lengths=counts, backend="triton"), listed)


def test_wrong_lengths_are_refused(device: torch.device) -> None:
    message = "lengths must be from 0 to num_samples (2000), got 2001"
    with pytest.raises(ValueError, match=re.escape(message)):
        fbank(noise(1, 2000).to(device), AST, lengths=[2001], backend="triton")


def test_gradient_is_the_reference_s(device: torch.device) -> None:
    waveform = noise(2, 1000).to(device).requires_grad_()
    grads = []
    for backend in ("triton", "reference"):
        out = fbank(waveform, AST, lengths=[1000, 700], backend=backend)
        grads.append(torch.autograd.grad(out.sum(), waveform)[0])
    torch.testing.assert_close(*grads, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("n_fft", "dtype"), [(512, torch.int32), (400, torch.int64), (400, torch.uint8)], ids=str
)
def test_lengths_may_be_a_column_of_a_table(
    device: torch.device, n_fft: int, dtype: torch.dtype
) -> None:
    config = FbankConfig.from_samples(
        window_size=64, window_shift=40, sample_frequency=16000.0, n_fft=n_fft, num_mel_bins=8
    )
    waveform = noise(3, 300).to(device)
    table = torch.tensor([[200, 9], [100, 41], [250, 2]], dtype=dtype, device=device)
    expected = fbank(waveform, config, lengths=[200, 100, 250], backend="triton")
    out = triton_gpu.fbank_triton(waveform, config, counts=table[:, 0])
    assert torch.equal(out, expected)
    assert torch.equal(fbank(waveform, config, lengths=table[:, 0], backend="triton"), expected)


def test_clips_beyond_one_launch_take_another(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    waveform, counts = noise(3, 2000).to(device), torch.tensor([2000, 900, 1500], device=device)
    expected = triton_gpu.fbank_triton(waveform, AST, counts=counts)
    monkeypatch.setattr(triton_gpu, "MOST_PLACES", 4)  # 11 frames are 2 blocks: 2 clips a launch
    assert triton_gpu.clips_of_a_launch(11, 8) == 2
    assert torch.equal(triton_gpu.fbank_triton(waveform, AST, counts=counts), expected)


@triton.jit
def _source_index_kernel(index_ptr, count_ptr, out_ptr, PADDING: tl.constexpr):
    places = tl.arange(0, 4096)
    index, count = tl.load(index_ptr + places), tl.load(count_ptr + places)
    tl.store(out_ptr + places, source_index(index, count, PADDING))


@pytest.mark.parametrize("padding", ["symmetric", "reflect"])
def test_mirrored_places_do_not_overflow(device: torch.device, padding: str) -> None:
    rng = np.random.default_rng(0)
    last = triton_gpu.MOST_PLACES - 1
    counts = rng.choice([1, 2, 3, 100, 2**20, 2**30, 2**30 + 1, last - 1, last], 4096)
    beyond = rng.integers(-8192, 8192, 4096)
    index = np.where(rng.random(4096) < 0.5, beyond, counts + beyond)
    out = torch.zeros(4096, dtype=torch.int32, device=device)
    given = (torch.from_numpy(array.astype(np.int32)).to(device) for array in (index, counts))
    _source_index_kernel[1,](*given, out, triton_gpu.PADDING[padding])
    repeats = 1 if padding == "symmetric" else 0
    period = np.maximum(2 * (counts - 1 + repeats), 1)
    expected = index % period
    expected = np.where(expected < counts, expected, period - repeats - expected)
    np.testing.assert_array_equal(out.cpu().numpy(), expected)


@pytest.mark.parametrize("n_fft", [512, 400], ids=["fused", "in-chunks"])
def test_a_clip_of_more_than_2_to_the_30_samples_is_mirrored(
    device: torch.device, n_fft: int
) -> None:
    hop, window = 2**28, 320
    config = FbankConfig.from_samples(
        window_size=window, window_shift=hop, sample_frequency=16000.0, n_fft=n_fft,
        snip_edges=False, center=True, pad_mode="reflect", num_mel_bins=8,
    )  # fmt: skip
    num_samples = 4 * hop + 30
    pages = mmap.mmap(-1, 2 * num_samples, flags=LAZY)
    clip = torch.frombuffer(pages, dtype=torch.int16)
    for first in (0, hop - 200, 4 * hop - 200):  # only these pages are real
        part = clip[first : first + 400]
        part.copy_((1000 * noise(len(part), seed=first % 7)).to(torch.int16))
    index = np.arange(5)[:, None] * hop + config.first_sample + np.arange(window)
    index = np.abs(index)
    index = np.where(index < num_samples, index, 2 * (num_samples - 1) - index)
    frames = clip[torch.from_numpy(index)].to(device)
    expected = fbank(frames, config.replace(snip_edges=True, center=False), backend="triton")
    out = fbank(clip[None].to(device), config, backend="triton")
    assert torch.equal(out[0], expected[:, 0])


def test_equal_samples_have_the_features_of_silence(device: torch.device) -> None:
    values = torch.tensor([12345.0, 0.1, -7.3e20])
    for changes in ({"num_mel_bins": 32}, {"n_fft": 400, "num_mel_bins": 16, "snip_edges": False}):
        config = FbankConfig.preset("kaldi", **changes)
        waveform = values[:, None].expand(3, 560).to(device)
        out = fbank(waveform, config, backend="triton").cpu()
        assert (out == torch.tensor(np.float32(config.log_silence))).all()


@pytest.mark.parametrize("n_fft", [512, 400], ids=["fused", "in-chunks"])
def test_magnitudes_hold_at_every_scale(device: torch.device, n_fft: int) -> None:
    config = AST.replace(n_fft=n_fft, num_mel_bins=16, use_power=False, log_floor=1.2e-38)
    scales = torch.tensor([1e-30, 1e-24, 1e-19, 1e-12, 1.0, 1e12, 1e19, 1e25, 1e33])[:, None]
    waveform = (noise(1, 560) * scales).to(device)
    out = fbank(waveform, config, backend="triton").cpu()
    expected = fbank(waveform.double().cpu(), config, backend="reference")
    assert log_mel_error(out, expected, use_power=False).max() < LOG_MEL_MAX


def test_out_may_overlap_the_waveform(device: torch.device) -> None:
    config = AST.replace(num_mel_bins=8)
    generator = torch.Generator().manual_seed(0)
    for n_fft in (512, 400, 400, 400):
        place = int(torch.randint(460, 1690, (1,), generator=generator))
        pool = noise(2000).to(device)
        waveform, out = pool[500:1700], pool[place : place + 6 * 8].view(6, 8)
        changed = config.replace(n_fft=n_fft)
        expected = fbank(waveform, changed, backend="triton")
        assert torch.equal(fbank(waveform, changed, out=out, backend="triton"), expected)


def test_what_it_cannot_run_is_refused_by_name(device: torch.device) -> None:
    waveform = noise(1, 1000).to(device)
    for given, config, message in (
        (waveform.double(), AST, "triton needs a float32 or int16 waveform, got float64"),
        (waveform, AST.replace(dither=1.0), "triton adds no dither, got dither 1"),
        (waveform, AST.replace(n_fft=8194), "triton needs an FFT length of at most 8192, got 8194"),
        (
            waveform[:, :1].expand(1, 2**31),
            AST,
            "triton needs fewer than 2147450880 samples a clip, got 2147483648",
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            fbank(given, config, backend="triton")


def test_tables_that_a_capture_could_not_copy_are_asked_for(monkeypatch) -> None:
    """Without a GPU: tensors of the device are the CPU's."""
    config, cuda = FbankConfig(num_mel_bins=57), torch.device("cuda", 0)
    from_numpy, capturing = torch.from_numpy, []

    class OnHost:
        def __init__(self, array: np.ndarray) -> None:
            self.array = array

        def to(self, device: torch.device) -> Tensor:
            assert device == cuda
            return from_numpy(self.array)

    monkeypatch.setattr(torch, "from_numpy", OnHost)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: bool(capturing))
    make = [
        lambda: triton_gpu.device_tables(config, cuda, 32),
        lambda: triton_gpu.fused_tables(config, cuda, False),
    ]
    capturing.append(True)
    for run in make:
        for _ in range(2):  # a refusal is not remembered
            with pytest.raises(RuntimeError, match=r"not on cuda:0 yet.*before the capture"):
                run()
    capturing.clear()
    before = [run() for run in make]
    capturing.append(True)
    for run, tables in zip(make, before, strict=True):
        assert all(a is b for a, b in zip(run(), tables, strict=True))
    triton_gpu.device_tables.cache_clear()
    triton_gpu.fused_tables.cache_clear()
