"""The floor of this machine: the time that no filterbank of a convention can go below.

python -m bench.floor

The floor is the larger of two times, as if a machine did both at once:

- Arithmetic: the vector operations of the kernel's own stages for a block of frames. A counting
  builder counts them as they are emitted. Moving data (transpositions, loads and stores) is not
  counted. The products among them go at the measured rate of independent fused multiply-adds. All
  of them go at the rate of multiply-adds and sums in turns, which some CPUs add in other units. The
  longer of both counts.
- Bytes: waveforms read and features written once, at the measured rate of a copy of as many bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numba import njit
from numba.core import types

from ast_fast_kernels import FbankConfig
from ast_fast_kernels._cpu import dft, fft, halves
from ast_fast_kernels._cpu.compile import intrinsic
from ast_fast_kernels._cpu.lanes import Lanes, Value
from ast_fast_kernels._cpu.simd import aligned, data_pointer, host_lanes
from ast_fast_kernels.fbank import tables
from ast_fast_kernels.fbank.presets import PRESETS

CHAINS = 12
"""Multiply-adds in flight: more than latency times ports, fewer than AVX2's registers."""

STEPS = 64
"""Multiply-adds of a chain between loads and stores."""

REPEATS = 7
SECONDS = 0.01  # the shortest time of one measurement
KINDS = {"L2": 1 << 20, "L3": 1 << 24, "DRAM": 1 << 29}
"""Bytes read and written by a copy that stays in this memory, on most machines."""


class _Counter:
    """Stands in for LLVM's builder: emits nothing, and counts vector instructions.

    Negation is free, as part of a multiply-add, and comparison, as part of a selection.
    """

    FREE = ("bitcast", "fcmp_ordered", "fneg")
    PRODUCTS = ("fmul", "llvm.fmuladd", "llvm.fma")

    def __init__(self, only_products: bool) -> None:
        self.count, self.only_products = 0, only_products

    def add(self, instruction: str) -> None:
        is_product = instruction.startswith(self.PRODUCTS)
        self.count += is_product if self.only_products else instruction not in self.FREE

    def __getattr__(self, instruction: str) -> Callable[..., None]:
        def emit(*operands: object, **options: object) -> None:
            self.add(instruction)

        return emit


class _CountingLanes(Lanes):
    def __init__(self, count: int, only_products: bool) -> None:
        super().__init__(_Counter(only_products), count)

    def _align_stack(self) -> None:
        pass

    def _call(self, name: str, *operands: Value) -> Value:
        self.builder.add(name)
        return self.value()

    def value(self) -> Value:
        return Value(self, None)


