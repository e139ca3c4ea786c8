"""Compare `ast_fast_kernels.kaldi` with torchaudio.compliance.kaldi, and keep some of its numbers.

Runs in an environment that has torchaudio 2.9.1 and this package's kernels:

    PYTHONPATH=kernels python tests/golden/make_kaldi_golden.py --compare 2000

draws so many calls of each function at random, and prints for each how many were compared, how many
both refuse, and the largest difference. Without --compare it writes kaldi_grid.npz, for tests
without torchaudio.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from make_golden import REFUSED, VALUES, grid_waveform  # noqa: E402

Draw = Callable[[random.Random], tuple[Any, ...]]

VALUES = {**VALUES, "num_ceps": [1, 4, 13, 20], "cepstral_lifter": [0.0, 10.0, 40.0, -22.0]}
REFUSED = {**REFUSED, "num_ceps": [24, 81]}
OF_FILTERS = {"high_freq", "htk_compat", "low_freq", "num_mel_bins", "use_energy",
              "vtln_high", "vtln_low", "vtln_warp"}  # fmt: skip
OF_FBANK = {"use_log_fbank", "use_power"}
OF_MFCC = {"num_ceps", "cepstral_lifter"}
LACKS = {"fbank": OF_MFCC, "mfcc": OF_FBANK, "spectrogram": OF_FILTERS | OF_FBANK | OF_MFCC}
"""Function → those of `VALUES` that are no arguments of it."""

GRID = {"mfcc": 150, "spectrogram": 150, "get_mel_banks": 60, "vtln_warp_freq": 40}
"""Function → how many of its draws are kept."""

REFUSALS = (AssertionError, ValueError, ZeroDivisionError)


def draw_features(function: str) -> Draw:
    """Return what draws a feature function's keyword arguments; every fourth has a refused one."""
    lacks = LACKS[function]

    def draw(rng: random.Random) -> tuple[Any, ...]:
        kept = {name: v for name, v in VALUES.items() if name not in lacks}
        refused = {name: v for name, v in REFUSED.items() if name not in lacks}
        arguments = {name: rng.choice(v) for name, v in kept.items() if rng.random() < 0.3}
        if rng.random() < 0.25:
            name = rng.choice(sorted(refused))
            arguments[name] = rng.choice(refused[name])
        return (arguments,)

    return draw


def draw_banks(rng: random.Random) -> tuple[Any, ...]:
    """Draw the arguments of get_mel_banks, of which some do not go together."""
    rate = rng.choice([8000.0, 16000.0, 16000.0, 22050.0, 32000.0, 44100.0])
    return (
        rng.choice([3, 4, 13, 23, 40, 80, 128]),
        rng.choice([256, 400, 512, 1024, 1102, 401]),
        rate,
        rng.choice([0.0, 20.0, 50.0 * rng.random(), 3000.0, -1.0]),
        rng.choice([0.0, -400.0, 3500.0, rate / 2, rate * (0.4 + 0.12 * rng.random())]),
        rng.choice([100.0, 60.0, 10.0]),
        rng.choice([-500.0, 3000.0, -10.0, rate]),
        rng.choice([1.0, 1.0, 0.8 + 0.5 * rng.random()]),
    )


def draw_warp(rng: random.Random) -> tuple[Any, ...]:
    """Draw the arguments of the warps."""
    frequencies = [rng.uniform(-100.0, 9000.0) for _ in range(rng.choice([1, 7, 40]))]
    return (
        rng.choice([100.0, 60.0, 10.0]),
        rng.choice([7500.0, 3000.0, 7990.0, 9000.0]),
        rng.choice([0.0, 20.0, 50.0]),
        rng.choice([8000.0, 7800.0]),
        0.8 + 0.5 * rng.random(),
        torch.tensor(frequencies),
    )


def draw_scalar(rng: random.Random) -> tuple[Any, ...]:
    return (rng.choice([0.0, rng.uniform(0.0, 24000.0), rng.uniform(-600.0, 0.0)]),)


def draw_tensor(rng: random.Random) -> tuple[Any, ...]:
    shape = rng.choice([(), (5,), (3, 4), (0,)])
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    dtype = rng.choice([torch.float32, torch.float64])
    return (4000.0 * torch.rand(shape, generator=generator, dtype=dtype),)


