"""Triton's bias and GELU against float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ast_fast_kernels import linear_gelu
from ast_fast_kernels.gelu.reference import linear_gelu_reference
from ast_fast_kernels.testing.budgets import relative_norm

# float32: the error function is good to 2 eps; halves: one rounding, 0.3 eps in the norm.
BOUND = {torch.float32: 5e-7, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
dtypes = pytest.mark.parametrize(
    "dtype", BOUND, ids=lambda dtype: str(dtype).removeprefix("torch.")
)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    import ast_fast_kernels.gelu.triton_gpu  # noqa: F401 - registers the operator

    return torch.ops.ast_fast.bias_gelu_fwd(x, bias)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def exact_gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (3, 17), (2, 5, 256), (65, 300), (130, 70)], ids=str)
def test_any_shape(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = noise(*shape).to(device, dtype).requires_grad_()
    bias = noise(shape[-1], seed=1).to(device).requires_grad_()
    exact = [t.detach().cpu().double().requires_grad_() for t in (x, bias)]
    y, expected = bias_gelu(x, bias), exact_gelu(exact[0] + exact[1])
    assert y.dtype == dtype
    assert relative_norm(y.cpu(), expected) < BOUND[dtype]
    grad = noise(*shape, seed=2).to(dtype)
    ours = torch.autograd.grad(y, (x, bias), grad.to(device))
    theirs = torch.autograd.grad(expected, exact, grad.double())
    assert [g.dtype for g in ours] == [dtype, torch.float32]
    assert relative_norm(ours[0].cpu(), theirs[0]) < BOUND[dtype]
    assert relative_norm(ours[1].cpu(), theirs[1]) < 5e-6  # sums in float32, of any sign


def test_far_from_zero(device: torch.device) -> None:
    x = torch.tensor([[-1e30, -40.0, -6.0, -1e-30, 0.0, 1e-30, 6.0, 40.0, 1e30]], device=device)
    x.requires_grad_()
    y = bias_gelu(x, torch.zeros(9, device=device))
    expected = exact_gelu(x.detach().cpu().double()).float()
    torch.testing.assert_close(y.cpu(), expected, rtol=1e-4, atol=1e-8)
    (grad,) = torch.autograd.grad(y.sum(), x)
    slopes = torch.tensor([[0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0]])
    torch.testing.assert_close(grad.cpu(), slopes, rtol=0, atol=1e-6)


def test_nan_stays_in_its_place(device: torch.device) -> None:
    x = torch.zeros(3, 20, device=device)
    x[1, 5] = torch.nan
    assert bias_gelu(x, torch.zeros(20, device=device)).isnan().sum() == 1


def test_values_of_any_strides(device: torch.device) -> None:
    wide = noise(6, 40).to(device)
    bias = noise(20, seed=1).to(device)
    dense = bias_gelu(wide[:, ::2].contiguous(), bias)
    assert torch.equal(bias_gelu(wide[:, ::2], bias), dense)
    assert torch.equal(bias_gelu(wide.T[::2].T, bias), dense)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["plain", "autocast"])
def test_with_its_projection(device: torch.device, autocast: torch.dtype | None) -> None:
    leaves = [t.to(device) for t in (noise(2, 3, 20), noise(50, 20, seed=1), noise(50, seed=2))]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        out = linear_gelu(*leaves, backend="triton")
    assert out.dtype == (autocast or torch.float32)
    exact = [leaf.detach().cpu().double().requires_grad_() for leaf in leaves]
    expected = linear_gelu_reference(*exact)
    # TF32 or bfloat16 rounds both factors of the product, and the result.
    bound = 2.0**-7 if autocast else 2.0**-9
    assert relative_norm(out.cpu(), expected) < bound
    ours = torch.autograd.grad(out.float().square().sum(), leaves)
    theirs = torch.autograd.grad(expected.square().sum(), exact)
    for mine, true in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert relative_norm(mine.cpu(), true) < 2 * bound


def test_empty_rows(device: torch.device) -> None:
    x, bias = (torch.zeros(shape, device=device, requires_grad=True) for shape in ((0, 5), (5,)))
    out = bias_gelu(x, bias)
    assert out.shape == (0, 5)
    assert (torch.autograd.grad(out.sum(), bias)[0] == 0).all()


def test_float64_is_refused_by_name(device: torch.device) -> None:
    zeros = torch.zeros(2, 2, dtype=torch.float64, device=device)
    with pytest.raises(RuntimeError, match="triton needs tokens in float32, bfloat16 or float16"):
        linear_gelu(zeros, zeros, zeros[0], backend="triton")


def test_operators_pass_opcheck(device: torch.device) -> None:
    x, bias = noise(2, 3, 20).to(device).requires_grad_(), noise(20).to(device).requires_grad_()
    bias_gelu(x, bias)
    ops = torch.ops.ast_fast
    torch.library.opcheck(ops.bias_gelu_fwd.default, (x, bias))
    args = (x.detach(), x.detach(), bias.detach())
    torch.library.opcheck(ops.bias_gelu_bwd.default, args)


@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["plain", "autocast"])
def test_the_operator_gives_the_same_bits(device, autocast: torch.dtype | None) -> None:
    leaves = [t.to(device) for t in (noise(2, 3, 20), noise(50, 20, seed=1), noise(50, seed=2))]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
        ours = linear_gelu(*leaves, backend="triton")
        theirs = bias_gelu(torch.nn.functional.linear(*leaves[:2]), leaves[2])
    assert torch.equal(ours, theirs)
    gradients = [torch.autograd.grad(out.square().sum(), leaves) for out in (ours, theirs)]
    for mine, true in zip(*gradients, strict=True):
        assert torch.equal(mine, true)


def test_a_second_gradient_is_refused(device: torch.device) -> None:
    leaves = [t.to(device).requires_grad_() for t in (noise(3, 20), noise(50, 20), noise(50))]
    out = linear_gelu(*leaves, backend="triton")
    gradients = torch.autograd.grad(out.sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError, match="the operator ast_fast::bias_gelu_bwd has no gradient"):
        gradients[2].sum().backward()
