"""FBANK as projects use it: with dither, with gradients, at 44.1 and 48 kHz, one clip, int16.

All candidates of a case take turns in one run, as in bench_fbank.py. Ours is what `auto` chooses.
torchaudio joins in where its interpreter is named. `extra_info` has

- backend: what `auto` chose;
- microseconds_per_clip: of each candidate, by name;
- ours_is_faster_by: each other candidate's median over ours, by name.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ast_fast_kernels import FbankConfig, chosen_backend, fbank, kaldi
from ast_fast_kernels.testing.budgets import relative_norm
from bench import torchaudio_client
from bench.bench_fbank import (
    MEAN_DIFFERENCE,
    SINGLE_CALLS,
    check,
    make_inputs,
    quiet,
    take_turns,
)
from bench.peers import Inputs, Run, local
from bench.projects import INT16_RANGE, PROJECTS, Project
from bench.turns import Way

SECONDS = 5

QUIET_BIN = 1e-2
"""Largest difference of a project's features from its library's: in int16's range no floor hides
what float32 leaves of a bin far below its frame's loudest."""

many = pytest.mark.parametrize("waveforms", [1, 16], ids=["1-clip", "16-clips"])


def compare(
    benchmark, config: pytest.Config, ways: dict[str, Way], clips: int, backend: str
) -> dict[str, float]:
    """Time all ways in turns, record the first, which is ours, and return the medians."""
    ours, *others = ways
    medians = dict(zip(ways, take_turns(benchmark, config, *ways.values()), strict=True))
    benchmark.extra_info |= {
        "backend": backend,
        "microseconds_per_clip": {name: 1e6 * medians[name] / clips for name in ways},
        "ours_is_faster_by": {name: medians[name] / medians[ours] for name in others},
    }
    return medians


def count(inputs: Inputs) -> int:
    return sum(len(batch) for batch in inputs)


def torchaudio(
    name: str, inputs: Inputs, threads: int, folder: Path, **options: Any
) -> dict[str, Way]:
    """Return the fastest way to run torchaudio, if its interpreter is named."""
    if torchaudio_client.client() is None:
        return {}
    ways = torchaudio_client.ways(name, inputs, threads, folder, **options)
    return {"torchaudio": fastest(ways)}


def fastest(ways: dict[str, Way]) -> Way:
    seconds = {}
    for way in ways.values():
        with quiet(way):
            seconds[way] = min(way.seconds(), way.seconds()) if len(ways) > 1 else 0.0
    return min(seconds, key=seconds.__getitem__)


def features_of(way: Way) -> np.ndarray:
    with quiet(way):
        return np.asarray(way.features())


def check_noise(noisy: list[np.ndarray]) -> None:
    """Check that features of one signal differ by noise only: no bias, and the same deviation.

    `noisy` are ours and two draws of another right filterbank.
    """
    ours, theirs, again = (features.astype(np.float64) for features in noisy)
    difference, usual = ours - theirs, again - theirs
    frames = difference.shape[0] * difference.shape[1]
    assert abs(difference.mean()) <= 6 * usual.std() / np.sqrt(frames)
    assert 0.9 <= difference.std() / usual.std() <= 1.1


@pytest.mark.benchmark(group="dither")
@many
def test_fbank_with_dither(
    benchmark, request, tmp_path: Path, clips: np.ndarray, waveforms: int, threads: int
) -> None:
    """Add Kaldi's noise; torchaudio is called clip by clip, as it takes one."""
    config = FbankConfig.preset("kaldi", num_mel_bins=80, dither=1.0)
    inputs = [INT16_RANGE * batch for batch in make_inputs(clips, waveforms, "float32")]
    reference = local(partial(fbank, config=config, backend="reference"), inputs, threads)
    ways = {
        "ours": local(partial(fbank, config=config), inputs, threads),
        "ours without dither": local(
            partial(fbank, config=config.replace(dither=0.0)), inputs, threads
        ),
        **torchaudio(
            "kaldi.fbank", inputs, threads, tmp_path, num_mel_bins=80, dither=config.dither
        ),
    }
    check_noise([features_of(way) for way in (ways["ours"], reference, reference)])
    backend = chosen_backend("fbank", inputs[0], config)
    compare(benchmark, request.config, ways, count(inputs), backend)


