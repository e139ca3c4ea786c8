import numpy as np
import pytest
import torch
from numba import njit

from ast_fast_kernels._cpu import simd
from ast_fast_kernels._cpu.compile import stage

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
    elif arity == 3:

        @njit
        def run(source, result):
            a, b = simd.load(source, 0, lanes), simd.load(source, lanes, lanes)
            simd.store(result, 0, function(a, b, simd.load(source, 2 * lanes, lanes)))
    elif arity == 4:

        @njit
        def run(source, result):
            a, b = simd.load(source, 0, lanes), simd.load(source, lanes, lanes)
            c, d = simd.load(source, 2 * lanes, lanes), simd.load(source, 3 * lanes, lanes)
            simd.store(result, 0, function(a, b, c, d))
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


def test_gather_steps_by_a_stride(lanes: int) -> None:
    @njit
    def run(source, result):
        simd.store(result, 0, simd.gather(source, 1, 3, lanes))

    source = np.arange(1 + 3 * lanes, dtype=np.float32)
    result = np.full(lanes, -1, np.float32)
    run(source, result)
    np.testing.assert_array_equal(result, source[1::3])


def test_turn_differences_subtracts_the_element_before_and_sums(lanes: int) -> None:
    rng = np.random.default_rng(3)
    source = rng.integers(-99, 99, size=3 + lanes * (lanes + 2)).astype(np.float32)
    previous = rng.integers(-99, 99, size=lanes).astype(np.float32)
    target = np.full(lanes * (lanes + 1), np.nan, np.float32)
    result = np.full((2, lanes), np.nan, np.float32)
    half = np.float32(0.5)  # a power of two: the product is exact, fused or not

    @njit
    def run(source, previous, target, result):
        before, total = simd.turn_differences(
            source, 3, lanes + 2, target, 0, lanes + 1,
            simd.splat(half, lanes), simd.load(previous, 0, lanes),
        )  # fmt: skip
        simd.store(result, 0, before)
        simd.store(result, lanes, total)

    run(source, previous, target, result.reshape(-1))
    square = source[3:].reshape(lanes, lanes + 2)[:, :lanes].T  # (element, row)
    expected = square - half * np.concatenate((previous[None], square[:-1]))
    np.testing.assert_array_equal(target.reshape(lanes, lanes + 1)[:, :lanes], expected)
    np.testing.assert_array_equal(result, np.stack((square[-1], square.sum(axis=0))))


def test_int16_are_loaded_as_floats(lanes: int) -> None:
    source = np.linspace(-32768, 32767, lanes + 3).astype(np.int16)
    result = np.full(lanes, np.nan, np.float32)

    @njit
    def run(address, result):
        simd.store(result, 0, simd.load_int16(simd.shorts_at(address), 3, lanes))

    run(source.ctypes.data, result)
    np.testing.assert_array_equal(result, 65536 * source[3:].astype(np.float32))


def test_turn_differences_of_int16_are_those_of_floats_times_65536(lanes: int) -> None:
    rng = np.random.default_rng(4)
    source = rng.integers(-32768, 32768, size=3 + lanes * (lanes + 2)).astype(np.int16)
    source[3:5] = -32768, 32767
    floats = 65536 * source.astype(np.float32)
    targets = np.full((2, lanes * lanes), np.nan, np.float32)
    results = np.full((2, 3 * lanes), np.nan, np.float32)

    @njit
    def run(source_at, is_int16, target, result):
        previous = simd.gather_as(source_at, is_int16, 2, lanes + 2, lanes)
        half = simd.splat(np.float32(0.5), lanes)
        before, total = simd.turn_differences_as(
            source_at, is_int16, 3, lanes + 2, target, 0, lanes, half, previous
        )
        simd.store(result, 0, before)
        simd.store(result, lanes, total)
        simd.store(result, 2 * lanes, previous)

    run(source.ctypes.data, 1, targets[0], results[0])
    run(floats.ctypes.data, 0, targets[1], results[1])
    np.testing.assert_array_equal(targets[0], targets[1])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0, 2 * lanes :], floats[2 :: lanes + 2][:lanes])


def test_bfloat16_is_read_exactly_and_written_as_torch_rounds_it(lanes: int) -> None:
    bits = np.random.default_rng(2).integers(0, 2**32, 999 * lanes, dtype=np.uint32)
    special = [0x3F808000, 0x3F818000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x00000001, 0x7F800001]
    bits[: len(special)] = special  # ties, the largest, infinities, the smallest, a NaN
    values = bits.view(np.float32)
    written, read = np.zeros(len(values), np.int16), np.zeros(len(values), np.float32)

    @njit
    def run(values, address, result):
        shorts = simd.shorts_at(address)
        for i in range(0, len(values), lanes):
            simd.store_bfloat16(shorts, i, simd.load(values, i, lanes))
            simd.store(result, i, simd.load_bfloat16(shorts, i, lanes))

    run(values, written.ctypes.data, read)
    expected = torch.from_numpy(values).bfloat16()
    ours = torch.from_numpy(written).view(torch.bfloat16)
    assert torch.equal(ours.isnan(), expected.isnan())
    assert torch.equal(ours.nan_to_num(7.0), expected.nan_to_num(7.0))
    np.testing.assert_array_equal(read, expected.float().numpy())


