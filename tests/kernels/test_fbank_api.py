"""What callers of `fbank` may rely on, whatever the backend."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_fast_kernels import Fbank, FbankConfig, fbank, use_backend
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.testing.budgets import (
    LOG_MEL_MAX,
    LOG_MEL_MEAN,
    eps_bound,
    log_mel_error,
    relative_norm,
)
from ast_fast_kernels.testing.signals import SIGNALS, make_signal

AST = FbankConfig()
BACKENDS = ["reference", "numba"]
CONFIGS = {
    "ast": AST,
    "kaldi": FbankConfig.preset("kaldi"),
    "seed": FbankConfig.preset("seed"),
    "kaldi-mirrored-edges": FbankConfig.preset("kaldi", snip_edges=False),
    "44-khz": FbankConfig(sample_frequency=44100.0),
}

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


def oracle(waveform: torch.Tensor, config: FbankConfig = AST) -> torch.Tensor:
    return fbank(waveform.double(), config, backend="reference")


def assert_alike(backend: str, out: torch.Tensor, expected: torch.Tensor) -> None:
    """Bit for bit from numba; torch's sums go by the shape of what it is given."""
    atol = 0.0 if backend == "numba" else 1e-5
    torch.testing.assert_close(out, expected, rtol=0, atol=atol, equal_nan=True)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", SIGNALS)
def test_float32_agrees_with_float64(backend: str, name: str, config: FbankConfig) -> None:
    waveform = torch.from_numpy(make_signal(name, 24000)).float()
    before_log = config.replace(use_log_fbank=False)
    expected = oracle(waveform, before_log)
    # An FFT, its windowed input and a filter's sum; DC removal leaves a mean's rounding where
    # there was only a mean, so the bound counts from the input's energy as well.
    floor = eps_bound(torch.float32, config.fft_size) ** (2 if config.use_power else 1)
    energy = waveform.double().square().sum().item() ** (1.0 if config.use_power else 0.5)
    out = fbank(waveform, before_log, backend=backend)
    error = (out.double() - expected).norm().item()
    bound = eps_bound(torch.float32, config.fft_size) * expected.norm().item() + floor * energy
    assert error <= bound

    log_mel = fbank(waveform, config, backend=backend)
    audible = log_mel_error(log_mel, oracle(waveform, config), use_power=config.use_power)
    assert audible.max() <= LOG_MEL_MAX


FRAMINGS: list[dict[str, object]] = [
    {"snip_edges": True},
    {"snip_edges": True, "pad_tail": True},
    {"snip_edges": False},
    {"snip_edges": False, "center": True},
]


AXES, NORMS = ("mel", "hertz", "bins"), ("none", "slaney")
SHAPES = ("symmetric", "rectangular", "gaussian")


