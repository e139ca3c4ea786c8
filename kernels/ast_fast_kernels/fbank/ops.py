"""The filterbank as a torch operator: one opaque node for torch.compile, export and autograd.

Importing this module registers `torch.ops.ast_fast.fbank`. `fbank` imports it when a call is traced
or needs a gradient; a process that loads an exported program must import it itself. The operator
chooses its backend when it runs, as an eager call does, so `use_backend` holds for compiled code
too. Its gradient is the reference's: a second operator, which needs only the waveform kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, cast

import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels._torch.tracing import outside_compilation
from ast_fast_kernels.fbank import dither, eager
from ast_fast_kernels.fbank.checks import Lengths
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.gradient import waveform_gradient

torch.library.define(
    "ast_fast::fbank",
    '(Tensor waveform, str config, Tensor? lengths=None, str backend="auto", Tensor? keys=None)'
    " -> Tensor",
    # Without keys, dither is random. The tag also stops torch from recomputing features to save
    # memory.
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded),
)
torch.library.define(
    "ast_fast::fbank_backward",
    "(Tensor grad, Tensor waveform, str config, Tensor? lengths=None, "
    'str backend="auto", Tensor? keys=None) -> Tensor',
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "ast_fast::fbank_keys",
    "(Tensor waveform) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded),
)


def fbank(
    waveform: Tensor,
    config: FbankConfig,
    lengths: Lengths | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
    keys: Tensor | None = None,
) -> Tensor:
    """Call the operator, or what autograd alone needs of it; arguments as in `eager.compute`.

    Keys are drawn by an operator of their own, so that the gradient gets them too.
    """
    if config.dither != 0.0 and keys is None:
        keys = torch.ops.ast_fast.fbank_keys(waveform.detach())
    counts = None if lengths is None else eager.as_counts(lengths, waveform.shape[:-1])
    run: Any = torch.ops.ast_fast.fbank if checks.is_traced(waveform) else _Fbank.apply
    log_mel = cast(Tensor, run(waveform, config.as_json, counts, backend, keys))
    if out is None:
        return log_mel
    eager.check_out(out, tuple(log_mel.shape), waveform)
    return out.copy_(log_mel)


@torch.library.impl("ast_fast::fbank", "default")
@outside_compilation  # else torch.compile traces this where it has broken a graph
def _fbank(
    waveform: Tensor,
    config: str,
    lengths: Tensor | None = None,
    backend: str = "auto",
    keys: Tensor | None = None,
) -> Tensor:
    return eager.compute(waveform.detach(), _parsed(config), lengths, None, backend, keys)


@torch.library.register_fake("ast_fast::fbank")  # type: ignore[untyped-decorator]
def _fake_fbank(
    waveform: Tensor,
    config: str,
    lengths: Tensor | None = None,
    backend: str = "auto",
    keys: Tensor | None = None,
) -> Tensor:
    return eager.empty_result(waveform, _parsed(config), lengths, backend)


@torch.library.impl("ast_fast::fbank_keys", "default")
def _fbank_keys(waveform: Tensor) -> Tensor:
    return dither.draw_keys(waveform.shape[:-1], waveform.device)


@torch.library.register_fake("ast_fast::fbank_keys")  # type: ignore[untyped-decorator]
def _fake_fbank_keys(waveform: Tensor) -> Tensor:
    return waveform.new_empty((*waveform.shape[:-1], 2), dtype=torch.int64)


@torch.library.impl("ast_fast::fbank_backward", "default")
def _fbank_backward(
    grad: Tensor,
    waveform: Tensor,
    config: str,
    lengths: Tensor | None = None,
    backend: str = "auto",
    keys: Tensor | None = None,
) -> Tensor:
    return gradient_once(grad, waveform, config, lengths, backend, keys)


@torch.library.register_fake("ast_fast::fbank_backward")  # type: ignore[untyped-decorator]
def _fake_fbank_backward(
    grad: Tensor,
    waveform: Tensor,
    config: str,
    lengths: Tensor | None = None,
    backend: str = "auto",
    keys: Tensor | None = None,
) -> Tensor:
    return waveform.new_empty(waveform.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    waveform, ctx.config, lengths, ctx.backend, keys = inputs
    if keys is None and _parsed(ctx.config).dither != 0.0:
        raise RuntimeError(
            "the operator ast_fast::fbank has no gradient with dither without keys, because it "
            "cannot draw the same noise again; call ast_fast_kernels.fbank, which draws them"
        )
    ctx.save_for_backward(waveform, lengths, keys)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    waveform, lengths, keys = ctx.saved_tensors
    # Outside of the operator, autograd records the gradient's own graph, for a second derivative.
    if checks.is_traced(grad):
        run: Any = torch.ops.ast_fast.fbank_backward
    else:
        run = _gradient_twice if torch.is_grad_enabled() else gradient_once
    gradient = run(grad, waveform, ctx.config, lengths, ctx.backend, keys)
    return gradient, None, None, None, None


class _Fbank(torch.autograd.Function):
    """The operator as autograd sees it: without the dispatcher, a call takes 0.1 ms less."""

    @staticmethod
    def forward(
        ctx: Any,
        waveform: Tensor,
        config: str,
        lengths: Tensor | None,
        backend: str,
        keys: Tensor | None,
    ) -> Tensor:
        log_mel = eager.compute(waveform.detach(), _parsed(config), lengths, None, backend, keys)
        _keep_inputs(ctx, (waveform, config, lengths, backend, keys), log_mel)
        return log_mel

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        return _backward(ctx, grad)


def _refuse_second_gradient(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError(
        "the operator ast_fast::fbank_backward has no gradient; call fbank outside of compiled code"
    )


torch.library.register_autograd("ast_fast::fbank", _backward, setup_context=_keep_inputs)
torch.library.register_autograd("ast_fast::fbank_backward", _refuse_second_gradient)


def _gradient_twice(
    grad: Tensor,
    waveform: Tensor,
    config: str,
    lengths: Tensor | None,
    backend: str,
    keys: Tensor | None,
) -> Tensor:
    """Return the gradient with a graph of its own, which the reference's formula keeps."""
    run = partial(waveform_gradient, keys=_flat(keys))
    return _gradient(grad, waveform, _parsed(config), lengths, run)


