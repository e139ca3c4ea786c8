"""The optimiser: AdamW, or Muon on all matrices except the head's and AdamW on the rest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ast_fast.machine.device import multiplies_bfloat16
from ast_fast.settings.config import TrainingConfig


class Float32Muon(torch.optim.Muon):
    """Muon in float32, for CPUs that only emulate the bfloat16 of torch's.

    Otherwise as `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights from their gradients."""
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for weights in group["params"]:
                if weights.grad is None:
                    continue
                state = self.state[weights]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weights)
                average = state["momentum_buffer"].lerp_(weights.grad, 1 - momentum)
                update = weights.grad.lerp(average, momentum) if group["nesterov"] else average
                update = orthogonalise(
                    update, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                scale = 0.2 * math.sqrt(max(weights.shape))  # the size of AdamW's steps
                weights.mul_(1 - rate * group["weight_decay"]).add_(update, alpha=-rate * scale)


class CapturableMuon(torch.optim.Muon):
    """Muon in float32 as a CUDA graph can hold it: the rate may be a tensor on the device.

    Matrices of one shape are orthogonalised together, because one alone does not fill a GPU.
    Otherwise as `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`.
    """

    found_inf: Tensor | None = None
    """Above 0 where this step is to change nothing; read on the device."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the weights from their gradients."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for weights in group["params"]:
                if weights.grad is not None:
                    by_shape.setdefault(weights.shape, []).append(weights)
            for matrices in by_shape.values():
                self._update(matrices, group)

    def _update(self, matrices: list[Tensor], group: Mapping[str, Any]) -> None:
        """Update matrices of one shape."""
        rate, momentum = group["lr"], group["momentum"]
        averages = [self._average(weights) for weights in matrices]
        gradients: list[Tensor] = [weights.grad for weights in matrices]  # type: ignore[misc]
        if self.found_inf is not None:
            # Drawn towards itself an average stays as it is, and so do weights at a rate of 0.
            skips = self.found_inf > 0
            gradients = [
                torch.where(skips, average, gradient)
                for average, gradient in zip(averages, gradients, strict=True)
            ]
            rate = torch.where(skips, 0.0, rate)
        torch._foreach_lerp_(averages, gradients, 1 - momentum)
        if group["nesterov"]:
            updates = torch.stack(torch._foreach_lerp(gradients, averages, momentum))
        else:
            updates = torch.stack(averages)
        updates = orthogonalise(updates, group["ns_coefficients"], group["ns_steps"], group["eps"])
        scale = 0.2 * math.sqrt(max(matrices[0].shape))  # the size of AdamW's steps
        torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
        torch._foreach_sub_(matrices, (updates * (rate * scale)).unbind())

    def _average(self, weights: Tensor) -> Tensor:
        state = self.state[weights]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weights)
        average: Tensor = state["momentum_buffer"]
        return average


def orthogonalise(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Return the matrix with its singular values moved to about 1, by Newton–Schulz iteration.

    Every factor of the iteration X ← (a + b XXᵀ + c (XXᵀ)²) X is a polynomial of XXᵀ, so the
    factors are computed on XXᵀ alone and applied to X once: half the arithmetic for a matrix four
    times as wide as high. The relative error is up to 7e-4 in float32; the iteration in bfloat16
    has 3e-2 and more (docs/log.md).

    Args:
        matrix: Shape (rows, columns), or (matrices, rows, columns) for several; float32, not
            changed.
        coefficients: a, b and c.
        steps: Iterations, at least 1.
        eps: Lower bound of the norm that the matrix is divided by.
    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """
    if matrix.shape[-2] > matrix.shape[-1]:
        return orthogonalise(matrix.mT, coefficients, steps, eps).mT
    a, b, c = coefficients
    add_product = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    matrix = matrix / torch.linalg.matrix_norm(matrix, keepdim=True).clamp(min=eps)
    gram = matrix @ matrix.mT
    product: Tensor | None = None  # of the factors so far
    for step in range(steps):
        factor = add_product(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if step < steps - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product @ matrix


class _Whole(torch.optim.Optimizer):
    """Several optimizers as one, so that a GradScaler skips the step of all or of none.

    A GradScaler looks for overflows in each optimizer by itself. But gradients are clipped
    together, so one NaN spreads to all of them.

    Args:
        parts: The optimizers.
        capturable: Whether each of them skips a step on the device, by its `found_inf`. Else the
            scaler waits for the device at every step, and skips it on the host.
    """

    found_inf: Tensor | None = None

    def __init__(self, parts: Sequence[torch.optim.Optimizer], *, capturable: bool) -> None:
        groups = [group for part in parts for group in part.param_groups]
        super().__init__([{"params": [p for group in groups for p in group["params"]]}], {})
        self._parts = parts
        self._step_supports_amp_scaling = capturable  # GradScaler.step looks for it

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step with each of them."""
        for part in self._parts:
            part.found_inf = self.found_inf  # type: ignore[attr-defined]
            part.step()


ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
MUON_STATE = ("momentum_buffer",)
"""What each optimiser keeps of a parameter."""


class Optimiser:
    """AdamW, or Muon and AdamW, as one: one learning rate, one step, one state by names.

    Muon's steps are scaled to the size of AdamW's (Liu et al., "Muon is Scalable for LLM Training",
    section 2.2), so that one learning rate and one weight decay serve both.

    Args:
        model: The model to train.
        config: `optimizer`, `learning_rate`, `weight_decay` and `clip_grad_norm` are used.
        capturable: Whether a step must be one that a CUDA graph can hold. It then takes its rate
            from a tensor, and does not wait for the device.
    """

    def __init__(
        self, model: nn.Module, config: TrainingConfig, *, capturable: bool = False
    ) -> None:
        self.clip_grad_norm = config.clip_grad_norm
        matrices, decayed, plain = parameter_groups(model)
        if config.optimizer == "adamw":
            matrices, decayed = {}, matrices | decayed
        rate, decay = config.learning_rate, config.weight_decay
        adamw = torch.optim.AdamW(
            [
                {"params": list(decayed.values()), "weight_decay": decay},
                {"params": list(plain.values()), "weight_decay": 0.0},
            ],
            lr=rate,
            fused=True,
            capturable=capturable,
        )
        self._parts: list[tuple[list[str], torch.optim.Optimizer]] = [([*decayed, *plain], adamw)]
        if matrices:
            muon = _muon_of(next(model.parameters()).device, capturable=capturable)(
                list(matrices.values()), lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append(([*matrices], muon))
        optimizers = [optimizer for _, optimizer in self._parts]
        self._whole = _Whole(optimizers, capturable=capturable)
        self._parameters = list(model.parameters())

    def step(self, loss: Tensor, rate: float | Tensor, scaler: torch.amp.GradScaler) -> None:
        """Compute the loss's gradient, clip it, and update the weights.

        Args:
            loss: A scalar with its graph.
            rate: The learning rate; if capturable a float32 scalar on the device.
            scaler: Scales the loss for float16; a step whose gradients overflow is skipped.
        """
        for _, optimizer in self._parts:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        scaler.unscale_(self._whole)
        if self.clip_grad_norm > 0:
            nn.utils.clip_grad_norm_(self._parameters, self.clip_grad_norm)
        scaler.step(self._whole)
        scaler.update()

    def state(self) -> dict[str, Tensor]:
        """Return the optimizers' state, as `parameter name.entry` → tensor."""
        return {
            f"{names[index]}.{key}": value
            for names, optimizer in self._parts
            for index, entries in optimizer.state_dict()["state"].items()
            for key, value in entries.items()
        }

    def load_state(self, state: Mapping[str, Tensor], *, may_be_empty: bool = False) -> None:
        """Load what `state` returned.

        Args:
            state: The state after at least one step.
            may_be_empty: Whether a scaler may have skipped every step so far.
        Raises:
            ValueError: A parameter's state is missing, unknown or of another shape.
        """
        shapes = {
            f"{name}.{entry}": () if entry == "step" else tuple(parameter.shape)
            for names, optimizer in self._parts
            for name, parameter in zip(names, _parameters_of(optimizer), strict=True)
            for entry in (ADAMW_STATE if isinstance(optimizer, torch.optim.AdamW) else MUON_STATE)
        }
        got = {name: tuple(value.shape) for name, value in state.items()}
        differing = [n for n in shapes | got if shapes.get(n) != got.get(n)]
        if differing and (state or not may_be_empty):
            name = min(differing)
            raise ValueError(
                f"the optimiser's {name} must have shape {shapes.get(name)}, got {got.get(name)}"
            )
        for names, optimizer in self._parts:
            entries: dict[int, dict[str, Tensor]] = {}
            for index, name in enumerate(names):
                start = f"{name}."
                there = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
                if there:
                    entries[index] = there
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _muon_of(device: torch.device, *, capturable: bool) -> type[torch.optim.Muon]:
    if capturable:
        return CapturableMuon
    return torch.optim.Muon if multiplies_bfloat16(device) else Float32Muon


def _parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def parameter_groups(
    model: nn.Module,
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the parameters by name: matrices, the head's matrix, and the rest.

    Weight decay applies to the weights of linear layers only. Pulling biases, norms, the class
    token and position embeddings to zero regularises nothing.
    """
    weights = {
        f"{name}.weight" for name, part in model.named_modules() if isinstance(part, nn.Linear)
    }
    matrices: dict[str, nn.Parameter] = {}
    head: dict[str, nn.Parameter] = {}
    plain: dict[str, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        if name not in weights:
            plain[name] = parameter
        elif name.startswith("head."):
            head[name] = parameter
        else:
            matrices[name] = parameter
    return matrices, head, plain