def call_kaldi(module: Any, project: Project) -> Run:
    function = getattr(module, project.name.removeprefix("kaldi."))
    return lambda clip: function(torch.from_numpy(clip), **project.options).numpy()[None]


def call_lhotse(module: Any, project: Project) -> Run:
    extractor = module.Fbank(module.FbankConfig(**project.options))
    return lambda clip: extractor.extract(clip, project.rate)[None]


def call_speechbrain(module: Any, project: Project) -> Run:
    filterbank = module.Fbank(**project.options)
    return lambda clip: filterbank(torch.from_numpy(clip)).numpy()


def call_kaldi_native_fbank(module: Any, project: Project) -> Run:
    """Return a call that takes a clip in chunks of 100 ms, as a recogniser does."""
    frame, mel = (project.options[part] for part in ("frame_opts", "mel_opts"))
    options = module.FbankOptions()
    for part, values in ((options.frame_opts, frame), (options.mel_opts, mel)):
        for name, value in values.items():
            setattr(part, name, value)

    def run(clip: np.ndarray) -> np.ndarray:
        online = module.OnlineFbank(options)
        for chunk in np.split(
            clip[0], range(project.rate // 10, clip.shape[1], project.rate // 10)
        ):
            online.accept_waveform(project.rate, chunk)
        online.input_finished()
        return np.stack([online.get_frame(i) for i in range(online.num_frames_ready)])[None]

    return run


def call_transformers(module: Any, project: Project) -> Run:
    extractor = getattr(module, project.name)(**project.options)

    def run(clip: np.ndarray) -> np.ndarray:
        features = extractor(clip[0], sampling_rate=project.rate, return_tensors="np")
        return next(iter(features.values()))

    return run


LIBRARIES: dict[str, tuple[str, str, Callable[[Any, Project], Run]]] = {
    "torchaudio": ("", "kaldi", call_kaldi),
    "lhotse": ("lhotse", "compat.lhotse", call_lhotse),
    "speechbrain": ("", "compat.speechbrain", call_speechbrain),
    "kaldi-native-fbank": (
        "kaldi_native_fbank", "compat.kaldi_native_fbank", call_kaldi_native_fbank,
    ),
    "transformers": ("transformers", "compat.transformers", call_transformers),
}  # fmt: skip
"""Library → its module here, ours for it, and how to call either.

Where it has none here, it runs in the interpreter that has torchaudio.
"""


@pytest.mark.benchmark(group="projects")
@pytest.mark.parametrize("name", PROJECTS)
def test_project(
    benchmark, request, tmp_path: Path, clips: np.ndarray, name: str, threads: int
) -> None:
    """Compute features as a project does, a clip a call, and with its import swapped for ours."""
    project = PROJECTS[name]
    theirs, ours, call = LIBRARIES[project.library]
    samples = clips[:24].reshape(8, -1)[:, : SECONDS * project.rate].astype(np.float32)
    inputs = list((samples * (project.scale / INT16_RANGE))[:, None])
    run = call(import_module(f"ast_fast_kernels.{ours}"), project)
    ways = {"ours": local(run, inputs, threads)}
    if theirs:
        reason = f"{project.library} is not installed: pip install -e '.[bench]'"
        module = pytest.importorskip(theirs, reason=reason)
        ways[project.library] = local(call(module, project), inputs, threads)
    else:
        function = (
            project.name if project.library == "torchaudio" else f"speechbrain.{project.name}"
        )
        found = torchaudio(function, inputs, threads, tmp_path, **project.options)
        if found:
            ways[project.library] = found["torchaudio"]
    torch.manual_seed(0)
    features = {name: features_of(way) for name, way in ways.items()}
    if project.library in ways:
        difference = np.abs(np.subtract(*features.values()))
        assert difference.max() <= project.per_log * QUIET_BIN
        assert difference.mean() <= project.per_log * MEAN_DIFFERENCE
        benchmark.extra_info["largest_difference"] = float(difference.max())
    benchmark.extra_info |= {"project": name, "library": project.library, "calls": project.call}
    compare(benchmark, request.config, ways, count(inputs), "numba")


@pytest.mark.benchmark(group="kaldi-functions")
@pytest.mark.parametrize("function", ["mfcc", "spectrogram"])
def test_other_functions_of_kaldi(
    benchmark, request, tmp_path: Path, clips: np.ndarray, function: str, threads: int
) -> None:
    """Call the drop-in's other two features, with their defaults."""
    inputs = [INT16_RANGE * clip for clip in make_inputs(clips, 1, "float32")]

    def run(clip: np.ndarray) -> np.ndarray:
        features: np.ndarray = getattr(kaldi, function)(torch.from_numpy(clip)).numpy()[None]
        return features

    ways = {
        "ours": local(run, inputs, threads),
        **torchaudio(f"kaldi.{function}", inputs, threads, tmp_path),
    }
    if "torchaudio" in ways:
        ours, theirs = (features_of(way).astype(np.float64) for way in ways.values())
        if function == "spectrogram":  # a bin far below its frame's loudest carries its rounding
            ours, theirs = np.exp(ours[..., 1:]), np.exp(theirs[..., 1:])
        error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
        assert error <= 1e-5
        benchmark.extra_info["error"] = error
    backend = chosen_backend("fbank", torch.from_numpy(inputs[0]), FbankConfig.preset("kaldi"))
    compare(benchmark, request.config, ways, count(inputs), backend)


@pytest.mark.benchmark(group="dither-lhotse")
@pytest.mark.parametrize("threads", [2], indirect=True, ids=["2-threads"])
def test_lhotse_with_dither(benchmark, request, clips: np.ndarray, threads: int) -> None:
    """Add noise to the waveform, once for all its frames, as lhotse does."""
    lhotse = pytest.importorskip(
        "lhotse", reason="lhotse is not installed: pip install -e '.[bench]'"
    )
    config = FbankConfig.preset("lhotse", dither=1.0 / 32768)
    inputs = make_inputs(clips, 16, "float32")
    extractor = lhotse.Fbank(lhotse.FbankConfig(dither=config.dither))
    theirs = local(partial(extractor.extract_batch, sampling_rate=16000), inputs, threads)
    ways = {
        "ours": local(partial(fbank, config=config), inputs, threads),
        "ours without dither": local(
            partial(fbank, config=config.replace(dither=0.0)), inputs, threads
        ),
        "lhotse": theirs,
    }
    check_noise([features_of(way) for way in (ways["ours"], theirs, theirs)])
    compare(
        benchmark, request.config, ways, count(inputs), chosen_backend("fbank", inputs[0], config)
    )


def gradients(config: FbankConfig, backend: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function for the waveforms' gradient of half the sum of the features' squares."""

    def run(batch: np.ndarray) -> np.ndarray:
        waveform = torch.from_numpy(batch).requires_grad_()
        features = fbank(waveform, config, backend=backend)
        return torch.autograd.grad(features, waveform, features.detach())[0].numpy()

    return run


@pytest.mark.benchmark(group="gradient")
@many
def test_gradient(
    benchmark, request, tmp_path: Path, clips: np.ndarray, waveforms: int, threads: int
) -> None:
    """Run forward and backward of float32 waveforms, by AST's convention."""
    config, inputs = FbankConfig(), make_inputs(clips, waveforms, "float32")
    ways = {
        "ours": local(gradients(config, "auto"), inputs, threads),
        "reference": local(gradients(config, "reference"), inputs, threads),
        **torchaudio("kaldi.fbank", inputs, threads, tmp_path, gradient=True),
    }
    exact = np.concatenate([gradients(config, "reference")(x.astype(np.float64)) for x in inputs])
    errors = {
        name: relative_norm(torch.from_numpy(features_of(way)), torch.from_numpy(exact))
        for name, way in ways.items()
    }
    assert errors["ours"] <= 2 * errors["reference"]
    benchmark.extra_info["error"] = errors
    leaf = torch.from_numpy(inputs[0]).requires_grad_()
    compare(benchmark, request.config, ways, count(inputs), chosen_backend("fbank", leaf, config))


def librosa_mel(**options: Any) -> Callable[[np.ndarray], np.ndarray]:
    from librosa import power_to_db
    from librosa.feature import melspectrogram

    return lambda batch: np.stack(
        [power_to_db(melspectrogram(y=clip, **options)).T for clip in batch]
    )


LENGTHS: dict[int, tuple[str, int, dict[str, Any]]] = {
    1102: ("kaldi", 44100, {"num_mel_bins": 80, "mel_dtype": "float32"}),
    1200: ("kaldi", 48000, {"num_mel_bins": 80, "mel_dtype": "float32"}),
    1536: ("melspectrogram", 48000, {"window_shift": 480, "num_mel_bins": 64}),
    2400: ("librosa", 48000, {"window_shift": 480}),
}
"""FFT length, which is the window's → preset, sample rate in Hz, and its changes."""


def library(
    preset: str, config: FbankConfig, inputs: Inputs, threads: int, folder: Path
) -> dict[str, Way]:
    """Return the library that a preset stands in for, called for its config."""
    rate, bins = int(config.sample_frequency), config.num_mel_bins
    if preset == "librosa":
        pytest.importorskip("librosa", reason="librosa is not installed: pip install -e '.[bench]'")
        run = librosa_mel(sr=rate, n_fft=config.fft_size, hop_length=config.window_shift)
        return {"librosa": local(run, inputs, threads)}
    if preset == "kaldi":
        options = {"sample_frequency": float(rate), "round_to_power_of_two": False}
        return torchaudio("kaldi.fbank", inputs, threads, folder, num_mel_bins=bins, **options)
    options = {"n_fft": config.fft_size, "hop_length": config.window_shift, "sample_rate": rate}
    return torchaudio("MelSpectrogram", inputs, threads, folder, n_mels=bins, **options)


@pytest.mark.benchmark(group="fft-lengths")
@pytest.mark.parametrize("waveforms", [1, 8], ids=["1-clip", "8-clips"])
@pytest.mark.parametrize("length", LENGTHS)
def test_fft_length(
    benchmark, request, tmp_path: Path, clips: np.ndarray, length: int, waveforms: int, threads: int
) -> None:
    """Compute 5 s at 44.1 or 48 kHz with an FFT that is no power of two."""
    preset, rate, changes = LENGTHS[length]
    config = FbankConfig.preset(
        preset, sample_frequency=float(rate), n_fft=length, window_size=length, **changes
    )
    long = clips[:24].reshape(8, -1)[:, : 5 * rate].astype(np.float32) / 32768
    inputs = [long] if waveforms > 1 else [clip[None] for clip in long]
    ways = {
        "ours": local(partial(fbank, config=config), inputs, threads),
        "reference": local(partial(fbank, config=config, backend="reference"), inputs, threads),
        **library(preset, config, inputs, threads, tmp_path),
    }
    exact = fbank(long.astype(np.float64), config, backend="reference").astype(np.float32)
    benchmark.extra_info["largest_difference"] = {
        name: check(features_of(way), exact, config) for name, way in ways.items()
    }
    compare(
        benchmark, request.config, ways, count(inputs), chosen_backend("fbank", inputs[0], config)
    )


@pytest.mark.benchmark(group="one-clip")
@pytest.mark.parametrize("threads", [2], indirect=True, ids=["2-threads"])
@pytest.mark.parametrize("seconds", [1, 5, 30], ids="{}-s".format)
def test_one_clip_on_two_threads(
    benchmark, request, clips: np.ndarray, seconds: int, threads: int
) -> None:
    """Call again and again for the same clip, which stays in the caches."""
    config, samples = FbankConfig(), clips[:6].reshape(1, -1)[:, : 16000 * seconds]
    inputs = [samples.astype(np.float32) / 32768] * SINGLE_CALLS
    ways = {
        name: local(partial(fbank, config=config), inputs, number)
        for name, number in (("ours", threads), ("ours on one thread", 1))
    }
    np.testing.assert_array_equal(*(features_of(way) for way in ways.values()))
    compare(
        benchmark, request.config, ways, count(inputs), chosen_backend("fbank", inputs[0], config)
    )


@pytest.mark.benchmark(group="int16")
@many
@pytest.mark.parametrize("preset", ["ast", "kaldi", "whisper"])
def test_int16(
    benchmark, request, clips: np.ndarray, preset: str, waveforms: int, threads: int
) -> None:
    """Read int16 samples, beside the same in float32."""
    config = FbankConfig.preset(preset)  # type: ignore[arg-type]
    samples, floats = (make_inputs(clips, waveforms, dtype) for dtype in ("int16", "float32"))
    ways = {
        name: local(partial(fbank, config=config), inputs, threads)
        for name, inputs in (("ours", samples), ("ours in float32", floats))
    }
    check(*(features_of(way) for way in ways.values()), config)
    compare(
        benchmark, request.config, ways, count(samples), chosen_backend("fbank", samples[0], config)
    )
