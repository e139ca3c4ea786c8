"""Make the golden vectors: torchaudio's Kaldi fbank, run on the inputs that are kept here.

    pip download --no-deps torchaudio==2.9.1
    python tests/golden/make_golden.py torchaudio-2.9.1-*.whl

torchaudio's compliance/kaldi.py is plain Python over torch; it is read from the wheel and run
with the torch at hand, so nothing is installed. Inputs are made anew with --inputs, which takes
the two excerpts from the clips under AST_FAST_DATA. --check writes nothing: it compares
`kaldi.fbank` with torchaudio over the grid, every value of every frame.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ast_fast_kernels.testing.signals import make_signal

HERE = Path(__file__).parent
AST = {
    "htk_compat": True,
    "use_energy": False,
    "window_type": "hanning",
    "num_mel_bins": 128,
    "dither": 0.0,
    "frame_shift": 10,
}
"""YuanGongND/ast, src/dataloader.py: waveform minus its mean, then these."""

# name: (input, minus its mean, arguments)
CASES: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "defaults": ("bursts", False, {}),
    "defaults-dog": ("dog", False, {}),
    "ast-dog": ("dog", True, AST),
    "ast-rain": ("rain", True, AST),
    "ast-before-log": ("rain", True, {**AST, "use_log_fbank": False}),
    "80-bins": ("bursts", False, {"num_mel_bins": 80}),
    "hanning": ("bursts", False, {"window_type": "hanning"}),
    "hamming": ("bursts", False, {"window_type": "hamming"}),
    "blackman": ("bursts", False, {"window_type": "blackman"}),
    "blackman-coeff": ("bursts", False, {"window_type": "blackman", "blackman_coeff": 0.3}),
    "rectangular": ("bursts", False, {"window_type": "rectangular"}),
    "mirrored-edges": ("bursts", False, {"snip_edges": False}),
    "mirrored-edges-long-hop": (
        "bursts",
        False,
        {"snip_edges": False, "frame_length": 10.0, "frame_shift": 25.0},
    ),
    "energy": ("dog", False, {"use_energy": True}),
    "energy-no-floor": ("dog", False, {"use_energy": True, "energy_floor": 0.0}),
    "energy-low-floor": ("dog", False, {"use_energy": True, "energy_floor": 1e-4}),
    "energy-last": ("dog", False, {"use_energy": True, "energy_floor": 0.0, "htk_compat": True}),
    "energy-windowed": (
        "dog",
        False,
        {"use_energy": True, "energy_floor": 0.0, "raw_energy": False},
    ),
    "energy-minus-mean": (
        "dog",
        False,
        {"use_energy": True, "energy_floor": 0.0, "subtract_mean": True},
    ),
    "minus-mean": ("bursts", False, {"subtract_mean": True}),
    "magnitude": ("bursts", False, {"use_power": False}),
    "before-log": ("bursts", False, {"use_log_fbank": False}),
    "magnitude-before-log": ("bursts", False, {"use_power": False, "use_log_fbank": False}),
    "vtln-shorter": ("bursts", False, {"vtln_warp": 0.85}),
    "vtln-longer": ("bursts", False, {"vtln_warp": 1.2, "vtln_low": 200.0, "vtln_high": 7000.0}),
    "exact-fft": ("bursts", False, {"round_to_power_of_two": False}),
    "no-preemphasis": ("bursts", False, {"preemphasis_coefficient": 0.0}),
    "no-dc-removal": ("dog", False, {"remove_dc_offset": False}),
    "band": ("bursts", False, {"low_freq": 100.0, "high_freq": 7000.0}),
    "band-from-nyquist": ("bursts", False, {"low_freq": 0.0, "high_freq": -400.0}),
    "8-khz": ("bursts", False, {"sample_frequency": 8000.0}),
    "44-khz": ("bursts", False, {"sample_frequency": 44100.0, "num_mel_bins": 40}),
    "short-frames": ("bursts", False, {"frame_length": 12.7, "frame_shift": 3.1}),
    "min-duration": ("bursts", False, {"min_duration": 10.0}),
    "second-channel": ("stereo", False, {"channel": 1}),
    "negative-channel": ("stereo", False, {"channel": -3}),
    "silence": ("silence", False, {"use_energy": True}),
    "full-scale": ("full_scale", False, {}),
}


# The grid: each argument keeps its default in seven draws of ten, else takes one of these; every
# fourth draw has one argument that torchaudio refuses. FFTs have 256, 512 or 1024 points, so that
# a kernel compiled for each length is compiled three times.
GRID_SIZE = 800
GRID_INPUT, GRID_SAMPLES = "stereo", 2000
VALUES: dict[str, list[Any]] = {
    "blackman_coeff": [0.3, 0.5],
    "channel": [0, 1, -2],
    "energy_floor": [0.0, 1e-4, 10.0],
    "frame_length": [20.0, 32.0],
    "frame_shift": [5.0, 12.5, 33.0],
    "high_freq": [-200.0, 3500.0, 4000.0],
    "htk_compat": [True],
    "low_freq": [0.0, 60.0, 125.0, 300.0],
    "min_duration": [0.05, 0.1, 0.15],
    "num_mel_bins": [4, 13, 40, 80],
    "preemphasis_coefficient": [0.0, 0.5, 1.0],
    "raw_energy": [False],
    "remove_dc_offset": [False],
    "round_to_power_of_two": [False],
    "sample_frequency": [8000.0, 22050.0],
    "snip_edges": [False],
    "subtract_mean": [True],
    "use_energy": [True],
    "use_log_fbank": [False],
    "use_power": [False],
    "vtln_high": [3000.0, -300.0],
    "vtln_low": [350.0, 400.0],
    "vtln_warp": [0.85, 0.95, 1.1, 1.25],
    "window_type": ["hanning", "hamming", "rectangular", "blackman"],
}
REFUSED: dict[str, list[Any]] = {
    "channel": [2],
    "energy_floor": [-1.0],
    "frame_length": [0.05, 300.0],
    "frame_shift": [0.01, -10.0],
    "high_freq": [-20000.0, 20000.0],
    "low_freq": [-1.0, 12000.0],
    "num_mel_bins": [0, 3],
    "preemphasis_coefficient": [-0.1, 1.5],
    "sample_frequency": [0.0],
    "window_type": ["kaiser"],
}


def draw_grid() -> list[dict[str, Any]]:
    """Return the arguments of each case, drawn from `VALUES` and `REFUSED`."""
    rng = random.Random(0)
    grid = []
    for case in range(GRID_SIZE):
        arguments = {name: rng.choice(v) for name, v in VALUES.items() if rng.random() < 0.3}
        if case % 4 == 3:
            name = rng.choice(sorted(REFUSED))
            arguments[name] = rng.choice(REFUSED[name])
        grid.append(arguments)
    return grid


def grid_waveform(inputs: Mapping[str, np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(inputs[GRID_INPUT][:, :GRID_SAMPLES]).float() / 32768.0


def summary(features: torch.Tensor) -> torch.Tensor:
    """Return the mean frame, later ones weighing more: small, and no frame differs unseen."""
    weights = torch.arange(1.0, features.shape[0] + 1.0)
    return (weights @ features / weights.sum()) if features.numel() else features


def make_grid(kaldi: types.ModuleType, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return each case's arguments and shape (None: refused), and all summaries in one array."""
    waveform = grid_waveform(inputs)
    cases, outputs = [], []
    for arguments in draw_grid():
        try:
            features = kaldi.fbank(waveform, **arguments)
        except Exception as error:
            if type(error) not in (AssertionError, ValueError, ZeroDivisionError, Exception):
                raise  # not a refusal but a crash: no case
            cases.append({"arguments": arguments, "shape": None})
            continue
        cases.append({"arguments": arguments, "shape": list(features.shape)})
        outputs.append(summary(features).numpy())
    manifest = np.frombuffer(json.dumps(cases).encode(), np.uint8)
    return {"cases": manifest, "mean_frames": np.concatenate(outputs)}


