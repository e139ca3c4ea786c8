"""Triton's attention against float64, in the interpreter and on a GPU."""

from __future__ import annotations

import math
import mmap

import pytest
import torch
from torch import Tensor

from ast_fast_kernels import attention
from ast_fast_kernels.attention.reference import attention_reference
from ast_fast_kernels.testing.budgets import relative_norm

# Relative norms allowed, of the output and of the gradient. Weights and output are rounded to the
# dtype once each, and the gradient's two factors once more: to nearest leaves 0.3 eps in the norm
# each time. TF32 cuts up to 2 ** -10 off both factors of a product, always the same way.
EPS = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10, torch.float32: 2.0**-9}
OUT, GRADIENT = 1.0, 2.0

LAZY = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
"""Flags of memory of which only the pages exist that are written to."""

dtypes = pytest.mark.parametrize("dtype", EPS, ids=lambda dtype: str(dtype).removeprefix("torch."))


def packed(*shape: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Tensor:
    """Shape (batch, tokens, heads, head_dim) → packed noise."""
    batch, tokens, *heads = shape
    generator = torch.Generator().manual_seed(seed)
    qkv = torch.randn((batch, tokens, 3, *heads), generator=generator)
    return qkv.to(device, dtype).requires_grad_()


def check(qkv: Tensor, lengths: list[int] | None = None, scale: float | None = None) -> None:
    """Hold output and gradient to the reference in float64."""
    scale = qkv.shape[-1] ** -0.5 if scale is None else scale
    exact = qkv.detach().cpu().double().requires_grad_()
    counts = None if lengths is None else torch.tensor(lengths)
    expected = attention_reference(exact, counts, scale)
    out = attention(qkv, key_lengths=lengths, scale=scale, backend="triton")
    assert out.dtype == qkv.dtype
    assert out.shape == qkv[:, :, 0].shape
    eps = EPS[qkv.dtype]
    assert relative_norm(out.cpu(), expected) < OUT * eps
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(9)).to(qkv.dtype)
    expected.backward(grad.double())
    (ours,) = torch.autograd.grad(out, qkv, grad.to(qkv.device))
    assert relative_norm(ours.cpu(), exact.grad) < GRADIENT * eps


@dtypes
@pytest.mark.parametrize("tokens", [1, 17, 64, 70, 130, 250])
def test_any_number_of_tokens(device: torch.device, tokens: int, dtype: torch.dtype) -> None:
    check(packed(2, tokens, 2, 32, dtype=dtype, device=device))


@dtypes
@pytest.mark.parametrize("head_dim", [16, 32, 64, 128])
def test_every_head_dim(device: torch.device, head_dim: int, dtype: torch.dtype) -> None:
    qkv = packed(1, 70, 2, head_dim, dtype=dtype, device=device)
    if head_dim == 128 and dtype == torch.float32:
        message = "triton needs a head_dim of 16, 32, 64 for float32, got 128; use backend="
        with pytest.raises(RuntimeError, match=message):
            attention(qkv, backend="triton")
    else:
        check(qkv)


@dtypes
def test_key_lengths(device: torch.device, dtype: torch.dtype) -> None:
    qkv = packed(5, 130, 2, 32, dtype=dtype, device=device)
    check(qkv, lengths=[130, 1, 64, 65, 127])


