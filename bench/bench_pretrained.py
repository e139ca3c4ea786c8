"""A pre-trained AST of the original's size on a CPU, beside transformers and onnxruntime.

Random weights of 87 million parameters, as transformers builds and writes them, read by
`ast_fast.pretrained`; clips of 10 s. The logits that are compared are those of the timed runs.
`extra_info` has the median seconds of each, of how many rounds, how many times as fast ours is, and
the arithmetic that a forward pass takes at the machine's best rate of multiply-adds. In bfloat16
transformers' weights are bfloat16; ours is asked for it, and multiplies in float32 where the CPU
would emulate it: there transformers in float32 takes its turn too. On two cores with AVX2 the whole
takes about a quarter of an hour. Each case ends with its row of the page, so that a page can be
made of what this writes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ast_fast import pretrained
from ast_fast.classifier import load_any_classifier
from ast_fast.export import export_model
from ast_fast.exporting.compared import difference
from ast_fast.features import model_input
from ast_fast.inference import InferenceModel
from ast_fast_kernels.linear.packed import multiplies_bfloat16_here
from ast_fast_kernels.testing.timing import interleaved_medians
from bench import page_pretrained
from bench.model_cost import multiply_adds, multiply_adds_per_second
from bench.turns import medians_of_calls

transformers = pytest.importorskip("transformers")

WITHIN = 1e-5
"""Largest difference of logits in float32, as a share of the largest logit."""
WITHIN_FROM_WAVEFORM = {"float32": 1e-4, "int8": 0.1}
"""The same from the waveform on, by exported file: two filterbanks differ in quiet bins."""
CASES = [(1, "float32"), (8, "float32"), (1, "bfloat16")]
if multiplies_bfloat16_here():  # else transformers takes minutes
    CASES.append((8, "bfloat16"))
NUM_LABELS = 527
ROUNDS = 3
"""Turns of one clip; eight clips have one, and so has what a CPU emulates."""
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
    return in_onnxruntime(exported, "features", threads)


def in_onnxruntime(path: Path, given: str, threads: int) -> Run:
    """Return a file's model as a function of its input of that name."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {given: inputs.numpy()})[0])

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
    ways: dict[str, Run] = {"transformers": lambda x: baseline(x.to(dtype)).logits.float()}
    emulated = lowered and not multiplies_bfloat16_here()
    if emulated:
        ways["transformers in float32"] = lambda x: theirs(x).logits
    if not lowered:
        ways["onnxruntime"] = onnxruntime_model
    ways["ours"] = model
    with torch.inference_mode():
        rounds = 1 if glance or clips > 1 or emulated else ROUNDS
        medians, errors = time_ways(benchmark, ways, features, rounds)
    assert errors["ours"] <= (2**-5 if lowered else WITHIN)
    settings, patches = loaded.config.model, loaded.model.num_patches
    tokens = patches + settings.num_class_tokens
    # A step's count has each product three times but the features' projection, which it has twice.
    work = clips * multiply_adds(settings, tokens, patches, NUM_LABELS) / 3
    rate = multiply_adds_per_second(torch.float32 if emulated else dtype, threads)
    benchmark.extra_info |= {
        "seconds": medians,
        "rounds": rounds,
        "ours_is_faster_by": {name: medians[name] / medians["ours"] for name in medians},
        "error": errors["ours"],
        "gflops": 2e-9 * work / medians["ours"],
        "every_token_at_best_rate": work / rate,
    }
    page_pretrained.forward_table([benchmark.params | benchmark.extra_info])


def time_ways(
    benchmark: Any, ways: Mapping[str, Run], inputs: Tensor, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Time ways in turns; a pass may take a minute, so each warms up on the first clip alone.

    Returns:
        Median seconds, and how far each one's logits are from those of transformers, as a share of
        the largest.
    """
    for run in ways.values():
        run(inputs[:1])
    calls = {name: partial(run, inputs) for name, run in ways.items()}
    medians, logits = medians_of_calls(benchmark, calls, rounds)
    theirs = logits["transformers"].numpy()
    errors = {name: difference(logits[name].numpy(), theirs).relative for name in ways}
    return medians, errors


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

    differences = (run("ours") - run("transformers")).abs()
    assert differences.mean() < 1e-4
    medians = interleaved_medians(
        {name: lambda name=name: run(name) for name in ("transformers", "ours")}, rounds=rounds
    )
    benchmark(lambda: run("ours"))
    benchmark.extra_info |= {
        "milliseconds": {name: 1e3 * seconds for name, seconds in medians.items()},
        "ours_is_faster_by": {"transformers": medians["transformers"] / medians["ours"]},
        "largest_difference": differences.max().item(),
    }
    page_pretrained.extractor_table([benchmark.params | benchmark.extra_info])


@pytest.fixture(scope="module")
def own_files(
    request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """Our export of the whole way from waveform to logits, in float32 and with int8 weights."""
    classifier = load_any_classifier(folder, torch.device("cpu"))
    to = tmp_path_factory.mktemp("export")
    names = ["int8"] if request.config.getoption("tiny") else ["float32", "int8"]
    return {
        name: export_model(classifier, to / f"{name}.onnx", int8=name == "int8") for name in names
    }


@pytest.mark.benchmark(group="pretrained-export")
@pytest.mark.filterwarnings("ignore:At least one mel filter")
def test_export(
    benchmark: Any, folder: Path, theirs: Any, own_files: dict[str, Any], clips: np.ndarray,
    threads: int, glance: bool,
) -> None:  # fmt: skip
    """Run a clip of sound to logits, by our files in onnxruntime and by transformers' float32."""
    extractor = transformers.ASTFeatureExtractor.from_pretrained(folder)
    num_samples = own_files["int8"].num_samples
    samples = clips[:4].reshape(1, -1)[:, :num_samples].astype(np.float32) / 32768
    waveform = torch.from_numpy(samples)

    def run(samples: Tensor) -> Tensor:
        given = extractor(list(samples.numpy()), sampling_rate=16_000, return_tensors="pt")
        logits: Tensor = theirs(**given).logits
        return logits

    files = {name: in_onnxruntime(found.path, "waveform", threads)
             for name, found in own_files.items()}  # fmt: skip
    rounds = 1 if glance else ROUNDS
    with torch.inference_mode():
        medians, errors = time_ways(benchmark, {"transformers": run, **files}, waveform, rounds)
    assert all(errors[name] <= WITHIN_FROM_WAVEFORM[name] for name in files)
    benchmark.extra_info |= {
        "seconds": medians,
        "rounds": rounds,
        "faster_than_transformers_by": {
            name: medians["transformers"] / medians[name] for name in files
        },
        "error": {name: errors[name] for name in files},
        "megabytes": {name: found.num_bytes / 1e6 for name, found in own_files.items()},
        "clip_seconds": num_samples / 16_000,
    }
    page_pretrained.export_table([benchmark.params | benchmark.extra_info])
