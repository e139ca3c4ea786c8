"""Make the golden vectors: torchaudio's Kaldi fbank, run on the inputs that are kept here.

    pip download --no-deps torchaudio==2.9.1
    python tests/golden/make_golden.py torchaudio-2.9.1-*.whl

torchaudio's compliance/kaldi.py is plain Python over torch; it is read from the wheel and run
with the torch at hand, so nothing is installed. Inputs are made anew with --inputs, which takes
the two excerpts from the clips under AST_FAST_DATA.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import types
import zipfile
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
    args = parser.parse_args()
    if args.inputs:
        np.savez_compressed(HERE / "inputs.npz", **make_inputs())
    inputs = np.load(HERE / "inputs.npz")
    kaldi = load_torchaudio_kaldi(args.wheel)
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
