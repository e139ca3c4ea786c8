"""What moves the weights: Muon on all matrices but the head's if asked for, AdamW on all else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ast_fast.machine.device import multiplies_bfloat16
from ast_fast.settings.config import TrainingConfig


class Float32Muon(torch.optim.Muon):
    """Muon whose arithmetic is float32's, for devices that only emulate torch's bfloat16.

    The rest of `torch.optim.Muon` holds, with `adjust_lr_fn="match_rms_adamw"`.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the weights against their gradients."""
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


def orthogonalise(
    matrix: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Return the matrix with its singular values taken to about 1, by Newton–Schulz iteration.

    The iteration X ← (a + b XXᵀ + c (XXᵀ)²) X is carried out on XXᵀ alone, of which all its factors
    are polynomials: half the arithmetic for a matrix four times as wide as high. Off by up to 7e-4
    of the result in float32, where the iteration in bfloat16 is off by 3e-2 and more (docs/log.md).

    Args:
        matrix: Of any size, float32; unchanged.
        coefficients: a, b and c.
        steps: Iterations, at least 1.
        eps: Smallest norm that is divided by.
    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).
    """
    if matrix.shape[0] > matrix.shape[1]:
        return orthogonalise(matrix.T, coefficients, steps, eps).T
    a, b, c = coefficients
    matrix = matrix / matrix.norm().clamp(min=eps)
    gram = matrix @ matrix.T
    product: Tensor | None = None  # of the factors so far
    for step in range(steps):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
        if step < steps - 1:
            gram = factor @ gram @ factor
    assert product is not None
    return product @ matrix


class _Whole(torch.optim.Optimizer):
    """Several optimizers as one, so that a GradScaler leaves out the step of all or of none.

    It looks for overflows in each optimizer that it is given; but gradients are clipped together,
    and one that is not a number makes all of them so.
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        groups = [group for part in parts for group in part.param_groups]
        super().__init__([{"params": [p for group in groups for p in group["params"]]}], {})
        self._parts = parts

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move what each of them moves."""
        for part in self._parts:
            part.step()


class Optimiser:
    """AdamW, or Muon and AdamW, as one: one learning rate, one step, one state by names.

    Muon's steps are scaled to the size that AdamW's have (Liu et al., "Muon is Scalable for LLM
    Training", section 2.2), so that one learning rate and one weight decay serve both.

    Args:
        model: Whose parameters are moved.
        config: `optimizer`, `learning_rate`, `weight_decay` and `clip_grad_norm` are used.
    """

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
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
        )
        self._parts: list[tuple[list[str], torch.optim.Optimizer]] = [([*decayed, *plain], adamw)]
        if matrices:
            in_hardware = multiplies_bfloat16(next(model.parameters()).device)
            muon = (torch.optim.Muon if in_hardware else Float32Muon)(
                list(matrices.values()), lr=rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            )
            self._parts.append(([*matrices], muon))
        self._whole = _Whole([optimizer for _, optimizer in self._parts])
        self._parameters = list(model.parameters())

    def step(self, loss: Tensor, rate: float, scaler: torch.amp.GradScaler) -> None:
        """Move the weights down the loss's gradient, clipped, at a learning rate.

        Args:
            loss: A scalar with a graph behind it.
            rate: The learning rate.
            scaler: Scales the loss for half precision; a step whose gradients overflow is left out.
        """
        for _, optimizer in self._parts:
            optimizer.zero_grad()
            for group in optimizer.param_groups:
                group["lr"] = rate
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        if self.clip_grad_norm > 0:
            scaler.unscale_(self._whole)
            nn.utils.clip_grad_norm_(self._parameters, self.clip_grad_norm)
        scaler.step(self._whole)
        scaler.update()

    def state(self) -> dict[str, Tensor]:
        """Return what it remembers, as `parameter name.entry` → tensor."""
        return {
            f"{names[index]}.{key}": value
            for names, optimizer in self._parts
            for index, entries in optimizer.state_dict()["state"].items()
            for key, value in entries.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` returned."""
        for names, optimizer in self._parts:
            entries: dict[int, dict[str, Tensor]] = {}
            for index, name in enumerate(names):
                start = f"{name}."
                there = {k.removeprefix(start): v for k, v in state.items() if k.startswith(start)}
                if there:
                    entries[index] = there
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": entries, "param_groups": groups})


def parameter_groups(
    model: nn.Module,
) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter], dict[str, nn.Parameter]]:
    """Return the parameters by name: matrices, the head's matrix, and the rest.

    Weight decay holds for the weights of linear layers. Biases, norms, the class token and position
    embeddings stay free: pulling them to zero regularises nothing.
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
