"""Residual addition and layer normalisation on the GPU, forward and backward.

Cannot avoid: forward reads tokens and update and writes both results, 4 · width values a row;
backward reads three and writes one: memory bounds it. Guess: 80 % of the memory's speed.
Measured share: none yet; `docs/triton.md` has the compiled kernels and a model of them.

Rows are held in registers, so each value is read once. Backward computes each row's mean and
deviation again: it has the whole row anyway, and forward then has nothing else to write or keep. It
runs a few programs on each multiprocessor, all at once. Each goes over its blocks of rows, copies
the next one to shared memory meanwhile, and sums the gradients of weight and bias over all its own;
torch sums over the programs. The order is the same in every run on GPUs with as many
multiprocessors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ast_fast_kernels._gpu.launch import Launch, Plan, on_its_device, programs_in_work
from ast_fast_kernels._torch.autocast import autocast_dtype
from ast_fast_kernels.layer_norm.ops import define_add_layer_norm

LAUNCHES = {
    width: Launch.of(
        BLOCK_D=width, BLOCK_ROWS=max(1, 1024 // width), num_warps=4 if width <= 2048 else 8
    )
    for width in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
}
"""Rows up to the key's width → their blocks forward."""

_BWD_WARPS = {2048: 8, 4096: 16, 8192: 8}  # 16 for the last would spill

BWD_LAUNCHES = {
    width: Launch.of(
        BLOCK_D=width,
        BLOCK_ROWS=launch["BLOCK_ROWS"],
        STAGES=2,
        num_warps=_BWD_WARPS.get(width, 4),
    )
    for width, launch in LAUNCHES.items()
}
"""The same backward; STAGES - 1 blocks are on their way to each program.

That is 30 KiB to a multiprocessor for 192 values in float32 with an update in bfloat16, of which 10
bytes in 16 are read: at 4.8 TB/s in all, 18 KiB hide 800 ns. Four programs of one more stage would
not fit GPUs with 100 KiB of shared memory."""


@triton.jit
def _centre(x, mask_d, width, eps, BLOCK_ROWS: tl.constexpr):
    """Return rows minus their means, and 1 / deviations as a column."""
    count = tl.zeros((BLOCK_ROWS,), tl.float32) + width
    mean = tl.div_rn(tl.sum(x, 1), count)  # exact for equal values, as `/` need not be
    centred = tl.where(mask_d[None, :], x - mean[:, None], 0.0)
    variance = tl.div_rn(tl.sum(centred * centred, 1), count)
    return centred, (1.0 / tl.sqrt_rn(variance + eps))[:, None]


