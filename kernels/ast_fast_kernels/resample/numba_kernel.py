"""The compiled kernel of resampling: 32 parts of the waveforms side by side (with 8 lanes).

A column is a part of one row whose length is a whole number of periods, so at any time all columns
need the same taps, and every operation works on vectors of columns. A tile holds some samples of
all columns, one time after another; the filters go down the tiles block by block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy import float32

from ast_fast_kernels._cpu.compile import stage
from ast_fast_kernels._cpu.lanes import FLOAT_BYTES
from ast_fast_kernels._cpu.simd import (
    broadcast,
    floats_at,
    integers_at,
    load,
    multiply_add,
    product_of,
    shorts_at,
    splat,
    store,
    turn,
    turn_as,
    turn_means_as,
)
from ast_fast_kernels._cpu.team import HEADER, NEXT_ITEM, NEXT_WORKER, take

(
    COLUMNS, SEGMENTS, SPAN_IN, SPAN_OUT, NUM_SAMPLES, NUM_OUT,
    SAMPLES, IS_INT16, CHANNELS, CHANNEL_STRIDE, ROW_STRIDE, SAMPLE_STRIDE, OUT,
    FIRST, COEFFICIENTS, PAIRS, STEP, WIDTH, HALF_BAND, COUNT, GOES_UP,
    SCRATCH, SCRATCH_SIZE, BLOCK, CHUNK, ROOM, ROOM_STRIDE, TILE, ODD, EVEN, GRID,
) = range(HEADER, HEADER + 31)  # fmt: skip
"""What a task holds, beside addresses of memory:

- COLUMNS in all, SEGMENTS in a row, SPAN_IN samples read and SPAN_OUT written by each.
- Strides of the samples, in samples.
- The bank: its filters in PAIRS of outputs, the FIRST sample of each pair, COEFFICIENTS of WIDTH
  samples by two outputs; after PAIRS pairs the same begins again, STEP samples later.
- The half-band filter's COUNT taps on one side.
- BLOCK pairs are computed before their outputs are written, CHUNK by the bank at once.
- A worker's SCRATCH of SCRATCH_SIZE floats: the places in it of the ROOM where samples are turned
  (a row is ROOM_STRIDE long), the TILE of input samples, those of the ODD and EVEN samples at the
  middle rate, and the GRID of outputs.
"""

GROUPS = 4
"""Vectors in a tile's row: with two outputs at once, 8 sums are in registers."""

MARGIN = 4
"""Rows around a tile that the half-band filter may load and not use."""


def build(lanes: int, digest: str) -> Callable[[int], None]:
    """Return the function to compile, for vectors of so many lanes."""

    def kernel(address: int) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        task = integers_at(address)
        width = product_of(lanes, GROUPS)
        item = take(address, NEXT_ITEM)
        if item * width >= task[COLUMNS]:
            return
        number = take(address, NEXT_WORKER)
        scratch = task[SCRATCH] + FLOAT_BYTES * number * task[SCRATCH_SIZE]
        while item * width < task[COLUMNS]:
            if task[GOES_UP]:
                _go_up(task, scratch, item * width, lanes)
            else:
                _go_down(task, scratch, item * width, lanes)
            item = take(address, NEXT_ITEM)

    return kernel


@stage
def _go_down(task: Any, scratch: int, column: int, lanes: int) -> None:
    """Resample a tile of columns: the bank, then the half-band filter."""
    width = product_of(lanes, GROUPS)
    before = 2 * task[COUNT]  # pairs around an output that it needs, half of them later
    first_row = MARGIN * width
    odd = scratch + FLOAT_BYTES * (task[ODD] + first_row)
    even = scratch + FLOAT_BYTES * (task[EVEN] + first_row)
    grid = scratch + FLOAT_BYTES * task[GRID]
    row_bytes = FLOAT_BYTES * width
    _fill(task, scratch, column, -task[COUNT], before, odd, even, lanes)
    begin = 0
    while begin < task[SPAN_OUT]:
        rows = min(task[BLOCK], task[SPAN_OUT] - begin)
        below = before * row_bytes
        _fill(
            task, scratch, column, begin + task[COUNT], rows, odd + below, even + below, lanes
        )  # fmt: skip
        middle = task[COUNT] * row_bytes
        _half_band(
            task, odd + middle, even + middle, float32(0.5), grid, width, rows, column, lanes
        )  # fmt: skip
        _write(task, scratch, column, begin, rows, lanes)
        for tile in (odd, even):
            floats = floats_at(tile)
            for place in range(0, before * width, width):
                store(floats, place, load(floats, rows * width + place, width))
        begin += rows