def test_what_lies_beyond_a_clip_is_never_seen(device: torch.device) -> None:
    """Equal to the bit to the clip alone, whatever its padding holds."""
    lengths, dtype = [70, 33, 64], torch.float16
    qkv = packed(3, 130, 2, 32, dtype=dtype, device=device)
    grad = torch.randn(3, 130, 2, 32, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    poisoned = qkv.detach().clone()
    for clip, length in enumerate(lengths):
        poisoned[clip, length:, 1:] = math.nan  # keys and values; queries there have results too
    poisoned.requires_grad_()
    out = attention(qkv, key_lengths=lengths, backend="triton")
    again = attention(poisoned, key_lengths=lengths, backend="triton")
    assert torch.equal(out, again)
    (gradient,) = torch.autograd.grad(out, qkv, grad)
    (gradient_again,) = torch.autograd.grad(again, poisoned, grad)
    assert torch.equal(gradient, gradient_again)
    for clip, length in enumerate(lengths):
        assert (gradient[clip, length:, 1:] == 0).all()


def test_a_clip_without_keys_gives_zeros(device: torch.device) -> None:
    from ast_fast_kernels.attention.triton_gpu import launch_attention_bwd, launch_attention_fwd

    qkv = packed(2, 70, 1, 16, dtype=torch.float16, device=device).detach()
    counts = torch.tensor([0, 70], dtype=torch.int32, device=device)
    out, lse = launch_attention_fwd(qkv, counts, 0.25)
    gradient = launch_attention_bwd(torch.ones_like(out), qkv, out, lse, counts, 0.25)
    assert (out[0] == 0).all()
    assert (gradient[0] == 0).all()
    assert out[1].isfinite().all()
    assert gradient[1].isfinite().all()


def test_lengths_beyond_the_tokens_are_all_of_them(device: torch.device) -> None:
    from ast_fast_kernels.attention.triton_gpu import launch_attention_fwd

    qkv = packed(1, 70, 1, 16, dtype=torch.float16, device=device).detach()
    counts = torch.tensor([1000], dtype=torch.int32, device=device)
    for ours, all_keys in zip(
        launch_attention_fwd(qkv, counts, 0.25), launch_attention_fwd(qkv, None, 0.25), strict=True
    ):
        assert torch.equal(ours, all_keys)


def assert_same_both_ways(
    given: tuple[torch.Tensor, torch.Tensor | None], alike: tuple[torch.Tensor, torch.Tensor | None]
) -> None:
    """Two inputs, each queries, keys and values with lengths, give the same bits."""
    from ast_fast_kernels.attention.triton_gpu import launch_attention_bwd, launch_attention_fwd

    (qkv, lengths), (like_qkv, like_lengths) = given, alike
    out, lse = launch_attention_fwd(qkv, lengths, 0.25)
    expected = launch_attention_fwd(like_qkv, like_lengths, 0.25)
    assert torch.equal(out, expected[0])
    assert torch.equal(lse, expected[1])
    grad = torch.ones_like(out)
    gradient = launch_attention_bwd(grad, qkv, out, lse, lengths, 0.25)
    expected_gradient = launch_attention_bwd(grad, like_qkv, out, lse, like_lengths, 0.25)
    assert torch.equal(gradient, expected_gradient)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8], ids=str)
def test_lengths_may_be_a_column_of_a_table(device: torch.device, dtype: torch.dtype) -> None:
    from ast_fast_kernels.attention.triton_gpu import launch_attention_fwd

    qkv = packed(3, 70, 1, 16, dtype=torch.float16, device=device).detach()
    table = torch.tensor([[70, 9], [3, 41], [1, 2]], dtype=dtype, device=device)
    column, dense = table[:, 0], torch.tensor([70, 3, 1], dtype=torch.int32, device=device)
    repeated, threes = table[1:2, 0].expand(3), torch.full((3,), 3, dtype=dtype, device=device)
    for strided, alike in ((column, dense), (repeated, threes)):
        assert not strided.is_contiguous()
        assert_same_both_ways((qkv, strided), (qkv, alike))
    given = attention(qkv, key_lengths=column, scale=0.25, backend="triton")
    assert torch.equal(given, launch_attention_fwd(qkv, dense, 0.25)[0])


def test_lengths_beyond_32_bits_are_all_tokens(device: torch.device) -> None:
    from ast_fast_kernels.attention.triton_gpu import launch_attention_fwd

    qkv = packed(2, 70, 1, 16, dtype=torch.float16, device=device).detach()
    counts = torch.tensor([2**32 + 3, 2**31], device=device)
    ours, all_keys = launch_attention_fwd(qkv, counts, 0.25), launch_attention_fwd(qkv, None, 0.25)
    assert torch.equal(ours[0], all_keys[0])


def test_heads_may_lie_further_apart_than_32_bits_reach(device: torch.device) -> None:
    apart = 2**30 + 8
    if device.type == "cuda":
        memory = torch.empty(2 * apart + 70 * 48, dtype=torch.float16, device=device)
    else:  # no more than the pages that are written to
        pages = mmap.mmap(-1, 2 * (2 * apart + 70 * 48), flags=LAZY)
        memory = torch.frombuffer(pages, dtype=torch.float16)
    near = packed(1, 70, 3, 16, dtype=torch.float16, device=device).detach()
    far = memory.as_strided((1, 70, 3, 3, 16), (0, 48, 16, apart, 1))
    far.copy_(near)
    assert not far.is_contiguous()
    assert_same_both_ways((far, None), (near, None))


