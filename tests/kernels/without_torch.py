"""Features of every convention, saved where torch is installed and compared where it is not.

`python tests/kernels/without_torch.py save FILE` computes them from tensors; `... check FILE`,
which needs numpy and Numba only, from arrays: every bit must be the same, and what needs torch must
say so. `.ci/run` and `test_without_torch.py` run both.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

import ast_fast_kernels
from ast_fast_kernels import FbankConfig, OnlineFbank, fbank, mfcc, resample
from ast_fast_kernels.fbank.presets import PRESETS

SAMPLES = (np.random.default_rng(0).standard_normal((3, 12345)) * 0.1).astype(np.float32)
WAVEFORMS = {"float32": SAMPLES, "int16": (SAMPLES * 32767.0).astype(np.int16)}
LENGTHS = [12345, 0, 7001]


def features(convert: Callable[[Any], Any]) -> dict[str, Any]:
    """Compute everything that Numba computes, from waveforms of one kind."""
    found = {}
    for dtype, waveform in WAVEFORMS.items():
        given = convert(waveform)
        for name in PRESETS:
            config = FbankConfig.preset(name)
            found[f"{name} {dtype}"] = fbank(given, config)
            found[f"{name} {dtype} lengths"] = fbank(given, config, lengths=LENGTHS)
        found[f"mfcc {dtype}"] = mfcc(given)
        found[f"resample {dtype}"] = resample(given, 44100, 16000)
        stream = OnlineFbank()
        chunks = [stream.accept_waveform(given[:, at : at + 1000]) for at in range(0, 12345, 1000)]
        for number, chunk in enumerate([*chunks, stream.finish()]):
            found[f"stream {dtype} {number}"] = chunk
    return found


NEEDS_TORCH: dict[str, Callable[[], object]] = {
    "numba needs a float32 or int16 waveform, got float64; waveform.astype(np.float32) needs "
    'nothing more, backend "reference"': lambda: fbank(SAMPLES.astype(np.float64)),
    'numba needs an FFT length of at most 4096, got 8192; backend "reference"': (
        lambda: fbank(SAMPLES, FbankConfig(n_fft=8192))
    ),
    'backend "reference"': lambda: fbank(SAMPLES, backend="reference"),
    'backend "triton"': lambda: mfcc(SAMPLES, backend="triton"),
    "ast_fast_kernels.kaldi": lambda: ast_fast_kernels.kaldi,
    "Fbank": lambda: ast_fast_kernels.Fbank,
    "attention": lambda: ast_fast_kernels.attention,
    "mix": lambda: ast_fast_kernels.chosen_backend("mix", SAMPLES),
}
"""Calls that need torch, by what they say needs it."""


def error_of(call: Callable[[], object]) -> str | None:
    """Return what an ImportError says, if one is raised."""
    try:
        call()
    except ImportError as error:
        return str(error)
    return None


def main() -> None:
    """Save, or check."""
    what, path = sys.argv[1:]
    if what == "save":
        import torch

        tensors = features(torch.from_numpy)
        np.savez(path, **{name: tensor.numpy() for name, tensor in tensors.items()})
        return
    arrays = features(lambda waveform: waveform)
    out = np.empty_like(arrays["ast float32"])
    assert fbank(SAMPLES, out=out) is out
    arrays["ast float32"] = out
    with np.load(path) as saved:
        assert set(saved) == set(arrays)
        for name, array in arrays.items():
            assert array.tobytes() == saved[name].tobytes(), f"{name} differs"
            assert array.shape == saved[name].shape
            assert array.dtype == saved[name].dtype
    assert ast_fast_kernels.chosen_backend("fbank", SAMPLES) == "numba"
    assert sys.modules.get("torch") is None, "torch was loaded"
    usable = {name for name, _ in inspect.getmembers(ast_fast_kernels)}
    assert {"fbank", "mfcc", "OnlineFbank", "FbankConfig"} <= usable
    assert not {"Fbank", "attention", "kaldi"} & usable
    for what, call in NEEDS_TORCH.items():
        expected = f"{what} needs torch: pip install 'ast-fast-kernels[torch]'"
        assert error_of(call) == expected, (error_of(call), expected)
    print(f"{len(arrays)} arrays are the same without torch")


if __name__ == "__main__":
    main()