@stage
def _fill(
    task: Any, scratch: int, column: int, pair: int, count: int, odd: int, even: int, lanes: int
) -> None:
    """Compute pairs of samples at the middle rate, from one on, by the bank."""
    width = product_of(lanes, GROUPS)
    tile = scratch + FLOAT_BYTES * task[TILE]
    done = 0
    while done < count:
        pairs = min(task[CHUNK], count - done)
        low = _first(task, pair + done)
        high = _first(task, pair + done + pairs - 1) + task[WIDTH]
        _load(task, scratch, column, low, high, tile, lanes)
        place = FLOAT_BYTES * width * done
        _bank(task, tile, low, pair + done, pairs, even + place, odd + place, width, lanes)
        done += pairs


@stage
def _go_up(task: Any, scratch: int, column: int, lanes: int) -> None:
    """Resample a tile of columns: the half-band filter, then the bank."""
    width = product_of(lanes, GROUPS)
    row_bytes = FLOAT_BYTES * width
    tile = scratch + FLOAT_BYTES * (task[TILE] + MARGIN * width)
    middle = scratch + FLOAT_BYTES * task[ODD]
    grid = scratch + FLOAT_BYTES * task[GRID]
    begin, end = 0, task[SPAN_OUT] // 2
    while begin < end:
        pairs = min(task[BLOCK], end - begin)
        low = _first(task, begin) >> 1
        high = (_first(task, begin + pairs - 1) + task[WIDTH] + 1) >> 1
        rows = high - low
        _load(task, scratch, column, low - task[COUNT] + 1, high + task[COUNT], tile, lanes)
        own = tile + row_bytes * (task[COUNT] - 1)
        read, write = floats_at(own), floats_at(middle)
        for row in range(rows):
            store(write, 2 * row * width, load(read, row * width, width))
        # Sample n at the middle of 2n and 2n + 2 has its first neighbours at n and n + 1.
        after = own + row_bytes
        _half_band(
            task, after, own, float32(0.0), middle + row_bytes, 2 * width, rows, column, lanes
        )  # fmt: skip
        above = grid + row_bytes
        _bank(task, middle, 2 * low, begin, pairs, grid, above, 2 * width, lanes)
        _write(task, scratch, column, 2 * begin, 2 * pairs, lanes)
        begin += pairs


@stage
def _first(task: Any, pair: int) -> Any:
    """Return the first sample that a pair of the bank's outputs needs."""
    period = pair // task[PAIRS]
    return period * task[STEP] + integers_at(task[FIRST])[pair - period * task[PAIRS]]


@stage
def _bank(
    task: Any, tile: int, low: int, pair: int, count: int, one: int, other: int, step: int,
    lanes: int,
) -> None:  # fmt: skip
    """Write pairs of outputs from a tile whose rows begin with sample `low`.

    The first of each pair goes to rows from the address `one` on, the second to those from `other`
    on, `step` floats apart. Samples that were int16 are brought to [-1, 1].
    """
    width = product_of(lanes, GROUPS)
    samples, taps = floats_at(tile), floats_at(task[COEFFICIENTS])
    ones, others = floats_at(one), floats_at(other)
    scale = splat(float32(2.0**-31 if task[IS_INT16] else 1.0), width)
    firsts = integers_at(task[FIRST])
    period = pair // task[PAIRS]
    phase = pair - period * task[PAIRS]
    offset = period * task[STEP] - low
    for i in range(count):
        place = (offset + firsts[phase]) * width
        tap = phase * 2 * task[WIDTH]
        sum_one = splat(float32(0.0), width)
        sum_other = splat(float32(0.0), width)
        for _ in range(task[WIDTH]):
            row = load(samples, place, width)
            sum_one = multiply_add(broadcast(taps, tap, width), row, sum_one)
            sum_other = multiply_add(broadcast(taps, tap + 1, width), row, sum_other)
            place += width
            tap += 2
        store(ones, i * step, scale * sum_one)
        store(others, i * step, scale * sum_other)
        phase += 1
        if phase == task[PAIRS]:
            phase = 0
            offset += task[STEP]