def check_grid(kaldi: types.ModuleType, inputs: Mapping[str, np.ndarray]) -> None:
    """Print how far `kaldi.fbank` is from torchaudio over the grid."""
    from ast_fast_kernels.kaldi import fbank

    waveform = grid_waveform(inputs)
    differences, refused = [], 0
    for arguments in draw_grid():
        try:
            expected = kaldi.fbank(waveform, **arguments)
        except Exception:
            refused += 1
            try:
                fbank(waveform, **arguments)
            except ValueError:
                continue
            raise SystemExit(f"torchaudio refuses {arguments}, kaldi.fbank does not") from None
        out = fbank(waveform, **arguments)
        if out.shape != expected.shape:
            raise SystemExit(f"{arguments}: {tuple(expected.shape)}, not {tuple(out.shape)}")
        if arguments.get("use_log_fbank", True):
            differences.append((out - expected).abs().flatten())
    difference = torch.cat(differences)
    print(
        f"{GRID_SIZE} cases, {refused} refused by both; log-mel difference: "
        f"maximum {difference.max():.1e}, mean {difference.mean():.1e}"
    )


def make_inputs() -> dict[str, np.ndarray]:
    """Return int16 inputs, shape (channels, num_samples)."""
    bursts = _int16(make_signal("bursts", 4800, seed=1))
    noise = _int16(make_signal("noise", 4800))
    return {
        "bursts": bursts[None],
        "stereo": np.stack((noise, bursts)),
        "silence": np.zeros((1, 800), np.int16),
        "full_scale": _int16(make_signal("full_scale", 1600))[None],
        "dog": _excerpt("1-100032-A-0.ogg"),
        "rain": _excerpt("1-17367-A-10.ogg"),
    }


