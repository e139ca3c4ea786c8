"""Our Fbank beside speechbrain's own numbers; speechbrain needs torchaudio, so it is not here."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.compat.speechbrain import Fbank
from ast_fast_kernels.testing.budgets import relative_norm
from ast_fast_kernels.testing.processes import modules_loaded_by

GOLDEN = Path(__file__).parents[2] / "golden"

# As in test_conventions.py: what two correct float32 implementations differ by, in nepers.
MAX_DIFFERENCE = 4e-3
MEAN_DIFFERENCE = 1e-5


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def golden_cases() -> list[tuple[dict[str, Any], np.ndarray]]:
    """Return each case, and its mean frame, in which later frames weigh more."""
    with np.load(GOLDEN / "speechbrain_grid.npz") as archive:
        cases, outputs = json.loads(archive["cases"].tobytes()), archive["mean_frames"]
    found = []
    for case in cases:
        found.append((case, outputs[: case["shape"][1]]))
        outputs = outputs[case["shape"][1] :]
    assert not len(outputs)
    assert len(found) >= 100
    return found


def test_features_are_speechbrains_for_any_arguments() -> None:
    dog = torch.from_numpy(np.load(GOLDEN / "inputs.npz")["dog"][:1]).float() / 32768
    for case, expected in golden_cases():
        arguments = case["arguments"]
        # A kernel compiles for each length of FFT, in seconds; other tests need that of 400.
        backends = ("reference", "numba")[: 1 + ("n_fft" not in arguments)]
        for backend in backends:
            module = Fbank(**arguments, backend=backend)
            (out,) = module(dog[:, : case["samples"]])
            assert list(out.shape) == case["shape"], case
            weights = np.arange(1.0, len(out) + 1.0)
            mean_frame = weights @ out.double().numpy() / weights.sum()
            difference = np.abs(mean_frame - expected) / module.config.log_factor
            assert difference.max() <= MAX_DIFFERENCE, case
            assert difference.mean() <= MEAN_DIFFERENCE, case


def test_defaults_are_the_preset() -> None:
    assert Fbank().config == FbankConfig.preset("speechbrain", high_freq=8000.0)
    waveform = noise(2, 16000)
    assert torch.equal(Fbank()(waveform), fbank(waveform, FbankConfig.preset("speechbrain")))


def test_each_clip_has_its_own_range() -> None:
    waveform = torch.cat((noise(1, 16000), 1e-3 * noise(1, 16000)))
    waveform[:, 8000:] = 0.0
    module = Fbank(deltas=True, context=True, left_frames=1, right_frames=2)
    both = module(waveform)
    assert both.shape == (2, 101, 40 * 3 * 4)
    for row, clip in zip(both, waveform, strict=True):
        assert torch.equal(row, module(clip[None])[0])


def test_context_puts_a_features_neighbours_side_by_side() -> None:
    waveform = noise(1, 4000)
    (plain,) = Fbank()(waveform)
    (out,) = Fbank(context=True, left_frames=2, right_frames=1)(waveform)
    out = out.view(len(plain), 40, 4)
    for place, offset in enumerate((-2, -1, 0, 1)):
        expected = torch.zeros_like(plain)
        first, last = max(-offset, 0), len(plain) - max(offset, 0)
        expected[first:last] = plain[first + offset : last + offset]
        assert torch.equal(out[..., place], expected)


@pytest.mark.parametrize("shape", ["triangular", "gaussian"])
def test_gradient_reaches_the_waveform(shape: str) -> None:
    grads = {}
    for backend in ("reference", "numba"):
        waveform = noise(2, 4000).requires_grad_()
        module = Fbank(deltas=True, filter_shape=shape, backend=backend)
        module(waveform).square().sum().backward()
        grads[backend] = waveform.grad
    assert relative_norm(grads["numba"], grads["reference"]) < 1e-4


def test_half_precision_is_computed_in_float32() -> None:
    waveform = noise(1, 4000).bfloat16()
    out = Fbank()(waveform)
    assert out.dtype == torch.float32
    assert torch.equal(out, Fbank()(waveform.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Fbank()(waveform), out)


def test_checkpoints_have_the_keys_of_speechbrains() -> None:
    module = Fbank(n_mels=23)
    state = module.state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "compute_deltas.kernel": (23, 1, 5)
    }
    module.load_state_dict({"compute_deltas.kernel": torch.arange(-2.0, 3.0).repeat(23, 1, 1)})
    assert not list(module.parameters())
    again = copy.deepcopy(module)
    assert torch.equal(again(noise(1, 2000)), module(noise(1, 2000)))


def test_it_compiles_as_a_whole() -> None:
    module = Fbank(deltas=True, context=True)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(noise(2, 4000)), module(noise(2, 4000)))


def test_filter_properties_are_speechbrains(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("speechbrain.utils.filter_analysis")
    module.FilterProperties = SimpleNamespace  # type: ignore[attr-defined]
    for name in ("speechbrain", "speechbrain.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, "speechbrain.utils.filter_analysis", module)
    properties = Fbank(sample_rate=22050, n_fft=1024).get_filter_properties()
    assert (properties.window_size, properties.stride) == (551, 220)  # 220.5, to even


def test_speechbrain_and_torchaudio_are_not_loaded() -> None:
    loaded = modules_loaded_by("import ast_fast_kernels.compat.speechbrain")
    assert "ast_fast_kernels.compat.speechbrain" in loaded
    assert not loaded & {"speechbrain", "torchaudio", "lhotse"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"requires_grad": True},
            "requires_grad must be False, because the filters here are fixed, got True; use "
            "speechbrain.lobes.features.Fbank",
        ),
        ({"param_rand_factor": 0.15}, "param_rand_factor must be 0, because the filters here"),
        ({"filter_shape": "round"}, "filter_shape must be one of triangular, rectangular, gauss"),
        (
            {"sample_rate": 8000, "f_max": 8000},
            "f_min and f_max must be from 0 to half of sample_rate (4000 Hz), in this order, got "
            "0 and 8000",
        ),
        ({"f_min": 9000}, "f_min and f_max must be from 0 to half of sample_rate (8000 Hz)"),
        ({"sample_rate": 22050}, "n_fft must be even and at least the window's 551 samples"),
        ({"left_frames": -1}, "left_frames must be at least 0, got -1"),
    ],
)
def test_refuses_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        Fbank(**arguments)


@pytest.mark.parametrize(
    ("wav", "error", "message"),
    [
        (np.zeros((1, 4000), np.float32), TypeError, "wav must be a tensor, got ndarray"),
        (
            torch.zeros(2, 4000, 2),
            ValueError,
            "wav must be (batch, num_samples), with channels as rows of the batch, "
            "got (2, 4000, 2)",
        ),
        (torch.zeros(4000), ValueError, "wav must be (batch, num_samples), with channels as rows"),
        (torch.zeros(1, 4000, dtype=torch.int64), TypeError, "waveform must be float32, float64"),
    ],
)
def test_refuses_waveforms(wav: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Fbank()(wav)