@stage
def _half_band(
    task: Any, odd: int, even: int, centre: float32, target: int, step: int, rows: int, column: int,
    lanes: int,
) -> None:  # fmt: skip
    """Write rows of the half-band filter, `step` floats apart.

    Row n is `centre` times row n of `even`, and the sum over j of tap j times the sum of rows n + j
    and n - 1 - j of `odd`. Of four rows at once, each row of `odd` is loaded but twice: what the
    next tap needs is in registers but for one row on either side.
    """
    width = product_of(lanes, GROUPS)
    taps = floats_at(task[HALF_BAND])
    used = min(width, task[COLUMNS] - column)
    lane = 0
    while lane < used:
        samples, centres = floats_at(odd + FLOAT_BYTES * lane), floats_at(even + FLOAT_BYTES * lane)
        targets = floats_at(target + FLOAT_BYTES * lane)
        middle = splat(centre, lanes)
        done = 0
        while done < rows:
            row = min(done, rows - 4)  # the last four may overlap those before
            sum_0 = middle * load(centres, row * width, lanes)
            sum_1 = middle * load(centres, (row + 1) * width, lanes)
            sum_2 = middle * load(centres, (row + 2) * width, lanes)
            sum_3 = middle * load(centres, (row + 3) * width, lanes)
            later, earlier = row * width, (row - 1) * width
            later_0 = load(samples, later, lanes)
            later_1 = load(samples, later + width, lanes)
            later_2 = load(samples, later + 2 * width, lanes)
            later_3 = load(samples, later + 3 * width, lanes)
            earlier_0 = load(samples, earlier, lanes)
            earlier_1 = load(samples, earlier + width, lanes)
            earlier_2 = load(samples, earlier + 2 * width, lanes)
            earlier_3 = load(samples, earlier + 3 * width, lanes)
            later += 4 * width
            earlier -= width
            for tap in range(0, task[COUNT], 4):
                factor = broadcast(taps, tap, lanes)
                sum_0 = multiply_add(factor, later_0 + earlier_0, sum_0)
                sum_1 = multiply_add(factor, later_1 + earlier_1, sum_1)
                sum_2 = multiply_add(factor, later_2 + earlier_2, sum_2)
                sum_3 = multiply_add(factor, later_3 + earlier_3, sum_3)
                later_0 = load(samples, later, lanes)
                earlier_3 = load(samples, earlier, lanes)
                factor = broadcast(taps, tap + 1, lanes)
                sum_0 = multiply_add(factor, later_1 + earlier_3, sum_0)
                sum_1 = multiply_add(factor, later_2 + earlier_0, sum_1)
                sum_2 = multiply_add(factor, later_3 + earlier_1, sum_2)
                sum_3 = multiply_add(factor, later_0 + earlier_2, sum_3)
                later_1 = load(samples, later + width, lanes)
                earlier_2 = load(samples, earlier - width, lanes)
                factor = broadcast(taps, tap + 2, lanes)
                sum_0 = multiply_add(factor, later_2 + earlier_2, sum_0)
                sum_1 = multiply_add(factor, later_3 + earlier_3, sum_1)
                sum_2 = multiply_add(factor, later_0 + earlier_0, sum_2)
                sum_3 = multiply_add(factor, later_1 + earlier_1, sum_3)
                later_2 = load(samples, later + 2 * width, lanes)
                earlier_1 = load(samples, earlier - 2 * width, lanes)
                factor = broadcast(taps, tap + 3, lanes)
                sum_0 = multiply_add(factor, later_3 + earlier_1, sum_0)
                sum_1 = multiply_add(factor, later_0 + earlier_2, sum_1)
                sum_2 = multiply_add(factor, later_1 + earlier_3, sum_2)
                sum_3 = multiply_add(factor, later_2 + earlier_0, sum_3)
                later_3 = load(samples, later + 3 * width, lanes)
                earlier_0 = load(samples, earlier - 3 * width, lanes)
                later += 4 * width
                earlier -= 4 * width
            store(targets, row * step, sum_0)
            store(targets, (row + 1) * step, sum_1)
            store(targets, (row + 2) * step, sum_2)
            store(targets, (row + 3) * step, sum_3)
            done += 4
        lane += lanes


@stage
def _load(task: Any, scratch: int, column: int, low: int, high: int, tile: int, lanes: int) -> None:
    """Write samples `low` to `high` of every column into the rows of a tile."""
    width = product_of(lanes, GROUPS)
    count = high - low
    room = scratch + FLOAT_BYTES * task[ROOM]
    are_pairs = task[CHANNELS] == 2 and task[SAMPLE_STRIDE] == 2 and task[CHANNEL_STRIDE] == 1
    for group in range(0, width, lanes):
        first = column + group
        row = first // task[SEGMENTS]
        segment = first - row * task[SEGMENTS]
        start = segment * task[SPAN_IN] + low
        end = start + (lanes - 1) * task[SPAN_IN] + count
        within = start >= 0 and end <= task[NUM_SAMPLES] and segment + lanes <= task[SEGMENTS]
        within = within and first + lanes <= task[COLUMNS]  # beyond them, no row is there
        samples, place, stride = task[SAMPLES], row * task[ROW_STRIDE] + start, task[SPAN_IN]
        is_int16, is_stereo = task[IS_INT16], within and are_pairs
        if is_stereo:
            place += start
            stride *= 2
        elif not (within and task[SAMPLE_STRIDE] == 1 and task[CHANNELS] == 1):
            for lane in range(lanes):
                into = room + FLOAT_BYTES * lane * task[ROOM_STRIDE]
                _read(task, first + lane, low, count, into)
            samples, is_int16, place, stride = room, 0, 0, task[ROOM_STRIDE]
        done = 0
        while done < count:
            at = min(done, count - lanes)  # the last square may overlap the one before
            target = at * width + group
            if is_stereo:
                turn_means_as(
                    samples, is_int16, place + 2 * at, stride, floats_at(tile), target, width, lanes
                )
            else:
                turn_as(
                    samples, is_int16, place + at, stride, floats_at(tile), target, width, lanes
                )
            done += lanes


