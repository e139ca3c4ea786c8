import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from ast_fast_kernels import FbankConfig, _threads, fbank
from ast_fast_kernels.fbank.numba_cpu import run_blocks, unsupported
from ast_fast_kernels.fbank.reference import fbank_reference

CONFIGS = {
    "ast": FbankConfig(),
    "kaldi": FbankConfig.preset("kaldi"),
    "seed": FbankConfig.preset("seed"),
    "mirrored-edges": FbankConfig(snip_edges=False),
    "8kHz-40mel": FbankConfig(sample_frequency=8000.0, num_mel_bins=40),
    "44.1kHz": FbankConfig(sample_frequency=44100.0),
    "5mel": FbankConfig(num_mel_bins=5),
    "129mel": FbankConfig(num_mel_bins=129),
    "hop-8-samples": FbankConfig(frame_shift=0.5),
    "hop-beyond-window": FbankConfig(frame_shift=40.0),
    "hop-equal-to-window": FbankConfig(frame_shift=25.0),
    "hop-13-samples": FbankConfig(frame_shift=0.8125 + 1e-6),
    "linear": FbankConfig(use_log_fbank=False),
    "int16-scale": FbankConfig(waveform_scale=32768.0),
    "no-dc-no-preemphasis": FbankConfig(remove_dc_offset=False, preemphasis_coefficient=0.0),
    "long-fft": FbankConfig(n_fft=2048),
    "no-floor": FbankConfig(log_floor=0.0),
}


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear(config: FbankConfig) -> FbankConfig:
    return config.replace(use_log_fbank=False)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("num_frames", [1, 2, 15, 16, 17, 50], ids=lambda n: f"{n}-frames")
def test_numba_agrees_with_the_float64_reference(name: str, num_frames: int) -> None:
    config = CONFIGS[name]
    num_samples = config.window_size + (num_frames - 1) * config.window_shift + 3
    waveform = noise(2, num_samples)
    exact = fbank_reference(waveform.double(), linear(config))
    plain = fbank_reference(waveform, linear(config)).double()
    ours = fbank(waveform, linear(config), backend="numba").double()
    # Twice torch's own float32 error, or the rounding of the longest sum (a window).
    budget = max(2 * (plain - exact).norm() / exact.norm(), 400 * 1.2e-7 / 16)
    assert (ours - exact).norm() / exact.norm() <= budget
    if config.use_log_fbank:
        log_mel = fbank(waveform, config, backend="numba").double()
        torch.testing.assert_close(
            log_mel, fbank_reference(waveform.double(), config), atol=4e-3, rtol=0
        )


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_every_vector_width_gives_the_same_energies(lanes: int) -> None:
    config = FbankConfig()
    waveform = noise(3, 16123)
    out = np.full((3, config.num_frames(16123), 128), np.nan, np.float32)
    run_blocks(waveform.numpy(), out, config, lanes, 1)
    expected = fbank_reference(waveform.double(), config).numpy()
    np.testing.assert_allclose(out, expected, atol=4e-3, rtol=0)


@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_the_thread_count_does_not_change_a_bit(num_threads: int) -> None:
    config = FbankConfig()
    waveform = noise(5, 40007).numpy()
    results = []
    for threads in (1, num_threads):
        out = np.full((5, config.num_frames(40007), 128), np.nan, np.float32)
        run_blocks(waveform, out, config, 16, threads)
        results.append(out)
    np.testing.assert_array_equal(results[0], results[1])


def test_a_clip_does_not_depend_on_its_neighbours() -> None:
    waveform = noise(4, 20011)
    together = fbank(waveform, backend="numba")
    alone = torch.stack([fbank(clip, backend="numba") for clip in waveform])
    assert torch.equal(together, alone)


def test_a_frame_does_not_depend_on_its_place() -> None:
    waveform = noise(16000)
    whole = fbank(waveform, backend="numba")
    for first in (1, 7, 40):
        part = fbank(waveform[160 * first :], backend="numba")
        assert torch.equal(whole[first:], part)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 399, 400, 1599, 5000, 15999])