@st.composite
def conventions(draw: st.DrawFn) -> FbankConfig:
    n_fft = draw(st.sampled_from([64, 200, 512]))
    window_size = draw(st.integers(n_fft // 8, n_fft))
    filters = draw(
        st.sampled_from(
            [
                *({"triangle_axis": axis, "mel_norm": norm} for axis in AXES for norm in NORMS),
                *({"triangle_axis": "hertz", "filter_shape": shape} for shape in SHAPES),
            ]
        )
    )
    return FbankConfig.from_samples(
        sample_frequency=1000.0,
        window_size=window_size,
        window_shift=draw(st.integers(1, 3 * window_size)),
        n_fft=n_fft,
        window_type=draw(st.sampled_from(["hanning", "povey", "rectangular", "blackman"])),
        window_periodic=draw(st.booleans()),
        waveform_scale=draw(st.sampled_from([1.0, 32768.0])),
        remove_dc_offset=draw(st.booleans()),
        preemphasis_coefficient=draw(st.sampled_from([0.0, 0.97, 1.0])),
        preemphasis_over=draw(st.sampled_from(["frame", "waveform"])),
        **draw(st.sampled_from(FRAMINGS)),
        pad_mode=draw(st.sampled_from(["symmetric", "reflect", "constant"])),
        drop_last_frame=draw(st.booleans()),
        use_power=draw(st.booleans()),
        divide_by_n_fft=draw(st.booleans()),
        num_mel_bins=draw(st.integers(1, 70)),
        low_freq=draw(st.sampled_from([0.0, 20.0])),
        high_freq=draw(st.sampled_from([0.0, -100.0])),
        mel_scale=draw(st.sampled_from(["htk", "slaney"])),
        **filters,
        use_log_fbank=False,
    )


@settings(max_examples=120, deadline=None, derandomize=True)
@given(config=conventions(), more=st.integers(0, 3000), batch=st.integers(1, 3))
def test_any_convention_agrees_with_float64(
    backend: str, config: FbankConfig, more: int, batch: int
) -> None:
    waveform = noise(batch, config.window_size + more, seed=more)
    expected = oracle(waveform, config)
    out = torch.full(expected.shape, math.nan)
    fbank(waveform, config, out=out, backend=backend)
    # A frame's rounding lands in every filter, so it is measured by what the frames hold, not by
    # what few, narrow or badly placed filters let through.
    wide = config.replace(num_mel_bins=1, low_freq=0.0, high_freq=0.0, triangle_axis="hertz")
    wide = wide.replace(mel_norm="none", mel_scale="htk", filter_shape="triangular")
    total = oracle(waveform, wide).norm().item()
    peak = tables.mel_banks(config).max() * (config.fft_size if config.divide_by_n_fft else 1.0)
    bound = 4 * eps_bound(torch.float32, config.fft_size)
    error = (out.double() - expected).norm().item()
    assert error <= bound * max(expected.norm().item(), peak * total)


@pytest.mark.parametrize("num_samples", [400, 401, 559, 560, 1009, 4096, 80000])
def test_any_length_from_one_frame_on_gives_the_frames_of_the_config(
    backend: str, num_samples: int
) -> None:
    waveform = noise(2, num_samples)
    out = fbank(waveform, backend=backend)
    assert out.shape == (2, AST.num_frames(num_samples), 128)
    assert log_mel_error(out, oracle(waveform)).max() <= LOG_MEL_MAX


@pytest.mark.parametrize("num_samples", [0, 1, 79, 80, 81, 120, 160, 240, 399])
def test_clip_below_one_frame_is_mirrored_as_often_as_its_frames_need(
    backend: str, num_samples: int
) -> None:
    config = AST.replace(snip_edges=False)
    waveform = noise(2, num_samples)
    out = fbank(waveform, config, backend=backend)
    assert out.shape == (2, config.num_frames(num_samples), 128)
    if out.numel():
        assert log_mel_error(out, oracle(waveform, config)).max() <= LOG_MEL_MAX


@pytest.mark.parametrize("snip_edges", [True, False], ids=["whole-frames", "mirrored-edges"])
def test_leading_dimensions_are_a_batch(backend: str, snip_edges: bool) -> None:
    config = AST.replace(snip_edges=snip_edges)
    waveform = noise(2, 3, 1600)
    out = fbank(waveform, config, backend=backend)
    assert out.shape == (2, 3, config.num_frames(1600), 128)
    for i in range(2):
        for j in range(3):
            assert_alike(backend, out[i, j], fbank(waveform[i, j], config, backend=backend))


@pytest.mark.parametrize("shape", [(0, 1600), (2, 0, 1600)])
def test_empty_batch_gives_an_empty_batch(backend: str, shape: tuple[int, ...]) -> None:
    out = fbank(torch.empty(shape), backend=backend)
    assert out.shape == (*shape[:-1], 8, 128)
    assert out.dtype == torch.float32


def test_non_contiguous_waveform_is_read_as_it_lies(backend: str) -> None:
    wide = noise(3, 2, 1600)
    strided, permuted = wide[:, 1, ::2], wide.permute(1, 0, 2)
    assert torch.equal(
        fbank(strided, backend=backend), fbank(strided.contiguous(), backend=backend)
    )
    assert torch.equal(
        fbank(permuted, backend=backend), fbank(permuted.contiguous(), backend=backend)
    )


def test_waveform_is_left_as_it_was(backend: str) -> None:
    waveform = noise(2, 1600)
    before = waveform.clone()
    fbank(waveform, AST.replace(waveform_scale=32768.0), backend=backend)
    assert torch.equal(waveform, before)


def test_int16_is_sample_over_32768(backend: str) -> None:
    samples = torch.randint(
        -32768, 32768, (2, 1600), generator=torch.Generator().manual_seed(0), dtype=torch.int16
    )
    out = fbank(samples, backend=backend)
    assert out.dtype == torch.float32
    assert torch.equal(out, fbank(samples.float() / 32768.0, backend=backend))


def test_numpy_in_gives_numpy_out(backend: str) -> None:
    waveform = noise(2, 1600)
    out = fbank(waveform.numpy(), backend=backend)
    assert isinstance(out, np.ndarray)
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out, fbank(waveform, backend=backend).numpy())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float32, np.int16], ids=["float32", "int16"])
def test_read_only_or_reversed_numpy_is_taken_without_a_warning(backend: str, dtype: type) -> None:
    waveform = (noise(2, 1600).numpy() * 1000).astype(dtype)
    expected = fbank(waveform, backend=backend)
    frozen = waveform.copy()
    frozen.setflags(write=False)
    np.testing.assert_array_equal(fbank(frozen, backend=backend), expected)
    mirrored = np.ascontiguousarray(waveform[:, ::-1])[:, ::-1]
    np.testing.assert_array_equal(fbank(mirrored, backend=backend), expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_bad_sample_makes_nan_of_its_frames_and_of_no_others(backend: str, bad: float) -> None:
    waveform = noise(1, 4000)
    clean = fbank(waveform, backend=backend)
    waveform[0, 2000] = bad
    out = fbank(waveform, backend=backend)
    hit = [m for m in range(out.shape[1]) if m * 160 <= 2000 < m * 160 + 400]
    assert out[0, hit].isnan().all()  # the empty filter too, as in torchaudio
    rest = [m for m in range(out.shape[1]) if m not in hit]
    assert_alike(backend, out[0, rest], clean[0, rest])


def test_silence_gives_log_silence(backend: str) -> None:
    for config in CONFIGS.values():
        num_samples = 2 * config.window_size
        out = fbank(torch.zeros(1, num_samples), config, backend=backend)
        torch.testing.assert_close(out, torch.full_like(out, config.log_silence), rtol=2e-6, atol=0)


@pytest.mark.parametrize("snip_edges", [True, False], ids=["whole-frames", "mirrored-edges"])
def test_lengths_give_each_waveform_its_own_frames_and_silence_beyond(
    backend: str, snip_edges: bool
) -> None:
    config = AST.replace(snip_edges=snip_edges)
    counts = [4000, 1009, 400, 399, 0]
    waveform = noise(5, 4000)
    out = fbank(waveform, config, lengths=counts, backend=backend)
    assert out.shape == (5, config.num_frames(4000), 128)
    num_frames = config.num_frames(torch.tensor(counts)).tolist()
    assert num_frames[3:] == ([0, 0] if snip_edges else [2, 0])
    for row, count, frames, one in zip(waveform, counts, num_frames, out, strict=True):
        assert (one[frames:] == torch.tensor(config.log_silence)).all()
        if frames:
            assert_alike(backend, one[:frames], fbank(row[:count], config, backend=backend))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor], ids=["list", "numpy", "torch"])
