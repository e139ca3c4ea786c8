"""The last stage of a GPU's record: launches that the tables could hold instead."""

from __future__ import annotations

from functools import cache, partial
from unittest import mock

import torch
from torch import Tensor

from ast_fast_kernels import FbankConfig
from ast_fast_kernels._gpu.launch import Launch
from ast_fast_kernels.attention import triton_gpu as attention_gpu
from ast_fast_kernels.fbank import triton_gpu as fbank_gpu
from bench.gpu_timer import Recorder

PROGRAMS = (5, 3, 4, 6, 8, 12, 16)
"""Programs of the filterbank's one launch on each multiprocessor."""
_prepare_fused = cache(fbank_gpu.Fused)
FORWARD = (
    (128, 64, 8, 3), (128, 64, 4, 3), (64, 64, 4, 3), (64, 128, 4, 2), (128, 128, 8, 2),
    (128, 128, 8, 3), (128, 64, 8, 2), (128, 64, 8, 4), (64, 32, 4, 4),
)  # fmt: skip
"""BLOCK_M, BLOCK_N, warps and stages of attention's forward."""


def sweep(recorder: Recorder) -> None:
    """Time ours alone, in the forms above; the tables stay as they are."""
    for clips in recorder.sizes.clips:
        waveform = 0.1 * recorder.noise(clips, recorder.sizes.clip_samples)
        runs = {
            f"{programs} programs": partial(_fbank, recorder, waveform, programs)
            for programs in PROGRAMS[: recorder.sizes.sweep]
        }
        recorder.compare(f"fbank, {clips} clips", runs, section="sweep")
    for shape in recorder.sizes.attention:
        batch, tokens, heads, head_dim = shape
        qkv = recorder.noise(batch, tokens, 3, heads, head_dim, dtype=torch.bfloat16)
        forms = {
            "{}x{}, {} warps, {} stages".format(*form): partial(_attention, qkv, form)
            for form in FORWARD[: recorder.sizes.sweep]
        }
        recorder.compare(f"attention {shape} forward", forms, section="sweep")


def _fbank(recorder: Recorder, waveform: Tensor, programs: int) -> Tensor:
    if recorder.on_gpu:
        programs *= torch.cuda.get_device_properties(recorder.device).multi_processor_count
    config = FbankConfig()
    layout = waveform.shape, waveform.stride(), waveform.dtype, waveform.device
    shape = len(waveform), config.num_frames(waveform.shape[1]), config.num_mel_bins
    out = waveform.new_empty(shape)
    _prepare_fused(config, *layout, False, programs)(waveform, out, None, None)
    return out


def _attention(qkv: Tensor, form: tuple[int, int, int, int]) -> Tensor:
    block_m, block_n, warps, stages = form
    launch = Launch.of(BLOCK_M=block_m, BLOCK_N=block_n, num_warps=warps, num_stages=stages)
    key = "fwd", attention_gpu.architecture(qkv.device), qkv.shape[-1], False
    with mock.patch.dict(attention_gpu.LAUNCHES, {key: launch}):
        return attention_gpu.launch_attention_fwd(qkv, None, qkv.shape[-1] ** -0.5)[0]
