"""A stream gives the frames of the whole, however it is cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_fast_kernels import FbankConfig, OnlineFbank, fbank
from ast_fast_kernels.fbank.presets import PRESETS

PLAIN = {"top_db": 0.0, "norm_per_feature": False}
CONFIGS = {
    **{name: FbankConfig.preset(name, **PLAIN) for name in PRESETS},
    "hop-beyond-window": FbankConfig(frame_shift=40.0),
    "mirrored-hop-beyond-window": FbankConfig(frame_shift=40.0, snip_edges=False),
    "lhotse-odd-shift": FbankConfig.preset("lhotse", window_shift=161),
    "reflected-emphasised": FbankConfig(
        preemphasis_over="waveform", snip_edges=False, center=True, pad_mode="reflect"
    ),
    "tail-last-dropped": FbankConfig(pad_tail=True, drop_last_frame=True),
}


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def streamed(waveform, cuts: list[int], config: FbankConfig, backend: str = "auto"):
    stream = OnlineFbank(config, backend=backend)
    bounds = [0, *sorted(cuts), waveform.shape[-1]]
    parts = [stream.accept_waveform(waveform[..., first:last]) for first, last in pairwise(bounds)]
    parts.append(stream.finish())
    join = torch.cat if isinstance(waveform, torch.Tensor) else np.concatenate
    return join(parts, -2)


@settings(max_examples=250, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(list(CONFIGS)),
    num_samples=st.one_of(st.integers(0, 900), st.integers(0, 9000)),
    places=st.lists(st.floats(0, 1), max_size=12),
)
def test_any_cuts_give_the_bits_of_the_whole(
    name: str, num_samples: int, places: list[float]
) -> None:
    config = CONFIGS[name]
    waveform = noise(num_samples, seed=num_samples)
    cuts = [int(place * num_samples) for place in places]
    out = streamed(waveform, cuts, config, "numba")
    assert out.shape == (config.num_frames(num_samples), config.num_mel_bins)
    if len(out):
        np.testing.assert_array_equal(out, fbank(waveform, config, backend="numba"))


@pytest.mark.parametrize("name", CONFIGS)
def test_reference_agrees_in_float64(name: str) -> None:
    config = CONFIGS[name].replace(use_log_fbank=False)
    waveform = torch.from_numpy(noise(2, 7001).astype(np.float64))
    out = streamed(waveform, [1, 500, 501, 3000], config, "reference")
    torch.testing.assert_close(out, fbank(waveform, config, backend="reference"), rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ["ast", "lhotse"])
def test_one_sample_at_a_time(name: str) -> None:
    waveform = noise(1700)
    out = streamed(waveform, list(range(1, 1700)), CONFIGS[name])
    np.testing.assert_array_equal(out, fbank(waveform, CONFIGS[name]))


@pytest.mark.parametrize("kind", ["numpy-float32", "numpy-int16", "torch-float32", "torch-int16"])
def test_kind_and_leading_dimensions_are_kept(kind: str) -> None:
    library, dtype = kind.split("-")
    samples = (noise(2, 3, 4000) * 32768).astype(dtype)
    waveform = torch.from_numpy(samples) if library == "torch" else samples
    out = streamed(waveform, [0, 1000, 1000], FbankConfig())
    expected = fbank(waveform)
    assert type(out) is type(expected)
    assert out.dtype == expected.dtype
    np.testing.assert_array_equal(np.asarray(out), np.asarray(expected))


def test_frames_come_as_soon_as_they_are_complete() -> None:
    stream = OnlineFbank()
    assert stream.accept_waveform(noise(399)).shape == (0, 128)
    assert stream.accept_waveform(noise(1)).shape == (1, 128)
    assert stream.accept_waveform(noise(159)).shape == (0, 128)
    assert stream.accept_waveform(noise(161)).shape == (2, 128)
    assert stream.finish().shape == (0, 128)


def test_a_bad_sample_touches_its_own_frames_only() -> None:
    waveform = noise(8000)
    waveform[4000] = np.nan
    np.testing.assert_array_equal(streamed(waveform, [2000, 4100], FbankConfig()), fbank(waveform))


def test_the_callers_memory_may_be_used_again() -> None:
    waveform, buffer = noise(4000), np.empty(500, np.float32)
    stream, parts = OnlineFbank(), []
    for first in range(0, 4000, 500):
        buffer[:] = waveform[first : first + 500]
        parts.append(stream.accept_waveform(buffer))
    np.testing.assert_array_equal(np.concatenate([*parts, stream.finish()]), fbank(waveform))


@pytest.mark.parametrize("name", CONFIGS)
def test_few_samples_are_held(name: str) -> None:
    config = CONFIGS[name]
    stream = OnlineFbank(config)
    for _ in range(40):
        stream.accept_waveform(noise(1000))
        most = 3 * config.window_size + 2 * config.window_shift + 2
        assert stream._held.shape[-1] <= most + 1000
        assert stream._held.base is None  # no view of a whole chunk


def test_chunks_of_a_memory_map_are_taken(tmp_path) -> None:
    np.save(tmp_path / "waves.npy", noise(4000))
    waveform = np.load(tmp_path / "waves.npy", mmap_mode="r")
    np.testing.assert_array_equal(streamed(waveform, [500, 1700], FbankConfig()), fbank(waveform))


def test_a_chunk_that_cannot_be_computed_is_not_taken() -> None:
    stream = OnlineFbank(backend="numba")
    waveform = noise(4000).astype(np.float64)
    stream.accept_waveform(waveform[:300])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="numba needs a float32 or int16 waveform"):
            stream.accept_waveform(waveform[300:])
    assert stream._num_samples == 300


def test_what_only_a_logarithm_has_is_no_obstacle_without_one() -> None:
    config = FbankConfig.preset("librosa", use_log_fbank=False)
    waveform = noise(9000)
    np.testing.assert_array_equal(streamed(waveform, [4000], config), fbank(waveform, config))


def test_reset_begins_another_stream() -> None:
    stream = OnlineFbank()
    stream.accept_waveform(noise(3, 500))
    stream.finish()
    stream.reset()
    out = stream.accept_waveform(noise(4000))
    np.testing.assert_array_equal(out, fbank(noise(4000)))


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(TypeError, match="config must be an FbankConfig, got str"):
        OnlineFbank("ast")
    for field, value in {"top_db": 80.0, "norm_per_feature": True}.items():
        with pytest.raises(ValueError, match=f"config must have {field} .* in a stream, because"):
            OnlineFbank(FbankConfig(**{field: value}))
    stream = OnlineFbank()
    with pytest.raises(RuntimeError, match="the stream is empty; call accept_waveform"):
        stream.finish()
    with pytest.raises(TypeError, match="waveform must be a tensor or a numpy array, got list"):
        stream.accept_waveform([0.0])
    with pytest.raises(TypeError, match="waveform must be float32, float64, int16, got int32"):
        stream.accept_waveform(np.zeros(10, np.int32))
    with pytest.raises(ValueError, match=r"waveform must be \(..., num_samples\), got \(\)"):
        stream.accept_waveform(np.float32(1)[...])
    stream.accept_waveform(noise(2, 10))
    with pytest.raises(TypeError, match="like the first chunk, got ndarray of int16"):
        stream.accept_waveform(np.zeros((2, 5), np.int16))
    with pytest.raises(TypeError, match="like the first chunk, got Tensor of"):
        stream.accept_waveform(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"leading dimensions \(2,\) .* got \(3, 5\)"):
        stream.accept_waveform(noise(3, 5))
    stream.finish()
    for call in (stream.finish, lambda: stream.accept_waveform(noise(2, 5))):
        with pytest.raises(RuntimeError, match=r"finished.*; call reset\(\)"):
            call()
