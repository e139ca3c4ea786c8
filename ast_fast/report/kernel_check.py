"""Every run's check of its own kernels: what it used against the reference, on a real batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ast_fast.features import undithered
from ast_fast.settings.config import Config
from ast_fast_kernels import attention, fbank, norm_gelu_conv
from ast_fast_kernels._dispatch import requested_backend
from ast_fast_kernels._torch.autocast import no_autocast
from ast_fast_kernels.attention.api import choose_backend as choose_attention
from ast_fast_kernels.fbank.eager import choose_backend as choose_fbank
from ast_fast_kernels.fbank.reference import as_floating
from ast_fast_kernels.stem.api import choose_backend as choose_stem
from ast_fast_kernels.testing.budgets import log_mel_error
from ast_fast_kernels.testing.timing import interleaved_medians

MOST_SCORES = 2**25
"""Attention scores of the largest batch compared: the reference keeps them all in memory."""

ROUNDS = 7
"""Interleaved rounds of each timing; their medians are compared."""

FBANK_ERRORS = ("reference_max_abs_error", "max_abs_difference", "relative_norm_before_log")
"""Figures of the filterbank besides those that both operations have."""

SAME = "the run itself used the reference, so there is nothing to compare"


def check_kernels(
    config: Config,
    waveforms: Tensor,
    model: nn.Module,
    features: Tensor,
    amp: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Compare the kernels that the run uses with the reference, on real input.

    Attention is run on what the model's first block projects, in the dtype that the run computes
    in, and a stem's kernel on what a stage projects. Times are medians of interleaved
    rounds, after one round that is not counted.

    Args:
        config: The run's settings.
        waveforms: A batch of test clips, int16, shape (batch, num_samples).
        model: The trained model.
        features: The model's input for these clips, shape (batch, num_frames, num_mel_bins).
        amp: The dtype that matrix products are computed in.
    Returns:
        For `fbank`, `attention` and, where the model has one, `stem`: backend, shape,
        max_abs_error, fast_seconds, reference_seconds and speed_ratio (the reference's time over
        the fast one's), and what is said of each below. Where the run used the reference they are
        None, with a reason.
    """
    checks = {
        "fbank": check_fbank(config, waveforms),
        "attention": check_attention(first_block_qkv(model, features).to(amp)),
    }
    if config.model.stem_widths:
        checks["stem"] = check_stem(model, features, amp)
    return checks


def check_fbank(config: Config, waveforms: Tensor) -> dict[str, Any]:
    """Compare the filterbank in use, without dither, with the reference on the same clips.

    `max_abs_error` is the largest difference of its log-mel values from those of the reference in
    float64, and `reference_max_abs_error` that of the reference in the dtype in use: both over the
    bins within 60 dB of their frame's loudest, because below that a pure tone leaves nothing but
    the rounding of whoever computes it. `max_abs_difference` is the largest difference between the
    two over every bin. `relative_norm_before_log` is the norm of the difference of mel energies
    over the reference's norm: a quiet bin cannot hide or invent error there.

    Args:
        config: `config.fbank` is used.
        waveforms: Clips, int16, shape (batch, num_samples).
    """
    fbank_config = undithered(config.fbank)
    samples = as_floating(waveforms)
    chosen = choose_fbank(requested_backend("fbank", "auto"), samples, fbank_config)
    shape = [*waveforms.shape]
    if chosen == "reference":
        return _not_compared(chosen, shape) | dict.fromkeys(FBANK_ERRORS)

    def run(backend: str) -> Tensor:
        return fbank(samples, fbank_config, backend=backend)

    exact = fbank(samples.double(), fbank_config, backend="reference")

    def error(out: Tensor) -> float:
        if not fbank_config.use_log_fbank:
            return _max_abs_error(out, exact)
        return log_mel_error(out, exact, use_power=fbank_config.use_power).max().item()

    fast, reference = run(chosen), run("reference")
    energies = fbank_config.replace(use_log_fbank=False)
    before_log = [
        fbank(samples, energies, backend=backend).double() for backend in (chosen, "reference")
    ]
    difference = torch.linalg.vector_norm(before_log[0] - before_log[1])
    norm = torch.linalg.vector_norm(before_log[1])
    relative = (difference / norm).item() if norm > 0 else 0.0
    return {
        "backend": chosen,
        "shape": shape,
        "max_abs_error": error(fast),
        "reference_max_abs_error": error(reference),
        "max_abs_difference": _max_abs_error(fast, reference),
        "relative_norm_before_log": relative,
        **_compare(partial(run, chosen), partial(run, "reference"), waveforms.device),
    }


