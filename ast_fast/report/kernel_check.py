"""The check of a run's kernels: each against the reference, on a real batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ast_fast.features import undithered
from ast_fast.machine.records import known_fields
from ast_fast.settings.config import Config
from ast_fast_kernels import attention, chosen_backend, fbank, norm_gelu_conv
from ast_fast_kernels.fbank.reference import as_floating
from ast_fast_kernels.testing.budgets import log_mel_error
from ast_fast_kernels.testing.timing import interleaved_medians

MOST_SCORES = 2**25
"""Most attention scores of a batch to compare: the reference holds them all in memory."""

ROUNDS = 7
"""Interleaved rounds of each timing."""

SAME = "the run itself used the reference, so there is nothing to compare"


class Times(NamedTuple):
    """Medians of interleaved rounds."""

    fast_seconds: float
    reference_seconds: float
    speed_ratio: float
    """The reference's time over the fast one's."""


@dataclass(frozen=True, kw_only=True)
class BothWays:
    """An operation forward and backward, against the reference."""

    max_gradient_error: float
    """Largest error of a gradient, over the largest value of that gradient."""
    fast_seconds: float
    reference_seconds: float
    speed_ratio: float


@dataclass(frozen=True, kw_only=True)
class KernelCheck:
    """An operation forward, against the reference.

    If the run used the reference, nothing was compared: `reason` says so, and figures are None.
    """

    backend: str
    shape: list[int]
    """Of the operation's input."""
    reason: str | None = None
    max_abs_error: float | None = None
    fast_seconds: float | None = None
    reference_seconds: float | None = None
    speed_ratio: float | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave, of this version or another; unknown keys are left out.

        Raises:
            TypeError: A key is missing.
        """
        return cls(**known_fields(cls, document))

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name, and `reason` if there is one."""
        document = asdict(self)
        if self.reason is None:
            del document["reason"]
        return document


@dataclass(frozen=True, kw_only=True)
class FbankCheck(KernelCheck):
    """The filterbank against the reference; `check_fbank` says what each error is."""

    reference_max_abs_error: float | None = None
    max_abs_difference: float | None = None
    relative_norm_before_log: float | None = None


@dataclass(frozen=True, kw_only=True)
class GradientCheck(KernelCheck):
    """An operation that the model is trained through, against the reference."""

    forward_backward: BothWays | None = None

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave, of this version or another; unknown keys are left out.

        Raises:
            TypeError: A key is missing.
        """
        both = document.get("forward_backward")
        both = both and BothWays(**known_fields(BothWays, both))
        return cls(**known_fields(cls, document) | {"forward_backward": both})


@dataclass(frozen=True)
class KernelChecks:
    """The checks of a run's kernels on one batch."""

    fbank: FbankCheck
    attention: GradientCheck
    stem: GradientCheck | None = None
    """None if the model has no stem."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave.

        Raises:
            KeyError, TypeError: It is incomplete.
        """
        return cls(
            FbankCheck.from_json(document["fbank"]),
            GradientCheck.from_json(document["attention"]),
            GradientCheck.from_json(document["stem"]) if "stem" in document else None,
        )

    def by_operation(self) -> dict[str, KernelCheck]:
        """Return the checks by the names of their operations."""
        checks: dict[str, KernelCheck] = {"fbank": self.fbank, "attention": self.attention}
        return checks | ({"stem": self.stem} if self.stem is not None else {})

    def to_json(self) -> dict[str, Any]:
        """Return every check's figures, by operation."""
        return {operation: check.to_json() for operation, check in self.by_operation().items()}


def check_kernels(
    config: Config,
    waveforms: Tensor,
    model: nn.Module,
    features: Tensor,
    amp: torch.dtype = torch.float32,
) -> KernelChecks:
    """Compare the kernels that the run uses with the reference, on real input.

    Attention runs on the first block's projections, in the dtype of the run, and a stem's kernel on
    a stage's projections. Times are medians of interleaved rounds, after one that is not counted.

    Args:
        config: The run's settings.
        waveforms: A batch of test clips, int16, shape (batch, num_samples).
        model: The trained model.
        features: The model's input for these clips, shape (batch, num_frames, num_mel_bins).
        amp: The dtype of matrix products.
    """
    return KernelChecks(
        check_fbank(config, waveforms),
        check_attention(first_block_qkv(model, features).to(amp)),
        check_stem(model, features, amp) if config.model.stem_widths else None,
    )


def check_fbank(config: Config, waveforms: Tensor) -> FbankCheck:
    """Compare the filterbank in use, without dither, with the reference on the same clips.

    - `max_abs_error`: largest difference of its log-mel values from the reference in float64, over
      the bins within 60 dB of their frame's loudest. Below that, a pure tone leaves only rounding.
    - `reference_max_abs_error`: the same for the reference in the dtype in use.
    - `max_abs_difference`: largest difference between those two, over every bin.
    - `relative_norm_before_log`: norm of the difference of their mel energies, over the norm of the
      reference's. There a quiet bin cannot hide or invent error.

    Args:
        config: `config.fbank` is used.
        waveforms: Clips, int16, shape (batch, num_samples).
    """
    fbank_config = undithered(config.fbank)
    samples = as_floating(waveforms)
    chosen = chosen_backend("fbank", samples, fbank_config)
    shape = [*waveforms.shape]
    if chosen == "reference":
        return FbankCheck(backend=chosen, shape=shape, reason=SAME)

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
    times = _compare(partial(run, chosen), partial(run, "reference"), waveforms.device)
    return FbankCheck(
        backend=chosen,
        shape=shape,
        max_abs_error=error(fast),
        reference_max_abs_error=error(reference),
        max_abs_difference=_max_abs_error(fast, reference),
        relative_norm_before_log=relative,
        **times._asdict(),
    )


