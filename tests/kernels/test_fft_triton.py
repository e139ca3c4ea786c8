"""FFTs in registers, against torch's, in the interpreter and on a GPU."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl

from ast_fast_kernels._gpu.fft import complex_fft, exchange, real_fft, stack, unstack
from ast_fast_kernels.testing.budgets import relative_norm

ROWS = 64
BOUND = 4e-7  # float32's eps times the square root of five passes, and a little


@triton.jit
def _complex_kernel(
    re_ptr, im_ptr, out_re_ptr, out_im_ptr, POINTS: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.arange(0, ROWS)
    re, im = (), ()
    for n in tl.static_range(POINTS):
        re = re + (tl.load(re_ptr + row * POINTS + n),)  # noqa: RUF005
        im = im + (tl.load(im_ptr + row * POINTS + n),)  # noqa: RUF005
    re, im = complex_fft(re, im)
    for k in tl.static_range(POINTS):
        tl.store(out_re_ptr + row * POINTS + k, re[k])
        tl.store(out_im_ptr + row * POINTS + k, im[k])


@triton.jit
def _real_kernel(x_ptr, out_re_ptr, out_im_ptr, ROWS: tl.constexpr):
    row = tl.arange(0, ROWS)
    values = ()
    for n in tl.static_range(32):
        values = values + (tl.load(x_ptr + row * 32 + n),)  # noqa: RUF005
    re, im = real_fft(values)
    for k in tl.static_range(17):
        tl.store(out_re_ptr + row * 17 + k, re[k])
        tl.store(out_im_ptr + row * 17 + k, im[k])


@triton.jit
def _exchange_kernel(x_ptr, out_ptr, GROUPS: tl.constexpr):
    row = tl.arange(0, GROUPS * 16)
    values = ()
    for n in tl.static_range(16):
        values = values + (tl.load(x_ptr + row * 16 + n),)  # noqa: RUF005
    values = unstack(exchange(stack(values), GROUPS))
    for n in tl.static_range(16):
        tl.store(out_ptr + row * 16 + n, values[n])


def noise(*shape: int, device: torch.device, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)


@pytest.mark.parametrize("points", [2, 4, 8, 16, 32])
def test_complex(device: torch.device, points: int) -> None:
    re, im = (noise(ROWS, points, device=device, seed=seed) for seed in (0, 1))
    out = [torch.full_like(re, torch.nan) for _ in range(2)]
    _complex_kernel[1,](re, im, *out, POINTS=points, ROWS=ROWS)
    expected = torch.fft.fft(torch.complex(re.double(), im.double()))
    assert relative_norm(out[0], expected.real) < BOUND
    assert relative_norm(out[1], expected.imag) < BOUND


def test_twice_a_real_one(device: torch.device) -> None:
    x = noise(ROWS, 32, device=device)
    out = [torch.full((ROWS, 17), torch.nan, device=device) for _ in range(2)]
    _real_kernel[1,](x, *out, ROWS=ROWS)
    expected = 2 * torch.fft.rfft(x.double())
    assert relative_norm(out[0], expected.real) < BOUND
    assert relative_norm(out[1], expected.imag) < BOUND
    assert (out[1][:, [0, 16]] == 0).all()


def test_exchange_turns_every_group(device: torch.device) -> None:
    x = noise(ROWS, 16, device=device)
    out = torch.full_like(x, torch.nan)
    _exchange_kernel[1,](x, out, GROUPS=ROWS // 16)
    assert torch.equal(out.view(-1, 16, 16), x.view(-1, 16, 16).mT)