def check_attention(qkv: Tensor) -> dict[str, Any]:
    """Compare the attention in use with the reference on the same queries, keys and values.

    `max_abs_error` is the largest difference between the two, in their dtype. `forward_backward`
    holds the times and the ratio of forward and backward together, and the largest error of the
    gradient of queries, keys or values over its largest value.

    Args:
        qkv: Shape (batch, num_tokens, 3, num_heads, head_dim).
    """
    chosen = choose_attention(requested_backend("attention", "auto"), qkv)
    qkv = qkv[: max(1, MOST_SCORES // (qkv.shape[3] * qkv.shape[1] ** 2))]
    shape = [*qkv.shape]
    if chosen == "reference":
        return _not_compared(chosen, shape) | {"forward_backward": None}
    leaf = qkv.detach().clone().requires_grad_()

    def run(backend: str) -> Tensor:
        return attention(leaf, backend=backend)

    def gradients(backend: str, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(backend), leaf, grad)[0].unbind(2)

    return {"backend": chosen, "shape": shape, **_both_ways(chosen, run, gradients)}


def check_stem(model: nn.Module, features: Tensor, amp: torch.dtype) -> dict[str, Any]:
    """Compare the stem's kernel with the reference on what a stage projects.

    The stage is the first that a kernel runs. Figures as `check_attention` gives them; gradients
    are of the cells and of each parameter. Errors are from the reference in float32 on the same
    cells: in bfloat16 torch's own gradients of a norm's weight and bias are off by a third.

    Args:
        model: An `AudioSpectrogramTransformer` with a stem.
        features: Its input, shape (batch, num_frames, num_mel_bins).
        amp: The dtype that the run computes in.
    """
    for stage, module in model.get_submodule("patch_embedding.stem").named_children():
        projection = f"patch_embedding.stem.{stage}.projection"
        cells = _projected(model, projection, features).to(amp)
        parameters = [
            module.get_parameter(name)
            for name in ("norm.weight", "norm.bias", "neighbours.weight", "neighbours.bias")
        ]
        chosen = choose_stem(requested_backend("stem", "auto"), cells, *parameters)
        shape = [*cells.shape]
        if chosen != "reference":
            break
    else:
        return _not_compared(chosen, shape) | {"forward_backward": None}
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (cells, *parameters)]

    def run(backend: str) -> Tensor:
        return norm_gelu_conv(*leaves, backend=backend).to(amp)  # as the next product casts it

    def gradients(backend: str, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(backend), leaves, grad)

    def exact(grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with no_autocast(cells.device):
            wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
            out = norm_gelu_conv(*wide, backend="reference")
            return out.detach(), torch.autograd.grad(out, wide, grad.float())

    return {"backend": chosen, "shape": shape, **_both_ways(chosen, run, gradients, exact)}


def _both_ways(
    chosen: str,
    run: Callable[[str], Tensor],
    gradients: Callable[[str, Tensor], tuple[Tensor, ...]],
    exact: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]] | None = None,
) -> dict[str, Any]:
    """Return the figures of an operation forward, and with its gradients.

    Args:
        chosen: The backend that is compared with the reference.
        run: Gives the result by a backend.
        gradients: Gives all gradients by a backend, from that of the result.
        exact: Gives from the same what errors are measured from, result and gradients; None takes
            the reference's.
    """

    def forward(backend: str) -> Tensor:
        with torch.no_grad():
            return run(backend)

    fast = forward(chosen)
    grad = torch.randn(fast.shape, generator=torch.Generator().manual_seed(0)).to(fast)
    if exact is None:
        right, right_gradients = forward("reference"), gradients("reference", grad)
    else:
        right, right_gradients = exact(grad)
    pairs = zip(gradients(chosen, grad), right_gradients, strict=True)
    return {
        "max_abs_error": _max_abs_error(fast, right),
        **_compare(lambda: forward(chosen), lambda: forward("reference"), fast.device),
        "forward_backward": {
            "max_gradient_error": max(
                _max_abs_error(ours, theirs) / max(theirs.abs().max().item(), 1e-30)
                for ours, theirs in pairs
            ),
            **_compare(
                lambda: gradients(chosen, grad), lambda: gradients("reference", grad), fast.device
            ),
        },
    }


def first_block_qkv(model: nn.Module, features: Tensor) -> Tensor:
    """Return what the model's first attention sees of a batch, as `attention` takes it.

    Args:
        model: An `AudioSpectrogramTransformer`.
        features: The model's input, shape (batch, num_frames, num_mel_bins).
    Returns:
        Queries, keys and values, shape (batch, num_tokens, 3, num_heads, head_dim).
    """
    projected = _projected(model, "blocks.0.attention.qkv", features)
    num_heads: Any = model.get_submodule("blocks.0.attention").num_heads
    return projected.view(*projected.shape[:2], 3, num_heads, -1)


def _projected(model: nn.Module, name: str, features: Tensor) -> Tensor:
    """Return what the submodule of that name gives when the model sees the features."""
    projected: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda _, __, output: projected.append(output)
    )
    try:
        with torch.no_grad():
            model(features)
    finally:
        handle.remove()
    return projected[0]


def _not_compared(backend: str, shape: list[int]) -> dict[str, Any]:
    numbers = ("max_abs_error", "fast_seconds", "reference_seconds", "speed_ratio")
    return {"backend": backend, "shape": shape, "reason": SAME} | dict.fromkeys(numbers)


def _max_abs_error(fast: Tensor, exact: Tensor) -> float:
    return (fast.double() - exact.double()).abs().max().item()


def _compare(
    fast: Callable[[], object], reference: Callable[[], object], device: torch.device
) -> dict[str, float]:
    """Return both medians in seconds and their ratio, the two taking turns."""
    synchronise = partial(torch.cuda.synchronize, device) if device.type == "cuda" else None
    medians = interleaved_medians(
        {"fast": fast, "reference": reference}, rounds=ROUNDS, synchronise=synchronise
    )
    return {
        "fast_seconds": medians["fast"],
        "reference_seconds": medians["reference"],
        "speed_ratio": medians["reference"] / max(medians["fast"], 1e-9),
    }
