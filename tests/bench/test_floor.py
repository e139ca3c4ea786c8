"""The floor is counted from the kernel's own stages, and measured on the machine at hand."""

from __future__ import annotations

import pytest

from ast_fast_kernels import FbankConfig
from bench import floor


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A glance at the machine."""
    monkeypatch.setattr(floor, "SECONDS", 1e-4)
    monkeypatch.setattr(floor, "REPEATS", 2)
    floor.multiply_adds_per_second.cache_clear()
    floor.sums_per_second.cache_clear()
    floor.operations_per_second.cache_clear()
    floor.bytes_per_second.cache_clear()


def test_operations_of_the_default_convention() -> None:
    operations = floor.vector_operations(FbankConfig(), lanes=16)
    assert operations is not None
    assert operations["window"] == 2 * 400
    assert operations["pre-emphasis"] == operations["means"] == 160
    assert operations["mel filters"] == 504
    # Ten terms of a polynomial, and taking the exponent apart.
    assert 128 * 12 < operations["logarithms"] < 128 * 24
    # A complex FFT of half the length, in radix 2 with six multiply-adds a butterfly, is 6,144.
    assert 3000 < operations["FFT and power"] < 6144 + 2 * 257
    assert sum(operations.values()) == pytest.approx(10400, rel=0.02)  # what numba_cpu.py says


@pytest.mark.parametrize(
    ("changes", "stage", "count"),
    [
        ({"use_power": False}, "magnitudes", 257),
        ({"remove_dc_offset": False}, "means", 0),
        ({"remove_dc_offset": False}, "window", 400),
        ({"preemphasis_coefficient": 0.0}, "pre-emphasis", 0),
        ({"use_log_fbank": False}, "logarithms", 0),
    ],
)
def test_what_a_convention_leaves_out_costs_nothing(changes, stage: str, count: int) -> None:
    operations = floor.vector_operations(FbankConfig(**changes), lanes=16)
    assert operations is not None
    assert operations[stage] == count


def test_products_are_what_only_units_that_multiply_do() -> None:
    every = floor.vector_operations(FbankConfig(), 16)
    products = floor.vector_operations(FbankConfig(), 16, "products")
    sums = floor.vector_operations(FbankConfig(), 16, "sums")
    assert every is not None
    assert products is not None
    assert sums is not None
    assert products["window"] == sums["window"] == 400
    assert (products["means"], sums["means"]) == (0, 160)
    # A multiply-add is both.
    assert products["pre-emphasis"] == sums["pre-emphasis"] == 160
    assert products["mel filters"] == sums["mel filters"] == 504
    for stage, count in every.items():
        assert max(products[stage], sums[stage]) <= count <= products[stage] + sums[stage] + 128 * 8
    # Every row's inputs are rotated, then added and subtracted by fours: more sums than products.
    assert 0.3 < products["FFT and power"] / every["FFT and power"] < 0.45


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("longest", ["products", "sums", "all"])
def test_arithmetic_takes_as_long_as_the_longest_of_three_counts(
    longest: floor.Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, shape = FbankConfig(), (2, 80000)
    monkeypatch.setattr(floor, "bytes_per_second", lambda num_bytes, threads: 1e15)
    monkeypatch.setattr(floor, "host_lanes", lambda: 8)
    for kind, name in (("products", "multiply_adds"), ("sums", "sums"), ("all", "operations")):
        rate = 1e9 if kind == longest else 1e12
        monkeypatch.setattr(floor, f"{name}_per_second", lambda threads, rate=rate: rate)
    counted = floor.vector_operations(config, 8, longest)
    seconds = floor.floor_seconds(config, shape, 4, 1)
    assert seconds == pytest.approx(2 * 498 * sum(counted.values()) / 8 / 1e9)


def test_the_passes_that_run_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of halves.py where it serves a length, those of fft.py for the rest."""
    for n_fft, window_ms, passes in (
        (512, 25.0, "_emit_rotated_rows"),
        (400, 25.0, "_emit_rotated_rows"),
        (1024, 25.0, "_emit_rotated_rows"),
        (480, 30.0, "_emit_twisted_rows"),
    ):
        config = FbankConfig(n_fft=n_fft, frame_length=window_ms)
        expected = floor.vector_operations(config, 16)
        with monkeypatch.context() as patch:
            others = {"_emit_rotated_rows", "_emit_twisted_rows"} - {passes}
            patch.delattr(floor, others.pop())
            assert floor.vector_operations(config, 16) == expected


def test_counts_do_not_depend_on_the_width() -> None:
    config = FbankConfig()
    assert floor.vector_operations(config, 4) == floor.vector_operations(config, 16)


def test_a_length_that_the_fft_has_no_plan_for_has_no_floor() -> None:
    config = FbankConfig(n_fft=1006)
    assert floor.vector_operations(config, 16) is None
    assert floor.floor_seconds(config, (1, 80000), 4, 1) is None


@pytest.mark.usefixtures("_quick")
def test_the_floor_is_the_larger_of_arithmetic_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    config, shape = FbankConfig(), (2, 80000)
    arithmetic = floor.floor_seconds(config, shape, 4, 1)
    monkeypatch.setattr(floor, "bytes_per_second", lambda num_bytes, threads: 1e6)
    moved = 2 * (80000 * 2 + 498 * 128 * 4)
    assert floor.floor_seconds(config, shape, 2, 1) == pytest.approx(moved / 1e6)
    assert 0 < arithmetic < moved / 1e6


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("threads", [1, 2])
def test_rates_are_of_this_century(threads: int) -> None:
    # A glance sees a tenth of it or less where other programs run.
    assert 1e6 < floor.multiply_adds_per_second(threads) < 1e12
    assert floor.multiply_adds_per_second(threads) <= floor.sums_per_second(threads)
    assert floor.sums_per_second(threads) <= floor.operations_per_second(threads) < 1e12
    assert 1e6 < floor.bytes_per_second(1 << 20, threads) < 1e13
