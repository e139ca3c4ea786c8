import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import ast_fast_kernels
from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels.fbank import numba_cpu
from ast_fast_kernels.fbank.numba_cpu import run_blocks, unsupported
from ast_fast_kernels.fbank.numba_kernel import compiled_worker
from ast_fast_kernels.fbank.reference import fbank_reference
from ast_fast_kernels.testing.budgets import LOG_MEL_MAX, log_mel_error
from ast_fast_kernels.testing.guards import guarded
from ast_fast_kernels.testing.processes import run_program

CONFIGS = {
    "ast": FbankConfig(),
    "kaldi": FbankConfig.preset("kaldi"),
    "seed": FbankConfig.preset("seed"),
    "mirrored-edges": FbankConfig(snip_edges=False),
    "lhotse-odd-shift": FbankConfig.preset("lhotse", window_shift=161),
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
    "centred-reflected": FbankConfig(snip_edges=False, center=True, pad_mode="reflect"),
    "zero-padded-tail": FbankConfig(pad_tail=True),
    "emphasised-waveform": FbankConfig(preemphasis_over="waveform", pad_tail=True),
    "emphasised-waveform-centred": FbankConfig(
        preemphasis_over="waveform", snip_edges=False, center=True, pad_mode="constant"
    ),
    "unpadded-fft": FbankConfig(n_fft=400),
    "44.1kHz-unpadded": FbankConfig(sample_frequency=44100.0, n_fft=1102),
    "fft-with-a-large-prime": FbankConfig(frame_length=12.5, n_fft=254),
    "decibels": FbankConfig(log_type="db", output_shift=3.0, output_scale=0.5),
    "zeros-floored-only": FbankConfig(floor_zeros_only=True),
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
def test_every_vector_width_gives_the_same_energies_with_any_cache(lanes: int) -> None:
    config = FbankConfig()
    waveform = noise(3, 16123)
    results = []
    for cache_bytes in (1 << 10, 1 << 20):
        out = torch.full((3, config.num_frames(16123), 128), torch.nan)
        run_blocks(waveform, out, config, lanes, cache_bytes=cache_bytes)
        results.append(out)
    expected = fbank_reference(waveform.double(), config)
    torch.testing.assert_close(results[0].double(), expected, atol=4e-3, rtol=0)
    assert torch.equal(*results)


@pytest.mark.parametrize("lanes", [4, 16])
def test_without_a_mean_the_vector_width_changes_no_bit(lanes: int) -> None:
    """Nor with a limited range, whose extremes are those of blocks, nor with bad samples."""
    config = FbankConfig.preset("whisper")
    waveform = noise(6, 16123)
    waveform[:, 9000:] *= 1e-6
    counts = [16123, 16123, 16123, 16123, 8000, 0]
    for clip, value in enumerate((torch.nan, torch.inf, 1e20)):
        waveform[clip, 5000] = value
    results = []
    for count, cache_bytes in ((8, 1 << 20), (lanes, 1 << 10), (lanes, 1 << 20)):
        out = torch.full((6, config.num_frames(16123), 80), torch.nan)
        run_blocks(waveform, out, config, count, counts, cache_bytes=cache_bytes)
        results.append(out.numpy())
    np.testing.assert_array_equal(results[1], results[0])
    np.testing.assert_array_equal(results[2], results[0])
    assert np.isfinite(results[0][3:]).all()


@pytest.mark.parametrize("level", [1e-30, 1.0, 1e30])
def test_magnitudes_are_the_same_with_any_cache(level: float) -> None:
    config = FbankConfig.preset("seed", use_log_fbank=False)
    waveform = level * noise(1, 16123)
    results = []
    for cache_bytes in (1 << 10, 1 << 20):
        out = torch.full((1, config.num_frames(16123), config.num_mel_bins), torch.nan)
        run_blocks(waveform, out, config, 8, cache_bytes=cache_bytes)
        results.append(out)
    expected = fbank_reference(waveform.double(), config)
    assert (results[0].double() - expected).norm() <= 1e-5 * expected.norm()
    assert torch.equal(*results)


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("clips", [9, 30])
@pytest.mark.parametrize("num_threads", [2, 3, 7])
def test_the_thread_count_does_not_change_a_bit(num_threads: int, clips: int, set_threads) -> None:
    config = FbankConfig()
    waveform = noise(clips, 40007)
    # Of 30 clips all threads have work; of 9, 2 threads have, whoever comes.
    assert 7 * numba_cpu.BLOCKS_PER_THREAD <= 30 * 16
    assert 9 * 16 // numba_cpu.BLOCKS_PER_THREAD == 2
    results = []
    for threads in (1, num_threads):
        set_threads(threads)
        out = torch.full((clips, config.num_frames(40007), 128), torch.nan)
        run_blocks(waveform, out, config, 16)
        results.append(out)
    assert torch.equal(results[0], results[1])


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
    assert dirty[touched].isnan().all()


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


def test_a_mean_is_removed_to_float32s_last_bit() -> None:
    # Low noise on an offset sixty times as large: the rounding of 0.97 times the offset would show
    # in the lowest filters.
    generator = torch.Generator().manual_seed(0)
    waveform = 0.3 + 0.005 * torch.randn(80000, generator=generator).cumsum(0).mul(0.05).sin()
    error = log_mel_error(
        fbank(waveform, backend="numba"), fbank_reference(waveform.double()[None], FbankConfig())[0]
    )
    plain = log_mel_error(
        fbank(waveform, backend="reference"),
        fbank_reference(waveform.double()[None], FbankConfig())[0],
    )
    assert error.max() <= max(LOG_MEL_MAX, 2 * plain.max())


def test_every_element_is_written() -> None:
    out = torch.full((2, 498, 128), torch.nan)
    result = fbank(noise(2, 80000), backend="numba", out=out)
    assert result is out
    assert not out.isnan().any()


@pytest.mark.parametrize("n_fft", [4098, 8192])
def test_an_fft_that_is_not_served_is_named(n_fft: int) -> None:
    message = f"numba needs an FFT length of at most 4096, got {n_fft}"
    with pytest.raises(RuntimeError, match=message):
        fbank(noise(16000), FbankConfig(n_fft=n_fft), backend="numba")
    assert unsupported(FbankConfig(n_fft=4096)) is None


def test_a_shift_that_32_bits_cannot_index_is_named() -> None:
    config = FbankConfig.from_samples(window_size=400, window_shift=2**28, sample_frequency=16000.0)
    message = "numba needs a shift of at most 16777216 samples, got 268435456"
    with pytest.raises(RuntimeError, match=message):
        fbank(noise(16000), config, backend="numba")
    assert fbank(noise(16000), config).shape == (1, 128)


WORKER = """compiled_worker(
    512, 25, host_lanes(), in_halves(FbankConfig(), host_lanes(), first_cache()), 0, 0, 0,
    source_digest()
)"""
CALL = """
import logging, torch
logging.basicConfig()
from ast_fast_kernels import FbankConfig, fbank
from ast_fast_kernels._cpu.caches import first_cache
from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels._cpu.simd import host_lanes
from ast_fast_kernels.fbank.numba_cpu import in_halves
from ast_fast_kernels.fbank.numba_kernel import compiled_worker
assert fbank(torch.zeros(1, 16000), backend="numba").shape == (1, 98, 128)
"""


def test_no_cache_folder_is_no_obstacle(tmp_path) -> None:
    # A file where the folder should be cannot be written by anyone, root included.
    blocker = tmp_path / "file"
    blocker.touch()
    run_program(CALL, NUMBA_CACHE_DIR=str(blocker / "cache"))


EMITTERS = [
    "_cpu/chirp.py",
    "_cpu/compile.py",
    "_cpu/coprime.py",
    "_cpu/crew.py",
    "_cpu/dft.py",
    "_cpu/fft.py",
    "_cpu/halves.py",
    "_cpu/lanes.py",
    "_cpu/products.py",
    "_cpu/simd.py",
    "_cpu/spectrum.py",
    "_cpu/team.py",
    "attention/numba_cpu.py",
    "fbank/numba_dither.py",
    "fbank/numba_kernel.py",
    "fbank/numba_mersenne.py",
    "mix/numba_cpu.py",
    "normalise/numba_cpu.py",
    "stem/numba_cpu.py",
]


@pytest.fixture
def copied_package(tmp_path) -> Path:
    """The kernels' sources, to be changed."""
    copy = tmp_path / "ast_fast_kernels"
    source = Path(ast_fast_kernels.__file__).parent
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.mark.parametrize("emitter", EMITTERS)
def test_the_cache_key_covers_every_source(emitter: str, copied_package: Path) -> None:
    before = source_digest.__wrapped__(copied_package)
    assert before == source_digest()
    changed = copied_package / emitter
    changed.write_text(changed.read_text() + "# changed")
    assert source_digest.__wrapped__(copied_package) != before


def test_the_cache_key_covers_a_new_file_and_a_change_to_it(copied_package: Path) -> None:
    digests = {source_digest.__wrapped__(copied_package)}
    (copied_package / "new").mkdir()
    for text in ("", "from ast_fast_kernels.fbank.numba_kernel import Plan\n", "import numba\n"):
        (copied_package / "new" / "emitter.py").write_text(f"# a kernel\n{text}")
        digests.add(source_digest.__wrapped__(copied_package))
    assert len(digests) == 4


def test_a_second_process_takes_the_compiled_kernel_from_the_cache(tmp_path) -> None:
    """What is compiled is said before it; what is cached is not."""
    program = f"""
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("ast_fast_kernels.compile").setLevel(logging.INFO)
{CALL}
print({WORKER}.cache_hits)
"""
    first, second = (run_program(program, NUMBA_CACHE_DIR=str(tmp_path)) for _ in range(2))
    kernel = rf"the fbank kernel for .*lanes {numba_cpu.host_lanes()}, n_fft 512.*"
    assert re.fullmatch(rf"compiling {kernel}\ncompiled {kernel} in [\d.]+ s\n0\n", first)
    assert second == "1\n"


def test_processes_that_compile_at_once_do_not_mix_their_kernels_up(tmp_path) -> None:
    program = """
import sys, torch
from ast_fast_kernels import FbankConfig, fbank
waveform = 0.1 * torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
for n_fft in map(int, sys.argv[1:]):
    config = FbankConfig(n_fft=n_fft, use_log_fbank=False)
    exact = fbank(waveform.double(), config, backend="reference")
    assert (fbank(waveform, config, backend="numba") - exact).norm() <= 1e-6 * exact.norm(), n_fft
"""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    for sizes in (("512",), ("1024",)), (("512", "1024"),):
        started = [
            subprocess.Popen([sys.executable, "-c", program, *names], env=environment)
            for names in sizes
        ]
        assert not any(process.wait(timeout=120) for process in started)


CHANGES = {
    "window": {"window_type": "povey"},
    "mel bins": {"num_mel_bins": 80},
    "frequency range": {"low_freq": 60.0, "high_freq": -200.0},
    "sample rate": {"sample_frequency": 16016.0},
    "logarithm": {"log_type": "db", "log_floor": 1e-10},
    "hop": {"frame_shift": 12.5},
    "padding": {"snip_edges": False},
}


def test_a_change_of_tables_compiles_nothing() -> None:
    fbank(noise(16000), backend="numba")
    before = compiled_worker.cache_info().currsize
    for name, change in CHANGES.items():
        fbank(noise(16000), FbankConfig(**change), backend="numba")
        assert compiled_worker.cache_info().currsize == before, name


@pytest.mark.parametrize("at_end", [True, False], ids=["guarded-end", "guarded-start"])
@pytest.mark.parametrize("name", CONFIGS)
def test_scratch_is_never_left(name: str, at_end: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every buffer stands against a page that cannot be touched; a step beyond it is a crash."""
    monkeypatch.setattr(numba_cpu, "aligned", lambda size: guarded(size, at_end))
    # Buffers of an earlier call would be used again.
    monkeypatch.setattr(numba_cpu, "_of_thread", numba_cpu._OfThread())
    config = CONFIGS[name]
    for num_frames in (1, 16, 21):
        num_samples = config.window_size + (num_frames - 1) * config.window_shift
        out = torch.full((1, config.num_frames(num_samples), config.num_mel_bins), torch.nan)
        run_blocks(noise(1, num_samples), out, config, numba_cpu.host_lanes())
        assert not out.isnan().any()
