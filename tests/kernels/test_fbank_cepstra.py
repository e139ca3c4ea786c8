from __future__ import annotations

import re
from operator import attrgetter

import numpy as np
import pytest
import torch

from ast_fast_kernels import FbankConfig, fbank, mfcc
from ast_fast_kernels.fbank.cepstra import cepstral_matrix
from ast_fast_kernels.testing.signals import make_signal

KALDI = FbankConfig.preset("kaldi")


def waveform(*, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(make_signal("bursts", 8000)).to(dtype)[None]


def test_matrix_is_orthonormal_without_a_lifter() -> None:
    matrix = cepstral_matrix(23, 23, 0.0)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(23), atol=1e-14)
    np.testing.assert_allclose(matrix[0], 23**-0.5)


def test_lifter_is_kaldis() -> None:
    ratio = cepstral_matrix(23, 13, 22.0)[:, 0] / cepstral_matrix(23, 13, 0.0)[:, 0]
    expected = [1 + 11 * np.sin(np.pi * i / 22) for i in range(13)]
    np.testing.assert_allclose(ratio, expected)


@pytest.mark.parametrize("num_ceps", [13, 23])
def test_kaldi_native_fbank_gives_the_same(num_ceps: int) -> None:
    knf = pytest.importorskip("kaldi_native_fbank")
    options = knf.MfccOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 23
    options.num_ceps = num_ceps
    options.use_energy = False
    computer = knf.OnlineMfcc(options)
    computer.accept_waveform(16000.0, waveform()[0].tolist())
    computer.input_finished()
    expected = [computer.get_frame(i) for i in range(computer.num_frames_ready)]
    out = mfcc(waveform(), num_ceps=num_ceps)[0]
    # Log-mel differences of 1e-5 or so, times a lifter of up to 12.
    np.testing.assert_allclose(out.numpy(), np.stack(expected), atol=5e-4)


def test_python_speech_features_gives_the_same() -> None:
    psf = pytest.importorskip("python_speech_features")
    expected = psf.mfcc(waveform()[0].numpy(), appendEnergy=False)
    out = mfcc(waveform()[0].numpy(), FbankConfig.preset("python_speech_features"))
    np.testing.assert_allclose(out, expected, atol=5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_coefficients_are_the_transform_of_the_filterbank(dtype: torch.dtype) -> None:
    out = mfcc(waveform(dtype=dtype), num_ceps=23, cepstral_lifter=0.0)
    assert out.dtype == dtype
    log_mel = fbank(waveform(dtype=dtype), KALDI)
    matrix = torch.tensor(cepstral_matrix(23, 23, 0.0), dtype=dtype)
    torch.testing.assert_close(out @ matrix, log_mel, rtol=1e-5, atol=1e-5)


def test_numpy_lengths_and_backend_go_through() -> None:
    batch = waveform().repeat(2, 1)
    expected = mfcc(batch, lengths=[8000, 4000], backend="reference")
    out = mfcc(batch.numpy(), lengths=[8000, 4000], backend="reference")
    assert isinstance(out, np.ndarray)
    np.testing.assert_allclose(out, expected.numpy(), atol=1e-4)
    assert (expected[1, 23:] == expected[1, -1]).all()


def test_autocast_and_compilation_change_nothing() -> None:
    torch.compiler.reset()
    expected = mfcc(waveform())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mfcc(waveform()), expected)
    compiled = torch.compile(lambda x: mfcc(x) + 0.0, backend="eager")
    assert torch.equal(compiled(waveform()), expected)


def test_gradient_reaches_the_waveform() -> None:
    wave = waveform(dtype=torch.float64).requires_grad_()
    mfcc(wave).square().sum().backward()
    assert wave.grad is not None
    assert wave.grad.count_nonzero() > 7000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_ceps": 0}, "num_ceps must be from 1 to num_mel_bins (23), got 0"),
        ({"num_ceps": 24}, "num_ceps must be from 1 to num_mel_bins (23), got 24"),
        ({"cepstral_lifter": -1.0}, "cepstral_lifter must be at least 0 and finite, got -1.0"),
        (
            {"config": KALDI.replace(use_log_fbank=False)},
            "config must have use_log_fbank True, got False",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        mfcc(waveform(), **arguments)


@pytest.mark.parametrize(
    "kind", [float, np.float32, np.int64, np.array, torch.tensor], ids=attrgetter("__name__")
)
def test_counts_may_be_of_any_type(kind) -> None:
    expected = mfcc(waveform())
    assert torch.equal(mfcc(waveform(), num_ceps=kind(13), cepstral_lifter=kind(22)), expected)


@pytest.mark.parametrize("argument", ["num_ceps", "cepstral_lifter"])
def test_what_is_no_number_is_refused_by_name(argument: str) -> None:
    for value in ("13", None, [13], 1j, torch.ones(2)):
        with pytest.raises(TypeError, match=f"^{argument} must be a number, got "):
            mfcc(waveform(), **{argument: value})
    with pytest.raises(ValueError, match=r"num_ceps must be a whole number, got 12\.5"):
        mfcc(waveform(), num_ceps=12.5)  # type: ignore[arg-type]