def gradient_once(
    grad: Tensor,
    waveform: Tensor,
    config: str,
    lengths: Tensor | None,
    backend: str,
    keys: Tensor | None,
) -> Tensor:
    """Return the gradient without a graph, by a kernel if one can."""
    grad, waveform = grad.detach(), waveform.detach()
    run = _gradient_function(waveform, _parsed(config), backend, _flat(keys))
    with one_thread_if_forked():
        return _gradient(grad, waveform, _parsed(config), lengths, run).contiguous()


def _flat(keys: Tensor | None) -> Tensor | None:
    return None if keys is None else keys.reshape(-1, 2)


def _gradient(
    grad: Tensor,
    waveform: Tensor,
    config: FbankConfig,
    lengths: Tensor | None,
    run: Callable[..., Tensor],
) -> Tensor:
    leading, num_samples = waveform.shape[:-1], waveform.shape[-1]
    counts = eager.check_lengths(lengths, leading, waveform)
    rows = waveform.reshape(math.prod(leading), num_samples)
    grad = grad.reshape(len(rows), *grad.shape[-2:])
    return run(grad, rows, config, counts).view(waveform.shape)


def _gradient_function(
    waveform: Tensor, config: FbankConfig, backend: str, keys: Tensor | None
) -> Callable[..., Tensor]:
    """Return the kernel's gradient if the filterbank itself runs on it, else the reference's."""
    if config.dither != 0.0:  # the kernel adds no noise
        return partial(waveform_gradient, keys=keys)
    requested = _dispatch.requested_backend("fbank", backend)
    if waveform.dtype != torch.float32 or waveform.numel() == 0:
        return waveform_gradient
    if eager.choose_backend(requested, waveform, config) != "numba":
        return waveform_gradient
    # Imported late: it loads Numba.
    from ast_fast_kernels.fbank import numba_gradient

    if not numba_gradient.is_supported(config):
        return waveform_gradient
    return numba_gradient.gradient_numba


@lru_cache(maxsize=64)
def _parsed(config: str) -> FbankConfig:
    return FbankConfig.from_json(config)
