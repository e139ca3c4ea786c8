"""Make the golden vectors of the conventions: each library run on the inputs that are kept here.

    pip install librosa python_speech_features lhotse transformers
    pip download --no-deps torchaudio==2.9.1 speechbrain==1.1.2
    python tests/golden/make_library_golden.py torchaudio-2.9.1-*.whl speechbrain-1.1.2-*.whl

librosa, python_speech_features, lhotse and transformers run as installed; torchaudio's
MelSpectrogram and speechbrain's Fbank are read from their wheels and run with the torch at hand,
because speechbrain imports torchaudio, which needs a torch of its own. VGGish and NeMo cannot be
installed beside them, so their recipes are written here, in numpy, from the published code that
each names. Everything is stored as (num_frames, num_mel_bins), in float32.

--check writes nothing: it prints a table of how far every preset is from its library on ten real
clips, one of each class of ESC-10 under AST_FAST_DATA.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import json
import math
import os
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
INSTALLED = ("librosa", "python_speech_features", "lhotse", "transformers", "torch", "numpy")


def make_inputs() -> dict[str, np.ndarray]:
    """Return float32 waveforms in [-1, 1] at 16 kHz: a real excerpt, and one with silence in it."""
    kept = np.load(HERE / "inputs.npz")
    dog, bursts = kept["dog"][0], kept["bursts"][0]
    mixed = np.concatenate((dog[:2000], np.zeros(1203, np.int16), bursts[:2400]))
    return {"dog": _float(dog), "mixed": _float(mixed)}


def librosa(waveform: np.ndarray) -> np.ndarray:
    import librosa

    mel = librosa.feature.melspectrogram(y=waveform)  # taken as 22,050 Hz
    return librosa.power_to_db(mel).T


def python_speech_features(waveform: np.ndarray) -> np.ndarray:
    from python_speech_features import logfbank

    return logfbank(waveform)


def lhotse(waveform: np.ndarray) -> np.ndarray:
    from lhotse import Fbank

    return Fbank().extract(waveform, 16000)


def whisper(waveform: np.ndarray) -> np.ndarray:
    """Return what transformers' extractor gives, without its padding to 30 s."""
    from transformers import WhisperFeatureExtractor

    extractor = WhisperFeatureExtractor()
    features = extractor(waveform, sampling_rate=16000, padding="longest", return_tensors="np")
    return features["input_features"][0].T


# MelSpectrogram's options: draws of them make a grid. Its lengths of FFT are few, because a kernel
# is compiled for each.
GRID_SIZE = 120
WINDOWS = {
    "hanning": torch.hann_window,
    "hamming": torch.hamming_window,
    "blackman": torch.blackman_window,
    "rectangular": torch.ones,
}


def draw_grid() -> list[tuple[int, dict[str, Any]]]:
    """Return samples to take of the input, and MelSpectrogram's arguments, of each case."""
    rng = random.Random(0)
    values: dict[str, list[Any]] = {
        "sample_rate": [8000, 11025, 22050, 44100, 48000],
        "n_fft": [512],
        "win_length": [300, 251],
        "hop_length": [160, 147],
        "f_min": [50.0, 300.0],
        "f_max": [3500.0, 4000.0],
        "n_mels": [20, 40],
        "power": [1.0],
        "center": [False],
        "pad_mode": ["constant"],
        "norm": ["slaney"],
        "mel_scale": ["slaney"],
        "window_fn": ["hamming", "blackman", "rectangular"],
    }
    grid = []
    while len(grid) < GRID_SIZE:
        arguments = {name: rng.choice(v) for name, v in values.items() if rng.random() < 0.4}
        if "center" in arguments and "win_length" in arguments:
            continue  # no field of FbankConfig says it; the preset refuses it
        grid.append((rng.randrange(3000, 4000), arguments))
    return grid


def summary(features: np.ndarray) -> np.ndarray:
    """Return the mean frame, later ones weighing more: small, and no frame differs unseen."""
    weights = np.arange(1.0, len(features) + 1.0)
    return weights @ features / weights.sum()


def make_grid(transform: Any) -> dict[str, np.ndarray]:
    """Return each case's samples, arguments and shape, and all summaries in one array."""
    waveform = torch.from_numpy(make_inputs()["dog"])
    cases, outputs = [], []
    for count, arguments in draw_grid():
        window = {"window_fn": WINDOWS[arguments.get("window_fn", "hanning")]}
        features = transform(**{**arguments, **window})(waveform[:count]).mT.numpy()
        cases.append({"samples": count, "arguments": arguments, "shape": features.shape})
        outputs.append(summary(features).astype(np.float32))
    manifest = np.frombuffer(json.dumps(cases).encode(), np.uint8)
    return {"cases": manifest, "mean_frames": np.concatenate(outputs)}


