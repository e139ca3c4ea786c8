"""A training batch's steps besides its filterbank, against torch's operators.

Each case checks the results, then times both in turns; `extra_info` has the speed-up of `numba`
over torch's operators, and its time for a clip.
"""

import numpy as np
import torch

from ast_fast_kernels import mix, normalise
from bench.bench_attention import take_turns

BATCH, NUM_FRAMES, NUM_BINS = 32, 498, 128
BACKENDS = ("reference", "numba")


def test_mix(benchmark, clips: np.ndarray, threads: int, rounds: int) -> None:
    """Mix every clip of a batch with another, both rotated, from int16."""
    benchmark.group = "mix"
    generator = torch.Generator().manual_seed(0)
    num_clips, num_samples = clips.shape
    sources = torch.randint(num_clips, (BATCH, 2), generator=generator)
    starts = torch.randint(num_samples, (BATCH, 2), generator=generator)
    factors = torch.rand(BATCH, 2, generator=generator)

    def run(name: str) -> torch.Tensor:
        return mix(clips, sources, starts, factors, backend=name)

    measure(benchmark, run, rounds)


def test_normalise(benchmark, threads: int, rounds: int) -> None:
    """Normalise a batch by its clips' own values; filter, mask and pad it."""
    benchmark.group = "normalise"
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(BATCH, NUM_FRAMES, NUM_BINS, generator=generator)
    changes = {
        "offsets": torch.randn(BATCH, NUM_BINS, generator=generator),
        "masked_frames": torch.rand(BATCH, NUM_FRAMES, generator=generator) < 0.1,
        "masked_bins": torch.rand(BATCH, NUM_BINS, generator=generator) < 0.1,
    }

    def run(name: str) -> torch.Tensor:
        return normalise(features, 512, log_silence=-16.0, std_floor=1e-2, **changes, backend=name)

    measure(benchmark, run, rounds)


def measure(benchmark, run, rounds: int) -> None:
    torch.testing.assert_close(run("numba"), run("reference"), rtol=1e-4, atol=1e-4)
    medians = take_turns(benchmark, run, rounds, BACKENDS)
    benchmark.extra_info["microseconds_per_clip"] = 1e6 * medians["numba"] / BATCH
    benchmark(lambda: run("numba"))
