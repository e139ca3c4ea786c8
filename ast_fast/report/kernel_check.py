"""The check of a run's kernels: each against the reference, on a real batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from ast_fast.features import undithered
from ast_fast.machine.records import known_fields
from ast_fast.settings.config import Config
from ast_fast_kernels import attention, chosen_backend, fbank, norm_gelu_conv
from ast_fast_kernels.fbank.reference import as_floating
from ast_fast_kernels.testing.budgets import (
    LOG_MEL_MAX,
    eps_bound,
    log_mel_error,
    relative_norm,
)
from ast_fast_kernels.testing.timing import interleaved_medians

MOST_SCORES = 2**25
"""Most attention scores of a batch to compare: the reference holds them all in memory."""

MOST_EXACT_SCORES = 2**22
"""Most attention scores to compute in float64, for the errors that decide: few clips of a batch."""

DRAWS = 4
"""Random roundings of scores: those of two keys that share a query may cancel in one."""

ROUNDS = 7
"""Interleaved rounds of each timing."""

STORED = "extraction"
"""Backend of the filterbank in a run on stored features."""
NOT_HERE = "the features were stored by an extraction, so there is nothing to compare"
SAME = "the run itself used the reference, so there is nothing to compare"


class Times(NamedTuple):
    """Medians of interleaved rounds."""

    fast_seconds: float
    reference_seconds: float
    speed_ratio: float
    """The reference's time over the fast one's."""


@dataclass(frozen=True)
class Judged:
    """An error that a kernel is judged by, and the most that it may be."""

    measure: str
    value: float
    bound: float

    @property
    def holds(self) -> bool:
        """Whether the error is within its bound; NaN is not."""
        return self.value <= self.bound


@dataclass(frozen=True, kw_only=True)
class BothWays:
    """An operation forward and backward, against the reference."""

    max_gradient_error: float
    """Largest error of a gradient, over the largest value of that gradient."""
    fast_seconds: float
    reference_seconds: float
    speed_ratio: float


_TYPES: dict[str, Any] = {
    **{"backend": str, "shape": list, "reason": str | None},
    **{"judged": list | None, "forward_backward": dict | None},
}
"""Of what a check has in JSON besides numbers."""


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
    judged: tuple[Judged, ...] | None = None
    """What decides whether the kernel is right; None in versions up to 0.2.0."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return what `to_json` gave, of this version or another; unknown keys are left out.

        Raises:
            TypeError: A key is missing, or a value is of another type.
        """
        values = known_fields(cls, document)
        for name, value in values.items():
            if not isinstance(value, _TYPES.get(name, int | float | None)):
                raise TypeError(f"{name} is of type {type(value).__name__}")
        if values.get("judged") is not None:
            values["judged"] = tuple(Judged(**known_fields(Judged, j)) for j in values["judged"])
        return cls(**values)

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
        check = super().from_json(document)
        both = document.get("forward_backward")
        both = both and BothWays(**known_fields(BothWays, both))
        return replace(check, forward_backward=both)


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

    def wrong(self) -> tuple[str, KernelCheck, Judged] | None:
        """Return the first error beyond its bound, with its operation; None if there is none."""
        for operation, check in self.by_operation().items():
            for judged in check.judged or ():
                if not judged.holds:
                    return operation, check, judged
        return None

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
        waveforms: A batch of test clips, as `check_fbank` takes them.
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

    It is judged by `max_abs_error`, or without a logarithm by the relative norm of its error from
    float64. Each may be twice the reference's own, at least what every backend is held to, and four
    times what one rounding of each sample does in float64: where a frame's mean is far above its
    changes, or a bin far below its neighbours, few digits are left to any backend.

    Args:
        config: `config.fbank` is used.
        waveforms: Clips, int16, shape (batch, num_samples); or their stored features, of which
            nothing can be compared.
    """
    if waveforms.ndim == 3:
        return FbankCheck(backend=STORED, shape=[*waveforms.shape], reason=NOT_HERE)
    fbank_config = undithered(config.fbank)
    samples = as_floating(waveforms)
    chosen = chosen_backend("fbank", samples, fbank_config)
    shape = [*waveforms.shape]
    if chosen == "reference":
        return FbankCheck(backend=chosen, shape=shape, reason=SAME)

    def run(backend: str) -> Tensor:
        return fbank(samples, fbank_config, backend=backend)

    exact = fbank(samples.double(), fbank_config, backend="reference")

    rounded = fbank(_with_rounding(samples), fbank_config, backend="reference")
    unit = abs(fbank_config.log_factor)  # of the config's logarithms, in natural ones

    def error(out: Tensor) -> float:
        if not fbank_config.use_log_fbank:
            return _max_abs_error(out, exact)
        errors = log_mel_error(out / unit, exact / unit, use_power=fbank_config.use_power)
        return unit * errors.max().item()

    fast, reference = run(chosen), run("reference")
    energies = fbank_config.replace(use_log_fbank=False)
    before_log = [
        fbank(samples, energies, backend=backend).double() for backend in (chosen, "reference")
    ]
    difference = torch.linalg.vector_norm(before_log[0] - before_log[1])
    norm = torch.linalg.vector_norm(before_log[1])
    relative = (difference / norm).item() if norm > 0 else 0.0
    times = _compare(partial(run, chosen), partial(run, "reference"), waveforms.device)
    if fbank_config.use_log_fbank:
        floor = max(LOG_MEL_MAX * unit, 4 * error(rounded))
        judged = _judged("largest log-mel error", error(fast), error(reference), floor)
    else:
        floor = max(eps_bound(fast.dtype, fbank_config.fft_size), 4 * relative_norm(rounded, exact))
        ours, theirs = relative_norm(fast, exact), relative_norm(reference, exact)
        judged = _judged("relative norm of the error", ours, theirs, floor)
    return FbankCheck(
        backend=chosen,
        shape=shape,
        judged=(judged,),
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

    It is judged by its errors from float64 (the largest, and the norms of the output's and of the
    gradient's). Each may be twice the reference's own in that dtype, and at least what rounding
    may come to: `_rounding`, of the values' largest for the largest error, fourfold for gradients.
    It may also be four times what rounding the scores alone does to attention in float64: large
    scores leave few digits. Gradients may have the rounding of the scores' gradients, which mostly
    cancel, times the longest key or query. Of a large batch, the first clips are judged, as many as
    `MOST_EXACT_SCORES` allows.

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

    def exact(grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return by_clip(partial(attention, backend="reference"), grad)

    def of_rounded_scores(grad: Tensor) -> list[tuple[Tensor, tuple[Tensor, ...]]]:
        draws = DRAWS if qkv.dtype == torch.float32 else 1
        rounded = partial(_attention_of_rounded_scores, dtype=qkv.dtype)
        return [by_clip(partial(rounded, draw=draw), grad) for draw in range(draws)]

    def by_clip(
        attend: Callable[[Tensor], Tensor], grad: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        outs, parts = [], []
        count = max(1, MOST_EXACT_SCORES // (qkv.shape[3] * qkv.shape[1] ** 2))
        for clip in range(min(count, len(qkv))):  # one by one, to hold few scores
            wide = qkv[clip : clip + 1].detach().double().requires_grad_()
            out = attend(wide)
            outs.append(out.detach())
            parts.append(torch.autograd.grad(out, wide, grad[clip : clip + 1].double())[0])
        return torch.cat(outs), torch.cat(parts).unbind(2)

    return _both_ways(
        chosen,
        shape,
        run,
        gradients,
        exact,
        rounded=of_rounded_scores,
        rounding=_rounding(qkv, chosen, terms=qkv.shape[1]),
        noise=_noise_of_gradients(qkv) if qkv.dtype == torch.float32 else 0.0,
        largest=qkv[:, :, 2].abs().max().item(),
    )


def check_stem(model: nn.Module, features: Tensor, amp: torch.dtype) -> GradientCheck:
    """Compare the stem's kernel with the reference, on the projection of a stage.

    The stage is the first that a kernel runs. Figures are as in `check_attention`; gradients are
    those of the cells and of each parameter. Errors are differences from the reference in float32
    on the same cells: in bfloat16, torch's own gradients of a norm's weight and bias are off by a
    third. It is judged as attention is, but for the largest error.

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

    def computed_in(dtype: torch.dtype, grad: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        with torch.autocast(cells.device.type, enabled=False):
            wide = [leaf.detach().to(dtype).requires_grad_() for leaf in leaves]
            out = norm_gelu_conv(*wide, backend="reference")
            return out.detach(), torch.autograd.grad(out, wide, grad.to(dtype))

    return _both_ways(
        chosen,
        shape,
        run,
        gradients,
        partial(computed_in, torch.float64),
        partial(computed_in, torch.float32),
        rounding=_rounding(cells, chosen, terms=cells.shape[-1]),
    )


def _both_ways(
    chosen: str,
    shape: list[int],
    run: Callable[[str], Tensor],
    gradients: Callable[[str, Tensor], tuple[Tensor, ...]],
    exact: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]],
    reference: Callable[[Tensor], tuple[Tensor, tuple[Tensor, ...]]] | None = None,
    *,
    rounding: float,
    noise: float = 0.0,
    rounded: Callable[[Tensor], list[tuple[Tensor, tuple[Tensor, ...]]]] | None = None,
    largest: float | None = None,
) -> GradientCheck:
    """Compare an operation with the reference, forward and with its gradients.

    Args:
        chosen: The backend to compare.
        shape: Of the operation's input.
        run: Returns a backend's result.
        gradients: Returns a backend's gradients, given that of the result.
        exact: Returns the result and the gradients in float64, given the gradient of the result.
        reference: Returns those of the reference that errors are reported from; None runs it.
        rounding: Relative norm of the error that rounding may come to.
        noise: Norm of the gradients' error that no rounding of theirs explains, over that of the
            result's gradient.
        rounded: Returns those in float64 after roundings that the kernel may do, too.
        largest: Largest value that a result may be; None does not judge single values.
    """

    def forward(backend: str) -> Tensor:
        with torch.no_grad():
            return run(backend)

    fast = forward(chosen)
    grad = torch.randn(fast.shape, generator=torch.Generator().manual_seed(0)).to(fast)
    if reference is None:
        right, right_gradients = forward("reference"), gradients("reference", grad)
    else:
        right, right_gradients = reference(grad)
    fast_gradients = gradients(chosen, grad)
    exact_out, exact_gradients = exact(grad)
    every_rounded = rounded(grad) if rounded else []

    def judge(
        measure: str, error: Callable[[Tensor, tuple[Tensor, ...]], float], floor: float
    ) -> Judged:
        floor = max([floor, *(4 * error(*values) for values in every_rounded)])
        ours, theirs = (
            error(out[: len(exact_out)], _first(gradients, exact_gradients))
            for out, gradients in ((fast, fast_gradients), (right, right_gradients))
        )
        return _judged(measure, ours, theirs, floor)

    judged = [
        judge("relative norm of the error", lambda out, _: relative_norm(out, exact_out), rounding)
    ]
    if largest is not None:
        floor = rounding * largest
        judged.append(judge("largest error", lambda out, _: _max_abs_error(out, exact_out), floor))
    judged.append(
        judge(
            "relative norm of the gradients' error",
            lambda _, gradients: _joint_norm(gradients, exact_gradients),
            max(4 * rounding, noise * _norm((grad[: len(exact_out)],)) / _norm(exact_gradients)),
        )
    )
    pairs = zip(fast_gradients, right_gradients, strict=True)
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
        judged=tuple(judged),
        max_abs_error=_max_abs_error(fast, right),
        **times._asdict(),
        forward_backward=BothWays(max_gradient_error=gradient_error, **both_times._asdict()),
    )


def _judged(measure: str, value: float, reference: float, floor: float) -> Judged:
    """Return an error with its bound: twice the reference's own, and at least the floor."""
    return Judged(measure, value, max(floor, 2 * reference))  # the floor first: max drops a NaN


def _with_rounding(samples: Tensor) -> Tensor:
    """Return samples in float64, each with a random part of the error that rounding may give it."""
    random = torch.Generator().manual_seed(0)
    part = torch.rand(samples.shape, generator=random, dtype=torch.float64).to(samples.device) - 0.5
    return samples.double() * (1 + torch.finfo(samples.dtype).eps * part)


def _rounding(given: Tensor, backend: str, *, terms: int) -> float:
    """Return the relative norm that rounding may come to in a sum, as the kernels' tests have it.

    Half precisions round weights and results once each; TF32 truncates the factors of a product.
    """
    if given.dtype != torch.float32:
        return 4 * torch.finfo(given.dtype).eps
    if backend == "triton" and torch.get_float32_matmul_precision() != "highest":
        return 2.0**-9
    return eps_bound(given.dtype, terms)


def _first(parts: tuple[Tensor, ...], like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return as many rows of each tensor as its counterpart has: `exact` may be of few clips."""
    return tuple(part[: len(other)] for part, other in zip(parts, like, strict=True))


def _attention_of_rounded_scores(qkv: Tensor, dtype: torch.dtype, draw: int) -> Tensor:
    """Return attention in the dtype of `qkv`, of scores with the rounding that another gives them.

    Half precisions round a score once, as its sum is in float32. There, each product is rounded:
    all at most, up or down by the draw.
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (batch, num_heads, num_tokens, head_dim)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if dtype == torch.float32:
        random = torch.Generator().manual_seed(draw)
        signs = (torch.randint(2, scores.shape, generator=random) * 2 - 1).to(scores)
        error = signs * scores * (q.shape[-1] ** 0.5 * torch.finfo(dtype).eps / 2)
    else:
        error = scores.to(dtype).to(scores.dtype) - scores
    scores = scores + error.detach()
    attended: Tensor = scores.softmax(dim=-1) @ v
    return attended.transpose(1, 2)


def _noise_of_gradients(qkv: Tensor) -> float:
    """Return what rounding in the scores' gradients gives those of queries and keys.

    It is the norm of their error over that of the result's gradient, at most. A score's gradient is
    a difference of products with values, each rounded, by weights that are as wrong as the score.
    It is multiplied by a key or a query.
    """
    wide = qkv.double().unbind(2)
    q, k, v = (float(torch.linalg.vector_norm(part, dim=-1).max()) for part in wide)
    scale = float(qkv.shape[-1] ** -0.5)
    score = q * k * scale  # at most
    rounding = float(torch.finfo(qkv.dtype).eps) / 2
    return rounding * (1 + score) * v * max(q, k) * scale


def _norm(parts: tuple[Tensor, ...]) -> float:
    """Return the norm of tensors taken together; never 0."""
    return max(1e-300, math.hypot(*(float(part.double().norm()) for part in parts)))


def _joint_norm(gradients: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> float:
    """Return the relative norm of the error of gradients taken together.

    A gradient by itself may be nothing but cancelled rounding, as that of queries whose softmax
    has one key.
    """
    flat = [torch.cat([part.double().flatten() for part in parts]) for parts in (gradients, exact)]
    return relative_norm(*flat)


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
