import cmath
import math

import numpy as np
import pytest
from numba import njit

from ast_fast_kernels._cpu import chirp, dft, fft, simd, spectrum


def as_complex(z: tuple[float, float | None]) -> complex:
    return complex(z[0], 0.0 if z[1] is None else z[1])


@pytest.mark.parametrize("n", range(1, 130))
def test_real_dft_is_the_dft(n: int) -> None:
    x = np.random.default_rng(n).normal(size=n)
    bins = [as_complex(z) for z in dft.real_dft(list(x))]
    np.testing.assert_allclose(bins, np.fft.rfft(x), atol=1e-11)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 8, 15, 16, 30, 49, 64])
def test_half_turned_dft_is_between_the_bins(n: int) -> None:
    x = np.random.default_rng(n).normal(size=n)
    turned = [as_complex(z) for z in dft.half_turned_dft(list(x))]
    between = np.fft.fft(x * np.exp(-1j * np.pi * np.arange(n) / n))
    np.testing.assert_allclose(turned, between[: (n + 1) // 2], atol=1e-12)


def test_a_butterfly_adds_and_subtracts_the_rotated_term() -> None:
    a, b = (0.3, -0.7), (1.1, 0.4)
    w = cmath.exp(-2j * math.pi * 3 / 17)
    plus, minus = dft.butterfly(a, b, *dft.rotation(3, 17))
    assert abs(as_complex(plus) - (complex(*a) + w * complex(*b))) < 1e-15
    assert abs(as_complex(minus) - (complex(*a) - w * complex(*b))) < 1e-15


def test_a_mirrored_butterfly_conjugates_the_difference() -> None:
    a, b = (0.3, -0.7), (1.1, 0.4)
    plus, minus = dft.butterfly(a, b, *dft.rotation(3, 17))
    mirrored = dft.mirrored_butterfly(a, b, *dft.rotation(3, 17))
    assert mirrored == [plus, (minus[0], pytest.approx(-minus[1], abs=1e-15))]


@pytest.mark.parametrize("m", [1, 2, 3, 8, 12, 16, 19, 35])
def test_twisted_dft_gives_every_rows_th_bin(m: int) -> None:
    rows, row = 32, 5
    rng = np.random.default_rng(m)
    z = rng.normal(size=m) + 1j * rng.normal(size=m)

    def combine(size, j, parts):
        return dft.combined(parts, dft.turns_of(len(parts), row + rows * j, rows * size))

    values = [as_complex(v) for v in dft.twisted_dft([(v.real, v.imag) for v in z], combine)]
    n = rows * m
    expected = [
        sum(z[i] * cmath.exp(-2j * math.pi * i * (row + rows * j) / n) for i in range(m))
        for j in range(m)
    ]
    np.testing.assert_allclose(values, expected, atol=1e-12)


@pytest.mark.parametrize("used", [1, 2, 3, 41, 59, 60])
@pytest.mark.parametrize("n", [60, 64, 84])
def test_a_plain_dft_takes_none_beyond_the_end_for_zero(n: int, used: int) -> None:
    z = np.random.default_rng(n).normal(size=(n, 2))
    z[used:] = 0
    inputs = [tuple(pair) if i < used else None for i, pair in enumerate(z)]
    bins = [as_complex(value) for value in dft.twisted_dft(inputs, chirp.plain_combine)]
    np.testing.assert_allclose(bins, np.fft.fft(z @ [1, 1j]), atol=1e-12)


@pytest.mark.parametrize("window_size", [4, 8], ids=["all-inputs", "second-half-zero"])
def test_real_dft_takes_none_for_zero(window_size: int) -> None:
    x = np.random.default_rng(7).normal(size=8)
    x[window_size:] = 0
    inputs = [value if n < window_size else None for n, value in enumerate(x)]
    bins = [as_complex(z) for z in dft.real_dft(inputs)]
    np.testing.assert_allclose(bins, np.fft.rfft(x), atol=1e-12)


def two_passes(x: np.ndarray) -> np.ndarray:
    """Return the power spectrum of `x` by the passes' own arithmetic, all columns at once."""
    n = len(x)
    plan = fft.Plan.of(n)
    down = dft.real_dft(list(x.reshape(plan.rows, plan.columns)))
    power = np.full(plan.rows * plan.columns, np.nan)

    def write(row: int, bins: list) -> None:
        values = np.array([as_complex(z) for z in bins])
        place = row * plan.columns
        power[place : place + len(bins)] = np.abs(values) ** 2

    write(0, dft.real_dft(list(down[0][0])))
    if plan.rows % 2 == 0:
        write(plan.rows // 2, dft.half_turned_dft(list(down[plan.rows // 2][0])))
    table = fft.twiddles(n).astype(float)
    table = table.reshape((plan.rows - 1) // 2, plan.columns - 1, 2)
    for row, turns in enumerate(table, start=1):
        combine = combine_by(turns)
        bins = dft.twisted_dft(list(zip(*down[row], strict=True)), combine)
        own = (plan.columns + 1) // 2
        write(row, bins[:own])
        write(plan.rows - row, bins[: own - 1 : -1])
    return power[fft.bin_places(n)]


def combine_by(turns: np.ndarray):
    def combine(m, j, parts):
        p = len(parts)
        first = m // p - 1 + j * (p - 1)
        return dft.combined(parts, [tuple(pair) for pair in turns[first : first + p - 1]])

    return combine


def test_every_split_length_is_transformed() -> None:
    rng = np.random.default_rng(0)
    lengths = [n for n in range(2, 600, 2) if fft.is_supported(n)]
    lengths += [882, 1102, 1200, 1536, 1764, 2400, 4050]
    for n in lengths:
        x = rng.normal(size=n)
        expected = np.abs(np.fft.rfft(x)) ** 2
        # The table is rounded to float32.
        error = np.linalg.norm(two_passes(x) - expected) / np.linalg.norm(expected)
        assert error < 4 * np.finfo(np.float32).eps, n


def test_every_even_length_has_a_way() -> None:
    for n in range(2, spectrum.MAX_SIZE + 1, 2):
        assert spectrum.is_supported(n)
        for half in range(1 + spectrum.can_halve(n)):
            places = spectrum.bin_places(n, half)
            assert len(set(places)) == n // 2 + 1
            assert 0 <= places.min() <= places.max() < spectrum.grid_vectors(n, half)
    assert not any(spectrum.is_supported(n) for n in (0, 1, 3, 401, 4095, 4098, 8192))


LENGTHS = [2, 6, 16, 254, 480, 882, 1102, 1536, 4096]


@pytest.mark.parametrize(
    ("n_fft", "lanes"), [(n, 16) for n in LENGTHS] + [(n, 4) for n in LENGTHS if 128 <= n <= 512]
)
@pytest.mark.parametrize("filled", [0.78, 1.0], ids=["short-window", "full-window"])
def test_power_spectrum_agrees_with_numpy(n_fft: int, filled: float, lanes: int) -> None:
    size = int(filled * n_fft)
    rows = spectrum.used_rows(n_fft, size)

    @njit
    def run(source, places, window, shift, grid, table):
        offset, nothing = simd.splat(shift, lanes), (0, 0, 0, 0)
        spectrum.power_spectrum(
            source, places, window, offset, grid, table, nothing, n_fft, rows, 0, 0, lanes
        )

    rng = np.random.default_rng(n_fft)
    signals = rng.normal(size=(size + 1, lanes)).astype(np.float32)
    signals[size] = 0  # what lies beyond the window
    window = np.zeros(n_fft, np.float32)
    window[:size] = np.hamming(size)
    order = rng.permutation(size)  # samples need not lie in order
    places = np.full(n_fft, size, np.intp)
    places[:size] = order
    grid = np.full(spectrum.grid_vectors(n_fft, 0) * lanes, np.nan, np.float32)
    table = spectrum.twiddles(n_fft)
    run(signals.reshape(-1), places * lanes, window, np.float32(0.25), grid, table)
    power = grid.reshape(-1, lanes)[spectrum.bin_places(n_fft, 0)]
    frames = (signals[order].astype(np.float64) - 0.25) * window[:size, None]
    expected = np.abs(np.fft.rfft(frames, n_fft, axis=0)) ** 2
    # Each of log2(n) butterfly levels rounds twice: eps * 2 * log2(n), doubled by the square. Two
    # points have one addition, and the products with the window.
    budget = 4 * math.log2(max(n_fft, 4)) * np.finfo(np.float32).eps
    assert np.linalg.norm(power - expected) / np.linalg.norm(expected) < budget


@pytest.mark.parametrize(
    ("n_fft", "split"),
    [(254, False), (400, True), (480, True), (1006, False), (1102, True), (4050, True)],
)
def test_lengths_without_large_primes_are_split(n_fft: int, split: bool) -> None:
    assert fft.is_supported(n_fft) is split
    if not split:
        with pytest.raises(ValueError, match=f"a length that two passes serve, got {n_fft}"):
            fft.Plan.of(n_fft)


def test_bins_of_even_and_odd_samples_give_those_of_the_signal() -> None:
    x = np.random.default_rng(3).normal(size=22)
    packed, expected = np.fft.fft(x[0::2] + 1j * x[1::2]), np.fft.rfft(x)
    for k in range(6):
        pair = [(packed[at % 11].real, packed[at % 11].imag) for at in (k, 11 - k)]
        bins = [as_complex(z) for z in chirp.untangled(*pair, dft.root(k, 22))]
        np.testing.assert_allclose(bins, [expected[k], expected[11 - k].conj()], atol=1e-12)


def test_chirps_convolve_every_length_into_its_dft() -> None:
    rng = np.random.default_rng(4)
    for n_fft in (254, 1006, 2062, 3782, 4094):
        grid = chirp.Convolution.of(n_fft)
        rows, columns, half = grid.plan.rows, grid.plan.columns, n_fft // 2
        table = chirp.chirps(n_fft).astype(float)
        forward, spectrum, inverse, turns = grid.tables
        assert len(table) - turns == 2 * (half // 2 + 1)
        factors = table[:forward:2] + 1j * table[1:forward:2]
        others = table[spectrum:inverse:2] + 1j * table[spectrum + 1 : inverse : 2]
        z = rng.normal(size=half) + 1j * rng.normal(size=half)
        given = np.zeros(grid.points, complex)
        given[:half] = z * factors[:half]
        product = np.fft.fft(given) * others.reshape(rows, columns).T.reshape(-1)
        bins = np.fft.ifft(product)[:half] * grid.points * factors[:half]
        expected = np.fft.fft(z)
        assert np.linalg.norm(bins - expected) < 1e-6 * np.linalg.norm(expected), n_fft


def test_only_compiled_code_can_call_power_spectrum() -> None:
    with pytest.raises(TypeError, match="can be called by compiled code only"):
        spectrum.power_spectrum(*12 * [None])


@pytest.mark.parametrize("inputs", ["values", "functions"])
def test_inputs_may_be_functions_that_give_them(inputs: str) -> None:
    x = np.random.default_rng(9).normal(size=25)
    given = list(x) if inputs == "values" else [lambda value=value: value for value in x]
    bins = [as_complex(z) for z in dft.real_dft(given)]
    np.testing.assert_allclose(bins, np.fft.rfft(x), atol=1e-12)


@pytest.mark.parametrize("p", [3, 5, 7, 11, 29])
def test_prime_dft_is_the_dft(p: int) -> None:
    z = np.random.default_rng(p).normal(size=(p, 2))
    bins = [as_complex(value) for value in dft.prime_dft([tuple(pair) for pair in z])]
    np.testing.assert_allclose(bins, np.fft.fft(z @ [1, 1j]), atol=1e-12)
