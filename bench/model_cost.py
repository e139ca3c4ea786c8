"""The floor of a training step of the model: its matrix products at the machine's best rate.

The rate in float32 is that of the multiply-adds of `bench.floor`. In bfloat16 it is that of torch's
fastest large product, because no code of ours reaches those units. Only products are counted: not
normalisation, GELU, depth-wise convolutions, softmax, residuals or the optimiser.
"""

from __future__ import annotations

import math
import time
from functools import cache

import torch

from ast_fast.settings.config import ModelConfig
from ast_fast_kernels._cpu.simd import host_lanes
from bench import floor

SIZES = ((2048, 2048, 2048), (8192, 512, 512))
"""Rows, columns and depth of the products to time; the best rate counts."""
REPEATS = 10


def multiply_adds(model: ModelConfig, tokens: int, num_patches: int, num_classes: int) -> int:
    """Return the multiply-adds of one clip's step: forward, and twice that backward.

    The features get no gradient, so their projection counts twice, not three times.

    Args:
        model: The model's settings.
        tokens: Tokens that the transformer blocks see, and the last convolution block's MLP.
        num_patches: Patches of the whole spectrogram.
        num_classes: Width of the logits.
    """
    width = model.embed_dim
    linear = 4 * width**2 + 2 * width * model.hidden_width
    block = tokens * (linear + 2 * tokens * width)
    projected = num_patches if model.sees_all_patches else tokens
    mlps = tokens + (model.conv_depth - 1) * num_patches if model.conv_depth else 0
    projections = [  # from the features on: how often, from how many values, to how many
        *((num_patches * s.cells, s.values, s.width) for s in model.stem_stages),
        (projected, model.patch_values, width),
    ]
    first, *others = (math.prod(sizes) for sizes in projections)
    blocks = model.depth * block + mlps * 2 * width * model.conv_hidden_width
    return 3 * (blocks + width * num_classes + sum(others)) + 2 * first


@cache
def multiply_adds_per_second(dtype: torch.dtype, threads: int) -> float:
    """Return the best rate of `threads` threads; torch must be set to as many."""
    if dtype == torch.float32:
        return host_lanes() * floor.multiply_adds_per_second(threads)
    best = 0.0
    for rows, columns, depth in SIZES:
        left, right = torch.randn(rows, depth).to(dtype), torch.randn(depth, columns).to(dtype)
        for _ in range(REPEATS):
            begin = time.perf_counter()
            left @ right
            best = max(best, rows * columns * depth / (time.perf_counter() - begin))
    return best