def test_a_bad_sample_touches_its_own_frames_only(value: float, position: int) -> None:
    waveform = noise(16000)
    clean = fbank(waveform, backend="numba")
    waveform[position] = value
    dirty = fbank(waveform, backend="numba")
    frames = torch.arange(clean.shape[0])
    touched = (frames * 160 <= position) & (position < frames * 160 + 400)
    assert torch.equal(dirty[~touched], clean[~touched])
    used = clean[0] != FbankConfig().log_silence  # an empty filter stays at the floor
    assert dirty[touched][:, used].isnan().all()


def test_silence_is_the_log_floor() -> None:
    config = FbankConfig()
    out = fbank(torch.zeros(1, 16000), config, backend="numba")
    torch.testing.assert_close(out, torch.full_like(out, config.log_silence))


@pytest.mark.parametrize(
    "waveform",
    [
        torch.ones(8000),
        torch.sin(2 * torch.pi * 1000 / 16000 * torch.arange(8000)),
        torch.full((8000,), 2.0**-15),
        torch.full((8000,), 1e-40),
        torch.cat([torch.zeros(4000), torch.ones(4000)]),
    ],
    ids=["full-scale-dc", "sine-on-a-bin", "one-lsb", "denormal", "step"],
)
def test_extreme_signals_stay_close_to_float64(waveform: torch.Tensor) -> None:
    config = FbankConfig(use_log_fbank=False)
    exact = fbank_reference(waveform.double(), config)
    plain = fbank_reference(waveform, config).double()
    ours = fbank(waveform, config, backend="numba").double()
    # What float32 leaves of a removed mean: eps² of the signal's own energy.
    leak = (400 * waveform.abs().max().double() * 1.2e-7) ** 2
    assert (ours - exact).norm() <= 2 * (plain - exact).norm() + 1e-5 * exact.norm() + leak


def test_every_element_is_written() -> None:
    out = torch.full((2, 498, 128), torch.nan)
    result = fbank(noise(2, 80000), backend="numba", out=out)
    assert result is out
    assert not out.isnan().any()


@pytest.mark.parametrize("n_fft", [400, 8192])
def test_an_fft_that_is_not_served_is_named(n_fft: int) -> None:
    with pytest.raises(RuntimeError, match=f"power of two from 32 to 4096, got {n_fft}"):
        fbank(noise(16000), FbankConfig(n_fft=n_fft), backend="numba")
    assert unsupported(FbankConfig(n_fft=512)) is None


def test_many_python_threads_call_at_once() -> None:
    waveform = noise(4, 80000)
    expected = fbank(waveform, backend="numba")
    results: list[torch.Tensor] = []

    def call() -> None:
        results.extend(fbank(waveform, backend="numba") for _ in range(5))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len(results) == 40
    assert all(torch.equal(result, expected) for result in results)


def test_a_forked_child_computes_the_same() -> None:
    program = """
import os, torch
from ast_fast_kernels import fbank
torch.set_num_threads(2)
waveform = torch.linspace(-1, 1, 4 * 80000).sin().view(4, 80000)
expected = fbank(waveform, backend="numba").numpy()
child = os.fork()
if child == 0:  # compares with numpy: torch's own threads do not survive a fork
    os._exit(0 if (fbank(waveform, backend="numba").numpy() == expected).all() else 3)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    finished = subprocess.run([sys.executable, "-c", program], timeout=120, check=False)
    assert finished.returncode == 0


def test_a_second_process_takes_the_compiled_kernel_from_the_cache(tmp_path) -> None:
    program = """
import sys, torch
from ast_fast_kernels import fbank
from ast_fast_kernels.fbank import numba_cpu
fbank(torch.zeros(1, 16000), backend="numba")
stats = numba_cpu._build_kernel(512, numba_cpu.host_lanes(), numba_cpu.source_digest()).stats
print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    counts = [
        subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout.split()
        for _ in range(2)
    ]
    assert counts == [["0", "1"], ["1", "0"]]


def test_ranges_cover_the_work_once() -> None:
    seen: list[int] = []
    lock = threading.Lock()

    def run(first: int, last: int) -> None:
        with lock:
            seen.extend(range(first, last))

    _threads.parallel_for(run, 103, 10, 4)
    assert sorted(seen) == list(range(103))


def test_an_error_in_a_worker_is_raised_by_the_caller() -> None:
    def run(first: int, last: int) -> None:
        if first > 0:
            raise ValueError("worker")

    with pytest.raises(ValueError, match="worker"):
        _threads.parallel_for(run, 100, 10, 2)
