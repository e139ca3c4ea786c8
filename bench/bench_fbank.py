"""FBANK against other libraries: clips of 5 s, in each library's own convention.

A turn runs one batch of 64 clips, or 16 clips in 16 calls. Ours and a peer take turns in one run. A
turn begins when nothing else runs, so each finds the caches as the other left them. The features
are compared first. `extra_info` of every case holds

- clips_per_second, gigabytes_per_second: of the waveforms read and features written, by the median;
- ours_is_faster_by: the peer's median over ours;
- called: the fastest way to call the peer, which is the one that was timed;
- share_of_floor: the machine's floor (floor.py) over our median.

Rounds have one turn each. There are 15, or up to 100 if they take no longer than
`--benchmark-max-time` (1 s). A shorter `--benchmark-max-time` lowers the 15 in proportion, down to
`--benchmark-min-rounds` (5). Rounds of more than a second get that number too.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels.fbank.numba_cpu import unsupported
from ast_fast_kernels.fbank.presets import PRESETS
from ast_fast_kernels.testing.budgets import log_mel_error, relative_norm
from bench import floor, peers
from bench.peers import PEERS, Inputs
from bench.turns import Way

SINGLE_CALLS = 16
ROUNDS, MOST_ROUNDS = 15, 100

# Natural logarithms of two right answers in float32. The largest is over bins within 60 dB of their
# frame's loudest. tests/kernels/test_parity.py takes all bins, but of a sixth of the clips, which
# have no such quiet ones. The mean is over all bins; a convention without floor and DC removal
# (seed) reaches 2e-5.
LARGEST_DIFFERENCE, MEAN_DIFFERENCE = 4e-3, 5e-5
# Energies, for conventions without logarithm: torchaudio has filter edges in float32 Hz.
RELATIVE_NORM = 2e-5

OURS = [("ast", "int16"), *((preset, "float32") for preset in PRESETS)]
THEIRS = [
    (name, dtype)
    for name, peer in PEERS.items()
    for dtype in ("float32", "int16")
    if dtype == "float32" or peer.int16_changes is not None
]


def make_inputs(clips: np.ndarray, waveforms: int, dtype: str) -> Inputs:
    """Return one batch, or many single clips."""
    if dtype != "int16":
        clips = clips.astype(dtype) / 32768
    return [clip[None] for clip in clips[:SINGLE_CALLS]] if waveforms == 1 else [clips[:waveforms]]


def ours(config: FbankConfig, inputs: Inputs, threads: int) -> Way:
    obstacle = unsupported(config)
    if obstacle:
        pytest.skip(obstacle)
    return peers.ours(config, inputs, threads)


def check(features: np.ndarray, expected: np.ndarray, config: FbankConfig) -> float:
    """Check the features; return the largest difference (of energies, the relative norm)."""
    assert features.shape == expected.shape
    out, reference = torch.from_numpy(features).double(), torch.from_numpy(expected).double()
    if not config.use_log_fbank:
        norm = relative_norm(out, reference)
        assert norm <= RELATIVE_NORM
        return norm
    out, reference = ((x - config.log_shift) / config.log_factor for x in (out, reference))
    largest = log_mel_error(out, reference, use_power=config.use_power).max().item()
    assert largest <= LARGEST_DIFFERENCE
    assert (out - reference).abs().mean() <= MEAN_DIFFERENCE
    return largest


@contextmanager
def quiet(way: Way) -> Iterator[None]:
    """Wait until nothing runs, then give torch and BLAS the way's threads."""
    way.settle()
    torch.set_num_threads(way.threads)
    with threadpool_limits(limits=way.threads, user_api="blas"):
        yield


def count_rounds(config: pytest.Config, seconds: float) -> int:
    """Return how many rounds to run, by the module's rule, if one takes `seconds`."""
    longest = float(config.getoption("benchmark_max_time"))
    fewest: int = config.getoption("benchmark_min_rounds")
    if seconds > 1.0:
        return fewest
    return max(fewest, round(ROUNDS * min(longest, 1.0)), min(int(longest / seconds), MOST_ROUNDS))


