"""Bias and GELU on the GPU, forward and backward.

Cannot avoid: forward reads and writes each value once; backward reads two and writes one, so
memory bounds both. Guess: 85 % of the memory's speed. Measured share: none yet; `docs/triton.md`
has the compiled kernels and a model of them.

The backward pass needs only the matrix product itself, so forward writes nothing for it. Backward
runs a few programs on each multiprocessor, all at once. Each goes over its blocks of rows, copies
the next two to shared memory meanwhile, and sums the bias's gradient over all of its own; torch
sums over the programs. The order is the same in every run on GPUs with as many multiprocessors.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from ast_fast_kernels._gpu.launch import Launch, Plan, on_its_device, programs_in_work
from ast_fast_kernels.gelu.ops import define_bias_gelu

SQRT_HALF: tl.constexpr = tl.constexpr(math.sqrt(0.5))
INV_SQRT_2PI: tl.constexpr = tl.constexpr(1.0 / math.sqrt(2.0 * math.pi))

FWD_LAUNCH = Launch.of(BLOCK_ROWS=8, BLOCK_H=256, num_warps=4)
BWD_LAUNCH = Launch.of(BLOCK_ROWS=4, BLOCK_H=256, STAGES=3, num_warps=4)


@triton.jit(do_not_specialize=["rows"])
def _bias_gelu_fwd_kernel(
    x_ptr, bias_ptr, y_ptr, rows, hidden, BLOCK_ROWS: tl.constexpr, BLOCK_H: tl.constexpr
):  # fmt: skip
    """One program: BLOCK_ROWS rows of BLOCK_H columns."""
    blocks = tl.cdiv(hidden, BLOCK_H)
    offs_m = (tl.program_id(0) // blocks).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    offs_h = tl.program_id(0) % blocks * BLOCK_H + tl.arange(0, BLOCK_H)
    mask_h = offs_h < hidden
    mask = (offs_m < rows)[:, None] & mask_h[None, :]
    places = offs_m[:, None] * hidden + offs_h[None, :]
    bias = tl.load(bias_ptr + offs_h, mask=mask_h, other=0.0).to(tl.float32)
    x = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
    y = 0.5 * x * (1.0 + tl.erf(x * SQRT_HALF))
    tl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _bias_gelu_bwd_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, partial_ptr, rows, hidden,
    BLOCK_ROWS: tl.constexpr, BLOCK_H: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_H columns of every so many blocks of rows, read STAGES - 1 blocks ahead.

    Its sums for the bias stay in registers.
    """
    columns = tl.cdiv(hidden, BLOCK_H)
    strip = tl.program_id(0) // columns
    offs_h = tl.program_id(0) % columns * BLOCK_H + tl.arange(0, BLOCK_H)
    mask_h = offs_h < hidden
    bias = tl.load(bias_ptr + offs_h, mask=mask_h, other=0.0).to(tl.float32)
    dbias = tl.zeros((BLOCK_ROWS, BLOCK_H), tl.float32)
    strips = tl.num_programs(0) // columns
    for block in tl.range(strip, tl.cdiv(rows, BLOCK_ROWS), strips, num_stages=STAGES):
        offs_m = (block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        mask = (offs_m < rows)[:, None] & mask_h[None, :]
        places = offs_m[:, None] * hidden + offs_h[None, :]
        x = tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
        dy = tl.load(dy_ptr + places, mask=mask, other=0.0).to(tl.float32)
        below = 0.5 * (1.0 + tl.erf(x * SQRT_HALF))  # the normal distribution's share below x
        density = tl.exp(-0.5 * x * x) * INV_SQRT_2PI
        dx = dy * (below + x * density)
        tl.store(dx_ptr + places, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        dbias += dx
    tl.store(partial_ptr + strip.to(tl.int64) * hidden + offs_h, tl.sum(dbias, 0), mask=mask_h)


@on_its_device
def launch_bias_gelu_fwd(x: Tensor, bias: Tensor) -> Tensor:
    """Return GELU(x + bias) of contiguous rows, shape (rows, hidden), in their dtype."""
    rows, hidden = x.shape
    y = torch.empty_like(x)
    if y.numel():
        plan_bias_gelu_fwd(rows, hidden).start(x, bias, y)
    return y


@on_its_device
def launch_bias_gelu_bwd(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x, in its dtype, and of bias, in float32; all rows contiguous."""
    rows, hidden = x.shape
    dx = torch.empty_like(x)
    plan, strips = plan_bias_gelu_bwd(rows, hidden, x.device)
    partial = x.new_empty(strips, hidden, dtype=torch.float32)
    if dx.numel():
        plan.start(dy, x, bias, dx, partial)
    return dx, partial.sum(0)


def plan_bias_gelu_fwd(rows: int, hidden: int) -> Plan:
    """Return the forward launch."""
    blocks = triton.cdiv(rows, FWD_LAUNCH["BLOCK_ROWS"])
    columns = triton.cdiv(hidden, FWD_LAUNCH["BLOCK_H"])
    return Plan(_bias_gelu_fwd_kernel, blocks * columns, (rows, hidden), FWD_LAUNCH.arguments)


def plan_bias_gelu_bwd(rows: int, hidden: int, device: torch.device) -> tuple[Plan, int]:
    """Return the backward launch and how many programs go over the rows of one block of columns.

    Each of these writes sums for the bias.
    """
    launch = BWD_LAUNCH
    blocks = triton.cdiv(rows, launch["BLOCK_ROWS"])
    columns = triton.cdiv(hidden, launch["BLOCK_H"])
    programs = programs_in_work(device, launch["BLOCK_ROWS"] * launch["BLOCK_H"])
    strips = min(blocks, max(1, programs // max(1, columns)))
    plan = Plan(_bias_gelu_bwd_kernel, strips * columns, (rows, hidden), launch.arguments)
    return plan, strips


def linear_gelu_triton(tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return GELU of the projected tokens; arguments as the reference's."""
    return bias_gelu(functional.linear(tokens, weight), bias)


def bias_gelu(product: Tensor, bias: Tensor) -> Tensor:
    """Return GELU(product + bias) by the operator."""
    activated: Tensor = _bias_gelu_fwd(product, bias)
    return activated


_bias_gelu_fwd = define_bias_gelu("bias_gelu", launch_bias_gelu_fwd, launch_bias_gelu_bwd)