def load_torchaudio_kaldi(wheel: Path) -> types.ModuleType:
    """Return torchaudio's compliance/kaldi.py as a module of its own."""
    with zipfile.ZipFile(wheel) as archive:
        source = archive.read("torchaudio/compliance/kaldi.py").decode()
    sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
    module = types.ModuleType("torchaudio_kaldi")
    exec(compile(source, "torchaudio/compliance/kaldi.py", "exec"), module.__dict__)
    return module


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("wheel", type=Path)
    parser.add_argument("--inputs", action="store_true")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    kaldi = load_torchaudio_kaldi(args.wheel)
    if args.inputs:
        np.savez_compressed(HERE / "inputs.npz", **make_inputs())
    inputs = np.load(HERE / "inputs.npz")
    if args.check:
        check_grid(kaldi, inputs)
        return
    outputs = {}
    for name, (source, minus_mean, arguments) in CASES.items():
        waveform = torch.from_numpy(inputs[source]).float() / 32768.0
        if minus_mean:
            waveform = waveform - waveform.mean()
        outputs[name] = kaldi.fbank(waveform, **arguments).numpy()
    np.savez_compressed(HERE / "torchaudio.npz", **outputs)
    manifest = [
        {"name": name, "input": source, "minus_mean": minus_mean, "arguments": arguments}
        for name, (source, minus_mean, arguments) in CASES.items()
    ]
    (HERE / "torchaudio.json").write_text(json.dumps(manifest, indent=1) + "\n")
    np.savez_compressed(HERE / "torchaudio_grid.npz", **make_grid(kaldi, inputs))
    print(f"made with torch {torch.__version__}")


def _excerpt(filename: str) -> np.ndarray:
    import soundfile
    import soxr

    path = Path(os.environ["AST_FAST_DATA"]) / "esc10" / "audio" / filename
    samples, sample_rate = soundfile.read(path, dtype="float32")
    samples = soxr.resample(samples, sample_rate, 16000)
    energy = np.convolve(samples**2, np.ones(6400), mode="valid")
    start = int(energy.argmax())
    return _int16(samples[start : start + 6400])[None]


def _int16(samples: np.ndarray) -> np.ndarray:
    return np.clip(np.round(samples * 32768.0), -32768, 32767).astype(np.int16)


if __name__ == "__main__":
    main()
