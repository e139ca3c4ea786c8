"""The filterbank on the GPU for a call like an earlier one: its checks have passed.

The launch is `fbank_triton`'s, and so is every bit. What the checks looked at is compared as a key.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.calls import Calls
from ast_fast_kernels.fbank.config import FbankConfig

calls = Calls()
"""Calls without lengths and `out` that one launch has run."""


def find(waveform: Tensor, config: FbankConfig, backend: str) -> Callable[[Tensor], Tensor] | None:
    """Return what runs a call without lengths and `out`; None if none like it was noted."""
    if not calls.known or type(config) is not FbankConfig:
        return None
    if waveform.requires_grad and torch.is_grad_enabled():
        return None
    if not checks.are_light(waveform):
        return None
    return calls.known.get(_key(waveform, config, _dispatch.requested_backend("fbank", backend)))


def note(waveform: Tensor, config: FbankConfig, requested: str) -> None:
    """Keep a call, without lengths and `out`, that Triton has just run, if one launch ran it.

    A launch that Triton interprets is not kept: only compiled code is started again.
    """
    from ast_fast_kernels.fbank import triton_gpu  # late: it loads Triton

    if (
        config.needs_whole_clip
        or not triton_gpu.is_fused(config)
        or not checks.are_light(waveform)
        or (waveform.dim() > 2 and not waveform.is_contiguous())
    ):
        return
    *leading, num_samples = waveform.shape
    num_frames = config.num_frames(num_samples)
    rows = waveform if waveform.dim() == 2 else waveform.view(-1, num_samples)
    if num_samples * rows.stride(1) >= triton_gpu.MOST_PLACES or len(
        rows
    ) > triton_gpu.clips_of_a_launch(num_frames, triton_gpu.FUSED_BLOCK):
        return
    layout = rows.shape, rows.stride(), rows.dtype, rows.device
    fused = triton_gpu.prepare_fused(config, *layout, False)
    if not fused.is_compiled:
        return
    shape = (*leading, num_frames, config.num_mel_bins)

    def run(samples: Tensor) -> Tensor:
        out = samples.new_empty(shape, dtype=torch.float32)
        fused(samples, out, None, None)
        return out

    calls.keep(_key(waveform, config, requested), run)


def _key(waveform: Tensor, config: FbankConfig, requested: str) -> Hashable:
    return (
        requested, config, waveform.shape, waveform.stride(), waveform.dtype, waveform.get_device(),
    )  # fmt: skip