def test_a_clip_that_32_bits_cannot_address_is_refused(device: torch.device) -> None:
    qkv = torch.zeros(1, 1, 3, 1, 16, dtype=torch.float16, device=device).expand(
        -1, 2**26, 3, 1, 16
    )
    message = (
        r"triton needs fewer than 2 \*\* 31 values of qkv a clip, got \(1, 67108864, 3, 1, 16\)"
    )
    with pytest.raises(RuntimeError, match=message):
        attention(qkv, backend="triton")


def test_lse_is_the_natural_logarithm_of_the_sum(device: torch.device) -> None:
    from ast_fast_kernels.attention.triton_gpu import launch_attention_fwd

    qkv = packed(2, 70, 3, 64, dtype=torch.float16, device=device).detach()
    _, lse = launch_attention_fwd(qkv, None, 0.125)
    q, k, _ = qkv.cpu().double().permute(2, 0, 3, 1, 4)
    expected = (q @ k.mT * 0.125).logsumexp(-1)
    assert lse.dtype == torch.float32
    assert (lse.cpu() - expected).abs().max() < 1e-5  # of about 4, summed in float32


@pytest.mark.parametrize("scale", [1e-3, 0.3, 1.0])
def test_own_scale(device: torch.device, scale: float) -> None:
    check(packed(1, 70, 2, 32, dtype=torch.float16, device=device), scale=scale)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan])
def test_scale_is_above_0(device: torch.device, scale: float) -> None:
    qkv = packed(1, 5, 1, 16, dtype=torch.float16, device=device)
    with pytest.raises(RuntimeError, match=f"triton needs a scale above 0, got {scale:g}; use ba"):
        attention(qkv, scale=scale, backend="triton")


def test_scores_of_ten_thousand_do_not_overflow(device: torch.device) -> None:
    qkv = packed(1, 70, 1, 16, dtype=torch.float16, device=device).detach()
    qkv[:, :, :2] *= 50
    out = attention(qkv, backend="triton")
    expected = attention_reference(qkv.cpu().double(), None, 0.25)
    assert relative_norm(out.cpu(), expected) < 1e-2  # scores are rounded to 1e-3 of their size


def test_keys_that_are_not_there_cannot_overflow_a_gradient(device: torch.device) -> None:
    """Scores far below 0: a key of zeros beyond the last would weigh more than all others."""
    qkv = packed(1, 70, 1, 64, dtype=torch.float16, device=device).detach()
    qkv[:, :, 0], qkv[:, :, 1] = 8.0, -8.0
    check(qkv.requires_grad_())


