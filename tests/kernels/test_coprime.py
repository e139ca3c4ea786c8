import numpy as np
import pytest
from numba import njit

from ast_fast_kernels._cpu import coprime, simd

LENGTHS = [n for n in range(2, 4097, 2) if coprime.is_supported(n)]


def as_numbers(z: np.ndarray) -> list[tuple[float, float]]:
    return [(value.real, value.imag) for value in z]


@pytest.mark.parametrize("numerator", range(25))
def test_five_rotated_points_are_transformed(numerator: int) -> None:
    rng = np.random.default_rng(numerator)
    z = rng.normal(size=5) + 1j * rng.normal(size=5)
    bins = coprime.rotated_five_point_dft(as_numbers(z), numerator, 25)
    rotated = z * np.exp(-2j * np.pi * numerator * np.arange(5) / 25)
    np.testing.assert_allclose([complex(*value) for value in bins], np.fft.fft(rotated), atol=1e-14)


@pytest.mark.parametrize("n_fft", LENGTHS)
def test_every_sample_is_read_and_every_bin_has_a_place(n_fft: int) -> None:
    assert sorted(coprime.input_order(n_fft)) == list(range(n_fft))
    places = coprime.bin_places(n_fft)
    assert len(set(places)) == len(places) == n_fft // 2 + 1
    assert 0 <= places.min() <= places.max() < coprime.grid_size(n_fft)


@pytest.mark.parametrize("unshifted", [0, 1], ids=["shifted", "unshifted"])
@pytest.mark.parametrize(
    ("n_fft", "lanes"), [(200, 4), (200, 8), (400, 4), (400, 8), (800, 8), (1600, 8)]
)
def test_the_passes_give_the_power_spectrum(n_fft: int, unshifted: int, lanes: int) -> None:
    @njit
    def run(source, places, window, shift, grid):
        offset, nothing = simd.splat(shift, lanes), (0, 0, 0, 0)
        coprime.power_spectrum(
            source, places, window, offset, grid, nothing, n_fft, unshifted, lanes
        )

    rng, shift = np.random.default_rng(n_fft), np.float32(0.0 if unshifted else 0.25)
    signals = rng.normal(size=(n_fft, lanes)).astype(np.float32)
    window = np.hanning(n_fft).astype(np.float32)
    order, apart = coprime.input_order(n_fft), rng.permutation(n_fft)  # of the signals' samples
    grid = np.full(coprime.grid_size(n_fft) * lanes, np.nan, np.float32)
    run(signals.reshape(-1), (apart[order] * lanes).astype(np.int32), window[order], shift, grid)
    powers = grid.reshape(-1, lanes)[coprime.bin_places(n_fft)]
    frames = (signals[apart].astype(np.float64) - shift) * window[:, None]
    expected = np.abs(np.fft.rfft(frames, axis=0)) ** 2
    # Each of log2(n) levels rounds twice: eps * 2 * log2(n), doubled by the square.
    budget = 4 * np.log2(n_fft) * np.finfo(np.float32).eps
    assert np.linalg.norm(powers - expected) / np.linalg.norm(expected) < budget
