"""Resampling on a CPU by the compiled kernel: its tables, how work is divided, memory.

Cannot avoid, for a clip of 5 s from 44.1 to 16 kHz in `hq`: 160,000 samples of 20 taps by the bank
and 80,000 of 96 by the half-band filter, whose halves are equal: 7.2 million multiply-adds and 3.8
million additions, 0.9 million cycles of two units for 4 lanes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels._cpu.memory import lend_at
from ast_fast_kernels._cpu.simd import LINE, host_lanes
from ast_fast_kernels._cpu.team import compile_worker, run_items, team_size
from ast_fast_kernels.resample.design import Bank, Design
from ast_fast_kernels.resample.numba_kernel import GROUPS, MARGIN, build

Float32Array = npt.NDArray[np.float32]

LONGEST_SPAN = 4096
"""Outputs of a column: so long that those computed twice, where columns meet, do not matter."""

FEWEST_OUTPUTS = 32
"""Outputs of a column at least: tiles are turned in squares."""

BLOCK = 128
"""Pairs of samples at the middle rate between two writes, at most."""

TILE_ROWS = 512
"""Input samples of a column in a tile, about; with 8 lanes they fill 64 KiB."""

FEWEST_OF_THREAD = 8192
"""Fewest outputs worth another thread."""


def resample_numba(samples: npt.NDArray[Any], plan: Design) -> Float32Array:
    """Return rows at the design's other rate.

    Args:
        samples: Shape (channels, rows, num_samples), float32 or int16, of any strides; the
            channels' mean is taken.
        plan: The filters.
    Returns:
        Shape (rows, plan.num_samples(num_samples)).
    """
    channels, rows, num_samples = samples.shape
    num_out = plan.num_samples(num_samples)
    if 0 in (rows, num_out):
        return np.zeros((rows, num_out), np.float32)
    if any(stride % samples.itemsize for stride in samples.strides):
        samples = np.ascontiguousarray(samples)
    lanes = host_lanes()
    tables = _tables(plan)
    team = team_size()
    threads = max(1, min(team, rows * num_out // FEWEST_OF_THREAD))
    periods, segments = _divided(rows, num_out, tables, lanes * GROUPS, threads)
    columns = rows * segments
    layout = _layout(tables, periods, lanes)
    out, out_at = lend_at(rows, num_out)
    scratch, scratch_at = lend_at(team, layout.size)
    numbers = (
        columns,
        segments,
        periods * tables.period_in,
        periods * tables.period_out,
        num_samples,
        num_out,
        samples.__array_interface__["data"][0],
        samples.itemsize == 2,
        channels,
        *(stride // samples.itemsize for stride in samples.strides),
        out_at,
        *tables.numbers(),
        plan.goes_up,
        layout.block,
        layout.chunk,
        scratch_at,
        layout.size,
        *layout.places,
    )
    items = -(-columns // (lanes * GROUPS))
    run_items(_worker(lanes, source_digest()), numbers, min(threads, items), team, shared=True)
    del scratch
    return out


@cache
def _worker(lanes: int, digest: str) -> Any:
    return compile_worker(build(lanes, digest))


@dataclass(frozen=True, eq=False)
class Tables:
    """A design's filters as the kernel reads them."""

    goes_up: bool
    pairs: int
    """Pairs of the bank's outputs until the same begins again."""
    step: int
    """Samples that the bank reads meanwhile."""
    first: npt.NDArray[np.int64]
    coefficients: Float32Array
    """Shape (pairs, width, 2)."""
    half_band: Float32Array

    @property
    def period_in(self) -> int:
        """Return how many input samples a period has."""
        return self.step // 2 if self.goes_up else self.step

    @property
    def period_out(self) -> int:
        """Return how many output samples a period has."""
        return 2 * self.pairs if self.goes_up else self.pairs

    @property
    def width(self) -> int:
        """Return how many samples a pair of the bank's outputs reads."""
        return int(self.coefficients.shape[1])

    def numbers(self) -> tuple[int, ...]:
        """Return what a task holds of them."""
        arrays = (self.first, self.coefficients, self.half_band)
        first, coefficients, half_band = (array.ctypes.data for array in arrays)
        return (
            first,
            coefficients,
            self.pairs,
            self.step,
            self.width,
            half_band,
            len(self.half_band),
        )


@lru_cache(maxsize=32)
def _tables(plan: Design) -> Tables:
    bank = plan.bank
    if bank.phases % 2 or (plan.goes_up and bank.step % 2):
        bank = _twice(bank)
    first, last = bank.first[0::2], bank.first[1::2]
    count = bank.taps.shape[1]
    width = int((last - first).max()) + count
    coefficients = np.zeros((len(first), width, 2), np.float32)
    coefficients[:, :count, 0] = bank.taps[0::2]
    for pair, shift in enumerate(last - first):
        coefficients[pair, shift : shift + count, 1] = bank.taps[2 * pair + 1]
    gain = 2 if plan.goes_up else 1
    half_band = (gain * plan.half_band).astype(np.float32)
    first = np.ascontiguousarray(first)
    return Tables(plan.goes_up, len(first), bank.step, first, coefficients, half_band)


def _twice(bank: Bank) -> Bank:
    """Return a bank of twice as many filters, which then come again."""
    first = np.concatenate((bank.first, bank.first + bank.step))
    return Bank(2 * bank.step, first, np.tile(bank.taps, (2, 1)))


def _divided(rows: int, num_out: int, tables: Tables, width: int, threads: int) -> tuple[int, int]:
    """Return the periods of a column, and how many columns each row is cut into."""
    of_row = -(-num_out // tables.period_out)
    fewest = -(-FEWEST_OUTPUTS // tables.period_out)
    most = max(LONGEST_SPAN // tables.period_out, fewest)
    periods = min(max(-(-rows * of_row // (width * threads)), fewest), most)
    segments = -(-of_row // periods)
    return max(-(-of_row // segments), fewest), segments


@dataclass(frozen=True)
class Layout:
    """How much a worker computes at once, and where in its memory."""

    block: int
    chunk: int
    size: int
    """Floats of a worker."""
    places: tuple[int, ...]
    """ROOM, ROOM_STRIDE, TILE, ODD, EVEN and GRID of a task."""


def _layout(tables: Tables, periods: int, lanes: int) -> Layout:
    pairs = periods * tables.pairs
    blocks = -(-pairs // BLOCK)
    block = -(-pairs // blocks)
    count, width = len(tables.half_band), GROUPS * lanes
    per_pair = tables.step / tables.pairs
    chunk = min(block, max(int(TILE_ROWS / per_pair), lanes))
    bank_rows = math.ceil(chunk * per_pair) + tables.width + 2
    if tables.goes_up:
        chunk = block
        odd = math.ceil(block * per_pair) + tables.width + 6
        even, grid = 0, 2 * block
        tile = odd // 2 + 2 * count
    else:
        tile = bank_rows
        odd = even = block + 2 * count + 2 * MARGIN
        grid = block
    stride = -(-max(tile, grid) // LINE) * LINE + LINE
    sizes = (
        lanes * stride,
        *(of_tile * width for of_tile in (tile + 2 * MARGIN, odd, even, grid)),
    )
    ends = np.cumsum(sizes).tolist()
    room, tile_at, odd_at, even_at, grid_at = (0, *ends[:-1])
    return Layout(block, chunk, ends[-1], (room, stride, tile_at, odd_at, even_at, grid_at))