def check_attention(qkv: Tensor) -> GradientCheck:
    """Compare the attention in use with the reference on the same queries, keys and values.

    `max_abs_error` is the largest difference between the two, in their dtype. `forward_backward`
    has the times of forward and backward together, and the largest error of the gradient of
    queries, keys or values, over the largest value of that gradient.

    Args:
        qkv: Shape (batch, num_tokens, 3, num_heads, head_dim).
    """
    chosen = chosen_backend("attention", qkv)
    qkv = qkv[: max(1, MOST_SCORES // (qkv.shape[3] * qkv.shape[1] ** 2))]
    shape = [*qkv.shape]
    if chosen == "reference":
        return GradientCheck(backend=chosen, shape=shape, reason=SAME)
    leaf = qkv.detach().clone().requires_grad_()

    def run(backend: str) -> Tensor:
        return attention(leaf, backend=backend)

    def gradients(backend: str, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(backend), leaf, grad)[0].unbind(2)

    return _both_ways(chosen, shape, run, gradients)


def check_stem(model: nn.Module, features: Tensor, amp: torch.dtype) -> GradientCheck:
    """Compare the stem's kernel with the reference, on the projection of a stage.

    The stage is the first that a kernel runs. Figures are as in `check_attention`; gradients are
    those of the cells and of each parameter. Errors are differences from the reference in float32
    on the same cells: in bfloat16, torch's own gradients of a norm's weight and bias are off by a
    third.

    Args:
        model: An `AudioSpectrogramTransformer` with a stem.
        features: The model's input, shape (batch, num_frames, num_mel_bins).
        amp: The dtype of matrix products.
    """
    for stage, module in model.get_submodule("patch_embedding.stem").named_children():
        projection = f"patch_embedding.stem.{stage}.projection"
        cells = _projected(model, projection, features).to(amp)
        parameters = [
            module.get_parameter(name)
            for name in ("norm.weight", "norm.bias", "neighbours.weight", "neighbours.bias")
        ]
        chosen = chosen_backend("stem", cells, *parameters)
        shape = [*cells.shape]
        if chosen != "reference":
            break
    else:
        return GradientCheck(backend=chosen, shape=shape, reason=SAME)
    leaves = [tensor.detach().clone().requires_grad_() for tensor in (cells, *parameters)]

    def run(backend: str) -> Tensor:
        return norm_gelu_conv(*leaves, backend=backend).to(amp)  # as the next product does

    def gradients(backend: str, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(run(backend), leaves, grad)

    def exact(grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.autocast(cells.device.type, enabled=False):
            wide = [leaf.detach().float().requires_grad_() for leaf in leaves]
            out = norm_gelu_conv(*wide, backend="reference")
            return out.detach(), torch.autograd.grad(out, wide, grad.float())

    return _both_ways(chosen, shape, run, gradients, exact)


def _both_ways(
    chosen: str,
    shape: list[int],
    run: Callable[[str], Tensor],
    gradients: Callable[[str, Tensor], tuple[Tensor, ...]],
    exact: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]] | None = None,
) -> GradientCheck:
    """Compare an operation with the reference, forward and with its gradients.

    Args:
        chosen: The backend to compare.
        shape: Of the operation's input.
        run: Returns a backend's result.
        gradients: Returns a backend's gradients, given that of the result.
        exact: Returns the result and the gradients from which errors are measured, given the
            gradient of the result; None takes the reference's.
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
    times = _compare(lambda: forward(chosen), lambda: forward("reference"), fast.device)
    gradient_error = max(
        _max_abs_error(ours, theirs) / max(theirs.abs().max().item(), 1e-30)
        for ours, theirs in pairs
    )
    both_times = _compare(
        lambda: gradients(chosen, grad), lambda: gradients("reference", grad), fast.device
    )
    return GradientCheck(
        backend=chosen,
        shape=shape,
        max_abs_error=_max_abs_error(fast, right),
        **times._asdict(),
        forward_backward=BothWays(max_gradient_error=gradient_error, **both_times._asdict()),
    )


def first_block_qkv(model: nn.Module, features: Tensor) -> Tensor:
    """Return the input of the model's first attention for a batch.

    Args:
        model: An `AudioSpectrogramTransformer`.
        features: The model's input, shape (batch, num_frames, num_mel_bins).
    Returns:
        Packed queries, keys and values, shape (batch, num_tokens, 3, num_heads, head_dim).
    """
    projected = _projected(model, "blocks.0.attention.qkv", features)
    num_heads: Any = model.get_submodule("blocks.0.attention").num_heads
    return projected.view(*projected.shape[:2], 3, num_heads, -1)


def _projected(model: nn.Module, name: str, features: Tensor) -> Tensor:
    """Return the output of the submodule called `name` when the model runs on the features."""
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


def _max_abs_error(fast: Tensor, exact: Tensor) -> float:
    return (fast.double() - exact.double()).abs().max().item()


def _compare(
    fast: Callable[[], object], reference: Callable[[], object], device: torch.device
) -> Times:
    """Time both in turns."""
    synchronise = partial(torch.cuda.synchronize, device) if device.type == "cuda" else None
    medians = interleaved_medians(
        {"fast": fast, "reference": reference}, rounds=ROUNDS, synchronise=synchronise
    )
    ratio = medians["reference"] / max(medians["fast"], 1e-9)
    return Times(medians["fast"], medians["reference"], ratio)
