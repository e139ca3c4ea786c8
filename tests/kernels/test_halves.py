from pathlib import Path

import numpy as np
import pytest
from numba import njit

from ast_fast_kernels._cpu import caches, halves, simd
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.numba_cpu import in_halves
from ast_fast_kernels.testing import working_set


def as_complex(z: tuple[float, float | None]) -> complex:
    return complex(z[0], 0.0 if z[1] is None else z[1])


@pytest.mark.parametrize("n", [1, 2, 4, 8, 16, 32, 64])
def test_a_complex_dft_is_the_dft(n: int) -> None:
    rng = np.random.default_rng(n)
    z = rng.normal(size=n) + 1j * rng.normal(size=n)
    bins = dict(halves.complex_dft([(value.real, value.imag) for value in z]))
    np.testing.assert_allclose([as_complex(bins[k]) for k in range(n)], np.fft.fft(z), atol=1e-12)


@pytest.mark.parametrize("n", [2, 4, 8, 16, 32, 64])
def test_real_bins_are_one_of_each_bin_and_its_mirror(n: int) -> None:
    x = np.random.default_rng(n).normal(size=n)
    bins = dict(halves.real_bins(list(x)))
    assert sorted(min(k, n - k) for k in bins) == list(range(n // 2 + 1))
    expected = np.fft.fft(x)
    for k, z in bins.items():
        assert abs(as_complex(z) - expected[k]) < 1e-12


def spectrum(n_fft, rows, half, lanes, signals, places, window, table):
    """Return `power_spectrum` of signals less 0.25, (n_fft // 2 + 1, lanes)."""

    @njit
    def run(source, places, window, shift, grid, table):
        offset, nothing = simd.splat(shift, lanes), (0, 0, 0, 0)
        halves.power_spectrum(
            source, places, window, offset, grid, table, nothing, n_fft, rows, half, lanes
        )

    grid = np.full(halves.grid_size(n_fft, half) * lanes, np.nan, np.float32)
    run(signals, places, window, np.float32(0.25), grid, table)
    return grid.reshape(-1, lanes)[halves.bin_places(n_fft, half)]


@pytest.mark.parametrize("n_fft", [32, 256, 512, 1024])
@pytest.mark.parametrize("filled", [0.78, 1.0], ids=["short-window", "full-window"])
def test_both_orders_give_the_power_spectrum_and_the_same_bits(n_fft: int, filled: float) -> None:
    lanes, size = 4, int(filled * n_fft)
    rows = halves.used_rows(n_fft, size)
    rng = np.random.default_rng(n_fft)
    signals = rng.normal(size=(size + 1, lanes)).astype(np.float32)
    signals[size] = 0  # what lies beyond the window
    window = np.zeros(n_fft, np.float32)
    window[:size] = np.hanning(size)
    order = rng.permutation(size)  # samples need not lie in order
    places = np.full(n_fft, size * lanes, np.int32)
    places[:size] = order * lanes
    arguments = (signals.reshape(-1), places, window, halves.twiddles(n_fft))
    powers = [spectrum(n_fft, rows, half, lanes, *arguments) for half in range(2)]
    frames = (signals[order].astype(np.float64) - 0.25) * window[:size, None]
    expected = np.abs(np.fft.rfft(frames, n_fft, axis=0)) ** 2
    # Each of log2(n) levels rounds twice: eps * 2 * log2(n), doubled by the square.
    budget = 4 * np.log2(n_fft) * np.finfo(np.float32).eps
    assert np.linalg.norm(powers[0] - expected) / np.linalg.norm(expected) < budget
    np.testing.assert_array_equal(powers[0], powers[-1])


@pytest.mark.parametrize(
    ("n_fft", "window_size", "rows"),
    [(512, 400, 25), (512, 401, 32), (512, 512, 32), (256, 200, 13), (64, 60, 8)],
)
def test_a_short_window_reaches_25_of_32_rows(n_fft: int, window_size: int, rows: int) -> None:
    assert halves.used_rows(n_fft, window_size) == rows


def describe(cpus, cpu: str, index: str, **texts: str) -> None:
    folder = cpus / cpu / "cache" / index
    folder.mkdir(parents=True)
    for name, text in texts.items():
        (folder / name).write_text(f"{text}\n")


def test_the_first_cache_is_the_smallest_of_the_cores(tmp_path) -> None:
    for cpu, size in (("cpu0", "48K"), ("cpu11", "32K")):
        describe(tmp_path, cpu, "index0", level="1", type="Data", size=size)
        describe(tmp_path, cpu, "index1", level="1", type="Instruction", size="16K")
        describe(tmp_path, cpu, "index2", level="2", type="Unified", size="1M")
    assert caches.first_cache(tmp_path) == 32 << 10


@pytest.mark.parametrize("size", ["", "0K", "4K", "2M", "32X", "-32K"])
def test_a_cache_of_no_likely_size_counts_as_32_kib(size: str, tmp_path) -> None:
    describe(tmp_path, "cpu0", "index0", level="1", type="Data", size=size)
    assert caches.first_cache(tmp_path) == caches.USUAL == 32 << 10
    assert caches.first_cache(tmp_path / "none") == caches.USUAL


def test_sixteen_lanes_are_transformed_in_halves_where_the_first_cache_has_32_kib() -> None:
    config = FbankConfig()
    assert [in_halves(config, 16, kib << 10) for kib in (32, 48)] == [1, 0]
    assert [in_halves(config, 8, kib << 10) for kib in (16, 32)] == [1, 0]
    assert in_halves(FbankConfig.preset("whisper"), 16, 1 << 10) == 0


def test_the_table_of_bytes_in_the_guide_is_what_the_script_prints() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "filterbank.md").read_text()
    begin = "<!-- python -m ast_fast_kernels.testing.working_set -->\n\n"
    written = guide.partition(begin)[2].partition("\n\n<!-- end -->")[0]
    assert written == working_set.table(FbankConfig())
