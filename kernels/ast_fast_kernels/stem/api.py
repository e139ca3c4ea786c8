"""What follows a projection in a stage of a convolution stem: checks, choice of a backend."""

from __future__ import annotations

import torch
from torch import Tensor

from ast_fast_kernels import _dispatch
from ast_fast_kernels._torch import checks

LEAST_LANES = 4
"""Lanes of the narrowest vectors."""


def norm_gelu_conv(
    cells: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Normalise and activate a grid of cells, convolve it depth-wise, and join 2 × 2 cells.

    With z = GELU(layer norm of the cells over their width), the cells become z plus its depth-wise
    3 × 3 convolution, with zeros beyond the grid. The result has four cells side by side: (0, 0),
    (0, 1), (1, 0), (1, 1) by frequency and time. Differentiable in every tensor.

    Args:
        cells: Projected cells, shape (batch, freq, time, width), freq and time even.
        norm_weight: Scale of the normalised values, shape (width,).
        norm_bias: Shift of the normalised values, shape (width,).
        conv_weight: Taps, as torch's `conv2d` has them, shape (width, 1, 3, 3).
        conv_bias: Shape (width,).
        eps: Added to the variance.
        backend: `"auto"`, `"reference"` (torch's operators) or `"numba"` (CPU: cells in float32 or
            bfloat16, parameters in float32, width divisible by 4).
    Returns:
        Joined cells, shape (batch, freq / 2, time / 2, 4 * width). numba gives the cells' dtype,
        also under autocast; there, a matrix product would cast the reference's result to it.
    Raises:
        TypeError: An argument is not a floating-point tensor.
        ValueError: A shape or a device does not fit, or `backend` is none of the above.
        RuntimeError: The backend asked for cannot run this input.
    """
    parameters = (norm_weight, norm_bias, conv_weight, conv_bias)
    chosen = chosen_backend(cells, *parameters, backend=backend)
    joined: Tensor = _dispatch.load_backend("stem", chosen)(cells, *parameters, eps)
    return joined


def chosen_backend(
    cells: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    *,
    backend: str = "auto",
) -> str:
    """Return the backend that `norm_gelu_conv` runs for these arguments; raise the same errors."""
    parameters = {
        "norm_weight": norm_weight,
        "norm_bias": norm_bias,
        "conv_weight": conv_weight,
        "conv_bias": conv_bias,
    }
    _check(cells, parameters)
    requested = _dispatch.requested_backend("stem", backend)
    return choose_backend(requested, cells, *parameters.values())


def choose_backend(requested: str, cells: Tensor, *parameters: Tensor) -> str:
    """Return the backend that runs; auto takes numba for CPU tensors that it can take."""
    return _dispatch.choose_kernel(
        "stem",
        requested,
        cells.device.type,
        {"numba": lambda: _obstacle(cells, parameters)},
        "reference",
    )


def _obstacle(cells: Tensor, parameters: tuple[Tensor, ...]) -> str | None:
    """Say why numba cannot run this input; None when it can."""
    if cells.device.type != "cpu" or cells.dtype not in (torch.float32, torch.bfloat16):
        kind = checks.dtype_name(cells.dtype)
        return f"numba needs cells in float32 or bfloat16 on the CPU, got {kind} on {cells.device}"
    for parameter in parameters:
        if parameter.dtype != torch.float32:
            kind = checks.dtype_name(parameter.dtype)
            return f"numba needs parameters in float32, got {kind}"
    if cells.shape[3] % LEAST_LANES:
        return f"numba needs a width divisible by {LEAST_LANES}, got {cells.shape[3]}"
    return checks.transform_obstacle("numba")


def _check(cells: Tensor, parameters: dict[str, Tensor]) -> None:
    checks.check_floating("cells", cells)
    if cells.dim() != 4 or cells.shape[1] % 2 or cells.shape[2] % 2 or 0 in cells.shape[1:]:
        raise ValueError(
            "cells must be (batch, freq, time, width) with freq and time even, none of them 0, "
            f"got {tuple(cells.shape)}"
        )
    width = cells.shape[3]
    for name, tensor in parameters.items():
        checks.check_floating(name, tensor)
        shape = (width, 1, 3, 3) if name == "conv_weight" else (width,)
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
        if tensor.device != cells.device:
            raise ValueError(f"{name} must be on {cells.device}, got {tensor.device}")