@triton.jit(do_not_specialize=["rows"])
def _layer_norm_fwd_kernel(
    x_ptr, update_ptr, weight_ptr, bias_ptr, residual_ptr, y_ptr,
    stride_x, stride_u, rows, width, eps,
    HAS_UPDATE: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_ROWS: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_ROWS rows, read once; statistics are of the sum as it is stored."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    offs_d = tl.arange(0, BLOCK_D)
    mask_m = offs_m < rows
    mask_d = offs_d < width
    mask = mask_m[:, None] & mask_d[None, :]
    places = offs_m[:, None] * width + offs_d[None, :]
    x = tl.load(x_ptr + offs_m[:, None] * stride_x + offs_d[None, :], mask=mask, other=0.0)
    if HAS_UPDATE:
        update_ptrs = update_ptr + offs_m[:, None] * stride_u + offs_d[None, :]
        update = tl.load(update_ptrs, mask=mask, other=0.0)
        x = (x.to(tl.float32) + update.to(tl.float32)).to(residual_ptr.dtype.element_ty)
        tl.store(residual_ptr + places, x, mask=mask)
    centred, rstd = _centre(x.to(tl.float32), mask_d, width, eps, BLOCK_ROWS)
    weight = tl.load(weight_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)
    y = centred * rstd * weight[None, :] + bias[None, :]
    tl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows"])
def _layer_norm_bwd_kernel(
    dresidual_ptr, dy_ptr, residual_ptr, weight_ptr, dx_ptr, dupdate_ptr, partial_ptr,
    stride_r, rows, width, eps,
    HAS_DRESIDUAL: tl.constexpr, HAS_DUPDATE: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """One program: every so many blocks of BLOCK_ROWS rows, read STAGES - 1 blocks ahead.

    Its sums for weight and bias stay in registers.
    """
    offs_d = tl.arange(0, BLOCK_D)
    mask_d = offs_d < width
    weight = tl.load(weight_ptr + offs_d, mask=mask_d, other=0.0).to(tl.float32)[None, :]
    dweight = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    dbias = tl.zeros((BLOCK_ROWS, BLOCK_D), tl.float32)
    blocks = tl.cdiv(rows, BLOCK_ROWS)
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=STAGES):
        offs_m = (block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        mask_m = offs_m < rows
        mask = mask_m[:, None] & mask_d[None, :]
        places = offs_m[:, None] * width + offs_d[None, :]
        residual_ptrs = residual_ptr + offs_m[:, None] * stride_r + offs_d[None, :]
        residual = tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + places, mask=mask, other=0.0).to(tl.float32)
        centred, rstd = _centre(residual, mask_d, width, eps, BLOCK_ROWS)
        rstd = tl.where(mask_m[:, None], rstd, 0.0)  # infinite beyond the rows if eps is 0
        normed = centred * rstd
        scaled = dy * weight  # 0 beyond the width, as dy is
        along_normed = tl.sum(scaled * normed, 1)[:, None] / width
        along_ones = tl.sum(scaled, 1)[:, None] / width
        dx = (scaled - along_normed * normed - along_ones) * rstd
        if HAS_DRESIDUAL:
            dx += tl.load(dresidual_ptr + places, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + places, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        if HAS_DUPDATE:
            tl.store(dupdate_ptr + places, dx.to(dupdate_ptr.dtype.element_ty), mask=mask)
        dweight += dy * normed
        dbias += dy
    partial_ptrs = partial_ptr + tl.program_id(0).to(tl.int64) * 2 * width + offs_d
    tl.store(partial_ptrs, tl.sum(dweight, 0), mask=mask_d)
    tl.store(partial_ptrs + width, tl.sum(dbias, 0), mask=mask_d)


@on_its_device
def launch_layer_norm_fwd(
    x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return the sum (empty without an update) and its normalisation.

    Args:
        x: Shape (rows, width), rows contiguous.
        update: The same, or None.
        weight: Shape (width,), contiguous.
        bias: Shape (width,), contiguous.
        eps: Added to the variance.
        dtype: Of the normalisation.
    """
    rows, width = x.shape
    residual = torch.empty(
        (rows, width) if update is not None else 0, dtype=x.dtype, device=x.device
    )
    y = x.new_empty(rows, width, dtype=dtype)
    if rows:
        stride_u = None if update is None else update.stride(0)
        plan = plan_layer_norm_fwd(rows, width, x.stride(0), stride_u, eps)
        plan.start(x, update, weight, bias, residual, y)
    return residual, y


@on_its_device
def launch_layer_norm_bwd(
    dresidual: Tensor | None,
    dy: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    update_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the sum, of the update (empty if of that dtype), of weight and bias.

    Args:
        dresidual: Gradient of the sum, contiguous, or None if nothing else used it.
        dy: Gradient of the normalisation, contiguous.
        residual: The sum, shape (rows, width), rows contiguous.
        weight: Shape (width,), contiguous.
        eps: Added to the variance.
        update_dtype: The update's dtype, or None without one.
    """
    rows, width = residual.shape
    dx = torch.empty((rows, width), dtype=residual.dtype, device=residual.device)
    own = update_dtype is not None and update_dtype != dx.dtype
    dupdate = torch.empty((rows, width) if own else 0, dtype=update_dtype, device=dx.device)
    plan = plan_layer_norm_bwd(
        rows, width, residual.stride(0), eps, dresidual is not None, own, residual.device
    )
    partial = dx.new_empty(plan.grid, 2, width, dtype=torch.float32)
    if rows:
        plan.start(dresidual, dy, residual, weight, dx, dupdate, partial)
    return dx, dupdate, partial.sum(0)


def plan_layer_norm_fwd(
    rows: int, width: int, stride_x: int, stride_u: int | None, eps: float
) -> Plan:
    """Return the forward launch; `stride_u` is None without an update."""
    launch = LAUNCHES[_padded(width)]
    return Plan(
        _layer_norm_fwd_kernel,
        triton.cdiv(rows, launch["BLOCK_ROWS"]),
        (stride_x, stride_u or 0, rows, width, eps),
        {"HAS_UPDATE": stride_u is not None, **launch.arguments},
    )


def plan_layer_norm_bwd(
    rows: int,
    width: int,
    stride_r: int,
    eps: float,
    has_dresidual: bool,
    has_dupdate: bool,
    device: torch.device,
) -> Plan:
    """Return the backward launch, each of whose programs writes sums for weight and bias."""
    launch = BWD_LAUNCHES[_padded(width)]
    blocks = triton.cdiv(rows, launch["BLOCK_ROWS"])
    variants = {"HAS_DRESIDUAL": has_dresidual, "HAS_DUPDATE": has_dupdate}
    return Plan(
        _layer_norm_bwd_kernel,
        min(blocks, programs_in_work(device, launch["BLOCK_ROWS"] * launch["BLOCK_D"])),
        (stride_r, rows, width, eps),
        {**variants, **launch.arguments},
    )


def _padded(width: int) -> int:
    padded: int = max(16, triton.next_power_of_2(width))
    return padded


def add_layer_norm_triton(
    tokens: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the sum and its normalisation; arguments as the reference's."""
    dtype = autocast_dtype(tokens) or tokens.dtype
    residual, normed = _layer_norm_fwd(tokens, update, weight, bias, eps, dtype)
    return (tokens if update is None else residual), normed


_layer_norm_fwd = define_add_layer_norm("layer_norm", launch_layer_norm_fwd, launch_layer_norm_bwd)