SPEECHBRAINS_SIZE = 100


def draw_speechbrains() -> list[tuple[int, dict[str, Any]]]:
    """Return samples to take of the input, and Fbank's arguments, of each case."""
    rng = random.Random(0)
    values: dict[str, list[Any]] = {
        "deltas": [True],
        "context": [True],
        "sample_rate": [8000, 11025, 22050, 44100, 48000],
        "f_min": [50, 300.0],
        "f_max": [3500, 4000.0],
        "n_fft": [512, 2048],
        "n_mels": [23, 60, 80],
        "filter_shape": ["triangular", "rectangular", "gaussian"],
        "param_change_factor": [0.5],
        "left_frames": [2, 0],
        "right_frames": [1, 4],
        "win_length": [20, 8.25],
        "hop_length": [5, 12.5],
    }
    grid = []
    while len(grid) < SPEECHBRAINS_SIZE:
        arguments = {name: rng.choice(v) for name, v in values.items() if rng.random() < 0.4}
        window = arguments.get("sample_rate", 16000) / 1000 * arguments.get("win_length", 25)
        if round(window) > arguments.get("n_fft", 400):
            continue  # torch.stft refuses it
        grid.append((rng.randrange(3000, 4000), arguments))
    return grid


def make_speechbrains(fbank: Any) -> dict[str, np.ndarray]:
    """Return each case's samples, arguments and shape, and all summaries in one array."""
    waveform = torch.from_numpy(make_inputs()["dog"])
    cases, outputs = [], []
    for count, arguments in draw_speechbrains():
        features = fbank(**arguments)(waveform[None, :count])[0].numpy()
        cases.append({"samples": count, "arguments": arguments, "shape": features.shape})
        outputs.append(summary(features).astype(np.float32))
    manifest = np.frombuffer(json.dumps(cases).encode(), np.uint8)
    return {"cases": manifest, "mean_frames": np.concatenate(outputs)}


