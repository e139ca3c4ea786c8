"""Resampling of tensors: on the CPU as arrays, elsewhere by the reference; with a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks as tensor_checks
from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels.resample import arrays, checks
from ast_fast_kernels.resample.design import design


def compute(
    waveform: Tensor, rates: tuple[int, int], quality: str, axis: int | None, chosen: str
) -> Tensor:
    """Do what `resample` does, for a tensor and arguments that were checked."""
    if chosen == "reference":
        return _by_reference(waveform, rates, quality, axis)
    if waveform.requires_grad and torch.is_grad_enabled():
        apply: Any = _WithGradient.apply
        resampled: Tensor = apply(waveform, rates, quality, axis, chosen)
        return resampled
    return _by_array(waveform, rates, quality, axis, chosen)


def _by_array(
    waveform: Tensor, rates: tuple[int, int], quality: str, axis: int | None, chosen: str
) -> Tensor:
    array = waveform.detach().resolve_neg().numpy()
    return torch.from_numpy(arrays.compute(array, rates, quality, axis, chosen))


def _by_reference(
    waveform: Tensor, rates: tuple[int, int], quality: str, axis: int | None
) -> Tensor:
    with one_thread_if_forked():
        levels = waveform / 32768 if waveform.dtype == torch.int16 else waveform
        levels = levels.to(torch.float32)
        if axis is not None:
            levels = levels.mean(axis)
        if rates[0] == rates[1]:
            return levels.clone()
        run = _dispatch.load_backend("resample", "reference")
        resampled: Tensor = run(levels, design(*rates, quality))
    return resampled


class _WithGradient(torch.autograd.Function):
    """A kernel's result, and the reference's gradient: resampling is linear."""

    @staticmethod
    def forward(
        ctx: Any, waveform: Tensor, rates: tuple[int, int], quality: str, axis: int | None,
        chosen: str,
    ) -> Tensor:  # fmt: skip
        ctx.options = rates, quality, axis
        ctx.like = waveform.shape, waveform.dtype
        return _by_array(waveform, rates, quality, axis, chosen)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        shape, dtype = ctx.like
        with torch.enable_grad():
            anywhere = gradients[0].new_zeros(shape, dtype=dtype, requires_grad=True)
            resampled = _by_reference(anywhere, *ctx.options)
        (gradient,) = torch.autograd.grad(resampled, anywhere, gradients[0])
        return gradient, None, None, None, None


def chosen_backend(
    waveform: object, rate_from: object, rate_to: object, quality: object, channel_axis: object,
    backend: str,
) -> str:  # fmt: skip
    """Check what `resample` is given, and return the backend that runs."""
    if not isinstance(waveform, Tensor):
        kind = type(waveform).__name__
        raise TypeError(f"waveform must be a tensor or a numpy array, got {kind}")
    checks.check_dtype(waveform.dtype)
    rates = checks.check_rates(rate_from, rate_to)
    checks.check_quality(quality)
    checks.check_axis(waveform.shape, channel_axis)
    requested = _dispatch.requested_backend("resample", backend)
    return checks.chosen_backend(requested, rates, lambda name: _obstacle(waveform, name))


def _obstacle(waveform: Tensor, name: str) -> str | None:
    if waveform.device.type != "cpu":
        return f"{name} needs a waveform on the CPU, got {waveform.device}"
    if not tensor_checks.is_strided(waveform):
        return f"{name} needs a strided waveform, got {waveform.layout}"
    return tensor_checks.trace_obstacle(name, waveform) or tensor_checks.transform_obstacle(name)
