"""A stream gives the samples of the whole, however it is cut."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ast_fast_kernels import OnlineResample, resample
from ast_fast_kernels.resample.design import QUALITIES

RATES = [(44100, 16000), (48000, 16000), (8000, 16000), (16000, 44100), (22050, 16000), (9, 7)]


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, shape).astype(np.float32)


def streamed(waveform, cuts: list[int], rates, quality: str = "hq", backend: str = "auto"):
    stream = OnlineResample(*rates, quality=quality, backend=backend)
    bounds = [0, *sorted(cuts), waveform.shape[-1]]
    parts = [stream.accept_waveform(waveform[..., first:last]) for first, last in pairwise(bounds)]
    parts.append(stream.finish())
    join = torch.cat if isinstance(waveform, torch.Tensor) else np.concatenate
    return join(parts, -1)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    rates=st.sampled_from(RATES),
    quality=st.sampled_from(list(QUALITIES)),
    num_samples=st.one_of(st.integers(0, 900), st.integers(0, 9000)),
    places=st.lists(st.floats(0, 1), max_size=12),
)
def test_any_cuts_give_the_bits_of_the_whole(
    rates: tuple[int, int], quality: str, num_samples: int, places: list[float]
) -> None:
    waveform = noise(num_samples, seed=num_samples)
    cuts = [int(place * num_samples) for place in places]
    out = streamed(waveform, cuts, rates, quality, "numba")
    np.testing.assert_array_equal(out, resample(waveform, *rates, quality=quality))


def test_a_bad_sample_gives_the_bits_of_the_whole_too():
    waveform = noise(9000)
    waveform[4000] = np.nan
    for rates in RATES:
        np.testing.assert_array_equal(
            streamed(waveform, [3990, 4001, 5000], rates), resample(waveform, *rates)
        )


def test_the_reference_streams_too():
    waveform = torch.from_numpy(noise(2, 5000))
    for rates in ((44100, 16000), (8000, 16000), (44100, 16001)):
        out = streamed(waveform, [700, 701, 3000], rates, backend="reference")
        expected = resample(waveform, *rates, backend="reference")
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


def test_auto_streams_what_the_kernel_cannot():
    waveform = noise(3000)
    out = streamed(waveform, [1000], (44100, 16001))
    expected = resample(waveform, 44100, 16001, backend="reference")
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_samples_come_as_soon_as_they_are_known_and_little_is_kept():
    stream = OnlineResample(44100, 16000)
    count = 0
    for number in range(100):
        count += stream.accept_waveform(noise(441, seed=number)).shape[-1]
        assert count >= (number + 1) * 160 - 0.004 * 16000
    assert stream._held is not None
    assert stream._held.shape[-1] < 441 + 2 * 882


def test_the_same_rate_passes_through():
    shorts = (noise(2, 1000) * 32767).astype(np.int16)
    np.testing.assert_array_equal(
        streamed(shorts, [10, 500], (16000, 16000)), shorts.astype(np.float32) / 32768
    )


def test_int16_and_batches_and_tensors_are_streamed():
    shorts = (noise(3, 2, 4000) * 32767).astype(np.int16)
    expected = resample(shorts, 44100, 16000)
    np.testing.assert_array_equal(streamed(shorts, [1, 3333], (44100, 16000)), expected)
    np.testing.assert_array_equal(
        streamed(torch.from_numpy(shorts), [1, 3333], (44100, 16000)), expected
    )


def test_a_stream_can_begin_anew():
    stream = OnlineResample(44100, 16000)
    waveform = noise(2000)
    stream.accept_waveform(noise(777, seed=1))
    stream.reset()
    parts = [stream.accept_waveform(waveform), stream.finish()]
    np.testing.assert_array_equal(np.concatenate(parts), resample(waveform, 44100, 16000))


def test_the_chunk_s_memory_may_be_used_again():
    waveform = noise(2000)
    stream, chunk, parts = OnlineResample(44100, 16000), np.empty(500, np.float32), []
    for at in range(0, 2000, 500):
        chunk[:] = waveform[at : at + 500]
        parts.append(stream.accept_waveform(chunk))
    parts.append(stream.finish())
    np.testing.assert_array_equal(np.concatenate(parts), resample(waveform, 44100, 16000))


def test_what_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="quality must be one of hq, fast"):
        OnlineResample(44100, 16000, quality="best")
    with pytest.raises(ValueError, match="backend must be one of auto, numba, reference, got 'so"):
        OnlineResample(44100, 16000, backend="soxr")
    stream = OnlineResample(44100, 16000)
    with pytest.raises(RuntimeError, match=r"stream is empty; call accept_waveform\(\) first"):
        stream.finish()
    with pytest.raises(TypeError, match="waveform must be a tensor or a numpy array, got list"):
        stream.accept_waveform([0.0])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float32, float64, int16, got int32"):
        stream.accept_waveform(np.zeros(4, np.int32))
    stream.accept_waveform(np.zeros((2, 100), np.float32))
    with pytest.raises(TypeError, match="ndarray of float32 like the first chunk, got Tensor"):
        stream.accept_waveform(torch.zeros(2, 100))
    with pytest.raises(ValueError, match=r"leading dimensions \(2,\) like the first chunk"):
        stream.accept_waveform(np.zeros((3, 100), np.float32))
    stream.finish()
    with pytest.raises(RuntimeError, match=r"stream is finished; call reset\(\)"):
        stream.accept_waveform(np.zeros((2, 100), np.float32))
    with pytest.raises(RuntimeError, match="stream is finished already"):
        stream.finish()
    monkeypatch.setenv("AST_FAST_BACKEND", "resample=soxr")
    other = OnlineResample(44100, 16000)
    with pytest.raises(RuntimeError, match="soxr cannot resample a stream in chunks"):
        other.accept_waveform(np.zeros(1000, np.float32))
