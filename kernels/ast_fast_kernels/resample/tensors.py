"""Resampling of tensors: on the CPU as arrays, elsewhere by the reference; with a gradient."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks as tensor_checks
from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels.resample import arrays, checks
from ast_fast_kernels.resample.checks import Request
from ast_fast_kernels.resample.design import design


def compute(waveform: Tensor, asked: Request, chosen: str) -> Tensor:
    """Do what `resample` does, for a tensor, by the backend chosen."""
    if chosen == "reference":
        return _by_reference(waveform, asked)
    if waveform.requires_grad and torch.is_grad_enabled():
        apply: Any = _WithGradient.apply
        resampled: Tensor = apply(waveform, asked, chosen)
        return resampled
    return _by_array(waveform, asked, chosen)


def _by_array(waveform: Tensor, asked: Request, chosen: str) -> Tensor:
    array = waveform.detach().resolve_neg().numpy()
    return torch.from_numpy(arrays.compute(array, asked, chosen))


def _by_reference(waveform: Tensor, asked: Request) -> Tensor:
    rate_from, rate_to, quality, axis = asked
    with one_thread_if_forked():
        levels = waveform.to(torch.float32)
        if waveform.dtype == torch.int16:
            levels = levels / 32768
        if axis is not None:
            levels = levels.mean(axis)
        if rate_from == rate_to:
            return levels.clone()
        run = _dispatch.load_backend("resample", "reference")
        resampled: Tensor = run(levels, design(rate_from, rate_to, quality))
    return resampled


class _WithGradient(torch.autograd.Function):
    """A kernel's result, and the reference's gradient: resampling is linear."""

    @staticmethod
    def forward(ctx: Any, waveform: Tensor, asked: Request, chosen: str) -> Tensor:
        ctx.asked = asked
        ctx.like = waveform.shape, waveform.dtype
        return _by_array(waveform, asked, chosen)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        shape, dtype = ctx.like
        with torch.enable_grad():
            anywhere = gradients[0].new_zeros(shape, dtype=dtype, requires_grad=True)
            resampled = _by_reference(anywhere, ctx.asked)
        (gradient,) = torch.autograd.grad(resampled, anywhere, gradients[0])
        return gradient, None, None


def check_kind(waveform: object) -> None:
    """Raise unless it is a tensor."""
    if not isinstance(waveform, Tensor):
        kind = type(waveform).__name__
        raise TypeError(f"waveform must be a tensor or a numpy array, got {kind}")


def chosen_backend(waveform: Tensor, asked: Request, backend: str) -> str:
    """Return the backend that runs."""
    requested = _dispatch.requested_backend("resample", backend)
    return checks.chosen_backend(requested, asked, partial(_obstacle, waveform))


def _obstacle(waveform: Tensor, name: str) -> str | None:
    if waveform.device.type != "cpu":
        return f"{name} needs a waveform on the CPU, got {waveform.device}"
    if not tensor_checks.is_strided(waveform):
        return f"{name} needs a strided waveform, got {waveform.layout}"
    return tensor_checks.trace_obstacle(name, waveform) or tensor_checks.transform_obstacle(name)
