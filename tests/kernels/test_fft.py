import cmath
import math

import numpy as np
import pytest
from numba import njit

from ast_fast_kernels._cpu import fft, simd


def as_complex(z: tuple[float, float | None]) -> complex:
    return complex(z[0], 0.0 if z[1] is None else z[1])


@pytest.mark.parametrize("n", [1, 2, 4, 5, 8, 25, 32, 64])
def test_real_dft_is_the_dft(n: int) -> None:
    x = np.random.default_rng(n).normal(size=n)
    bins = [as_complex(z) for z in fft.real_dft(list(x))]
    np.testing.assert_allclose(bins, np.fft.rfft(x), atol=1e-12)


def test_a_butterfly_adds_and_subtracts_the_rotated_term() -> None:
    a, b = (0.3, -0.7), (1.1, 0.4)
    w = cmath.exp(-2j * math.pi * 3 / 17)
    plus, minus = fft.butterfly(a, b, *fft.rotation(3, 17))
    assert abs(as_complex(plus) - (complex(*a) + w * complex(*b))) < 1e-15
    assert abs(as_complex(minus) - (complex(*a) - w * complex(*b))) < 1e-15


def test_a_mirrored_butterfly_conjugates_the_difference() -> None:
    a, b = (0.3, -0.7), (1.1, 0.4)
    plus, minus = fft.butterfly(a, b, *fft.rotation(3, 17))
    mirrored = fft.mirrored_butterfly(a, b, *fft.rotation(3, 17))
    assert mirrored == [plus, (minus[0], pytest.approx(-minus[1], abs=1e-15))]


@pytest.mark.parametrize("m", [1, 2, 8, 16])
def test_twisted_dft_gives_every_rows_th_bin(m: int) -> None:
    rows, row = 32, 5
    rng = np.random.default_rng(m)
    z = rng.normal(size=m) + 1j * rng.normal(size=m)

    def combine(size, j, a, b):
        return fft.butterfly(a, b, *fft.rotation(row + rows * j, rows * size))

    values = [as_complex(v) for v in fft.twisted_dft([(v.real, v.imag) for v in z], combine)]
    n = rows * m
    expected = [
        sum(z[i] * cmath.exp(-2j * math.pi * i * (row + rows * j) / n) for i in range(m))
        for j in range(m)
    ]
    np.testing.assert_allclose(values, expected, atol=1e-12)


@pytest.mark.parametrize("window_size", [4, 8], ids=["all-inputs", "second-half-zero"])
def test_real_dft_takes_none_for_zero(window_size: int) -> None:
    x = np.random.default_rng(7).normal(size=8)
    x[window_size:] = 0
    inputs = [value if n < window_size else None for n, value in enumerate(x)]
    bins = [as_complex(z) for z in fft.real_dft(inputs)]
    np.testing.assert_allclose(bins, np.fft.rfft(x), atol=1e-12)


@pytest.mark.parametrize(
    ("n_fft", "window_size", "rows"),
    [(512, 400, 25), (512, 401, 32), (512, 512, 32), (256, 200, 13), (64, 60, 8), (400, 300, 25)],
)
def test_a_short_window_reaches_25_of_32_rows(n_fft: int, window_size: int, rows: int) -> None:
    assert fft.used_rows(n_fft, window_size) == rows


@pytest.mark.parametrize("n_fft", [32, 64, 128, 200, 256, 400, 512, 800, 1024, 1600, 2048, 4096])
@pytest.mark.parametrize("filled", [0.78, 1.0], ids=["short-window", "full-window"])
@pytest.mark.parametrize("lanes", [4, 16], ids=lambda lanes: f"{lanes}-lanes")
def test_power_spectrum_agrees_with_numpy(n_fft: int, filled: float, lanes: int) -> None:
    if lanes != 16 and n_fft > 512:
        pytest.skip("the width is covered by the smaller lengths")
    size = int(filled * n_fft)
    rows = fft.used_rows(n_fft, size)

    @njit
    def run(source, places, window, shift, grid, table):
        offset, nothing = simd.splat(shift, lanes), (0, 0, 0, 0)
        fft.power_spectrum(source, places, window, offset, grid, table, nothing, n_fft, rows, lanes)

    rng = np.random.default_rng(n_fft)
    signals = rng.normal(size=(size + 1, lanes)).astype(np.float32)
    signals[size] = 0  # what lies beyond the window
    window = np.zeros(n_fft, np.float32)
    window[:size] = np.hanning(size)
    order = rng.permutation(size)  # samples need not lie in order
    places = np.full(n_fft, size, np.intp)
    places[:size] = order
    grid = np.full(n_fft * lanes, np.nan, np.float32)
    run(signals.reshape(-1), places * lanes, window, np.float32(0.25), grid, fft.twiddles(n_fft))
    power = grid.reshape(n_fft, lanes)[fft.bin_places(n_fft)]
    frames = (signals[order].astype(np.float64) - 0.25) * window[:size, None]
    expected = np.abs(np.fft.rfft(frames, n_fft, axis=0)) ** 2
    # Each of log2(n) butterfly levels rounds twice: eps * 2 * log2(n), doubled by the square.
    budget = 4 * math.log2(n_fft) * np.finfo(np.float32).eps
    assert np.linalg.norm(power - expected) / np.linalg.norm(expected) < budget


@pytest.mark.parametrize(
    ("n_fft", "supported"),
    [
        (16, False), (32, True), (100, False), (400, True), (480, False), (512, True),
        (1600, True), (4096, True), (8192, False),
    ],
)  # fmt: skip
def test_supported_lengths_are_powers_of_two_and_25_times_some(n_fft: int, supported: bool) -> None:
    assert fft.is_supported(n_fft) is supported


@pytest.mark.parametrize("inputs", ["values", "functions"])
def test_inputs_may_be_functions_that_give_them(inputs: str) -> None:
    x = np.random.default_rng(9).normal(size=25)
    given = list(x) if inputs == "values" else [lambda value=value: value for value in x]
    bins = [as_complex(z) for z in fft.real_dft(given)]
    np.testing.assert_allclose(bins, np.fft.rfft(x), atol=1e-12)


def test_five_dft_is_the_dft() -> None:
    z = np.random.default_rng(11).normal(size=(5, 2))
    bins = [as_complex(value) for value in fft.five_dft([tuple(pair) for pair in z])]
    np.testing.assert_allclose(bins, np.fft.fft(z @ [1, 1j]), atol=1e-12)