@stage
def _read(task: Any, column: int, low: int, count: int, into_at: int) -> None:
    """Read samples of one column, from its sample `low` on: the channels' mean, 0 outside.

    int16 become floats times 2^16, as in `turn_as`.
    """
    into = floats_at(into_at)
    row = column // task[SEGMENTS]
    start = (column - row * task[SEGMENTS]) * task[SPAN_IN] + low
    begin = min(max(-start, 0), count)
    end = max(min(task[NUM_SAMPLES] - start, count), begin)
    if column >= task[COLUMNS]:
        begin = end = count
    for i in range(begin):
        into[i] = float32(0.0)
    for i in range(end, count):
        into[i] = float32(0.0)
    place = row * task[ROW_STRIDE] + start * task[SAMPLE_STRIDE]
    if task[IS_INT16]:
        _mix(shorts_at(task[SAMPLES]), task, place, begin, end, into, float32(65536.0))
    else:
        _mix(floats_at(task[SAMPLES]), task, place, begin, end, into, float32(1.0))


@stage
def _mix(
    samples: Any, task: Any, place: int, begin: int, end: int, into: Any, scale: Any
) -> None:  # fmt: skip
    """Write the mean of the channels, times `scale`, for samples `begin` to `end`."""
    channels, stride, other = task[CHANNELS], task[SAMPLE_STRIDE], task[CHANNEL_STRIDE]
    if channels == 1 and stride == 1:  # of short rows in a batch, all columns come here
        for i in range(begin, end):
            into[i] = scale * float32(samples[place + i])
        return
    for i in range(begin, end):
        at = place + i * stride
        total = float32(samples[at])
        for channel in range(1, channels):
            total += float32(samples[at + channel * other])
        into[i] = scale * total / float32(channels)


@stage
def _write(task: Any, scratch: int, column: int, begin: int, rows: int, lanes: int) -> None:
    """Write the grid's rows to the columns' outputs from `begin` on."""
    width = product_of(lanes, GROUPS)
    grid = floats_at(scratch + FLOAT_BYTES * task[GRID])
    room = floats_at(scratch + FLOAT_BYTES * task[ROOM])
    used = min(width, task[COLUMNS] - column)
    group = 0
    while group < used:
        row = (column + group) // task[SEGMENTS]
        segment = column + group - row * task[SEGMENTS]
        last = (segment + lanes - 1) * task[SPAN_OUT] + begin + rows
        direct = segment + lanes <= task[SEGMENTS] and last <= task[NUM_OUT]
        out = floats_at(task[OUT] + FLOAT_BYTES * row * task[NUM_OUT])
        place = segment * task[SPAN_OUT] + begin
        done = 0
        while done < rows:
            at = min(done, rows - lanes)
            if direct:
                turn(grid, at * width + group, width, out, place + at, task[SPAN_OUT], lanes)
            else:
                turn(grid, at * width + group, width, room, at, task[ROOM_STRIDE], lanes)
            done += lanes
        if not direct:
            _write_each(task, scratch, column + group, begin, rows, lanes)
        group += lanes


@stage
def _write_each(task: Any, scratch: int, column: int, begin: int, rows: int, lanes: int) -> None:
    """Write the outputs of columns that lie in the room, as far as their rows go."""
    for lane in range(min(lanes, task[COLUMNS] - column)):
        row = (column + lane) // task[SEGMENTS]
        place = (column + lane - row * task[SEGMENTS]) * task[SPAN_OUT] + begin
        room = floats_at(scratch + FLOAT_BYTES * (task[ROOM] + lane * task[ROOM_STRIDE]))
        out = floats_at(task[OUT] + FLOAT_BYTES * (row * task[NUM_OUT] + place))
        for i in range(min(rows, task[NUM_OUT] - place)):
            out[i] = room[i]