def test_lengths_have_the_batch_shape_whatever_holds_them(backend: str, kind) -> None:
    waveform = noise(2, 2, 1600)
    out = fbank(waveform, lengths=kind([[1600, 400], [0, 800]]), backend=backend)
    assert (out[1, 0] == torch.tensor(AST.log_silence)).all()
    assert torch.equal(out[0, 0], fbank(waveform, backend=backend)[0, 0])


def test_lengths_of_one_waveform_is_a_number_and_of_none_an_empty_list(backend: str) -> None:
    out = fbank(noise(1600), lengths=500, backend=backend)
    assert (out[1:] == torch.tensor(AST.log_silence)).all()
    assert fbank(torch.empty(0, 1600), lengths=[], backend=backend).shape == (0, 8, 128)


def test_out_is_filled_and_returned(backend: str) -> None:
    for shape, kwargs in (
        ((2, 3, 1600), {}),
        ((2, 1600), {"lengths": [1600, 500]}),
        ((2, 1600), {"lengths": [1600, 500], "config": AST.replace(snip_edges=False)}),
    ):
        waveform = noise(*shape)
        expected = fbank(waveform, backend=backend, **kwargs)
        out = torch.full_like(expected, math.nan)
        assert fbank(waveform, out=out, backend=backend, **kwargs) is out
        assert torch.equal(out, expected)
        array = np.full(expected.shape, np.nan, np.float32)
        assert fbank(waveform.numpy(), out=array, backend=backend, **kwargs) is array
        np.testing.assert_array_equal(array, expected.numpy())