def vggish(waveform: np.ndarray) -> np.ndarray:
    """Return VGGish's log mel spectrogram.

    Source: tensorflow/models, research/audioset/vggish/mel_features.py, log_mel_spectrogram, with
    vggish_params.py's numbers.
    """
    size, hop, n_fft, num_bins = 400, 160, 512, 64
    frames = np.lib.stride_tricks.sliding_window_view(waveform.astype(np.float64), size)[::hop]
    window = 0.5 - 0.5 * np.cos(2 * np.pi / size * np.arange(size))
    magnitude = np.abs(np.fft.rfft(frames * window, n_fft))

    def to_mel(hertz: Any) -> Any:
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    edges = np.linspace(to_mel(125.0), to_mel(7500.0), num_bins + 2)
    mel = to_mel(np.linspace(0.0, 8000.0, n_fft // 2 + 1))[:, None]
    rising = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    banks = np.maximum(0.0, np.minimum(rising, falling))
    banks[0] = 0.0  # HTK has no DC bin
    return np.log(magnitude @ banks + 0.01)


def nemo(waveform: np.ndarray) -> np.ndarray:
    """Return the frames that count of NeMo's AudioToMelSpectrogramPreprocessor, not in training.

    Source: NVIDIA NeMo, collections/asr/parts/preprocessing/features.py, FilterbankFeatures and
    normalize_batch, at their defaults; the filters are librosa's there too.
    """
    import librosa

    size, hop, n_fft = 320, 160, 512
    signal = waveform.astype(np.float64)
    signal = np.concatenate((signal[:1], signal[1:] - 0.97 * signal[:-1]))
    padded = np.pad(signal, n_fft // 2)
    window = np.pad(
        0.5 - 0.5 * np.cos(2 * np.pi / (size - 1) * np.arange(size)), (n_fft - size) // 2
    )
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop]
    power = np.abs(np.fft.rfft(frames * window)) ** 2
    banks = librosa.filters.mel(
        sr=16000, n_fft=n_fft, n_mels=64, fmin=0, fmax=8000.0, norm="slaney"
    )
    log_mel = np.log(power @ banks.T + 2.0**-24)
    log_mel = log_mel[: len(waveform) // hop]  # get_seq_len: the last frame does not count
    return (log_mel - log_mel.mean(axis=0)) / (log_mel.std(axis=0, ddof=1) + 1e-5)


def load_mel_spectrogram(wheel: Path) -> Any:
    """Return torchaudio.transforms.MelSpectrogram, without importing torchaudio."""
    functions = {
        "spectrogram",
        "_get_spec_norms",
        "melscale_fbanks",
        "_hz_to_mel",
        "_mel_to_hz",
        "_create_triangular_filterbank",
    }
    functional = _load(wheel, "torchaudio/functional/functional.py", functions, {})
    classes = {"Spectrogram", "MelScale", "MelSpectrogram"}
    parts = {"F": SimpleNamespace(**functional)}
    return _load(wheel, "torchaudio/transforms/_transforms.py", classes, parts)["MelSpectrogram"]


def load_speechbrain(wheel: Path) -> Any:
    """Return speechbrain.lobes.features.Fbank, without importing speechbrain."""
    stages = {"STFT", "spectral_magnitude", "Filterbank", "Deltas", "ContextWindow"}
    own = {"Optional": Any, "FilterProperties": Any}
    processing = _load(wheel, "speechbrain/processing/features.py", stages, own)
    parts = {
        **own,
        **processing,
        "fwd_default_precision": lambda cast_inputs: lambda forward: forward,  # of autocast
    }
    return _load(wheel, "speechbrain/lobes/features.py", {"Fbank"}, parts)["Fbank"]


def _load(wheel: Path, path: str, wanted: set[str], namespace: dict[str, Any]) -> dict[str, Any]:
    """Return a module's functions or classes by name, and nothing else of it."""
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read(path))
    tree.body = [
        node
        for node in tree.body
        if getattr(node, "name", None) in wanted
        or (isinstance(node, ast.ImportFrom) and node.module in ("typing", "torch"))
    ]
    namespace |= {"torch": torch, "math": math, "warnings": warnings, "__name__": path}
    exec(compile(tree, path, "exec"), namespace)
    return {name: namespace[name] for name in wanted}


def real_clips() -> np.ndarray:
    """Return the first clip of each ESC-10 class: 5 s at 16 kHz, float32, (10, 80000)."""
    import soundfile
    import soxr

    audio = Path(os.environ["AST_FAST_DATA"]) / "esc10" / "audio"
    clips = np.zeros((10, 80000), np.float32)
    for row, target in zip(clips, (0, 1, 10, 11, 12, 20, 21, 38, 40, 41), strict=True):
        samples, rate = soundfile.read(min(audio.glob(f"1-*-{target}.*")), dtype="float32")
        samples = soxr.resample(samples, rate, 16000)[:80000]
        row[: len(samples)] = samples
    return clips


def print_table(recipes: dict[str, Callable[[np.ndarray], np.ndarray]]) -> None:
    """Print how far each preset is from its library, in natural logarithms."""
    from ast_fast_kernels import FbankConfig, fbank

    clips = real_clips()
    print("| preset | maximum | 99.99th percentile | mean | relative norm |\n|---|---|---|---|---|")
    for preset, recipe in recipes.items():
        config = FbankConfig.preset(preset)  # type: ignore[arg-type]
        expected = np.stack([recipe(clip) for clip in clips]).astype(np.float64)
        error = fbank(clips, config).astype(np.float64) - expected
        natural = np.abs(error) / config.log_factor
        cells = ["", "", ""]
        if config.use_log_fbank:
            measures = (natural.max(), np.quantile(natural, 0.9999), natural.mean())
            cells = [f"{measure:.1e}" for measure in measures]
        relative = np.linalg.norm(error) / np.linalg.norm(expected)
        print(f"| {preset} | {' | '.join(cells)} | {relative:.1e} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("torchaudio", type=Path)
    parser.add_argument("speechbrain", type=Path)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    wheels = {"torchaudio": args.torchaudio, "speechbrain": args.speechbrain}
    transform = load_mel_spectrogram(args.torchaudio)
    speechbrain = load_speechbrain(args.speechbrain)
    recipes = {
        "librosa": librosa,
        "melspectrogram": lambda waveform: transform()(torch.from_numpy(waveform)).mT.numpy(),
        "nemo": nemo,
        "python_speech_features": python_speech_features,
        "lhotse": lhotse,
        "speechbrain": lambda waveform: speechbrain()(torch.from_numpy(waveform)[None])[0].numpy(),
        "vggish": vggish,
        "whisper": whisper,
    }
    if args.check:
        print_table(recipes)
        return
    outputs = {
        f"{preset}/{name}": np.asarray(recipe(waveform), np.float32)
        for preset, recipe in recipes.items()
        for name, waveform in make_inputs().items()
    }
    versions = {name: importlib.metadata.version(name) for name in INSTALLED}
    versions |= {name: wheel.name.split("-")[1] for name, wheel in wheels.items()}
    np.savez_compressed(HERE / "libraries.npz", **outputs)
    np.savez_compressed(HERE / "melspectrogram_grid.npz", **make_grid(transform))
    np.savez_compressed(HERE / "speechbrain_grid.npz", **make_speechbrains(speechbrain))
    (HERE / "libraries.json").write_text(json.dumps(versions, indent=1) + "\n")


def _float(samples: np.ndarray) -> np.ndarray:
    return samples.astype(np.float32) / np.float32(32768.0)


if __name__ == "__main__":
    main()
