"""Resampling by torch's own operators, in the waveform's dtype: the oracle, with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from ast_fast_kernels.resample.design import Bank, Design


def resample_reference(waveform: Tensor, plan: Design) -> Tensor:
    """Return the waveform at the design's other rate.

    Args:
        waveform: Shape (..., num_samples), floating; 0 before and after.
        plan: The filters.
    """
    leading, num_samples = waveform.shape[:-1], waveform.shape[-1]
    num_out = plan.num_samples(num_samples)
    rows = waveform.reshape(-1, num_samples)
    if 0 in (len(rows), num_samples):
        return waveform.new_zeros(*leading, num_out)
    halves = len(plan.half_band)
    taps = torch.zeros(4 * halves - 1, dtype=torch.float64)
    taps[2 * halves - 1] = 0.5
    one_side = torch.from_numpy(plan.half_band)
    taps[2 * halves :: 2], taps[: 2 * halves - 1 : 2] = one_side, one_side.flip(0)
    taps = taps.to(rows.device, rows.dtype)
    if plan.goes_up:
        spread = torch.stack((rows, torch.zeros_like(rows)), 2).flatten(1)
        # The bank reads past the end, where the half-band filter still rings.
        tail = 2 * halves + plan.bank.taps.shape[1]
        middle = _filtered(functional.pad(spread, (tail, tail)), 2 * taps)
        resampled = _banked(middle, plan.bank, num_out, tail)
    else:
        before = 2 * halves
        middle = _banked(rows, plan.bank, 2 * num_out + before, 0, begin=-before)
        resampled = _filtered(middle, taps)[:, before::2][:, :num_out]
    return resampled.reshape(*leading, num_out)


def _filtered(rows: Tensor, taps: Tensor) -> Tensor:
    """Return rows filtered, of the same length, 0 around them."""
    return functional.conv1d(rows[:, None], taps[None, None], padding=len(taps) // 2)[:, 0]


def _banked(rows: Tensor, bank: Bank, end: int, offset: int, begin: int = 0) -> Tensor:
    """Return outputs `begin` to `end` of the bank; sample 0 of the input stands at `offset`."""
    outputs = torch.arange(begin, end)
    phase = outputs % bank.phases
    first = outputs.div(bank.phases, rounding_mode="floor") * bank.step
    first = first + torch.from_numpy(bank.first)[phase] + offset
    count = bank.taps.shape[1]
    before = max(-int(first.min()), 0)
    after = max(int(first.max()) + count - rows.shape[1], 0)
    windows = functional.pad(rows, (before, after)).unfold(1, count, 1)
    taps = torch.from_numpy(bank.taps).to(rows.device, rows.dtype)[phase.to(rows.device)]
    return (windows[:, (first + before).to(rows.device)] * taps).sum(-1)