def draw_clip(rng: random.Random, least: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    return torch.randn(rng.randint(least, 3000), generator=generator) + rng.choice([0.0, 5.0])


def draw_strided(rng: random.Random) -> tuple[Any, ...]:
    size = rng.randint(2, 600)
    return draw_clip(rng, size), size, rng.randint(1, 300), rng.random() < 0.5


def draw_window(rng: random.Random) -> tuple[Any, ...]:
    clip, size, shift, snip_edges = draw_strided(rng)
    padded = rng.choice([size, 1 << (size - 1).bit_length()])
    return (
        clip, padded, size, shift, rng.choice(["povey", "hanning", "hamming", "blackman",
        "rectangular", "kaiser"]), rng.choice([0.42, 0.3]), snip_edges, rng.random() < 0.5,
        rng.choice([0.0, 1.0, 1e-4, -1.0]), rng.choice([0.0, 0.0, 0.1, -1.0]), rng.random() < 0.5,
        rng.choice([0.0, 0.97]),
    )  # fmt: skip


def draw_window_function(rng: random.Random) -> tuple[Any, ...]:
    names = ["povey", "hanning", "hamming", "blackman", "rectangular", "kaiser"]
    dtype = rng.choice([torch.float32, torch.float64])
    return rng.choice(names), rng.randint(2, 1000), rng.random(), torch.device("cpu"), dtype


def draw_properties(rng: random.Random) -> tuple[Any, ...]:
    waveform = torch.stack([draw_clip(rng, 3000), draw_clip(rng, 3000)])
    return (
        waveform, rng.choice([-1, 0, 1, 2]), rng.choice([8000.0, 16000.0, 44100.0, 16000]),
        rng.choice([10.0, 12.5, 0.0, 5]), rng.choice([25.0, 20.0, 25.1, 0.05, 400.0]),
        rng.random() < 0.5, rng.choice([0.0, 0.97, 1.0, 1.1, -0.1]),
    )  # fmt: skip


def draw_energy(rng: random.Random) -> tuple[Any, ...]:
    frames = draw_clip(rng, 100)[:100].reshape(10, 10) * rng.choice([0.0, 1.0, 100.0])
    return frames, torch.tensor(1.1920928955078125e-07), rng.choice([0.0, 1.0, 50.0, -1.0])


DRAWS: dict[str, Draw] = {
    "fbank": draw_features("fbank"),
    "mfcc": draw_features("mfcc"),
    "spectrogram": draw_features("spectrogram"),
    "get_mel_banks": draw_banks,
    "mel_scale": draw_tensor,
    "mel_scale_scalar": draw_scalar,
    "inverse_mel_scale": draw_tensor,
    "inverse_mel_scale_scalar": draw_scalar,
    "vtln_warp_freq": draw_warp,
    "vtln_warp_mel_freq": draw_warp,
    "_get_strided": draw_strided,
    "_get_window": draw_window,
    "_get_waveform_and_window_properties": draw_properties,
    "_get_log_energy": draw_energy,
    "_get_epsilon": lambda rng: (torch.device("cpu"), rng.choice([torch.float32, torch.float64])),
    "_feature_window_function": draw_window_function,
    "_next_power_of_2": lambda rng: (rng.randint(0, 5000),),
    "_subtract_column_mean": lambda rng: (draw_energy(rng)[0], rng.random() < 0.5),
    "_get_dct_matrix": lambda rng: (rng.randint(1, 40), rng.randint(4, 128)),
    "_get_lifter_coeffs": lambda rng: (rng.randint(1, 40), rng.uniform(1.0, 40.0)),
}
"""Function → what draws its arguments; those of a feature function are keywords."""


def run(
    kaldi: Any, function: str, arguments: tuple[Any, ...], waveform: torch.Tensor, seed: int
) -> Any:
    """Return what a function gives; None if it refuses."""
    call = getattr(kaldi, function)
    torch.manual_seed(seed)
    try:
        if function in LACKS:
            return call(waveform, **arguments[0])
        return call(*arguments)
    except REFUSALS:
        return None
    except Exception as error:
        if type(error) is not Exception:  # which torchaudio raises for a window's name
            raise
        return None


def difference(function: str, arguments: tuple[Any, ...], ours: Any, theirs: Any) -> float:
    """Return how far two results are apart; shapes and types must be equal.

    That is the largest absolute difference, but of spectra without a logarithm, and of a
    spectrogram, relative to the frame's largest power.
    """
    if isinstance(theirs, tuple):
        pairs = zip(ours, theirs, strict=True)
        return max(difference(function, arguments, *pair) for pair in pairs)
    if not isinstance(theirs, torch.Tensor):
        assert type(ours) is type(theirs), (ours, theirs)
        return float(abs(ours - theirs))
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    assert ours.dtype == theirs.dtype, (ours.dtype, theirs.dtype)
    if theirs.numel() == 0:
        return 0.0
    assert torch.equal(ours.isnan(), theirs.isnan())
    ours, theirs = ours.double().nan_to_num(), theirs.double().nan_to_num()
    options = arguments[0] if function in LACKS else {}
    if function == "spectrogram" and not options.get("subtract_mean"):
        first = (ours[:, 0] - theirs[:, 0]).abs().max()
        ours, theirs = ours[:, 1:].exp(), theirs[:, 1:].exp()
        return float(max(first, ((ours - theirs).abs() / theirs.amax(1, keepdim=True)).max()))
    apart = (ours - theirs).abs()
    if function == "fbank" and options.get("use_log_fbank") is False:
        return float((apart / theirs.abs().amax().clamp(min=1e-30)).max())
    return float(apart.max())


def compare(count: int, functions: list[str]) -> None:
    """Print each function's number of calls and refusals, and the largest difference."""
    import torchaudio.compliance.kaldi as theirs

    from ast_fast_kernels import kaldi as ours
    from ast_fast_kernels import use_backend

    waveform = grid_waveform(np.load(HERE / "inputs.npz"))
    for function in functions or DRAWS:
        rng = random.Random(1)
        refused, empty, worst, where = 0, 0, 0.0, None
        for call in range(count):
            arguments = DRAWS[function](rng)
            if function in LACKS and rng.random() < 0.5:
                arguments[0]["dither"] = rng.choice([0.1, -0.01, 1.0])
            backend = rng.choice(["auto", "reference"])
            try:
                expected = run(theirs, function, arguments, waveform, call)
            except (RuntimeError, IndexError):  # a crash, not a refusal
                empty += 1
                continue
            with use_backend(fbank=backend):
                out = run(ours, function, arguments, waveform, call)
            if (expected is None) != (out is None):
                raise SystemExit(f"{function}{arguments}: torchaudio {expected}, ours {out}")
            if expected is None:
                refused += 1
                continue
            apart = difference(function, arguments, out, expected)
            if apart > worst or math.isnan(apart):
                worst, where = apart, arguments
        print(
            f"{function}: {count} calls, {refused} refused by both, {empty} crash in torchaudio, "
            f"largest difference {worst:.1e}",
            flush=True,
        )
        if function in LACKS:
            print(f"    at {where}", flush=True)


def summary(result: Any) -> np.ndarray:
    """Return a result's weighted means: small, and no number differs unseen."""
    parts = result if isinstance(result, tuple) else (result,)
    sums = []
    for part in parts:
        values = part.double()
        if values.dim() == 2:
            weights = torch.arange(1.0, values.shape[0] + 1.0, dtype=torch.float64)
            values = weights @ values / weights.sum()
        eights = torch.nn.functional.pad(values, (0, -len(values) % 8)).view(-1, 8)
        sums.append(eights @ torch.arange(1.0, 9.0, dtype=torch.float64))
    return torch.cat(sums).float().numpy()


def make_grid() -> dict[str, np.ndarray]:
    """Return each draw's function, arguments and shape (None: refused), and all summaries."""
    import torchaudio.compliance.kaldi as theirs

    waveform = grid_waveform(np.load(HERE / "inputs.npz"))
    cases, outputs = [], []
    for function, count in GRID.items():
        rng = random.Random(2)
        while count:
            arguments = DRAWS[function](rng)
            try:
                result = run(theirs, function, arguments, waveform, 0)
            except (RuntimeError, IndexError):
                continue
            count -= 1
            listed = [a.tolist() if isinstance(a, torch.Tensor) else a for a in arguments]
            first = result[0] if isinstance(result, tuple) else result
            shape = None if result is None else list(first.shape)
            part = np.zeros(0, np.float32)
            if result is not None and first.numel():
                part = summary(result)
            cases.append([function, listed, shape, len(part)])
            outputs.append(part)
    manifest = np.frombuffer(json.dumps(cases).encode(), np.uint8)
    return {"cases": manifest, "sums": np.concatenate(outputs)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("functions", nargs="*", choices=[*DRAWS, []], metavar="function")
    parser.add_argument("--compare", type=int, metavar="CALLS")
    args = parser.parse_args()
    if args.compare:
        compare(args.compare, args.functions)
    else:
        np.savez_compressed(HERE / "kaldi_grid.npz", **make_grid())


if __name__ == "__main__":
    main()
