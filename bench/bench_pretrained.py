"""A pre-trained AST of the original's size on a CPU, beside transformers and onnxruntime.

Random weights of 87 million parameters, as transformers builds and writes them, read by
`ast_fast.pretrained`; clips of 10 s. Logits are compared before they are timed. `extra_info` has
the seconds of each, how many times as fast ours is, and the arithmetic that a forward pass takes at
the machine's best rate of multiply-adds. In bfloat16 transformers' weights are bfloat16; ours is
asked for it, and multiplies in float32 where the CPU would emulate it.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ast_fast import pretrained
from ast_fast.features import model_input
from ast_fast.inference import InferenceModel
from ast_fast_kernels._cpu.simd import has_bfloat16_dots
from ast_fast_kernels.testing.timing import interleaved_medians
from bench.model_cost import multiply_adds, multiply_adds_per_second
from bench.turns import settle

transformers = pytest.importorskip("transformers")

WITHIN = 1e-5
"""Largest difference of logits in float32, as a share of the largest logit."""
CASES = [(1, "float32"), (8, "float32"), (1, "bfloat16")]
if has_bfloat16_dots():  # else transformers takes minutes
    CASES.append((8, "bfloat16"))
NUM_LABELS = 527
TINY: dict[str, int] = {
    "hidden_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 256
}  # fmt: skip

Run = Callable[[Tensor], Tensor]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with random weights, none of which is its initial value."""
    sizes = TINY if request.config.getoption("tiny") else {}
    torch.manual_seed(0)
    model = transformers.ASTForAudioClassification(
        transformers.ASTConfig(num_labels=NUM_LABELS, **sizes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    to: Path = tmp_path_factory.mktemp("base")
    model.save_pretrained(to)
    transformers.ASTFeatureExtractor().save_pretrained(to)
    return to


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.ASTForAudioClassification.from_pretrained(
        folder, attn_implementation="sdpa"
    ).eval()


@pytest.fixture(scope="module")
def exported(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """transformers' model in ONNX, for any batch."""
    path: Path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    features = torch.randn(2, theirs.config.max_length, theirs.config.num_mel_bins)
    torch.onnx.export(
        theirs, (features,), path, input_names=["features"], output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},), opset_version=20, dynamo=True,
        verbose=False,
    )  # fmt: skip
    return path


@pytest.fixture
def onnxruntime_model(exported: Path, threads: int) -> Run:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])

    def run(features: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"features": features.numpy()})[0])

    return run


@pytest.mark.benchmark(group="pretrained")
@pytest.mark.parametrize(
    ("clips", "precision"), CASES, ids=[f"{clips}-clips-{precision}" for clips, precision in CASES]
)
def test_forward(
    benchmark: Any, folder: Path, theirs: Any, onnxruntime_model: Run, clips: int, precision: str,
    threads: int, glance: bool,
) -> None:  # fmt: skip
    dtype = getattr(torch, precision)
    lowered = dtype == torch.bfloat16
    loaded = pretrained.load(folder)
    model = InferenceModel(loaded.model, precision=dtype)
    shape = (clips, theirs.config.max_length, theirs.config.num_mel_bins)
    features = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    baseline = copy.deepcopy(theirs).to(dtype) if lowered else theirs
    ways: dict[str, Run] = {
        "transformers": lambda x: baseline(x.to(dtype)).logits.float(), "ours": model
    }  # fmt: skip
    if not lowered:
        ways["onnxruntime"] = onnxruntime_model
    with torch.inference_mode():
        logits = {name: run(features) for name, run in ways.items()}
        scale = logits["transformers"].abs().max().item()
        error = (logits["ours"] - logits["transformers"]).abs().max().item() / scale
        assert error <= (2**-5 if lowered else WITHIN)
        medians = medians_of(ways, features, rounds=1 if glance or clips > 1 else 3)
        benchmark.pedantic(lambda: model(features), rounds=1)
    settings, patches = loaded.config.model, loaded.model.num_patches
    tokens = patches + settings.num_class_tokens
    # A step's count has each product three times but the features' projection, which it has twice.
    work = clips * multiply_adds(settings, tokens, patches, NUM_LABELS) / 3
    emulated = lowered and not has_bfloat16_dots()
    rate = multiply_adds_per_second(torch.float32 if emulated else dtype, threads)
    benchmark.extra_info |= {
        "seconds": medians,
        "ours_is_faster_by": {name: medians[name] / medians["ours"] for name in medians},
        "error": error,
        "gflops": 2e-9 * work / medians["ours"],
        "every_token_at_best_rate": work / rate,
    }


def medians_of(ways: Mapping[str, Run], features: Tensor, rounds: int) -> dict[str, float]:
    """Return median seconds of ways that have run before, in turns; a round may take minutes."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            settle()
            begin = time.perf_counter()
            run(features)
            seconds[name].append(time.perf_counter() - begin)
    return {name: statistics.median(times) for name, times in seconds.items()}


@pytest.mark.benchmark(group="pretrained-extractor")
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_extractor(
    benchmark: Any, folder: Path, clips: np.ndarray, threads: int, rounds: int
) -> None:
    """10 s of sound, two clips one after the other, to the model's input."""
    loaded = pretrained.load(folder)
    extractor = transformers.ASTFeatureExtractor.from_pretrained(folder)
    samples = clips[:2].reshape(1, -1)
    floats, windows = samples[0].astype(np.float32) / 32768, torch.from_numpy(samples)

    def run(name: str) -> Tensor:
        if name == "ours":
            return model_input(windows, loaded.config, loaded.statistics)
        given = extractor(floats, sampling_rate=16_000, return_tensors="pt")
        features: Tensor = given["input_values"]
        return features

    difference = (run("ours") - run("transformers")).abs()
    assert difference.mean() < 1e-4
    medians = interleaved_medians(
        {name: lambda name=name: run(name) for name in ("transformers", "ours")}, rounds=rounds
    )
    benchmark(lambda: run("ours"))
    benchmark.extra_info |= {
        "milliseconds": {name: 1e3 * seconds for name, seconds in medians.items()},
        "ours_is_faster_by": {"transformers": medians["transformers"] / medians["ours"]},
        "largest_difference": difference.max().item(),
    }
