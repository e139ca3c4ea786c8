"""The feature functions as a torch operator: one opaque node for torch.compile and export.

Importing this module registers `torch.ops.ast_fast.kaldi`, which `calls.compute` calls when it
is traced. It runs what an eager call runs, and chooses its backend then. Noise comes from an
operator of its own, so that the gradient has it too; it is the eager call's for the same state of
torch's generator. Gradients are written out, as in `fbank/gradient.py`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from ast_fast_kernels._torch.forks import one_thread_if_forked
from ast_fast_kernels._torch.tracing import constant_in_graphs, outside_compilation
from ast_fast_kernels.fbank import drawn, eager
from ast_fast_kernels.fbank.energy import log_energy_gradient
from ast_fast_kernels.fbank.gradient import waveform_gradient
from ast_fast_kernels.fbank.ops import gradient_once
from ast_fast_kernels.kaldi.arguments import Settings, read, take_channel
from ast_fast_kernels.kaldi.features import before_arranged, run

torch.library.define(
    "ast_fast::kaldi",
    "(Tensor waveform, str settings, Tensor? noise=None) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "ast_fast::kaldi_backward",
    "(Tensor grad, Tensor waveform, str settings, Tensor? noise=None) -> Tensor",
    tags=torch.Tag.pt2_compliant_tag,
)
torch.library.define(
    "ast_fast::kaldi_noise",
    "(Tensor waveform, str settings) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag, torch.Tag.nondeterministic_seeded),
)


def call(waveform: Tensor, function: str, given: tuple[Any, ...]) -> Tensor:
    """Call the operator with a function's arguments, which are read while it is traced."""
    kinds = tuple([_kind(value) for value in given])
    texts = [_text(value) for value in given]
    settings = _settings(function, waveform.dtype == torch.int16, kinds, *texts)
    noise = None
    if _has_dither(settings):
        noise = torch.ops.ast_fast.kaldi_noise(waveform.detach(), settings)
    return cast(Tensor, torch.ops.ast_fast.kaldi(waveform, settings, noise))


# Dynamo may make a symbol of a number, which no constant function takes. Its text is a constant,
# once arithmetic that changes nothing has told dynamo that it is a symbol.


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return ""
    return "float" if isinstance(value, float) else "int" if isinstance(value, int) else ""


def _text(value: Any) -> Any:
    """Return a number as text, anything else as it is."""
    match _kind(value):
        case "float":
            return f"{value * 1.0}"
        case "int":
            return f"{value + 0}"
    return value


@constant_in_graphs
def _settings(function: str, is_int16: bool, kinds: tuple[str, ...], *texts: Any) -> str:
    kind_of = {"float": float, "int": int}
    pairs = zip(kinds, texts, strict=True)
    given = tuple(kind_of[kind](text) if kind else text for kind, text in pairs)
    return read(function, given, is_int16).as_json


@constant_in_graphs
def _has_dither(settings: str) -> bool:
    return _parsed(settings).config.dither != 0.0


@lru_cache(maxsize=64)
def _parsed(settings: str) -> Settings:
    return Settings.from_json(settings)


def _samples(waveform: Tensor, settings: Settings) -> Tensor | None:
    """Return the channel, checked; None if it is too short for any features."""
    samples = take_channel(waveform, settings.channel)
    eager.check_waveform(samples, settings.config.replace(snip_edges=True))
    return None if samples.shape[0] < settings.least else samples


@torch.library.impl("ast_fast::kaldi", "default")
@outside_compilation  # else torch.compile traces this where it has broken a graph
def _kaldi(waveform: Tensor, settings: str, noise: Tensor | None = None) -> Tensor:
    samples = _samples(waveform.detach(), _parsed(settings))
    if samples is None:
        return waveform.new_empty(0, dtype=eager.result_dtype(waveform))
    return run(samples, _parsed(settings), noise)


@torch.library.register_fake("ast_fast::kaldi")  # type: ignore[untyped-decorator]
def _fake_kaldi(waveform: Tensor, settings: str, noise: Tensor | None = None) -> Tensor:
    parsed, dtype = _parsed(settings), eager.result_dtype(waveform)
    samples = _samples(waveform, parsed)
    if samples is None:
        return waveform.new_empty(0, dtype=dtype)
    shape = (parsed.config.num_frames(samples.shape[0]), parsed.num_columns)
    return waveform.new_empty(shape, dtype=dtype)


@torch.library.impl("ast_fast::kaldi_noise", "default")
@outside_compilation
def _kaldi_noise(waveform: Tensor, settings: str) -> Tensor:
    samples = _samples(waveform.detach(), _parsed(settings))
    if samples is None:
        return waveform.new_empty(0, dtype=eager.result_dtype(waveform))
    noise, _ = drawn.draw(samples, _parsed(settings).config)
    assert noise is not None
    with one_thread_if_forked():
        return noise.clone()  # the thread's next draw would overwrite it


@torch.library.register_fake("ast_fast::kaldi_noise")  # type: ignore[untyped-decorator]
def _fake_kaldi_noise(waveform: Tensor, settings: str) -> Tensor:
    config, dtype = _parsed(settings).config, eager.result_dtype(waveform)
    samples = _samples(waveform, _parsed(settings))
    if samples is None:
        return waveform.new_empty(0, dtype=dtype)
    shape = (config.num_frames(samples.shape[0]), config.window_size)
    return waveform.new_empty(shape, dtype=dtype)


@torch.library.impl("ast_fast::kaldi_backward", "default")
@outside_compilation
def _kaldi_backward(
    grad: Tensor, waveform: Tensor, settings: str, noise: Tensor | None = None
) -> Tensor:
    parsed = _parsed(settings)
    with one_thread_if_forked():
        out = torch.zeros_like(waveform, memory_format=torch.contiguous_format)
        samples = _samples(waveform.detach(), parsed)
        if samples is not None:
            out[parsed.channel] = _samples_gradient(grad.detach(), samples, parsed, noise)
        return out


def _samples_gradient(
    grad: Tensor, samples: Tensor, settings: Settings, noise: Tensor | None
) -> Tensor:
    config, sign = settings.config, -1.0 if settings.upside_down else 1.0
    samples = sign * samples
    of_filters, of_energy = before_arranged(grad, settings)
    if noise is None:
        out = gradient_once(of_filters, samples, config.as_json, None, "auto", None)
    else:
        rows = (of_filters[None], samples[None])
        out = waveform_gradient(*rows, config, None, noise=noise)[0]
    if of_energy is not None:
        out = out + log_energy_gradient(
            of_energy,
            samples,
            config,
            is_raw=settings.raw_energy,
            floor=settings.energy_floor,
            noise=noise,
        )
    return sign * out


@torch.library.register_fake("ast_fast::kaldi_backward")  # type: ignore[untyped-decorator]
def _fake_kaldi_backward(
    grad: Tensor, waveform: Tensor, settings: str, noise: Tensor | None = None
) -> Tensor:
    return waveform.new_empty(waveform.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    waveform, ctx.settings, noise = inputs
    ctx.save_for_backward(waveform, noise)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    waveform, noise = ctx.saved_tensors
    return torch.ops.ast_fast.kaldi_backward(grad, waveform, ctx.settings, noise), None, None


def _refuse_second_gradient(ctx: Any, grad: Tensor) -> None:
    raise RuntimeError(
        "the operator ast_fast::kaldi_backward has no gradient; call kaldi's functions outside of "
        "compiled code"
    )


torch.library.register_autograd("ast_fast::kaldi", _backward, setup_context=_keep_inputs)
torch.library.register_autograd("ast_fast::kaldi_backward", _refuse_second_gradient)
