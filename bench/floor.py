"""The floor of this machine: the time that no filterbank of a convention can go below.

python -m bench.floor

The floor is the larger of two times, as if a machine did both at once:

- Arithmetic: the vector operations of the kernel's own stages for a block of frames. A counting
  builder counts them as they are emitted. Moving data (transpositions, loads and stores) is not
  counted. The longest of three counts, because some CPUs add in units of their own: products, at
  the measured rate of independent fused multiply-adds; what adds, multiply-adds again among it, at
  that of multiply-adds and sums in turns; everything at that of products and sums in turns.
- Bytes: waveforms read and features written once, at the measured rate of a copy of as many bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, ClassVar, Literal, get_args

import numpy as np
from numba import njit
from numba.core import types

from ast_fast_kernels import FbankConfig
from ast_fast_kernels._cpu import coprime, dft, fft, halves
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


Kind = Literal["all", "products", "sums"]
"""Vector operations that count: any, those that multiply, or that add. A multiply-add is both."""


class _Counter:
    """Stands in for LLVM's builder: emits nothing, and counts vector instructions of a kind.

    Negation is free, as part of a multiply-add, and comparison, as part of a selection.
    """

    FREE = ("bitcast", "fcmp_ordered", "fneg")
    KINDS: ClassVar = {
        "products": ("fmul", "fmuladd", "fma"), "sums": ("fadd", "fsub", "fmuladd", "fma"),
    }  # fmt: skip

    def __init__(self, kind: Kind) -> None:
        self.count, self.kind = 0, kind

    def add(self, instruction: str) -> None:
        of_kind = self.KINDS.get(self.kind)
        self.count += instruction not in self.FREE if of_kind is None else instruction in of_kind

    def __getattr__(self, instruction: str) -> Callable[..., None]:
        def emit(*operands: object, **options: object) -> None:
            self.add(instruction)

        return emit


class _CountingLanes(Lanes):
    def __init__(self, count: int, kind: Kind) -> None:
        super().__init__(_Counter(kind), count)

    def _align_stack(self) -> None:
        pass

    def _call(self, name: str, *operands: Value) -> Value:
        self.builder.add(name)
        return self.value()

    def value(self) -> Value:
        return Value(self, None)


def vector_operations(config: FbankConfig, lanes: int, kind: Kind = "all") -> dict[str, int] | None:
    """Return the operations for a block of `lanes` frames, by stage.

    None if the length of the FFT has no passes of its own: a convolution's detour is no floor.

    Args:
        config: The convention.
        lanes: Frames of a block.
        kind: What to count.
    """
    if not (halves.is_supported(config.fft_size) or fft.is_supported(config.fft_size)):
        return None
    # Windows overlap, but operations on single samples are needed once for each sample of a hop.
    hop, size = config.window_shift, config.window_size
    products, sums = int(kind != "sums"), int(kind != "products")

    def count(emit: Callable[[_CountingLanes], object]) -> int:
        vectors = _CountingLanes(lanes, kind)
        emit(vectors)
        return vectors.builder.count

    def log(vectors: _CountingLanes) -> None:
        vectors.log_of_normal(vectors.maximum(vectors.value(), vectors.value()))

    return {
        "pre-emphasis": hop if config.preemphasis_coefficient else 0,
        "means": hop * sums if config.remove_dc_offset else 0,
        "window": size * (products + sums if config.remove_dc_offset else products),
        "FFT and power": count(lambda vectors: _emit_power_spectrum(vectors, config)),
        "magnitudes": 0 if config.use_power or kind != "all" else config.fft_size // 2 + 1,
        "mel filters": int((tables.mel_banks(config) != 0).sum()),
        "logarithms": config.num_mel_bins * count(log) if config.use_log_fbank else 0,
    }


def _emit_power_spectrum(vectors: _CountingLanes, config: FbankConfig) -> None:
    """Emit each pass of the power spectrum as often as it runs, all bins of a column at once."""
    if halves.is_supported(config.fft_size):
        _emit_rotated_rows(vectors, config)
    elif coprime.is_supported(config.fft_size):
        _emit_coprime_rows(vectors, config)
    else:
        _emit_twisted_rows(vectors, config)


def _emit_rotated_rows(vectors: _CountingLanes, config: FbankConfig) -> None:
    """Emit the passes of `halves.power_spectrum`."""
    plan = halves.Grid.of(config.fft_size, 0)
    used = halves.used_rows(config.fft_size, config.window_size)
    for _ in range(plan.columns):
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
    _emit_powers(halves.odd_bins([vectors.value() for _ in range(plan.columns)]))
    for _ in (*plan.even[1:], *plan.odd):
        row = [(vectors.value(), vectors.value()) for _ in range(plan.columns)]
        turned = [halves.rotated(z, vectors.value(), vectors.value()) for z in row[1:]]
        _emit_powers(halves.complex_dft([row[0], *turned]))


def _emit_coprime_rows(vectors: _CountingLanes, config: FbankConfig) -> None:
    """Emit the passes of `coprime.power_spectrum`."""
    rows, columns = config.fft_size // coprime.COLUMNS, coprime.COLUMNS
    for _ in range(columns):
        dft.real_dft([vectors.value() for _ in range(rows)])
    for _ in range(2):
        _emit_powers(enumerate(dft.real_dft([vectors.value() for _ in range(columns)])))
    for _ in range(1, rows // 2):
        for output in range(5):
            z = [(vectors.value(), vectors.value()) for _ in range(5)]
            coprime.five_point_dft(z)
            _emit_powers(enumerate(coprime.rotated_five_point_dft(z, output, columns)))


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
    return _operations_per_second(threads, "multiply-adds")


@cache
def sums_per_second(threads: int) -> float:
    """Return the vector operations a second that add: multiply-adds, or sums in turns with them.

    AMD's processors add in units that do not multiply. Up to Zen 2 a multiply-add holds one too.
    """
    return max(multiply_adds_per_second(threads), _operations_per_second(threads, "both and sums"))


@cache
def operations_per_second(threads: int) -> float:
    """Return the vector operations a second of all threads together, of the fastest kind."""
    return max(sums_per_second(threads), _operations_per_second(threads, "products and sums"))


def _operations_per_second(threads: int, mix: str) -> float:
    lanes = host_lanes()
    loop = _operation_loop(lanes, mix)
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
    products = vector_operations(config, lanes, "products") or {}
    sums = vector_operations(config, lanes, "sums") or {}
    per_block = max(
        sum(products.values()) / multiply_adds_per_second(threads),
        sum(sums.values()) / sums_per_second(threads),
        sum(operations.values()) / operations_per_second(threads),
    )
    arithmetic = clips * num_frames * per_block / lanes
    moved = clips * (num_samples * itemsize + num_frames * config.num_mel_bins * 4)
    # The rate is measured at powers of two only; the next one stands for this size.
    rate = bytes_per_second(1 << (moved - 1).bit_length(), threads)
    return max(arithmetic, moved / rate)


def summary(threads: int) -> dict[str, float]:
    """Return all threads' rates: GFLOP/s of multiply-adds, Gop/s of sums and any, GB/s copied."""
    lanes = host_lanes()
    rates = {
        "multiply-add": 2 * lanes * multiply_adds_per_second(threads) / 1e9,
        "sum": lanes * sums_per_second(threads) / 1e9,
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
def _operation_loop(lanes: int, mix: str) -> Any:
    every, fused = (CHAINS + 1 if mix == "multiply-adds" else 2), int(mix != "products and sums")

    @njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
    def loop(state: Any, repeats: int) -> None:
        for _ in range(repeats):
            _operations(state, lanes, every, fused)

    return loop


@intrinsic
def _operations(typing_context: Any, state: Any, lanes: Any, every: Any, fused: Any) -> Any:
    """Do STEPS multiply-adds to each of CHAINS vectors, but sums to one of `every` vectors.

    If not `fused`, products instead of multiply-adds.
    """
    literals = (lanes, every, fused)
    if not all(isinstance(number, types.IntegerLiteral) for number in literals):
        return None
    count, sums, adds = (number.literal_value for number in literals)

    def emit(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vectors = Lanes(builder, count)
        flat = data_pointer(context, builder, state, args[0])
        places = [context.get_constant(types.intp, chain * count) for chain in range(CHAINS)]
        chains = [vectors.load(flat, place) for place in places]
        for step in range(STEPS):
            # A product by 4, then by 1/4: neither overflows nor becomes denormal.
            factor = 0.25 if step % 2 else 4.0
            chains = [
                chain + 0.5
                if place % sums == sums - 1
                else vectors.fma(chain, 0.5, 0.5)
                if adds
                else chain * factor
                for place, chain in enumerate(chains)
            ]
        for chain, place in zip(chains, places, strict=True):
            vectors.store(chain, flat, place)
        return context.get_dummy_value()

    return types.void(state, *literals), emit


@njit(nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]
def _copy(source: Any, target: Any, times: int) -> None:
    for _ in range(times):
        for i in range(source.size):
            target[i] = source[i]


def main() -> None:
    lanes = host_lanes()
    print(f"vectors of {lanes} float32\n")
    print(f"| threads | GFLOP/s | sums, Gop/s | any, Gop/s | copy, GB/s: {' | '.join(KINDS)} |")
    print("|---" * (4 + len(KINDS)) + "|")
    for threads in (1, 2):
        print(
            f"| {threads} | {' | '.join(f'{value:.0f}' for value in summary(threads).values())} |"
        )
    print(f"\n| µs a clip, of 64 | {' | '.join(get_args(Kind))} | 1 thread | 2 threads |")
    print("|---" * 6 + "|")
    for preset in PRESETS:
        config = FbankConfig.preset(preset)  # type: ignore[arg-type]
        if vector_operations(config, lanes) is None:
            continue
        cells = [f"{sum(counts):,}" for counts in zip(*_by_stage(config).values(), strict=True)]
        for threads in (1, 2):
            seconds = floor_seconds(config, (64, 80000), 4, threads)
            cells.append(f"{seconds / 64 * 1e6:.0f}" if seconds else "")
        print(f"| {preset} | {' | '.join(cells)} |")
    print(f"\n| vector operations for {lanes} frames, ast | {' | '.join(get_args(Kind))} |")
    print("|---" * 4 + "|")
    for stage, counts in _by_stage(FbankConfig()).items():
        print(f"| {stage} | {' | '.join(f'{count:,}' for count in counts)} |")


def _by_stage(config: FbankConfig) -> dict[str, tuple[int, ...]]:
    """Return the counts of each kind for a block of frames, by stage."""
    kinds = [vector_operations(config, host_lanes(), kind) or {} for kind in get_args(Kind)]
    return {stage: tuple(counts[stage] for counts in kinds) for stage in kinds[0]}


if __name__ == "__main__":
    main()
