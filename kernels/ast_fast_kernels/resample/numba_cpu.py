"""Resampling on a CPU by the compiled kernel: its tables, how work is divided, memory.

Cannot avoid, for a clip of 5 s from 44.1 to 16 kHz in `hq`: 160,000 samples of 20 taps by the bank
and 80,000 of 96 by the half-band filter, whose halves are equal: 7.2 million multiply-adds and 3.8
million additions, 0.9 million cycles of two units for 4 lanes.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ast_fast_kernels._cpu.compile import source_digest
from ast_fast_kernels._cpu.memory import lend_at
from ast_fast_kernels._cpu.simd import LINE, address_of, aligned, host_lanes
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
    scratch = _scratch(team * layout.size)  # held until the call ends
    item = samples.itemsize
    channel_stride, row_stride, sample_stride = samples.strides
    # In order: names would take longer than the rest of this function.
    numbers = (
        columns,
        segments,
        periods * tables.period_in,
        periods * tables.period_out,
        num_samples,
        num_out,
        address_of(samples),
        item == 2,
        channels,
        channel_stride // item,
        row_stride // item,
        sample_stride // item,
        out_at,
        *tables.numbers,
        address_of(scratch),
        *layout.numbers,
    )
    items = -(-columns // (lanes * GROUPS))
    run_items(_worker(lanes, source_digest()), numbers, min(threads, items), team, shared=True)
    del scratch
    return out


_of_thread = threading.local()


def _scratch(size: int) -> Float32Array:
    """Return memory of the calling thread's, at least so many floats."""
    scratch: Float32Array | None = getattr(_of_thread, "scratch", None)
    if scratch is None or len(scratch) < size:
        _of_thread.scratch = scratch = aligned(size)
    return scratch


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
    width: int
    """Samples that a pair of the bank's outputs reads."""
    count: int
    """Taps on one side of the half-band filter."""
    period_in: int
    """Input samples of a period, and below its output samples."""
    period_out: int
    numbers: tuple[int, ...]
    """What a task holds of them."""
    arrays: tuple[npt.NDArray[Any], ...]
    """The tables whose addresses are among the numbers."""


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
    pairs, step, count = len(first), bank.step, len(half_band)
    arrays = (np.ascontiguousarray(first), coefficients, half_band)
    first_at, coefficients_at, half_band_at = map(address_of, arrays)
    numbers = (
        first_at, coefficients_at, pairs, step, width, half_band_at, count, int(plan.goes_up),
    )  # fmt: skip
    period_in, period_out = (step // 2, 2 * pairs) if plan.goes_up else (step, pairs)
    return Tables(
        plan.goes_up, pairs, step, width, count, period_in, period_out, numbers, arrays
    )  # fmt: skip


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


class Layout(NamedTuple):
    """How much a worker computes at once, and where in its memory."""

    size: int
    """Floats of a worker."""
    numbers: tuple[int, ...]
    """SCRATCH_SIZE, BLOCK, CHUNK, ROOM, ROOM_STRIDE, TILE, ODD, EVEN and GRID of a task."""


@lru_cache(maxsize=256)
def _layout(tables: Tables, periods: int, lanes: int) -> Layout:
    pairs = periods * tables.pairs
    block = -(-pairs // -(-pairs // BLOCK))
    width, per_pair = GROUPS * lanes, tables.step / tables.pairs
    if tables.goes_up:
        chunk, grid = block, 2 * block
        odd, even = math.ceil(block * per_pair) + tables.width + 6, 0
        tile = odd // 2 + 2 * tables.count
    else:
        chunk, grid = min(block, max(int(TILE_ROWS / per_pair), lanes)), block
        odd = even = block + 2 * tables.count + 2 * MARGIN
        tile = math.ceil(chunk * per_pair) + tables.width + 2
    stride = -(-max(tile, grid) // LINE) * LINE + LINE
    rows = (tile + 2 * MARGIN, odd, even, grid)
    tile_at, odd_at, even_at, grid_at, end = accumulate(
        (width * count for count in rows), initial=lanes * stride
    )
    numbers = (end, block, chunk, 0, stride, tile_at, odd_at, even_at, grid_at)
    return Layout(end, numbers)
