"""What onnxruntime computes from an exported filterbank is the filterbank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from ast_fast_kernels import Fbank, FbankConfig, fbank, use_backend
from ast_fast_kernels.compat import speechbrain
from ast_fast_kernels.compat.onnx import translations
from ast_fast_kernels.fbank.presets import PRESETS
from ast_fast_kernels.testing.budgets import relative_norm

TOLERANCE = 3e-6
"""Twice what the float32 reference is off by at most, on noise; onnxruntime was below 9e-7."""

CONFIGS = {
    **{name: FbankConfig.preset(name) for name in PRESETS},  # type: ignore[arg-type]
    "hop-beyond-window": FbankConfig(frame_shift=40.0, snip_edges=False),
    "tail-last-dropped": FbankConfig(pad_tail=True, drop_last_frame=True),
    "reflected-emphasised": FbankConfig(
        preemphasis_over="waveform", snip_edges=False, center=True, pad_mode="reflect"
    ),
    "scaled": FbankConfig.preset("kaldi", waveform_scale=32768.0, log_type="log10"),
}
SHAPES = [(1, 9999), (3, 12345), (2, 800)]  # the first is silent
LENGTHS = {1: [9999], 3: [12345, 0, 5001], 2: [799, 560]}


class Every(nn.Module):
    """All conventions of one waveform, with lengths and without."""

    def forward(self, waveform: Tensor, lengths: Tensor) -> list[Tensor]:
        plain = [fbank(waveform, config) for config in CONFIGS.values()]
        return plain + [fbank(waveform, config, lengths=lengths) for config in CONFIGS.values()]


def exported(module: nn.Module, inputs: tuple[Tensor, ...], path: Path, **options: Any) -> Any:
    """Export a module, check the file, and return a session that runs it."""
    program = torch.onnx.export(
        module.eval(),
        inputs,
        dynamo=True,
        opset_version=20,
        custom_translation_table=translations(),
        verbose=False,
        **options,
    )
    assert program is not None
    program.save(path)
    onnx.checker.check_model(path, full_check=True)
    assert {each.domain: each.version for each in onnx.load(path).opset_import} == {"": 20}
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def run(session: Any, *inputs: Tensor) -> list[Tensor]:
    names = [each.name for each in session.get_inputs()]
    given = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
    return [torch.from_numpy(output) for output in session.run(None, given)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    """Each shape → waveform, lengths and what onnxruntime gives for them, one export for all."""
    path = tmp_path_factory.mktemp("onnx") / "every.onnx"
    example = torch.zeros(2, 16000), torch.tensor([16000, 9000])
    session = exported(Every(), example, path, dynamic_shapes=({0: "b", 1: "n"}, {0: "b"}))
    found = {}
    for seed, shape in enumerate(SHAPES):
        volume = 0.0 if shape == (1, 9999) else 0.1
        waveform = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * volume
        lengths = torch.tensor(LENGTHS[shape[0]])
        found[shape] = waveform, lengths, run(session, waveform, lengths)
    return found


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_every_convention_runs_at_any_batch_and_length(
    results: dict[tuple[int, int], Any], name: str, shape: tuple[int, int]
) -> None:
    waveform, lengths, outputs = results[shape]
    at, config = list(CONFIGS).index(name), CONFIGS[name]
    for counts, out in ((None, outputs[at]), (lengths, outputs[len(CONFIGS) + at])):
        wanted = fbank(waveform.double(), config, lengths=counts, backend="reference")
        assert out.shape == wanted.shape
        assert out.dtype == torch.float32
        assert relative_norm(out, wanted) < TOLERANCE


def test_speechbrains_drop_in_is_exported_whole(tmp_path: Path) -> None:
    module = speechbrain.Fbank(deltas=True, context=True)
    options = {"dynamic_shapes": ({0: "b", 1: "n"},)}
    session = exported(module, (torch.zeros(2, 16000),), tmp_path / "deltas.onnx", **options)
    waveforms = torch.randn(3, 12345, generator=torch.Generator().manual_seed(0)) * 0.1
    (out,) = run(session, waveforms)
    assert out.shape == (3, 78, 1320)
    assert relative_norm(out, module(waveforms.double())) < TOLERANCE


class Inputs(nn.Module):
    """One clip of int16, and floats of three dimensions."""

    def forward(self, clip: Tensor, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        return fbank(clip), fbank(waveforms, CONFIGS["nemo"])


def test_int16_and_other_dimensions_are_taken(tmp_path: Path) -> None:
    waveforms = torch.randn(2, 3, 4000, generator=torch.Generator().manual_seed(0)) * 0.1
    clip = (waveforms[0, 0] * 32767).to(torch.int16)
    options = {"dynamic_shapes": ({0: "n"}, {0: "a", 1: "b", 2: "m"})}
    session = exported(Inputs(), (clip, waveforms), tmp_path / "inputs.onnx", **options)
    inputs = clip[:3500], waveforms[:1, :, :2777]
    with use_backend("reference"):
        references = Inputs()(*inputs)
    for out, wanted in zip(run(session, *inputs), references, strict=True):
        assert out.shape == wanted.shape
        assert relative_norm(out, wanted) < TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_digital_silence_is_silence(results: dict[tuple[int, int], Any], name: str) -> None:
    """Also where an offset is so small that an optimiser may take it for nothing."""
    waveform, _, outputs = results[1, 9999]
    out, config = outputs[list(CONFIGS).index(name)], CONFIGS[name]
    wanted = fbank(waveform, config, backend="reference")
    torch.testing.assert_close(out, wanted, rtol=1e-6, atol=1e-6)


def messages(error: BaseException | None) -> str:
    text = ""
    while error is not None:
        text, error = f"{text}\n{error}", error.__cause__ or error.__context__
    return text


@pytest.mark.parametrize(
    ("config", "dtype", "message"),
    [
        (FbankConfig(dither=1e-5), torch.float32, "config must have dither 0.0 to be exported"),
        (FbankConfig(), torch.float64, "waveform must be float32 or int16 to be exported, got dou"),
    ],
    ids=["dither", "float64"],
)
def test_what_cannot_be_exported_says_so(
    config: FbankConfig, dtype: torch.dtype, message: str, tmp_path: Path
) -> None:
    with pytest.raises(torch.onnx.OnnxExporterError) as caught:
        exported(Fbank(config), (torch.zeros(1, 800, dtype=dtype),), tmp_path / "refused.onnx")
    assert message in messages(caught.value)
