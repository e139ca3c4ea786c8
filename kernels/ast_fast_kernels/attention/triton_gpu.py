"""Attention on the GPU, forward and backward, from packed projections to packed gradients.

Cannot avoid, forward: 4 · tokens² · head_dim operations a head (2.5 times that backward) and
8 · tokens · head_dim bytes in half precision, so tensor cores bound it from about 300 tokens; at
head_dim 64 the exponentials cost as much (16 a clock and SM). Guess: half of the tensor cores.
Measured share: none yet; `docs/triton.md` has the compiled kernels and a model of them.

Scores and sums are float32, powers are of two: log2(e) · scale is one factor on the scores. The
last, partial block of keys comes after the loop, so the loop has no masks. One program writes each
output element, so results are the same in every run.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ast_fast_kernels._gpu.launch import Launch, Plan, architecture, on_its_device
from ast_fast_kernels._torch.autocast import autocast_dtype
from ast_fast_kernels.attention.ops import define_attention

LOG2_E: tl.constexpr = tl.constexpr(math.log2(math.e))
LN_2: tl.constexpr = tl.constexpr(math.log(2.0))

_TABLE = {
    # (BLOCK_M, BLOCK_N, num_warps, num_stages) of head_dim 16, 32, 64 and 128; a kernel without the
    # last would spill its float32 accumulators and operands at any block size. With two stages a
    # step waits for the copy that the step before it began last, and little hides that.
    ("fwd", 80, False): ((128, 64, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 32, 8, 3)),
    ("fwd", 90, False): ((128, 64, 4, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 8, 3)),
    ("bwd_dkdv", 80, False): ((64, 64, 4, 3), (64, 64, 4, 3), (32, 128, 8, 3), (64, 32, 8, 3)),
    ("bwd_dkdv", 90, False): ((64, 64, 4, 3), (64, 64, 4, 3), (32, 64, 4, 3), (32, 128, 8, 3)),
    ("bwd_dq", 80, False): ((64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3), (32, 64, 8, 3)),
    ("bwd_dq", 90, False): ((64, 64, 4, 3), (64, 64, 4, 3), (64, 64, 4, 3), (128, 64, 8, 3)),
    ("fwd", 80, True): ((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    ("fwd", 90, True): ((64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    ("bwd_dkdv", 80, True): ((64, 64, 4, 2), (32, 64, 4, 2), (64, 32, 8, 2)),
    ("bwd_dkdv", 90, True): ((64, 64, 4, 2), (64, 64, 4, 2), (32, 64, 4, 2)),
    ("bwd_dq", 80, True): ((64, 64, 4, 2), (64, 64, 4, 2), (64, 32, 4, 2)),
    ("bwd_dq", 90, True): ((64, 64, 4, 2), (64, 64, 4, 2), (64, 32, 4, 2)),
}

LAUNCHES = {
    (kernel, arch, head_dim, is_float32): Launch.of(
        BLOCK_M=block_m, BLOCK_N=block_n, num_warps=num_warps, num_stages=num_stages
    )
    for (kernel, arch, is_float32), row in _TABLE.items()
    for head_dim, (block_m, block_n, num_warps, num_stages) in zip(
        (16, 32, 64, 128), row, strict=False
    )
}
"""(kernel, architecture, head_dim, whether float32) → how it is cut; never tuned at run time."""

DELTA_LAUNCH = Launch.of(BLOCK_M=128, num_warps=4)


@triton.jit
def _place(heads, tokens, BLOCK: tl.constexpr):
    """Return this program's clip, head and first row: neighbours share a head's keys.

    Clip and head are of 64 bits, as what they are multiplied by may be of 32.
    """
    blocks = tl.cdiv(tokens, BLOCK)
    pid = tl.program_id(0)
    clip_head = pid // blocks
    clip = (clip_head // heads).to(tl.int64)
    return clip, (clip_head % heads).to(tl.int64), (pid % blocks) * BLOCK


@triton.jit
def _num_keys(key_lengths_ptr, clip, tokens, HAS_LENGTHS: tl.constexpr):
    """Return how many keys of the clip count; memory stays safe whatever the lengths hold."""
    if HAS_LENGTHS:
        return tl.minimum(tl.load(key_lengths_ptr + clip).to(tl.int32), tokens)
    return tokens


@triton.jit
def _attend(
    acc, row_sum, row_max, q, k_ptr, v_ptr, stride_t, start, num_keys, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one block of keys to the running sums of a block of queries."""
    offs_n = start + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, HEAD_DIM)
    k_ptrs = k_ptr + offs_n[None, :] * stride_t + offs_d[:, None]  # (HEAD_DIM, BLOCK_N)
    v_ptrs = v_ptr + offs_n[:, None] * stride_t + offs_d[None, :]  # (BLOCK_N, HEAD_DIM)
    if MASKED:
        k = tl.load(k_ptrs, mask=offs_n[None, :] < num_keys, other=0.0)
        v = tl.load(v_ptrs, mask=offs_n[:, None] < num_keys, other=0.0)
    else:
        k = tl.load(k_ptrs)
        v = tl.load(v_ptrs)
    scores = tl.dot(q, k, input_precision=PRECISION)
    if MASKED:
        scores = tl.where(offs_n[None, :] < num_keys, scores, -float("inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    # The scale is above 0, so the largest score is also the largest unscaled: one multiply-add.
    weights = tl.exp2(scores * scale_log2 - (new_max * scale_log2)[:, None])
    correction = tl.exp2((row_max - new_max) * scale_log2)
    row_sum = row_sum * correction + tl.sum(weights, 1)
    acc = acc * correction[:, None]
    acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
    return acc, row_sum, new_max


@triton.jit(do_not_specialize=["tokens"])
def _attention_fwd_kernel(
    qkv_ptr, key_lengths_ptr, out_ptr, lse_ptr,
    stride_b, stride_t, stride_c, stride_h, heads, tokens, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of a head over all its keys, maximum and sum kept running."""
    clip, head, first = _place(heads, tokens, BLOCK_M)
    num_keys = _num_keys(key_lengths_ptr, clip, tokens, HAS_LENGTHS)
    offs_m = first + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, HEAD_DIM)
    mask_m = offs_m < tokens
    q_ptr = qkv_ptr + clip * stride_b + head * stride_h
    q_ptrs = q_ptr + offs_m[:, None] * stride_t + offs_d[None, :]
    q = tl.load(q_ptrs, mask=mask_m[:, None], other=0.0)
    k_ptr = q_ptr + stride_c
    v_ptr = k_ptr + stride_c

    row_max = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    row_sum = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    whole = num_keys // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        acc, row_sum, row_max = _attend(
            acc, row_sum, row_max, q, k_ptr, v_ptr, stride_t, start, num_keys, scale_log2,
            HEAD_DIM, BLOCK_N, False, PRECISION,
        )  # fmt: skip
    if whole < num_keys:
        acc, row_sum, row_max = _attend(
            acc, row_sum, row_max, q, k_ptr, v_ptr, stride_t, whole, num_keys, scale_log2,
            HEAD_DIM, BLOCK_N, True, PRECISION,
        )  # fmt: skip

    # A clip without keys gives zeros. A sum is never 0 otherwise: its largest term is 1.
    out = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    lse = tl.where(row_sum == 0.0, 0.0, (row_max * scale_log2 + tl.log2(row_sum)) * LN_2)
    rows = clip * tokens + offs_m
    out_ptrs = out_ptr + (rows * heads + head)[:, None] * HEAD_DIM + offs_d[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=mask_m[:, None])
    tl.store(lse_ptr + (clip * heads + head) * tokens + offs_m, lse, mask=mask_m)


@triton.jit(do_not_specialize=["tokens", "rows"])
def _attention_bwd_delta_kernel(
    out_ptr, grad_ptr, delta_ptr, heads, tokens, rows,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """One program: the sums over head_dim of out · grad for BLOCK_M rows (clip, token, head)."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, HEAD_DIM)
    mask_m = offs_m < rows
    places = offs_m[:, None] * HEAD_DIM + offs_d[None, :]
    out = tl.load(out_ptr + places, mask=mask_m[:, None], other=0.0).to(tl.float32)
    grad = tl.load(grad_ptr + places, mask=mask_m[:, None], other=0.0).to(tl.float32)
    clip = offs_m // heads // tokens
    token = offs_m // heads % tokens
    head = offs_m % heads
    tl.store(delta_ptr + (clip * heads + head) * tokens + token, tl.sum(out * grad, 1), mask=mask_m)


@triton.jit
def _add_queries(
    dk, dv, k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, stride_t, stride_gt, start, tokens,
    scale_log2, HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what one block of queries sends to a block of keys and values."""
    offs_m = start + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, HEAD_DIM)
    q_ptrs = q_ptr + offs_m[:, None] * stride_t + offs_d[None, :]
    grad_ptrs = grad_ptr + offs_m[:, None] * stride_gt + offs_d[None, :]
    if MASKED:
        mask_m = offs_m < tokens
        q = tl.load(q_ptrs, mask=mask_m[:, None], other=0.0)
        grad = tl.load(grad_ptrs, mask=mask_m[:, None], other=0.0)
        lse = tl.load(lse_ptr + offs_m, mask=mask_m, other=0.0)
        delta = tl.load(delta_ptr + offs_m, mask=mask_m, other=0.0)
    else:
        q = tl.load(q_ptrs)
        grad = tl.load(grad_ptrs)
        lse = tl.load(lse_ptr + offs_m)
        delta = tl.load(delta_ptr + offs_m)
    scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # (BLOCK_N, BLOCK_M)
    weights = tl.exp2(scores * scale_log2 - (lse * LOG2_E)[None, :])
    dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=PRECISION)
    dweights = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
    dscores = weights * (dweights - delta[None, :])
    dk = tl.dot(dscores.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=["tokens"])
def _attention_bwd_dkdv_kernel(
    qkv_ptr, key_lengths_ptr, grad_ptr, lse_ptr, delta_ptr, dqkv_ptr,
    stride_b, stride_t, stride_c, stride_h, heads, tokens, scale, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of BLOCK_N keys and values of a head, over all its queries."""
    clip, head, first = _place(heads, tokens, BLOCK_N)
    num_keys = _num_keys(key_lengths_ptr, clip, tokens, HAS_LENGTHS)
    offs_n = first + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, HEAD_DIM)
    mask_n = offs_n < num_keys
    q_ptr = qkv_ptr + clip * stride_b + head * stride_h
    k_ptrs = q_ptr + stride_c + offs_n[:, None] * stride_t + offs_d[None, :]
    k = tl.load(k_ptrs, mask=mask_n[:, None], other=0.0)
    v = tl.load(k_ptrs + stride_c, mask=mask_n[:, None], other=0.0)
    stride_gt = heads * HEAD_DIM
    grad_ptr += (clip * tokens * heads + head) * HEAD_DIM
    lse_ptr += (clip * heads + head) * tokens
    delta_ptr += (clip * heads + head) * tokens

    dk = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    dv = tl.zeros((BLOCK_N, HEAD_DIM), tl.float32)
    whole = tokens // BLOCK_M * BLOCK_M
    for start in range(0, whole, BLOCK_M):
        dk, dv = _add_queries(
            dk, dv, k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, stride_t, stride_gt, start, tokens,
            scale_log2, HEAD_DIM, BLOCK_M, False, PRECISION,
        )  # fmt: skip
    if whole < tokens:
        dk, dv = _add_queries(
            dk, dv, k, v, q_ptr, grad_ptr, lse_ptr, delta_ptr, stride_t, stride_gt, whole, tokens,
            scale_log2, HEAD_DIM, BLOCK_M, True, PRECISION,
        )  # fmt: skip

    # Until here, rows of keys that do not count may hold anything.
    dk = tl.where(mask_n[:, None], dk * scale, 0.0)
    dv = tl.where(mask_n[:, None], dv, 0.0)
    mask_stored = (offs_n < tokens)[:, None]
    rows = (clip * tokens + offs_n) * 3
    dk_ptrs = dqkv_ptr + ((rows + 1) * heads + head)[:, None] * HEAD_DIM + offs_d[None, :]
    dv_ptrs = dqkv_ptr + ((rows + 2) * heads + head)[:, None] * HEAD_DIM + offs_d[None, :]
    tl.store(dk_ptrs, dk.to(dqkv_ptr.dtype.element_ty), mask=mask_stored)
    tl.store(dv_ptrs, dv.to(dqkv_ptr.dtype.element_ty), mask=mask_stored)


@triton.jit
def _add_keys(
    dq, q, grad, lse_log2, delta, k_ptr, v_ptr, stride_t, start, num_keys, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add what one block of keys sends to a block of queries."""
    offs_n = start + tl.arange(0, BLOCK_N)
    offs_d = tl.arange(0, HEAD_DIM)
    k_ptrs = k_ptr + offs_n[:, None] * stride_t + offs_d[None, :]
    v_ptrs = v_ptr + offs_n[:, None] * stride_t + offs_d[None, :]
    if MASKED:
        k = tl.load(k_ptrs, mask=offs_n[:, None] < num_keys, other=0.0)
        v = tl.load(v_ptrs, mask=offs_n[:, None] < num_keys, other=0.0)
    else:
        k = tl.load(k_ptrs)
        v = tl.load(v_ptrs)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    weights = tl.exp2(scores * scale_log2 - lse_log2[:, None])
    if MASKED:
        weights = tl.where(offs_n[None, :] < num_keys, weights, 0.0)
    dweights = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
    dscores = weights * (dweights - delta[:, None])
    return tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit(do_not_specialize=["tokens"])
def _attention_bwd_dq_kernel(
    qkv_ptr, key_lengths_ptr, grad_ptr, lse_ptr, delta_ptr, dqkv_ptr,
    stride_b, stride_t, stride_c, stride_h, heads, tokens, scale, scale_log2,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    HAS_LENGTHS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: the gradients of BLOCK_M queries of a head, over all its keys."""
    clip, head, first = _place(heads, tokens, BLOCK_M)
    num_keys = _num_keys(key_lengths_ptr, clip, tokens, HAS_LENGTHS)
    offs_m = first + tl.arange(0, BLOCK_M)
    offs_d = tl.arange(0, HEAD_DIM)
    mask_m = offs_m < tokens
    q_ptr = qkv_ptr + clip * stride_b + head * stride_h
    q_ptrs = q_ptr + offs_m[:, None] * stride_t + offs_d[None, :]
    q = tl.load(q_ptrs, mask=mask_m[:, None], other=0.0)
    rows = clip * tokens + offs_m
    grad_ptrs = grad_ptr + (rows * heads + head)[:, None] * HEAD_DIM + offs_d[None, :]
    grad = tl.load(grad_ptrs, mask=mask_m[:, None], other=0.0)
    head_rows = (clip * heads + head) * tokens + offs_m
    lse_log2 = tl.load(lse_ptr + head_rows, mask=mask_m, other=0.0) * LOG2_E
    delta = tl.load(delta_ptr + head_rows, mask=mask_m, other=0.0)
    k_ptr = q_ptr + stride_c
    v_ptr = k_ptr + stride_c

    dq = tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)
    whole = num_keys // BLOCK_N * BLOCK_N
    for start in range(0, whole, BLOCK_N):
        dq = _add_keys(
            dq, q, grad, lse_log2, delta, k_ptr, v_ptr, stride_t, start, num_keys, scale_log2,
            HEAD_DIM, BLOCK_N, False, PRECISION,
        )  # fmt: skip
    if whole < num_keys:
        dq = _add_keys(
            dq, q, grad, lse_log2, delta, k_ptr, v_ptr, stride_t, whole, num_keys, scale_log2,
            HEAD_DIM, BLOCK_N, True, PRECISION,
        )  # fmt: skip
    dq_ptrs = dqkv_ptr + (rows * 3 * heads + head)[:, None] * HEAD_DIM + offs_d[None, :]
    tl.store(dq_ptrs, (dq * scale).to(dqkv_ptr.dtype.element_ty), mask=mask_m[:, None])


class Layout(NamedTuple):
    """What decides the launches for projections: their layout, and what is asked of them."""

    shape: torch.Size
    """qkv's."""
    strides: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    scale: float
    """Factor on the scores."""
    has_lengths: bool

    def fwd(self) -> Plan:
        """Return forward's launch: qkv, key_lengths, out, lse."""
        return self._over_blocks("fwd", _attention_fwd_kernel, "BLOCK_M")

    def bwd_delta(self) -> Plan:
        """Return the launch of backward's sums: out, grad, delta."""
        batch, tokens, _, heads, head_dim = self.shape
        rows = batch * tokens * heads
        programs = triton.cdiv(rows, DELTA_LAUNCH["BLOCK_M"])
        constants = {"HEAD_DIM": head_dim, **DELTA_LAUNCH.arguments}
        return Plan(_attention_bwd_delta_kernel, programs, (heads, tokens, rows), constants)

    def bwd_dkdv(self) -> Plan:
        """Return the launch for keys and values: qkv, key_lengths, grad, lse, delta, dqkv."""
        return self._over_blocks("bwd_dkdv", _attention_bwd_dkdv_kernel, "BLOCK_N", self.scale)

    def bwd_dq(self) -> Plan:
        """Return the launch for queries; tensors as those for keys and values."""
        return self._over_blocks("bwd_dq", _attention_bwd_dq_kernel, "BLOCK_M", self.scale)

    def _over_blocks(self, name: str, kernel: Any, block: str, *factors: float) -> Plan:
        batch, tokens, _, heads, head_dim = self.shape
        is_float32 = self.dtype == torch.float32
        launch = LAUNCHES[name, architecture(self.device), head_dim, is_float32]
        return Plan(
            kernel,
            batch * heads * triton.cdiv(tokens, launch[block]),
            (*self.strides[:4], heads, tokens, *factors, self.scale * LOG2_E.value),
            {
                "HEAD_DIM": head_dim,
                "HAS_LENGTHS": self.has_lengths,
                "PRECISION": "tf32" if is_float32 else "ieee",
                **launch.arguments,
            },
        )


@on_its_device
def launch_attention_fwd(
    qkv: Tensor, key_lengths: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the attended values and the natural logarithms of the sums of exponentials.

    Args:
        qkv: Shape (batch, tokens, 3, heads, head_dim).
        key_lengths: Keys that count in each clip, shape (batch,), integers of any strides; None
            counts all.
        scale: Factor on the scores, above 0.
    Returns:
        Values of qkv's dtype, shape (batch, tokens, heads, head_dim), and float32, shape (batch,
        heads, tokens).
    """
    batch, tokens, _, heads, head_dim = qkv.shape
    qkv, key_lengths = _readable(qkv), _dense_lengths(key_lengths, tokens)
    out = qkv.new_empty(batch, tokens, heads, head_dim)
    lse = qkv.new_empty(batch, heads, tokens, dtype=torch.float32)
    if batch == 0:
        return out, lse
    layout = Layout(qkv.shape, qkv.stride(), qkv.device, qkv.dtype, scale, key_lengths is not None)
    layout.fwd().start(qkv, key_lengths, out, lse)
    return out, lse


@on_its_device
def launch_attention_bwd(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, key_lengths: Tensor | None, scale: float
) -> Tensor:
    """Return the gradient of qkv, packed as it is; the rest as in `launch_attention_fwd`.

    Args:
        grad: Gradient of `out`.
        qkv: What the forward was given.
        out: What the forward gave.
        lse: What the forward gave.
        key_lengths: What the forward was given.
        scale: What the forward was given.
    """
    qkv, grad = _readable(qkv), grad.contiguous()
    key_lengths = _dense_lengths(key_lengths, qkv.shape[1])
    dqkv = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    if qkv.shape[0] == 0:
        return dqkv
    delta = torch.empty_like(lse)
    layout = Layout(qkv.shape, qkv.stride(), qkv.device, qkv.dtype, scale, key_lengths is not None)
    layout.bwd_delta().start(out, grad, delta)
    for plan in (layout.bwd_dkdv(), layout.bwd_dq()):
        plan.start(qkv, key_lengths, grad, lse, delta, dqkv)
    return dqkv


def is_readable(qkv: Tensor) -> bool:
    """Say whether the kernels can address the projections: a clip's tokens by 32 bits."""
    return qkv.stride(-1) == 1 and qkv.shape[1] * qkv.stride(1) < 2**31


def _readable(qkv: Tensor) -> Tensor:
    """Return the projections as the kernels address them."""
    return qkv if is_readable(qkv) else qkv.contiguous()


def _dense_lengths(key_lengths: Tensor | None, tokens: int) -> Tensor | None:
    """Return the lengths as the kernels address them: int32, one after another."""
    if key_lengths is None:
        return None
    if key_lengths.dtype == torch.int64:
        key_lengths = key_lengths.clamp(0, tokens)  # a larger one may not fit into 32 bits
    return key_lengths.to(torch.int32).contiguous()


def attention_triton(qkv: Tensor, key_lengths: Tensor | None, scale: float) -> Tensor:
    """Return attention as these kernels compute it; arguments as the reference's."""
    dtype = autocast_dtype(qkv)
    if dtype is not None:
        qkv = qkv.to(dtype)
    out: Tensor = _attention_fwd(qkv, key_lengths, scale)[0]
    return out


_attention_fwd = define_attention("attention", launch_attention_fwd, launch_attention_bwd, ())
