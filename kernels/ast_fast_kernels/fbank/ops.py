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
    "(Tensor grad, Tensor waveform, str config, Tensor? lengths=None, Tensor? keys=None) -> Tensor",
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
    """Call the operator, which takes the config as JSON; arguments as in `eager.compute`.

    Keys are drawn by an operator of their own, so that the gradient gets them too.
    """
    if config.dither != 0.0 and keys is None:
        keys = torch.ops.ast_fast.fbank_keys(waveform.detach())
    counts = None if lengths is None else eager.as_counts(lengths, waveform.shape[:-1])
    log_mel = cast(
        Tensor, torch.ops.ast_fast.fbank(waveform, config.as_json, counts, backend, keys)
    )
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
    keys: Tensor | None = None,
) -> Tensor:
    with one_thread_if_forked():
        return _gradient(grad.detach(), waveform.detach(), config, lengths, keys).contiguous()


@torch.library.register_fake("ast_fast::fbank_backward")  # type: ignore[untyped-decorator]
def _fake_fbank_backward(
    grad: Tensor,
    waveform: Tensor,
    config: str,
    lengths: Tensor | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    return waveform.new_empty(waveform.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    waveform, ctx.config, lengths, _, keys = inputs
    if keys is None and _parsed(ctx.config).dither != 0.0:
        raise RuntimeError(
            "the operator ast_fast::fbank has no gradient with dither without keys, because it "
            "cannot draw the same noise again; call ast_fast_kernels.fbank, which draws them"
        )
    ctx.save_for_backward(waveform, lengths, keys)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    waveform, lengths, keys = ctx.saved_tensors
    # Outside of the operator, autograd records the gradient's own graph, for a second derivative.
    twice = torch.is_grad_enabled() and not checks.is_traced(grad)
    run = _gradient if twice else torch.ops.ast_fast.fbank_backward
    return run(grad, waveform, ctx.config, lengths, keys), None, None, None, None


def _refuse_second_gradient(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError(
        "the operator ast_fast::fbank_backward has no gradient; call fbank outside of compiled code"
    )


torch.library.register_autograd("ast_fast::fbank", _backward, setup_context=_keep_inputs)
torch.library.register_autograd("ast_fast::fbank_backward", _refuse_second_gradient)


def _gradient(
    grad: Tensor, waveform: Tensor, config: str, lengths: Tensor | None, keys: Tensor | None
) -> Tensor:
    leading, num_samples = waveform.shape[:-1], waveform.shape[-1]
    counts = eager.check_lengths(lengths, leading, waveform)
    rows = waveform.reshape(math.prod(leading), num_samples)
    grad = grad.reshape(len(rows), *grad.shape[-2:])
    keys = None if keys is None else keys.reshape(len(rows), 2)
    return waveform_gradient(grad, rows, _parsed(config), counts, keys).view(waveform.shape)


@lru_cache(maxsize=64)
def _parsed(config: str) -> FbankConfig:
    return FbankConfig.from_json(config)
