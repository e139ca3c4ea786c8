"""Mixing on a CPU: every clip read once, every sum written once for each of its terms.

Cannot avoid, for one of two clips of 5 s at 16 kHz in int16: 320 kB read and 320 kB written, which
stay in the second cache between the terms.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ast_fast_kernels import _threads
from ast_fast_kernels._numba import jit

CLIPS_PER_TASK = 4
"""Fewest clips worth another thread."""


def mix_numba(waveforms: Tensor, sources: Tensor, starts: Tensor, factors: Tensor) -> Tensor:
    """Return the sums of rotated, scaled clips; arguments as the reference's."""
    batch, num_samples = len(factors), waveforms.shape[1]
    scale = 1 / 32768 if waveforms.dtype == torch.int16 else 1.0
    mixed = torch.empty(batch, num_samples)
    arrays = (
        waveforms.contiguous().numpy(),
        sources.to("cpu", torch.int64).contiguous().numpy(),
        starts.to("cpu", torch.int64).contiguous().numpy(),
        (factors.to("cpu", torch.float32) * scale).contiguous().numpy(),
        mixed.numpy(),
    )
    kernel = _kernel(waveforms.dtype)

    def run(first: int, last: int) -> None:
        kernel(*arrays, first, last)

    _threads.parallel_for(run, batch, CLIPS_PER_TASK, torch.get_num_threads())
    return mixed


@cache
def _kernel(dtype: torch.dtype) -> Any:
    """Return the compiled kernel for clips of a dtype."""
    indices = torch.empty(0, 1, dtype=torch.int64).numpy()
    clips, sums = torch.empty(1, 1, dtype=dtype).numpy(), torch.empty(0, 1).numpy()
    with _threads.compile_lock:
        _sum_rows(clips, indices, indices, sums, sums, 0, 0)  # no rows: this only compiles
    return _sum_rows


@jit
def _sum_rows(
    waveforms: Any, sources: Any, starts: Any, factors: Any, mixed: Any, first: int, last: int
) -> None:
    num_samples = waveforms.shape[1]
    for row in range(first, last):
        out = mixed[row]
        is_first = True
        for term in range(factors.shape[1]):
            factor = factors[row, term]
            if factor == np.float32(0.0):
                continue
            clip, start = waveforms[sources[row, term]], starts[row, term]
            split = num_samples - start
            for part, values in ((out[:split], clip[start:]), (out[split:], clip[:start])):
                # Both begin at 0: an index that could be negative would keep vectors away.
                if is_first:
                    for i in range(len(part)):
                        part[i] = factor * np.float32(values[i])
                else:
                    for i in range(len(part)):
                        part[i] += factor * np.float32(values[i])
            is_first = False
        if is_first:
            out[:] = np.float32(0.0)
