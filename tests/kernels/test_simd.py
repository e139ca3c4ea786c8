import numpy as np
import pytest
from numba import njit

from ast_fast_kernels import simd

WIDTHS = [4, 8, 16]


@pytest.fixture(params=WIDTHS, ids=lambda lanes: f"{lanes}-lanes")
def lanes(request: pytest.FixtureRequest) -> int:
    return request.param


def apply(function, lanes: int, *vectors: np.ndarray) -> np.ndarray:
    """Run an operation on vectors through Numba."""
    arity = len(vectors)
    source = np.concatenate(vectors).astype(np.float32)
    result = np.full(lanes, np.nan, np.float32)

    if arity == 1:

        @njit
        def run(source, result):
            simd.store(result, 0, function(simd.load(source, 0, lanes)))
    else:

        @njit
        def run(source, result):
            a, b = simd.load(source, 0, lanes), simd.load(source, lanes, lanes)
            simd.store(result, 0, function(a, b))

    run(source, result)
    return result


def test_arithmetic_is_elementwise(lanes: int) -> None:
    @njit
    def formula(a, b):
        return (a + b) * a - b

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, lanes)).astype(np.float32)
    np.testing.assert_allclose(apply(formula, lanes, a, b), (a + b) * a - b, rtol=1e-5, atol=1e-6)


def test_sqrt_is_exact(lanes: int) -> None:
    values = np.random.default_rng(1).uniform(0, 1e3, lanes).astype(np.float32)
    np.testing.assert_array_equal(apply(simd.sqrt, lanes, values), np.sqrt(values))


def test_maximum_keeps_nan_of_its_first_argument(lanes: int) -> None:
    values = np.linspace(-1, 1, lanes, dtype=np.float32)
    values[1] = np.nan
    floor = np.zeros(lanes, np.float32)
    np.testing.assert_array_equal(apply(simd.maximum, lanes, values, floor), np.maximum(values, 0))


def test_splat_fills_every_lane(lanes: int) -> None:
    @njit
    def run(scalar, result):
        simd.store(result, 0, simd.splat(scalar, lanes))

    result = np.zeros(lanes + 1, np.float32)
    run(np.float32(2.5), result)
    np.testing.assert_array_equal(result, [2.5] * lanes + [0.0])


def test_broadcast_loads_one_element_into_every_lane(lanes: int) -> None:
    @njit
    def run(source, result):
        simd.store(result, 0, simd.broadcast(source, 3, lanes))

    result = np.zeros(lanes, np.float32)
    run(np.arange(5, dtype=np.float32), result)
    np.testing.assert_array_equal(result, 3.0)


def test_gather_and_scatter_step_by_a_stride(lanes: int) -> None:
    @njit
    def run(source, result):
        simd.scatter(result, 2, 5, simd.gather(source, 1, 3, lanes))

    source = np.arange(1 + 3 * lanes, dtype=np.float32)
    result = np.full(2 + 5 * lanes, -1, np.float32)
    run(source, result)
    expected = np.full_like(result, -1)
    expected[2::5] = source[1::3]
    np.testing.assert_array_equal(result, expected)


def test_transpose_differences_subtracts_the_element_before(lanes: int) -> None:
    source = np.random.default_rng(3).normal(size=1 + lanes * lanes).astype(np.float32)
    target = np.full(lanes * lanes, np.nan, np.float32)
    coefficient = np.float32(0.5)  # a power of two: the product is exact, fused or not

    @njit
    def run(source, target):
        simd.transpose_differences(source, 1, lanes, target, 0, lanes, coefficient, lanes)

    run(source, target)
    expected = (source[1:] - coefficient * source[:-1]).reshape(lanes, lanes).T
    np.testing.assert_array_equal(target.reshape(lanes, lanes), expected)


def test_transpose_tile_turns_a_square_of_strided_arrays(lanes: int) -> None:
    source = np.arange(3 + lanes * (lanes + 5), dtype=np.float32)
    target = np.full(2 + lanes * (lanes + 1), -1, np.float32)

    @njit
    def run(source, target):
        simd.transpose_tile(source, 3, lanes + 5, target, 2, lanes + 1, lanes)

    run(source, target)
    square = source[3:].reshape(lanes, lanes + 5)[:, :lanes]
    turned = target[2:].reshape(lanes, lanes + 1)
    np.testing.assert_array_equal(turned[:, :lanes], square.T)
    np.testing.assert_array_equal(turned[:, lanes], -1)
    np.testing.assert_array_equal(target[:2], -1)


def test_log_is_within_two_ulp_over_the_whole_range(lanes: int) -> None:
    exponents = np.linspace(-126, 127.9, 4096 // lanes * lanes)
    values = np.exp2(exponents).astype(np.float32)
    result = np.concatenate([apply_log(chunk, lanes) for chunk in values.reshape(-1, lanes)])
    exact = np.log(values.astype(np.float64))
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    # Near 1 the logarithm is small: there the error is bounded by one rounding of the mantissa.
    assert np.max(np.abs(result - exact) / np.maximum(ulp, 2.0**-24)) <= 2.0


_LOGS: dict[int, object] = {}


def apply_log(values: np.ndarray, lanes: int) -> np.ndarray:
    if lanes not in _LOGS:

        @njit
        def run(source, result):
            simd.store(result, 0, simd.log(simd.load(source, 0, lanes)))

        _LOGS[lanes] = run
    result = np.empty(lanes, np.float32)
    _LOGS[lanes](values, result)
    return result


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, -np.inf), (np.inf, np.inf), (np.nan, np.nan), (1.0, 0.0)],
)
def test_log_of_a_special_value(value: float, expected: float, lanes: int) -> None:
    result = apply_log(np.full(lanes, value, np.float32), lanes)
    np.testing.assert_array_equal(result, np.full(lanes, expected, np.float32))


@pytest.mark.parametrize("value", [2.0**-126, 1.0, 3e38, np.inf, np.nan])
def test_log_of_normal_is_the_same_for_normal_numbers(value: float, lanes: int) -> None:
    values = np.full(lanes, value, np.float32)
    np.testing.assert_array_equal(
        apply(simd.log_of_normal, lanes, values), apply_log(values, lanes)
    )


def test_log_of_a_denormal(lanes: int) -> None:
    result = apply_log(np.full(lanes, 1e-40, np.float32), lanes)
    np.testing.assert_allclose(result, np.log(np.float32(1e-40).astype(np.float64)), rtol=1e-6)


def test_the_widest_host_vector_is_a_known_width() -> None:
    assert simd.host_lanes() in WIDTHS


@pytest.mark.parametrize(
    ("lanes_used", "register"),
    [(16, "%zmm"), (8, "%ymm"), (4, "%xmm")],
    ids=["avx512", "avx2", "sse"],
)
def test_vectors_become_registers_of_their_width(lanes_used: int, register: str) -> None:
    if lanes_used > simd.host_lanes() or simd.llvm.get_default_triple().split("-")[0] != "x86_64":
        pytest.skip(f"needs an x86-64 machine with vectors of {lanes_used} floats")

    @njit
    def run(source, result):
        product = simd.load(source, 0, lanes_used) * simd.load(source, lanes_used, lanes_used)
        simd.store(result, 0, product)

    run(np.ones(2 * lanes_used, np.float32), np.empty(lanes_used, np.float32))
    assembly = run.inspect_asm(run.signatures[0])
    assert any("mulps" in line and register in line for line in assembly.splitlines())