def test_forward_mode_is_refused(device: torch.device) -> None:
    qkv = packed(1, 5, 1, 16, dtype=torch.float16, device=device).detach()
    with pytest.raises(RuntimeError, match=r"torch\.func or forward-mode differentiation"):
        torch.func.jvp(lambda x: attention(x, backend="triton"), (qkv,), (qkv,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(qkv, qkv)
        with pytest.raises(RuntimeError, match=r"torch\.func or forward-mode differentiation"):
            attention(dual, backend="triton")


def test_projections_are_read_where_they_lie(device: torch.device) -> None:
    wide = packed(2, 140, 4, 64, dtype=torch.float16, device=device).detach()
    for view in (wide[:, ::2], wide[:, 5:75], wide[..., 1::2, :], wide[..., ::2]):
        dense = view.contiguous()
        leaves = [view.requires_grad_(), dense.requires_grad_()]
        outs = [attention(leaf, backend="triton") for leaf in leaves]
        assert torch.equal(*outs)
        gradients = [
            torch.autograd.grad(out.sum(), leaf)[0] for out, leaf in zip(outs, leaves, strict=True)
        ]
        assert torch.equal(*gradients)


def test_a_gradient_of_any_strides(device: torch.device) -> None:
    qkv = packed(2, 17, 2, 32, dtype=torch.float16, device=device)
    grad = packed(2, 17, 2, 32, dtype=torch.float16, device=device).detach()[:, :, 1]
    out = attention(qkv, backend="triton")
    (strided,) = torch.autograd.grad(out, qkv, grad, retain_graph=True)
    (dense,) = torch.autograd.grad(out, qkv, grad.contiguous())
    assert torch.equal(strided, dense)


def test_nan_stays_in_its_head(device: torch.device) -> None:
    qkv = packed(2, 70, 2, 16, dtype=torch.float16, device=device).detach()
    qkv[0, 3, 2, 1, 5] = math.nan
    out = attention(qkv, backend="triton")
    assert out[0, :, 1, 5].isnan().all()
    assert out[0, :, 0].isfinite().all()
    assert out[1].isfinite().all()


def test_the_same_bits_in_every_run_and_batch(device: torch.device) -> None:
    qkv = packed(3, 130, 2, 32, dtype=torch.float16, device=device)
    out = attention(qkv, backend="triton")
    (gradient,) = torch.autograd.grad(out.sum(), qkv)
    alone = qkv.detach()[1:2].clone().requires_grad_()
    out_alone = attention(alone, backend="triton")
    assert torch.equal(out[1:2], out_alone)
    assert torch.equal(gradient[1:2], torch.autograd.grad(out_alone.sum(), alone)[0])


def test_empty_batch(device: torch.device) -> None:
    qkv = packed(0, 5, 2, 16, dtype=torch.float16, device=device)
    out = attention(qkv, backend="triton")
    assert out.shape == (0, 5, 2, 16)
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


def test_operators_pass_opcheck(device: torch.device) -> None:
    qkv = packed(2, 17, 2, 16, dtype=torch.float32, device=device)
    lengths = torch.tensor([17, 3], dtype=torch.int32, device=device)
    ops = torch.ops.ast_fast
    attention(qkv, backend="triton")  # registers them
    for counts in (None, lengths):
        torch.library.opcheck(ops.attention_fwd.default, (qkv, counts, 0.25))
        out, lse = ops.attention_fwd(qkv.detach(), counts, 0.25)
        args = (torch.ones_like(out), qkv.detach(), out, lse, counts, 0.25)
        torch.library.opcheck(ops.attention_bwd.default, args)


def test_gradcheck(device: torch.device) -> None:
    """Against differences of the kernel itself, in float64 around its exact float32 dots."""
    if device.type == "cuda":
        pytest.skip("a GPU's dots are TF32, too coarse for differences")
    from ast_fast_kernels.testing import interpreter

    def run(qkv: Tensor) -> Tensor:
        return attention(qkv.float(), key_lengths=[5, 3], backend="triton").double()

    qkv = packed(2, 5, 1, 16, dtype=torch.float64, device=device)
    with interpreter.exact_dots():
        assert torch.autograd.gradcheck(run, qkv, eps=1e-2, atol=2e-4, rtol=2e-3, fast_mode=True)


def test_a_second_gradient_is_refused(device: torch.device) -> None:
    qkv = packed(1, 5, 1, 16, dtype=torch.float16, device=device)
    out = attention(qkv, backend="triton")
    (gradient,) = torch.autograd.grad(out.sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="the operator ast_fast::attention_bwd has no gradient"):
        gradient.sum().backward()


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_compiled_code_gives_the_same_bits(device: torch.device, compiler: str) -> None:
    qkv = packed(2, 70, 2, 32, dtype=torch.float16, device=device)
    lengths = torch.tensor([70, 7], device=device)
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True, backend=compiler)
    outs = [run(qkv, key_lengths=lengths, backend="triton") for run in (attention, compiled)]
    assert torch.equal(*outs)
    assert torch.equal(*(torch.autograd.grad(out.sum(), qkv)[0] for out in outs))


def test_autocast_takes_its_own_dtype(device: torch.device) -> None:
    qkv = packed(1, 17, 2, 16, dtype=torch.float32, device=device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        out = attention(qkv, backend="triton")
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, attention(qkv.bfloat16(), backend="triton"))
    assert torch.autograd.grad(out.sum(), qkv)[0].dtype == torch.float32


def test_float32_is_refused_where_tf32_is(device: torch.device) -> None:
    qkv = packed(1, 17, 2, 16, dtype=torch.float32, device=device)
    torch.set_float32_matmul_precision("highest")
    with pytest.raises(RuntimeError, match="triton computes float32 qkv only in TF32, which"):
        attention(qkv, backend="triton")
    with pytest.raises(RuntimeError, match="triton needs qkv in bfloat16, float16 or float32, got"):
        attention(qkv.double(), backend="triton")
