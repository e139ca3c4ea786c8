"""Mixing on a CPU: every clip is read once, every sum written once for each of its terms.

Cannot avoid, for one of two clips of 5 s at 16 kHz in int16: 320 kB read and 320 kB written, which
stay in the second-level cache between the terms.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from numba.np.numpy_support import carray
from torch import Tensor

from ast_fast_kernels._cpu.compile import source_digest, stage
from ast_fast_kernels._cpu.simd import floats_at, integers_at, shorts_at
from ast_fast_kernels._cpu.team import HEADER, NEXT_ITEM, compile_worker, run_items, take
from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.forks import one_thread_if_forked

CLIPS_PER_THREAD = 4
"""Fewest clips worth another thread."""

COUNT, CLIPS, SAMPLES, TERMS, WAVEFORMS, SOURCES, STARTS, FACTORS, MIXED = range(HEADER, HEADER + 9)
"""What a task holds: how many sums there are, the shapes, and the addresses of the arrays."""


def mix_numba(waveforms: Tensor, sources: Tensor, starts: Tensor, factors: Tensor) -> Tensor:
    """Return the sums of rotated, scaled clips; arguments as the reference's."""
    batch, num_terms = factors.shape
    clips, num_samples = waveforms.shape
    scale = 1 / 32768 if waveforms.dtype == torch.int16 else 1.0
    mixed = torch.empty(batch, num_samples, dtype=torch.float32, device="cpu")
    with one_thread_if_forked():
        arrays = (
            checks.dense(waveforms),
            checks.dense(sources.to("cpu", torch.int64)),
            checks.dense(starts.to("cpu", torch.int64)),
            checks.dense(factors.to("cpu", torch.float32) * scale),
            mixed,
        )
    numbers = (batch, clips, num_samples, num_terms, *(array.data_ptr() for array in arrays))
    team = torch.get_num_threads()
    worker = _worker(waveforms.element_size(), source_digest())
    run_items(worker, numbers, min(team, batch // CLIPS_PER_THREAD), team, shared=True)
    return mixed


@cache
def _worker(sample_bytes: int, digest: str) -> Any:
    """Return the compiled worker for clips in int16 or in float32."""

    def kernel(address: int) -> None:
        digest  # noqa: B018 - a closure variable only counts if it is used
        task = integers_at(address)
        pairs, clips = (task[COUNT], task[TERMS]), (task[CLIPS], task[SAMPLES])
        sources = carray(integers_at(task[SOURCES]), pairs)
        starts = carray(integers_at(task[STARTS]), pairs)
        factors = carray(floats_at(task[FACTORS]), pairs)
        mixed = carray(floats_at(task[MIXED]), (task[COUNT], task[SAMPLES]))
        row = take(address, NEXT_ITEM)
        while row < task[COUNT]:
            if sample_bytes == 2:
                waveforms = carray(shorts_at(task[WAVEFORMS]), clips)
                _sum_row(waveforms, sources[row], starts[row], factors[row], mixed[row])
            else:
                levels = carray(floats_at(task[WAVEFORMS]), clips)
                _sum_row(levels, sources[row], starts[row], factors[row], mixed[row])
            row = take(address, NEXT_ITEM)

    return compile_worker(kernel)


@stage
def _sum_row(waveforms: Any, sources: Any, starts: Any, factors: Any, out: Any) -> None:
    num_samples = waveforms.shape[1]
    if len(factors) == 2 and factors[0] != np.float32(0.0) and factors[1] != np.float32(0.0):
        _sum_two(waveforms, sources, starts, factors, out)
        return
    is_first = True
    for term in range(len(factors)):
        factor = factors[term]
        if factor == np.float32(0.0):
            continue
        clip, start = waveforms[sources[term]], starts[term]
        split = num_samples - start
        for part, values in ((out[:split], clip[start:]), (out[split:], clip[:start])):
            # Both begin at 0: an index that could be negative would prevent vectors.
            if is_first:
                for i in range(len(part)):
                    part[i] = factor * np.float32(values[i])
            else:
                for i in range(len(part)):
                    part[i] += factor * np.float32(values[i])
        is_first = False
    if is_first:
        out[:] = np.float32(0.0)


@stage
def _sum_two(waveforms: Any, sources: Any, starts: Any, factors: Any, out: Any) -> None:
    """Write the sum of two terms in one pass, in parts that end where either clip wraps around."""
    num_samples = waveforms.shape[1]
    split, other_split = num_samples - starts[0], num_samples - starts[1]
    low, high = min(split, other_split), max(split, other_split)
    factor, other_factor = factors[0], factors[1]
    for begin, end in ((0, low), (low, high), (high, num_samples)):
        part = out[begin:end]
        place = begin - split if begin >= split else begin + starts[0]
        other_place = begin - other_split if begin >= other_split else begin + starts[1]
        values = waveforms[sources[0]][place : place + end - begin]
        others = waveforms[sources[1]][other_place : other_place + end - begin]
        for i in range(len(part)):
            part[i] = factor * np.float32(values[i]) + other_factor * np.float32(others[i])