def test_out_may_overlap_the_waveform(backend: str) -> None:
    rng = np.random.default_rng(0)
    configs = [
        AST.replace(num_mel_bins=bins, snip_edges=snip)
        for bins in (3, 80)
        for snip in (True, False)
    ]
    for call in range(300):
        config = configs[call % 4]
        waveform, out = overlapping_arrays(rng, config)
        lengths = rng.integers(0, waveform.shape[-1] + 1, len(waveform)) if call % 3 else None
        kwargs = {"config": config, "lengths": lengths, "backend": backend}
        expected = fbank(waveform, **kwargs)
        assert np.may_share_memory(waveform, out)
        if call % 2:
            # torch takes two views of numpy's memory for two storages.
            result = fbank(torch.from_numpy(waveform), out=torch.from_numpy(out), **kwargs).numpy()
        else:
            result = fbank(waveform, out=out, **kwargs)
        assert np.may_share_memory(result, out)
        np.testing.assert_array_equal(out, expected, err_msg=f"call {call}")


def test_autograd_knows_that_out_was_written(backend: str) -> None:
    factor = torch.ones(8, 128, requires_grad=True)
    out = torch.ones(8, 128)
    product = factor * out
    fbank(noise(1600), out=out, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        fbank(noise(1600), out=torch.ones(8, 128), backend=backend)


def overlapping_arrays(
    rng: np.random.Generator, config: FbankConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return a waveform of any strides, and an `out` for it in the same memory."""
    dtype = np.dtype(rng.choice(["int16", "float32"]))
    batch, num_samples, step = (int(rng.integers(*pair)) for pair in ((1, 4), (400, 1600), (1, 3)))
    size = batch * num_samples * step
    shape = (batch, config.num_frames(num_samples), config.num_mel_bins)
    pool = np.zeros(4 * size + 2 * 4 * math.prod(shape) + 64, np.uint8)
    begin = 4 * int(rng.integers(0, math.prod(shape)))
    samples = pool[begin : begin + size * dtype.itemsize].view(dtype)
    samples[:] = (rng.standard_normal(size) * (3000 if dtype == np.int16 else 0.1)).astype(dtype)
    if rng.random() < 0.3:
        waveform = samples.reshape(num_samples * step, batch).T[:, ::step]
    else:
        waveform = samples.reshape(batch, num_samples * step)[:, ::step]
    last = begin + samples.nbytes - 4
    first = max(0, begin - 4 * math.prod(shape) + 4)
    place = 4 * int(rng.integers(first // 4, last // 4 + 1))
    out = pool[place : place + 4 * math.prod(shape)].view(np.float32).reshape(shape)
    return waveform, out


@pytest.mark.parametrize(
    ("waveform", "error", "message"),
    [
        (
            torch.zeros(1, 320),
            ValueError,
            "waveform must be (..., num_samples) with num_samples >= 400 "
            "(frame_length 25 ms at 16000 Hz), got (1, 320)",
        ),
        (torch.zeros(399), ValueError, "got (399,)"),
        (torch.tensor(0.0), ValueError, "got ()"),
        ([0.0] * 400, TypeError, "waveform must be a tensor or a numpy array, got list"),
        (
            torch.zeros(400, dtype=torch.float16),
            TypeError,
            "waveform must be float32, float64 or int16, got float16",
        ),
        (
            np.ma.masked_equal(np.zeros(400, np.float32), 0.0),
            TypeError,
            "waveform must be an array without a mask, got MaskedArray",
        ),
        (
            np.zeros(400, np.int32),
            TypeError,
            "waveform must be float32, float64 or int16, got int32",
        ),
    ],
)
def test_bad_waveform_is_refused(backend: str, waveform, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fbank(waveform, backend=backend)


def test_lazily_negated_waveform_is_taken_as_its_values(backend: str) -> None:
    waveform = noise(2, 1600)
    negated = torch._neg_view(waveform)
    assert negated.is_neg()
    assert torch.equal(fbank(negated, backend=backend), fbank(-waveform, backend=backend))


@pytest.mark.parametrize("dtype", [np.float32, np.int16], ids=["float32", "int16"])
def test_any_strides_of_numpy_are_read_as_they_lie(backend: str, dtype: type) -> None:
    records = np.zeros((2, 1600), np.dtype([("sample", dtype), ("rest", np.int8)]))
    records["sample"] = noise(2, 1600).numpy() * 1000
    odd_strides = records["sample"]
    assert odd_strides.strides[1] % odd_strides.itemsize
    expected = fbank(odd_strides.copy(), backend=backend)
    np.testing.assert_array_equal(fbank(odd_strides, backend=backend), expected)
    one_row = np.broadcast_to(odd_strides[:1], (3, 1600))  # stride 0, and read-only
    np.testing.assert_array_equal(fbank(one_row, backend=backend), expected[[0, 0, 0]])
    reversed_row = odd_strides.copy()[1::-2]  # contiguous to numpy, in spite of its stride
    assert reversed_row.flags.c_contiguous
    assert reversed_row.strides[0] < 0
    np.testing.assert_array_equal(fbank(reversed_row, backend=backend), expected[1:])


def test_no_frames_of_a_memory_mapped_file_are_copied_with_it(backend: str, tmp_path) -> None:
    samples = (noise(2, 1600).numpy() * 1000).astype(np.int16)
    np.save(tmp_path / "samples.npy", samples)
    mapped = np.load(tmp_path / "samples.npy", mmap_mode="r")
    np.testing.assert_array_equal(fbank(mapped, backend=backend), fbank(samples, backend=backend))


def test_default_device_of_torch_does_not_matter(backend: str) -> None:
    waveform = noise(2, 1600)
    expected = fbank(waveform, lengths=[1600, 500], backend=backend)
    torch.set_default_device("meta")
    try:
        out = fbank(waveform, lengths=[1600, 500], backend=backend)
        array = fbank(waveform.numpy(), lengths=[1600, 500], backend=backend)
    finally:
        torch.set_default_device(None)
    assert torch.equal(out, expected)
    np.testing.assert_array_equal(array, expected.numpy())


def test_autocast_changes_nothing(backend: str) -> None:
    waveform = noise(2, 1600)
    expected = fbank(waveform, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = fbank(waveform, backend=backend)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_caller_gets_the_same(backend: str) -> None:
    torch.compiler.reset()
    module = Fbank(backend=backend)

    def louder(waveform: torch.Tensor) -> torch.Tensor:
        return module(2 * waveform, [1600, 500]).square() + fbank(waveform, backend=backend)

    waveform = noise(2, 1600)
    out = torch.compile(louder, backend="eager")(waveform)
    assert torch.equal(out, louder(waveform))


def test_config_must_be_one(backend: str) -> None:
    with pytest.raises(TypeError, match="config must be an FbankConfig, got str"):
        fbank(noise(1600), "ast", backend=backend)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([400], ValueError, "lengths must have shape (2,), got (1,)"),
        ([400, 1601], ValueError, "lengths must be from 0 to num_samples (1600), got 1601"),
        ([-1, 400], ValueError, "lengths must be from 0 to num_samples (1600), got -1"),
        ([0.5, 1.0], TypeError, "lengths must be integers, got float32"),
        ("ab", TypeError, "lengths must be integers of shape (2,), got 'ab'"),
        ([400, "ab"], TypeError, "lengths must be integers of shape (2,), got [400, 'ab']"),
        ([400, None], TypeError, "lengths must be integers of shape (2,), got [400, None]"),
        ([[400], [400, 1]], TypeError, "lengths must be integers of shape (2,), got [[400], [400"),
        (torch.tensor([True, True]), TypeError, "lengths must be integers, got bool"),
    ],
)
def test_bad_lengths_are_refused(backend: str, lengths, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fbank(noise(2, 1600), lengths=lengths, backend=backend)


def test_no_frame_at_all_gives_no_rows_with_and_without_out(backend: str) -> None:
    config = FbankConfig(frame_length=5.0, frame_shift=20.0, snip_edges=False)
    waveform, out = noise(2, 80), torch.empty(2, 0, 128)
    assert fbank(waveform, config, backend=backend).shape == (2, 0, 128)
    assert fbank(waveform, config, out=out, backend=backend) is out


def read_only(*shape: int) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    array.setflags(write=False)
    return array


@pytest.mark.parametrize(
    ("waveform", "out", "error", "message"),
    [
        (
            torch.zeros(1600),
            torch.zeros(8, 64),
            ValueError,
            "out must have shape (8, 128), got (8, 64)",
        ),
        (
            torch.zeros(1600),
            torch.zeros(8, 128, dtype=torch.float64),
            TypeError,
            "out must be float32, got float64",
        ),
        (
            torch.zeros(1600),
            torch.zeros(8, 128, device="meta"),
            ValueError,
            "out must be on cpu, as the waveform is, got meta",
        ),
        (
            torch.zeros(1600),
            torch.zeros(128, 8).T,
            ValueError,
            "out must be contiguous, got strides (1, 8)",
        ),
        (
            torch.zeros(1600),
            torch._neg_view(torch.zeros(8, 128)),
            ValueError,
            "out must be no view that negates its memory (torch's negative bit)",
        ),
        (
            torch.zeros(1600),
            np.zeros((8, 128), np.float32),
            TypeError,
            "out must be a tensor, as the waveform is, got ndarray",
        ),
        (
            np.zeros(1600, np.float32),
            torch.zeros(8, 128),
            TypeError,
            "out must be a numpy array, as the waveform is, got Tensor",
        ),
        (
            np.zeros(1600, np.int16),
            np.zeros((8, 128), np.float16),
            TypeError,
            "out must be float32, got float16",
        ),
        (
            np.zeros(1600, np.float32),
            np.zeros((128, 8), np.float32).T,
            ValueError,
            "out must be C-contiguous and writable",
        ),
        (
            np.zeros(1600, np.float32),
            read_only(8, 128),
            ValueError,
            "out must be C-contiguous and writable",
        ),
    ],
)
def test_bad_out_is_refused(backend: str, waveform, out, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fbank(waveform, out=out, backend=backend)


def test_out_is_refused_where_gradients_are_wanted(backend: str) -> None:
    waveform, out = torch.zeros(1600, requires_grad=True), torch.zeros(8, 128)
    with pytest.raises(ValueError, match="out must be None when gradients are needed, got a ten"):
        fbank(waveform, out=out, backend=backend)
    with torch.no_grad():
        assert fbank(waveform, out=out, backend=backend) is out


def test_module_runs_as_the_function_and_has_no_state(backend: str) -> None:
    config = AST.replace(num_mel_bins=40)
    module = Fbank(config, backend=backend)
    waveform = noise(2, 1600)
    assert torch.equal(module(waveform), fbank(waveform, config, backend=backend))
    assert torch.equal(
        module(waveform, [1600, 500]),
        fbank(waveform, config, lengths=[1600, 500], backend=backend),
    )
    assert not module.state_dict()
    assert repr(module) == f"Fbank(num_mel_bins=40, backend='{backend}')"
    assert repr(Fbank(backend=backend)) == f"Fbank(backend='{backend}')"


def test_use_backend_decides_where_the_call_names_none(backend: str) -> None:
    waveform = noise(1, 1600)
    with use_backend(fbank=backend):
        assert torch.equal(fbank(waveform), fbank(waveform, backend=backend))


def test_result_of_int16_preset_scale_is_shifted_by_the_scale(backend: str) -> None:
    waveform = noise(1, 1600)
    scaled = fbank(waveform, AST.replace(waveform_scale=32768.0), backend=backend)
    used = [i for i in range(128) if i != 3]
    shift = 2 * math.log(32768.0)
    plain = fbank(waveform, AST, backend=backend)
    torch.testing.assert_close(scaled[..., used], plain[..., used] + shift, rtol=0, atol=1e-4)


def test_relative_norm_of_a_batch_holds_at_five_seconds(backend: str) -> None:
    waveform = torch.stack(
        [torch.from_numpy(make_signal(name, 80000)).float() for name in ("bursts", "noise")]
    )
    config = AST.replace(use_log_fbank=False)
    out = fbank(waveform, config, backend=backend)
    assert relative_norm(out, oracle(waveform, config)) < eps_bound(torch.float32, 512)


@pytest.mark.data
@pytest.mark.parametrize("name", ["ast", "kaldi", "seed"])
def test_real_clips_agree_with_float64(backend: str, clips: np.ndarray, name: str) -> None:
    config = CONFIGS[name]
    waveform = torch.from_numpy(clips)
    out = fbank(waveform, config, backend=backend)
    error = log_mel_error(out, oracle(waveform, config), use_power=config.use_power)
    assert error.max() <= LOG_MEL_MAX
    assert error.mean() <= LOG_MEL_MEAN


def test_a_matrix_takes_the_result_too(backend: str) -> None:
    waveform = np.ones(4000, np.float32)
    out = np.asmatrix(np.zeros((23, 128), np.float32))
    assert fbank(waveform, out=out, backend=backend) is out
    assert (np.asarray(out) == fbank(waveform, backend=backend)).all()


def test_lengths_of_any_byte_order_count_alike(backend: str) -> None:
    waveforms = np.random.default_rng(0).standard_normal((2, 3000)).astype(np.float32)
    lengths = np.array([1000, 3000])
    expected = fbank(waveforms, lengths=lengths, backend=backend)
    assert (fbank(waveforms, lengths=lengths.astype(">i4"), backend=backend) == expected).all()