def vector_operations(
    config: FbankConfig, lanes: int, *, only_products: bool = False
) -> dict[str, int] | None:
    """Return the operations for a block of `lanes` frames, by stage.

    None if the length of the FFT has no passes of its own: a convolution's detour is no floor.

    Args:
        config: The convention.
        lanes: Frames of a block.
        only_products: Whether to count only what units that multiply must do.
    """
    if not (halves.is_supported(config.fft_size) or fft.is_supported(config.fft_size)):
        return None
    # Windows overlap, but operations on single samples are needed once for each sample of a hop.
    hop, size = config.window_shift, config.window_size
    sums = 0 if only_products else 1

    def count(emit: Callable[[_CountingLanes], object]) -> int:
        vectors = _CountingLanes(lanes, only_products)
        emit(vectors)
        return vectors.builder.count

    def log(vectors: _CountingLanes) -> None:
        vectors.log_of_normal(vectors.maximum(vectors.value(), vectors.value()))

    return {
        "pre-emphasis": hop if config.preemphasis_coefficient else 0,
        "means": hop * sums if config.remove_dc_offset else 0,
        "window": size * (1 + sums if config.remove_dc_offset else 1),
        "FFT and power": count(lambda vectors: _emit_power_spectrum(vectors, config)),
        "magnitudes": 0 if config.use_power else sums * (config.fft_size // 2 + 1),
        "mel filters": int((tables.mel_banks(config) != 0).sum()),
        "logarithms": config.num_mel_bins * count(log) if config.use_log_fbank else 0,
    }


def _emit_power_spectrum(vectors: _CountingLanes, config: FbankConfig) -> None:
    """Emit each pass of the power spectrum as often as it runs, all bins of a column at once."""
    if halves.is_supported(config.fft_size):
        _emit_rotated_rows(vectors, config)
    else:
        _emit_twisted_rows(vectors, config)


def _emit_rotated_rows(vectors: _CountingLanes, config: FbankConfig) -> None:
    """Emit the passes of `halves.power_spectrum`."""
    plan = halves.Grid.of(config.fft_size, 0)
    used = halves.used_rows(config.fft_size, config.window_size)
    for _ in range(plan.columns):
        if plan.rows % 2:
            dft.real_dft([vectors.value() for _ in range(used)])
            continue
        sums, differences = [], []
        for row in range(plan.rows // 2):
            one = other = vectors.value()
            if row + plan.rows // 2 < used:
                there = vectors.value()
                one, other = one + there, other - there
            sums.append(one)
            differences.append(other)
        list(halves.odd_bins(differences))
        list(halves.real_bins(sums))
    _emit_powers(halves.real_bins([vectors.value() for _ in range(plan.columns)]))
    if plan.rows % 2 == 0:
        _emit_powers(halves.odd_bins([vectors.value() for _ in range(plan.columns)]))
    for _ in (*plan.even[1:], *plan.odd):
        row = [(vectors.value(), vectors.value()) for _ in range(plan.columns)]
        turned = [halves.rotated(z, vectors.value(), vectors.value()) for z in row[1:]]
        _emit_powers(halves.complex_dft([row[0], *turned]))


def _emit_twisted_rows(vectors: _CountingLanes, config: FbankConfig) -> None:
    """Emit the passes of `fft.power_spectrum`."""
    plan = fft.Plan.of(config.fft_size)

    def complex_row(m: int, j: int, parts: list[Any]) -> list[Any]:
        return dft.combined(parts, [(vectors.value(), vectors.value()) for _ in parts[1:]])

    for _ in range(plan.columns):
        dft.real_dft([vectors.value() for _ in range(plan.rows)])
    _emit_powers(enumerate(dft.real_dft([vectors.value() for _ in range(plan.columns)])))
    if plan.rows % 2 == 0:
        _emit_powers(enumerate(dft.half_turned_dft([vectors.value() for _ in range(plan.columns)])))
    for _ in range(1, (plan.rows + 1) // 2):
        row = [(vectors.value(), vectors.value()) for _ in range(plan.columns)]
        _emit_powers(enumerate(dft.twisted_dft(row, complex_row)))


def _emit_powers(bins: Iterable[tuple[int, Any]]) -> None:
    for _, z in bins:
        fft.power(z)


@cache
def multiply_adds_per_second(threads: int) -> float:
    """Return the vector multiply-adds a second of all threads together."""
    return _operations_per_second(threads, with_sums=False)


@cache
def operations_per_second(threads: int) -> float:
    """Return the vector operations a second of all threads together, of whatever kind is fastest.

    From Zen on, AMD's processors add in units that do not multiply, so a sum beside a multiply-add
    costs little or nothing.
    """
    return max(multiply_adds_per_second(threads), _operations_per_second(threads, with_sums=True))


def _operations_per_second(threads: int, *, with_sums: bool) -> float:
    lanes = host_lanes()
    loop = _operation_loop(lanes, with_sums)
    states = [aligned(CHAINS * lanes) for _ in range(threads)]
    for state in states:
        state[:] = 1.0
    repeats = _enough(lambda repeats: loop(states[0], repeats))
    seconds = _best_seconds(lambda thread: loop(states[thread], repeats), threads)
    return threads * repeats * STEPS * CHAINS / seconds


@cache
def bytes_per_second(num_bytes: int, threads: int) -> float:
    """Return the bytes a second of a copy that reads and writes `num_bytes` in total."""
    size = max(num_bytes // 8 // threads, 1)  # floats of one thread's source
    pairs = [(np.ones(size, np.float32), np.zeros(size, np.float32)) for _ in range(threads)]
    times = _enough(lambda times: _copy(*pairs[0], times))
    seconds = _best_seconds(lambda thread: _copy(*pairs[thread], times), threads)
    return threads * times * 8 * size / seconds


def floor_seconds(
    config: FbankConfig, shape: tuple[int, int], itemsize: int, threads: int
) -> float | None:
    """Return the least seconds of a turn; None where `vector_operations` is.

    Args:
        config: The convention.
        shape: Clips of a turn, and samples of a clip.
        itemsize: Bytes of a sample.
        threads: Number of threads.
    """
    lanes = host_lanes()
    operations = vector_operations(config, lanes)
    if operations is None:
        return None
    clips, num_samples = shape
    num_frames = config.num_frames(num_samples)
    products = vector_operations(config, lanes, only_products=True)
    per_block = max(
        sum(products.values()) / multiply_adds_per_second(threads),
        sum(operations.values()) / operations_per_second(threads),
    )
    arithmetic = clips * num_frames * per_block / lanes
    moved = clips * (num_samples * itemsize + num_frames * config.num_mel_bins * 4)
    # The rate is measured at powers of two only; the next one stands for this size.
    rate = bytes_per_second(1 << (moved - 1).bit_length(), threads)
    return max(arithmetic, moved / rate)


def summary(threads: int) -> dict[str, float]:
    """Return all threads' rates: GFLOP/s of multiply-adds, Gop/s of any kind, GB/s of copies."""
    lanes = host_lanes()
    rates = {
        "multiply-add": 2 * lanes * multiply_adds_per_second(threads) / 1e9,
        "operation": lanes * operations_per_second(threads) / 1e9,
    }
    return rates | {kind: bytes_per_second(size, threads) / 1e9 for kind, size in KINDS.items()}


def _enough(run: Callable[[int], object]) -> int:
    """Return a number of repeats that takes at least SECONDS."""
    run(1)  # compiles
    repeats, seconds = 1, 0.0
    while seconds < SECONDS:
        repeats *= 2
        begin = time.perf_counter()
        run(repeats)
        seconds = time.perf_counter() - begin
    return repeats


def _best_seconds(run: Callable[[int], object], threads: int) -> float:
    """Return the shortest time for all threads to run; each gets its number."""
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(REPEATS):
            begin = time.perf_counter()
            list(pool.map(run, range(threads)))
            best = min(best, time.perf_counter() - begin)
    return best


@cache
def _operation_loop(lanes: int, with_sums: bool) -> Any:
    every = 2 if with_sums else CHAINS + 1

    @njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def loop(state: Any, repeats: int) -> None:
        for _ in range(repeats):
            _operations(state, lanes, every)

    return loop


@intrinsic
def _operations(typing_context: Any, state: Any, lanes: Any, every: Any) -> Any:
    """Do STEPS multiply-adds to each of CHAINS vectors, but sums to one of `every` vectors."""
    if not all(isinstance(number, types.IntegerLiteral) for number in (lanes, every)):
        return None
    count, sums = lanes.literal_value, every.literal_value

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Lanes(builder, count)
        flat = data_pointer(context, builder, state, args[0])
        places = [context.get_constant(types.intp, chain * count) for chain in range(CHAINS)]
        chains = [vectors.load(flat, place) for place in places]
        for _ in range(STEPS):
            chains = [
                chain + 0.5 if place % sums == sums - 1 else vectors.fma(chain, 0.5, 0.5)
                for place, chain in enumerate(chains)
            ]
        for chain, place in zip(chains, places, strict=True):
            vectors.store(chain, flat, place)
        return context.get_dummy_value()

    return types.void(state, lanes, every), emit


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _copy(source: Any, target: Any, times: int) -> None:
    for _ in range(times):
        for i in range(source.size):
            target[i] = source[i]


def main() -> None:
    lanes = host_lanes()
    print(f"vectors of {lanes} float32\n")
    print(f"| threads | GFLOP/s | Gop/s | copy, GB/s: {' | '.join(KINDS)} |")
    print("|---" * (3 + len(KINDS)) + "|")
    for threads in (1, 2):
        print(
            f"| {threads} | {' | '.join(f'{value:.0f}' for value in summary(threads).values())} |"
        )
    print(f"\n| µs a clip, of 64 | products for {lanes} frames | all | 1 thread | 2 threads |")
    print("|---|---|---|---|---|")
    for preset in PRESETS:
        config = FbankConfig.preset(preset)  # type: ignore[arg-type]
        if vector_operations(config, lanes) is None:
            continue
        cells = [f"{count:,}" for count in map(sum, zip(*_by_stage(config).values(), strict=True))]
        for threads in (1, 2):
            seconds = floor_seconds(config, (64, 80000), 4, threads)
            cells.append(f"{seconds / 64 * 1e6:.0f}" if seconds else "")
        print(f"| {preset} | {' | '.join(cells)} |")
    print("\n| stage of ast | products | all |\n|---|---|---|")
    for stage, counts in _by_stage(FbankConfig()).items():
        print(f"| {stage} | {' | '.join(f'{count:,}' for count in counts)} |")


def _by_stage(config: FbankConfig) -> dict[str, tuple[int, int]]:
    """Return each stage's products and all its operations, for a block of frames."""
    lanes = host_lanes()
    products = vector_operations(config, lanes, only_products=True) or {}
    every = vector_operations(config, lanes) or {}
    return {stage: (products[stage], every[stage]) for stage in every}


if __name__ == "__main__":
    main()
