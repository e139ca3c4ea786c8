"""A stem's cells by torch's own operators; in float64, the oracle."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def norm_gelu_conv_reference(
    cells: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    eps: float,
) -> Tensor:
    """Return cells normalised, activated, convolved, and joined 2 × 2.

    Args:
        cells: Shape (batch, freq, time, width).
        norm_weight: Shape (width,).
        norm_bias: Shape (width,).
        conv_weight: Shape (width, 1, 3, 3).
        conv_bias: Shape (width,).
        eps: Added to the variance.
    """
    batch, freq, time, width = cells.shape
    active = functional.gelu(functional.layer_norm(cells, (width,), norm_weight, norm_bias, eps))
    heard = add_neighbours(active, conv_weight, conv_bias)
    parts = heard.reshape(batch, freq // 2, 2, time // 2, 2, width)
    return parts.transpose(2, 3).flatten(3)


def add_neighbours(cells: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return cells plus their depth-wise 3 × 3 convolution, zeros beyond the grid.

    Args:
        cells: Shape (batch, freq, time, width).
        weight: Shape (width, 1, 3, 3).
        bias: Shape (width,).
    """
    image = cells.permute(0, 3, 1, 2)  # channels last, without a copy
    if image.is_cuda:  # where channels last would go to cuDNN: TF32, and no kernel on old GPUs
        image = image.clone(memory_format=torch.contiguous_format)
    # Through this view, the weight's gradient has the weight's strides, as DDP's buckets do.
    weight = weight.squeeze(1).unsqueeze(1).to(cells.dtype)
    convolved = functional.conv2d(
        image, weight, bias.to(cells.dtype), padding=1, groups=cells.shape[3]
    )
    return cells + convolved.permute(0, 2, 3, 1)
