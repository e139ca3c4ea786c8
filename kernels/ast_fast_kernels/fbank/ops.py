"""The filterbank as a torch operator: one opaque node for torch.compile, export and autograd.

Importing this module registers `torch.ops.ast_fast.fbank`. `fbank` imports it when a call is traced
or needs a gradient; a process that loads an exported program must import it itself. The operator
chooses its backend when it runs, as an eager call does, so `use_backend` holds for compiled code
too. Its gradient is the reference's: a second operator, which needs only the waveform kept.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from ast_fast_kernels._torch import checks
from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels._torch.tracing import outside_compilation
from ast_fast_kernels.fbank import eager
from ast_fast_kernels.fbank.checks import Lengths
from ast_fast_kernels.fbank.config import FbankConfig
from ast_fast_kernels.fbank.gradient import waveform_gradient

torch.library.define(
    "ast_fast::fbank",
    '(Tensor waveform, str config, Tensor? lengths=None, str backend="auto") -> Tensor',
    # Dither is random. The tag also stops torch from recomputing features to save memory.
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded),
)
torch.library.define(
    "ast_fast::fbank_backward",
    "(Tensor grad, Tensor waveform, str config, Tensor? lengths=None) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)


def fbank(
    waveform: Tensor,
    config: FbankConfig,
    lengths: Lengths | None = None,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """Call the operator, which takes the config as JSON; arguments as in `fbank`."""
    counts = None if lengths is None else eager.as_counts(lengths, waveform.shape[:-1])
    log_mel = cast(Tensor, torch.ops.ast_fast.fbank(waveform, config.as_json, counts, backend))
    if out is None:
        return log_mel
    eager.check_out(out, tuple(log_mel.shape), waveform)
    return out.copy_(log_mel)


@torch.library.impl("ast_fast::fbank", "default")
@outside_compilation  # else torch.compile traces this where it has broken a graph
def _fbank(
    waveform: Tensor, config: str, lengths: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    return eager.compute(waveform.detach(), _parsed(config), lengths, None, backend)


@torch.library.register_fake("ast_fast::fbank")  # type: ignore[untyped-decorator]
def _fake_fbank(
    waveform: Tensor, config: str, lengths: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    return eager.empty_result(waveform, _parsed(config), lengths, backend)


@torch.library.impl("ast_fast::fbank_backward", "default")
def _fbank_backward(
    grad: Tensor, waveform: Tensor, config: str, lengths: Tensor | None = None
) -> Tensor:
    with one_thread_if_forked():
        return _gradient(grad.detach(), waveform.detach(), config, lengths).contiguous()


@torch.library.register_fake("ast_fast::fbank_backward")  # type: ignore[untyped-decorator]
def _fake_fbank_backward(
    grad: Tensor, waveform: Tensor, config: str, lengths: Tensor | None = None
) -> Tensor:
    return waveform.new_empty(waveform.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    waveform, ctx.config, lengths, _ = inputs
    if _parsed(ctx.config).dither != 0.0:
        raise RuntimeError(
            "the operator ast_fast::fbank has no gradient with dither, because it cannot draw the "
            "same noise again; call fbank outside of compiled code"
        )
    ctx.save_for_backward(waveform, lengths)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    waveform, lengths = ctx.saved_tensors
    # Outside of the operator, autograd records the gradient's own graph, for a second derivative.
    twice = torch.is_grad_enabled() and not checks.is_traced(grad)
    run = _gradient if twice else torch.ops.ast_fast.fbank_backward
    return run(grad, waveform, ctx.config, lengths), None, None, None


def _refuse_second_gradient(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError(
        "the operator ast_fast::fbank_backward has no gradient; call fbank outside of compiled code"
    )


torch.library.register_autograd("ast_fast::fbank", _backward, setup_context=_keep_inputs)
torch.library.register_autograd("ast_fast::fbank_backward", _refuse_second_gradient)


def _gradient(grad: Tensor, waveform: Tensor, config: str, lengths: Tensor | None) -> Tensor:
    leading, num_samples = waveform.shape[:-1], waveform.shape[-1]
    counts = eager.check_lengths(lengths, leading, waveform)
    rows = waveform.reshape(math.prod(leading), num_samples)
    grad = grad.reshape(len(rows), *grad.shape[-2:])
    return waveform_gradient(grad, rows, _parsed(config), counts).view(waveform.shape)


@lru_cache(maxsize=64)
def _parsed(config: str) -> FbankConfig:
    return FbankConfig.from_json(config)