def take_turns(benchmark, config: pytest.Config, way: Way, *others: Way) -> list[float]:
    """Time all in turns, the first one last, and record it; return the medians, in seconds."""
    seconds: dict[Way, list[float]] = defaultdict(list)
    with ExitStack() as held:

        def before() -> None:
            held.close()
            if others:
                way.settle()  # its threads may belong to another process
            for other in others:
                with quiet(other):
                    seconds[other].append(other.seconds())
            held.enter_context(quiet(way))

        def turn() -> None:
            seconds[way].append(way.seconds())

        begin = time.perf_counter()
        before()
        turn()
        rounds = count_rounds(config, time.perf_counter() - begin)
        seconds.clear()
        benchmark.pedantic(turn, setup=before, rounds=rounds)
    return [statistics.median(seconds[one]) for one in (way, *others)]


def record(benchmark, inputs: Inputs, features: np.ndarray, seconds: float) -> None:
    moved = sum(batch.nbytes for batch in inputs) + 4 * features.size
    benchmark.extra_info["clips_per_second"] = len(features) / seconds
    benchmark.extra_info["gigabytes_per_second"] = moved / seconds / 1e9


@pytest.fixture(scope="session")
def exact(clips: np.ndarray) -> Callable[[str], np.ndarray]:
    """Return a function for the reference's features in float64 of all clips, by preset."""

    @cache
    def features(preset: str) -> np.ndarray:
        config = FbankConfig.preset(preset)  # type: ignore[arg-type]
        (batch,) = make_inputs(clips, len(clips), "float64")
        return fbank(batch, config, backend="reference").astype(np.float32)

    return features


@pytest.mark.parametrize(("preset", "dtype"), OURS, ids=lambda value: value)
@pytest.mark.parametrize("waveforms", [1, 64], ids=["1-clip", "64-clips"])
def test_ours(
    benchmark, request, clips: np.ndarray, exact: Callable[[str], np.ndarray], waveforms: int,
    threads: int, preset: str, dtype: str,
) -> None:  # fmt: skip
    benchmark.group = f"fbank-{preset}"
    config, inputs = FbankConfig.preset(preset), make_inputs(clips, waveforms, dtype)
    way = ours(config, inputs, threads)
    features = way.features()
    check(features, exact(preset)[: len(features)], config)
    (seconds,) = take_turns(benchmark, request.config, way)
    record(benchmark, inputs, features, seconds)
    shape = (len(features), clips.shape[1])
    lowest = floor.floor_seconds(config, shape, inputs[0].itemsize, threads)
    if lowest is not None:
        benchmark.extra_info["share_of_floor"] = lowest / seconds


@pytest.mark.parametrize(("name", "dtype"), THEIRS, ids=lambda value: value)
@pytest.mark.parametrize("waveforms", [1, 64], ids=["1-clip", "64-clips"])
def test_peer(
    benchmark, request, tmp_path: Path, clips: np.ndarray, waveforms: int, threads: int,
    name: str, dtype: str, glance: bool,
) -> None:  # fmt: skip
    peer = PEERS[name]
    peers.require(peer)
    if name == "torch-compile" and glance:
        pytest.skip("torch.compile takes longer than the glance that --benchmark-max-time asks for")
    benchmark.group = f"fbank-{peer.preset}"
    config, inputs = peer.config(dtype), make_inputs(clips, waveforms, dtype)
    fast = ours(config, inputs, threads)
    ways = peer.ways(inputs, threads, tmp_path)
    features = fast.features()
    differences, seconds = {}, {}
    for how, way in ways.items():
        with quiet(way):
            differences[how] = check(features, way.features(), config)
            seconds[how] = min(way.seconds(), way.seconds()) if len(ways) > 1 else 0.0
    called = min(seconds, key=seconds.__getitem__)
    theirs, mine = take_turns(benchmark, request.config, ways[called], fast)
    record(benchmark, inputs, features, theirs)
    benchmark.extra_info["preset"] = peer.preset
    benchmark.extra_info["called"] = called
    benchmark.extra_info["ours_is_faster_by"] = theirs / mine
    benchmark.extra_info["largest_difference"] = differences[called]