def test_sum_of_lanes(lanes: int) -> None:
    @njit
    def run(source, result):
        result[0] = simd.sum_lanes(simd.load(source, 0, lanes))

    result = np.zeros(1, np.float32)
    run(2.0 ** np.arange(lanes, dtype=np.float32), result)
    assert result[0] == 2**lanes - 1


def test_a_quotient_is_exact(lanes: int) -> None:
    @njit
    def quotient(a, b):
        return a / b

    a, b = np.random.default_rng(1).uniform(1, 1e3, (2, lanes)).astype(np.float32)
    np.testing.assert_array_equal(apply(quotient, lanes, a, b), a / b)


def test_select_less_takes_the_last_for_nan(lanes: int) -> None:
    a = np.linspace(-1, 1, lanes, dtype=np.float32)
    a[1] = np.nan
    zero, yes, no = (np.full(lanes, value, np.float32) for value in (0, 5, 7))
    expected = np.where(a < 0, 5, 7)
    np.testing.assert_array_equal(apply(simd.select_less, lanes, a, zero, yes, no), expected)


def test_equal_or_replaces_what_is_equal_only(lanes: int) -> None:
    values = np.arange(lanes, dtype=np.float32)
    values[2] = np.nan
    one, minus = np.ones(lanes, np.float32), np.full(lanes, -1, np.float32)
    expected = np.where(values == 1, -1, values)
    np.testing.assert_array_equal(apply(simd.equal_or, lanes, values, one, minus), expected)


def test_multiply_add_is_of_vectors_and_of_floats(lanes: int) -> None:
    @njit
    def run(values, result):
        a, b = simd.load(values, 0, lanes), simd.load(values, lanes, lanes)
        simd.store(result, 0, simd.multiply_add(a, b, a))
        result[lanes] = simd.multiply_add(values[1], values[2], values[3])

    values = np.random.default_rng(5).normal(size=2 * lanes).astype(np.float32)
    result = np.full(lanes + 1, np.nan, np.float32)
    run(values, result)
    a, b = values[:lanes], values[lanes:]
    expected = np.append(a * b + a, values[1] * values[2] + values[3])
    np.testing.assert_allclose(result, expected, rtol=1e-6, atol=1e-7)


def test_any_address_may_be_prefetched() -> None:
    @njit
    def run(address):
        simd.prefetch_read(address)
        simd.prefetch_write(address)

    for address in (0, 1 << 46, np.zeros(1).ctypes.data):
        run(address)


def test_transpose_tile_turns_a_square_of_strided_arrays(lanes: int) -> None:
    source = np.arange(3 + lanes * lanes, dtype=np.float32)
    target = np.full(2 + lanes * (lanes + 1), -1, np.float32)

    @njit
    def run(source, target):
        simd.transpose_tile(source, 3, target, 2, lanes + 1, lanes)

    run(source, target)
    square = source[3:].reshape(lanes, lanes)
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


def test_exp2_is_within_two_ten_millionths(lanes: int) -> None:
    values = np.linspace(-126, 127, 4096 // lanes * lanes).astype(np.float32)
    chunks = values.reshape(-1, lanes)

    @njit
    def run(source, result):
        for row in range(source.shape[0]):
            simd.store(result[row], 0, simd.exp2(simd.load(source[row], 0, lanes)))

    result = np.empty_like(chunks)
    run(chunks, result)
    np.testing.assert_allclose(result, np.exp2(chunks.astype(np.float64)), rtol=2e-7)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, 1.0),
        (1.0, 2.0),
        (-126.0, 2.0**-126),
        (-127.0, 0.0),
        (-1e30, 0.0),
        (-np.inf, 0.0),
        (np.nan, np.nan),
    ],
)
def test_exp2_of_a_special_value(value: float, expected: float, lanes: int) -> None:
    result = apply(simd.exp2, lanes, np.full(lanes, value, np.float32))
    np.testing.assert_array_equal(result, np.full(lanes, expected, np.float32))


def test_exp2_keeps_a_nan_of_any_bits(lanes: int) -> None:
    bits = np.full(lanes, 0x7FC00000, np.uint32) + np.arange(lanes, dtype=np.uint32) * 37
    assert np.isnan(apply(simd.exp2, lanes, bits.view(np.float32))).all()


def test_turn_scaled_turns_a_strided_square_and_multiplies(lanes: int) -> None:
    source = np.arange(3 + lanes * (lanes + 2), dtype=np.float32)
    target = np.full(2 + lanes * (lanes + 1), -1, np.float32)
    factors = np.arange(1, lanes + 1, dtype=np.float32)

    @njit
    def run(source, target, factors):
        factor = simd.load(factors, 0, lanes)
        simd.turn_scaled(source, 3, lanes + 2, target, 2, lanes + 1, factor)

    run(source, target, factors)
    square = source[3:].reshape(lanes, lanes + 2)[:, :lanes]
    turned = target[2:].reshape(lanes, lanes + 1)
    np.testing.assert_array_equal(turned[:, :lanes], square.T * factors)
    np.testing.assert_array_equal(turned[:, lanes], -1)


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


def test_python_cannot_call_a_stage_and_is_told_so() -> None:
    """Compiled without a way in for Python, it would end the process."""

    @stage
    def double(value: int) -> int:
        return 2 * value

    @njit
    def quadruple(value):
        return 2 * double(value)

    with pytest.raises(
        TypeError, match="a function compiled by `stage` can be called by compiled code only"
    ):
        double(3)
    assert quadruple(3) == 12
