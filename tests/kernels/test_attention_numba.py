from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ast_fast_kernels import _dispatch, attention, chosen_backend, use_backend
from ast_fast_kernels._cpu import simd
from ast_fast_kernels.attention import numba_cpu, numba_task
from ast_fast_kernels.attention.numba_cpu import attention_numba
from ast_fast_kernels.testing.budgets import relative_norm
from ast_fast_kernels.testing.processes import run_program

BOUND = 3e-6
"""Relative norm against float64. Sums of 600 terms have 1e-6 at most; measured: 8e-7."""

WIDENED, PAIRS = numba_cpu.WIDENED, numba_cpu.EMULATED
FORMATS = {  # dtype, how it is multiplied, errors of the result and of gradients in its eps
    # The result is rounded, by 0.21 eps in the norm, and backward reads it. In pairs so is one
    # factor of a product too.
    "bfloat16": (torch.bfloat16, WIDENED, 0.25, 0.4),
    "bfloat16-pairs": (torch.bfloat16, PAIRS, 0.36, 0.5),
    "float16": (torch.float16, WIDENED, 0.25, 0.4),
}

SHAPES = {  # (batch, tokens, heads, head_dim)
    "one-token": (2, 1, 2, 16),
    "fewer-than-lanes": (2, 3, 2, 16),
    "a-block-and-one": (2, 33, 2, 16),
    "prime-tokens": (2, 251, 3, 64),
    "ast-tiny": (3, 256, 4, 32),
    "half-the-patches": (3, 128, 4, 32),
    "long": (1, 600, 2, 64),
}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def half(request: pytest.FixtureRequest, monkeypatch) -> tuple[torch.dtype, list[float]]:
    """Return a format of two bytes and its errors; bfloat16 is multiplied as the case says."""
    dtype, products, *errors = request.param
    monkeypatch.setattr(numba_cpu, "bfloat16_products", lambda: products)
    return dtype, [error * torch.finfo(dtype).eps for error in errors]


def packed(shape: tuple[int, ...], *, seed: int = 0) -> Tensor:
    batch, tokens, *heads = shape
    return torch.randn((batch, tokens, 3, *heads), generator=torch.Generator().manual_seed(seed))


def by_definition(qkv: Tensor, scale: float, lengths: list[int] | None = None) -> Tensor:
    q, k, v = qkv.unbind(2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale
    if lengths is not None:
        beyond = torch.arange(qkv.shape[1]) >= torch.tensor(lengths)[:, None, None, None]
        scores = scores.masked_fill(beyond, -math.inf)
        v = v.masked_fill(beyond.squeeze(1).mT[..., None], 0.0)
    return torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)


def check(
    qkv: Tensor,
    *,
    lengths: list[int] | None = None,
    scale: float | None = None,
    cancels: bool = False,
    bounds: Sequence[float] = (BOUND, BOUND),
) -> None:
    """Hold the result and the gradients of queries, keys and values to float64's.

    Where those of queries and keys `cancel` to nothing but rounding, they are held to a tenth of
    the whole gradient's norm instead of their own.
    """
    leaf = qkv.clone().requires_grad_()
    exact = qkv.double().requires_grad_()
    expected = by_definition(exact, qkv.shape[-1] ** -0.5 if scale is None else scale, lengths)
    out = attention(leaf, key_lengths=lengths, scale=scale, backend="numba")
    assert out.is_contiguous()
    assert out.dtype == qkv.dtype
    assert relative_norm(out, expected) < bounds[0]
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(qkv.dtype)
    out.backward(weight)
    expected.backward(weight.double())
    assert leaf.grad is not None
    assert exact.grad is not None
    for part, name in enumerate(("queries", "keys", "values")):
        error = (leaf.grad[:, :, part].double() - exact.grad[:, :, part]).norm()
        norm = exact.grad[:, :, part].norm()
        if cancels and name != "values":
            norm = 0.1 * exact.grad.norm()
        assert error < bounds[1] * norm, name


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_result_and_gradients_are_those_of_float64(shape) -> None:
    check(packed(shape), cancels=shape[1] == 1)


@pytest.mark.parametrize("lanes", [4, 8, 16])
@pytest.mark.parametrize("head_dim", [16, 32, 64])
def test_every_vector_width_gives_them(lanes: int, head_dim: int, monkeypatch) -> None:
    monkeypatch.setattr(numba_cpu, "host_lanes", lambda: lanes)
    check(packed((2, 75, 2, head_dim)), lengths=[75, 21])


@pytest.mark.parametrize("tokens", [1, 7, 16, 33, 129, 330])
def test_half_precision_is_within_its_rounding(half, tokens: int) -> None:
    dtype, bounds = half
    if tokens < 16:  # a score's gradient is a difference of few rounded numbers
        bounds = [bounds[0], torch.finfo(dtype).eps]
    qkv = packed((2, tokens, 2, 16)).to(dtype)
    for lengths in (None, [tokens, tokens // 2 + 1]):
        check(qkv, lengths=lengths, cancels=tokens == 1, bounds=bounds)


@pytest.mark.parametrize(("head_dim", "lanes"), [(32, 8), (64, 16), (16, 16)])
def test_pairs_of_any_head_and_width(head_dim: int, lanes: int, monkeypatch) -> None:
    monkeypatch.setattr(numba_cpu, "bfloat16_products", lambda: PAIRS)
    monkeypatch.setattr(numba_cpu, "host_lanes", lambda: lanes)
    bounds = [error * 2**-7 for error in FORMATS["bfloat16-pairs"][2:]]
    check(packed((2, 75, 2, head_dim)).bfloat16(), lengths=[75, 22], bounds=bounds)


def test_half_precision_is_closer_than_sdpa(half) -> None:
    dtype, _ = half
    qkv = packed((1, 330, 2, 16)).to(dtype)
    weight = packed((1, 330, 2, 16), seed=1)[:, :, 0].to(dtype)
    exact = qkv.double().requires_grad_()
    expected = by_definition(exact, 0.25)
    expected.backward(weight.double())

    def errors(backend: str) -> list[float]:
        leaf = qkv.clone().requires_grad_()
        out = attention(leaf, backend=backend)
        out.backward(weight)
        return [relative_norm(out, expected), relative_norm(leaf.grad, exact.grad)]

    for ours, theirs in zip(errors("numba"), errors("sdpa"), strict=True):
        assert ours < 0.9 * theirs


def test_half_precision_is_read_as_it_lies(half) -> None:
    dtype, _ = half
    wide = packed((4, 34, 4, 17)).to(dtype)
    grads = packed((4, 34, 4, 17), seed=1)[:, :, 0].to(dtype)
    for view, grad in (
        (wide[..., 1:], grads[..., 1:]),
        (wide[:, ::2, :, :2, :16], grads[:, ::2, 2:, :16]),
        (wide[:, :, :, 1:3, :16], torch.ones((), dtype=dtype).expand(4, 34, 2, 16)),
    ):
        results = []
        for given, upstream in ((view, grad), (view.contiguous(), grad.contiguous())):
            leaf = given.detach().requires_grad_()
            out = attention(leaf, backend="numba")
            results.append((out, *torch.autograd.grad(out, leaf, upstream)))
        assert all(map(torch.equal, *results))


def test_half_precision_ignores_what_lies_beyond_the_keys(half) -> None:
    dtype, _ = half
    lengths = [11, 1, 30]
    clean = packed((3, 33, 2, 16)).to(dtype)
    dirty = clean.clone()
    for clip, length in enumerate(lengths):
        dirty[clip, length:, 1:] = math.nan
    results = []
    for qkv in (clean, dirty):
        leaf = qkv.requires_grad_()
        out = attention(leaf, key_lengths=lengths, backend="numba")
        results.append((out, *torch.autograd.grad(out.float().sum(), leaf)))
    assert all(map(torch.equal, *results))
    for clip, length in enumerate(lengths):
        assert not results[1][1][clip, length:, 1:].any()


def test_half_precision_keeps_nan_in_its_clip_and_head(half) -> None:
    dtype, _ = half
    qkv = packed((2, 33, 2, 16)).to(dtype)
    clean = qkv.clone().requires_grad_()
    qkv[1, 5, :, 1] = math.nan
    results = []
    for leaf in (qkv.requires_grad_(), clean):
        out = attention(leaf, backend="numba")
        results.append((out, *torch.autograd.grad(out.float().sum(), leaf)))
    (out, grad), (other, other_grad) = results
    assert out[1, :, 1].isnan().all()
    assert grad[1, :, :, 1].isnan().all()
    assert torch.equal(out[0], other[0])
    assert torch.equal(out[1, :, 0], other[1, :, 0])
    assert torch.equal(grad[0], other_grad[0])
    assert torch.equal(grad[1, :, :, 0], other_grad[1, :, :, 0])


@pytest.mark.parametrize("scale", [1.0, -1e7])
def test_large_scores_pick_one_key_in_half_precision(half, scale: float) -> None:
    """Whatever the rounding of the scores, which are up to 1e11, the largest has a weight of 1."""
    dtype, (bound, _) = half
    qkv = torch.zeros(1, 40, 3, 1, 16)
    qkv[:, :, :2, :, 0] = torch.linspace(-100, 100, 40)[None, :, None, None]
    qkv[:, :, 2] = packed((1, 40, 1, 16))[:, :, 2]
    qkv = qkv.to(dtype).requires_grad_()
    out = attention(qkv, scale=scale, backend="numba")
    assert relative_norm(out, by_definition(qkv.detach().double(), scale)) < bound
    (gradient,) = torch.autograd.grad(out.float().sum(), qkv)
    assert gradient.isfinite().all()


def test_no_keys_give_zeros_in_half_precision(half) -> None:
    dtype, _ = half
    qkv = packed((2, 33, 2, 16)).to(dtype).requires_grad_()
    out = attention_numba(qkv, torch.tensor([0, 7], dtype=torch.int32), 0.25)
    assert not out[0].any()
    (gradient,) = torch.autograd.grad(out.float().sum(), qkv)
    assert not gradient[0].any()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("lengths", [[251, 251], [250, 1], [17, 128]], ids=str)
def test_keys_beyond_a_clip_s_length_are_not_seen(lengths: list[int]) -> None:
    check(packed((2, 251, 2, 32)), lengths=lengths)


def test_one_key_of_many_queries() -> None:
    check(packed((1, 40, 2, 32)), lengths=[1], cancels=True)


def test_no_keys_give_zeros() -> None:
    """As compiled code may ask for, which looks at no length."""
    qkv = packed((2, 40, 2, 16)).requires_grad_()
    lengths = torch.tensor([0, 7], dtype=torch.int32)
    out = attention_numba(qkv, lengths, 0.25)
    assert not out[0].any()
    assert torch.equal(out[1:], attention(qkv[1:], key_lengths=[7], backend="numba"))
    (gradient,) = torch.autograd.grad(out, qkv, torch.ones_like(out))
    assert not gradient[0].any()
    assert gradient.isfinite().all()


def test_what_lies_beyond_the_keys_may_be_anything() -> None:
    lengths = [11, 1, 30]
    clean = packed((3, 33, 2, 16))
    dirty = clean.clone()
    for clip, length in enumerate(lengths):
        dirty[clip, length:, 1:] = math.nan
    dirty.requires_grad_()
    out = attention(dirty, key_lengths=lengths, backend="numba")
    assert torch.equal(out, attention(clean, key_lengths=lengths, backend="numba"))
    out.sum().backward()
    assert dirty.grad is not None
    assert dirty.grad.isfinite().all()
    for clip, length in enumerate(lengths):
        assert not dirty.grad[clip, length:, 1:].any()


@pytest.mark.parametrize("scale", [0.7, -0.3, 0.0])
def test_any_scale(scale: float) -> None:
    check(packed((1, 40, 2, 16)), scale=scale, cancels=scale == 0)


def test_equal_scores_however_large() -> None:
    qkv = packed((1, 50, 1, 16))
    qkv[:, :, :2] = 25.0  # every score is 16 * 625
    out = attention(qkv, scale=1.0, backend="numba")
    mean = qkv[:, :, 2].double().mean(dim=1, keepdim=True).expand(-1, 50, -1, -1)
    assert relative_norm(out, mean) < BOUND
    qkv.requires_grad_()
    weight = packed((1, 50, 1, 16), seed=1)[:, :, 0]
    (gradient,) = torch.autograd.grad(attention(qkv, scale=1.0, backend="numba"), qkv, weight)
    expected = weight.double().mean(dim=1, keepdim=True).expand(-1, 50, -1, -1)
    assert relative_norm(gradient[:, :, 2], expected) < BOUND


def test_scores_of_ten_thousand_pick_one_key() -> None:
    tokens = 40
    qkv = packed((1, tokens, 1, 16))
    qkv[:, :, :2] = 0.0
    ramp = torch.linspace(-100, 100, tokens)[None, :, None]
    qkv[:, :, 0, :, 0] = qkv[:, :, 1, :, 0] = ramp  # products from -1e4 to 1e4
    exact = qkv.double().requires_grad_()
    weight = packed((1, tokens, 1, 16), seed=1)[:, :, 0]
    expected = by_definition(exact, 1.0)
    expected.backward(weight.double())
    assert exact.grad is not None

    def errors(backend: str) -> list[float]:
        leaf = qkv.clone().requires_grad_()
        out = attention(leaf, scale=1.0, backend=backend)
        (gradient,) = torch.autograd.grad(out, leaf, weight)
        wrong = torch.linalg.vector_norm(gradient.double() - exact.grad, dim=(0, 1, 3, 4))
        wrong = wrong / exact.grad.norm()
        return [relative_norm(out, expected), *wrong.tolist()]

    ours = errors("numba")
    assert ours[0] < BOUND
    assert ours[3] < BOUND
    # Gradients of queries and keys are differences of equal numbers here, whoever computes them.
    for mine, theirs in zip(ours, errors("reference"), strict=True):
        assert mine < 2 * theirs + BOUND


@pytest.mark.parametrize("part", [0, 1, 2], ids=["queries", "keys", "values"])
def test_rows_of_zeros(part: int) -> None:
    qkv = packed((1, 40, 2, 16))
    qkv[:, 3:20, part] = 0.0
    check(qkv)


@pytest.mark.parametrize("part", [0, 1], ids=["queries", "keys"])
def test_denormal_factors_of_scores(part: int) -> None:
    """Products of denormal numbers with large ones are numbers like others."""
    qkv = packed((1, 40, 1, 16))
    qkv[:, :, part] *= 1e-39
    qkv[:, :, 1 - part] *= 1e37
    check(qkv, cancels=True)


def test_denormal_values_and_gradients() -> None:
    qkv = packed((1, 40, 1, 16))
    qkv[:, :, 2] *= 1e-38
    leaf, exact = qkv.clone().requires_grad_(), qkv.double().requires_grad_()
    out, expected = attention(leaf, backend="numba"), by_definition(exact, 0.25)
    assert relative_norm(out, expected) < BOUND
    assert 0 < float(out.detach().abs().median()) < 2**-126
    weight = 1e-38 * packed((1, 40, 1, 16), seed=1)[:, :, 0]
    (gradient,) = torch.autograd.grad(out, leaf, weight)
    (by_float64,) = torch.autograd.grad(expected, exact, weight.double())
    assert relative_norm(gradient[:, :, 2], by_float64[:, :, 2]) < BOUND


def test_a_key_out_of_sight_adds_nothing_however_large_its_value() -> None:
    qkv = torch.zeros(1, 2, 3, 1, 16)
    qkv[0, :, 0, 0, 0], qkv[0, :, 1, 0, 0] = 1.0, torch.tensor([0.0, 1e4])
    qkv[0, :, 2] = torch.tensor([1e35, 1.0])[:, None, None]
    assert torch.equal(attention(qkv, scale=1.0, backend="numba"), torch.ones(1, 2, 1, 16))


def test_nan_stays_in_its_clip_and_head() -> None:
    qkv = packed((3, 40, 2, 16))
    clean = qkv.clone().requires_grad_()
    qkv[1, 5, :, 1] = math.nan
    qkv.requires_grad_()
    outs = [attention(tensor, backend="numba") for tensor in (qkv, clean)]
    weight = packed((3, 40, 2, 16), seed=1)[:, :, 0]
    grads = [
        torch.autograd.grad(out, leaf, weight)[0]
        for out, leaf in zip(outs, (qkv, clean), strict=True)
    ]
    hit = torch.zeros(3, 2, dtype=torch.bool)
    hit[1, 1] = True
    assert outs[0][1, :, 1].isnan().all()
    assert grads[0][1, :, :, 1].isnan().all()
    for mine, other in (outs, *zip(*(grad.unbind(2) for grad in grads), strict=True)):
        assert torch.equal(mine.transpose(1, 2)[~hit], other.transpose(1, 2)[~hit])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_torch_s_default_dtype_changes_nothing(dtype: torch.dtype) -> None:
    qkv = packed((2, 40, 2, 16)).requires_grad_()
    expected = attention(qkv, backend="numba")
    (gradient,) = torch.autograd.grad(expected.sum(), qkv)
    torch.set_default_dtype(dtype)
    try:
        out = attention(qkv, backend="numba")
        (other,) = torch.autograd.grad(out.sum(), qkv)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(out, expected)
    assert torch.equal(other, gradient)


def test_strided_projections_are_read_as_they_lie() -> None:
    wide = packed((4, 34, 4, 32))
    for view in (wide[..., ::2], wide[:, ::2], wide[::2], wide[:, :, :, 1:3], wide.transpose(0, 1)):
        dense = attention(view.contiguous(), backend="numba")
        assert torch.equal(attention(view, backend="numba"), dense)
        operator = torch.ops.ast_fast.attention_numba_fwd
        assert torch.equal(operator(view, None, view.shape[-1] ** -0.5)[0], dense)


def test_strided_gradients_are_read_as_they_lie() -> None:
    qkv = packed((3, 34, 2, 16)).requires_grad_()
    wide = packed((3, 68, 4, 32), seed=1)[:, :, 0]
    for grad in (
        wide[:, ::2, :2, ::2],
        wide[:, ::2, ::2, :16],
        wide[:1, :34, :2, :16].expand(3, -1, -1, -1),
        torch.ones(()).expand(3, 34, 2, 16),
    ):
        out = attention(qkv, backend="numba")
        (gradient,) = torch.autograd.grad(out, qkv, grad, retain_graph=True)
        (dense,) = torch.autograd.grad(out, qkv, grad.contiguous())
        assert torch.equal(gradient, dense)


def test_empty_batch() -> None:
    qkv = torch.empty(0, 3, 3, 2, 16, requires_grad=True)
    out = attention(qkv, backend="numba")
    assert out.shape == (0, 3, 2, 16)
    assert torch.autograd.grad(out.sum(), qkv)[0].shape == qkv.shape


PARTED = (3, 700, 3, 16)
"""Tokens of three parts each, of which a clip may lack some."""


@pytest.mark.parametrize(
    ("shape", "lengths", "dtype", "products"),
    [
        ((5, 70, 3, 32), None, torch.float32, WIDENED),
        (PARTED, None, torch.float32, WIDENED),
        (PARTED, [700, 200, 300], torch.float32, WIDENED),
        (PARTED, [700, 200, 301], torch.bfloat16, WIDENED),
        (PARTED, [700, 200, 301], torch.bfloat16, PAIRS),
    ],
    ids=["short", "long", "long-lengths", "bfloat16", "bfloat16-pairs"],
)
def test_the_same_bits_for_any_threads_and_in_any_batch(
    shape, lengths, dtype, products, monkeypatch
) -> None:
    monkeypatch.setattr(numba_cpu, "bfloat16_products", lambda: products)
    qkv = packed(shape).to(dtype).requires_grad_()
    weight = packed(shape, seed=1)[:, :, 0].to(dtype)

    def run(tensor: Tensor, upstream: Tensor, seen: list[int] | None) -> tuple[Tensor, Tensor]:
        out = attention(tensor, key_lengths=seen, backend="numba")
        return out.detach(), torch.autograd.grad(out, tensor, upstream)[0]

    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            results.append(run(qkv, weight, lengths))
        one = qkv.detach()[2:3].clone().requires_grad_()
        alone = run(one, weight[2:3], None if lengths is None else lengths[2:3])
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
    assert all(torch.equal(a[2:3], b) for a, b in zip(results[0], alone, strict=True))


@pytest.mark.parametrize("lengths", [None, [700, 200, 301]], ids=["all", "lengths"])
def test_heads_in_parts_are_those_of_float64(lengths: list[int] | None) -> None:
    check(packed(PARTED), lengths=lengths)


@pytest.mark.parametrize(
    ("tokens", "parts", "size"),
    [(1, 1, 64), (320, 1, 320), (321, 2, 192), (600, 2, 320), (1212, 4, 320), (9000, 8, 1152)],
)
def test_parts_follow_from_the_tokens(tokens: int, parts: int, size: int) -> None:
    assert numba_task.parts_of(tokens) == (parts, size)


def test_gradcheck() -> None:
    def run(qkv: Tensor) -> Tensor:
        return attention(qkv.float(), key_lengths=[5, 3], backend="numba").double()

    qkv = packed((2, 5, 1, 16)).double().requires_grad_()
    assert torch.autograd.gradcheck(run, qkv, eps=1e-2, atol=2e-4, rtol=2e-3, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_pass_opcheck(dtype: torch.dtype) -> None:
    qkv = packed((2, 17, 2, 16)).to(dtype).requires_grad_()
    attention(qkv, backend="numba")  # registers them
    ops = torch.ops.ast_fast
    for lengths in (None, torch.tensor([17, 3], dtype=torch.int32)):
        torch.library.opcheck(ops.attention_numba_fwd.default, (qkv, lengths, 0.25))
        out, stats = ops.attention_numba_fwd(qkv.detach(), lengths, 0.25)
        args = (torch.ones_like(out), qkv.detach(), out, stats, lengths, 0.25)
        torch.library.opcheck(ops.attention_numba_bwd.default, args)


def test_a_second_gradient_is_refused() -> None:
    qkv = packed((1, 5, 1, 16)).requires_grad_()
    out = attention(qkv, backend="numba")
    (gradient,) = torch.autograd.grad(out.sum(), qkv, create_graph=True)
    message = "the operator ast_fast::attention_numba_bwd has no gradient"
    with pytest.raises(RuntimeError, match=message):
        gradient.sum().backward()


@pytest.mark.parametrize("compiler", ["eager", "aot_eager", "inductor"])
def test_compiled_code_gives_the_same_bits(compiler: str) -> None:
    qkv = packed((2, 70, 2, 32)).requires_grad_()
    lengths = torch.tensor([70, 7])
    torch.compiler.reset()
    compiled = torch.compile(attention, fullgraph=True, backend=compiler)
    outs = [run(qkv, key_lengths=lengths) for run in (attention, compiled)]
    assert torch.equal(*outs)
    assert torch.equal(*(torch.autograd.grad(out.sum(), qkv)[0] for out in outs))


def test_an_exported_program_holds_one_operator() -> None:
    class Module(torch.nn.Module):
        def forward(self, qkv: Tensor) -> Tensor:
            return attention(qkv)

    qkv = packed((2, 33, 2, 16))
    program = torch.export.export(Module(), (qkv,))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert "ast_fast.attention_numba_fwd.default" in calls
    assert torch.equal(program.module()(qkv), attention(qkv))


def test_a_saved_program_runs_in_another_process(tmp_path: Path) -> None:
    class Module(torch.nn.Module):
        def forward(self, qkv: Tensor) -> Tensor:
            return attention(qkv, backend="numba")

    qkv = packed((2, 33, 2, 16))
    tokens = torch.export.Dim("tokens", min=2, max=64)
    program = torch.export.export(Module(), (qkv,), dynamic_shapes={"qkv": {1: tokens}})
    torch.export.save(program, tmp_path / "program.pt2")
    torch.save({"qkv": qkv[:, :20], "out": attention(qkv[:, :20], backend="numba")}, tmp_path / "t")
    run_program(
        """
import sys, torch
import ast_fast_kernels.attention.numba_cpu  # its operators
tensors = torch.load(sys.argv[2])
program = torch.export.load(sys.argv[1]).module()
assert torch.equal(program(tensors["qkv"]), tensors["out"])
""",
        str(tmp_path / "program.pt2"),
        str(tmp_path / "t"),
    )


def test_autocast_s_bfloat16_is_taken(monkeypatch) -> None:
    monkeypatch.setattr(simd, "has_bfloat16_matrices", lambda: False)
    qkv = packed((1, 33, 2, 16)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert chosen_backend("attention", qkv) == "numba"
        out = attention(qkv)
    assert torch.equal(out, attention(qkv, backend="numba"))


def test_autocast_leaves_float32_alone() -> None:
    qkv = packed((1, 17, 2, 16)).requires_grad_()
    expected = attention(qkv, backend="numba")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = attention(qkv, backend="numba")
        (gradient,) = torch.autograd.grad(out.sum(), qkv)
    assert torch.equal(out, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected.sum(), qkv)[0])


@pytest.mark.parametrize(
    ("qkv", "message"),
    [
        (torch.zeros(1, 2, 3, 1, 16).double(), "or float16 on the CPU, got float64 on cpu"),
        (torch.zeros(1, 2, 3, 1, 16, device="meta"), "or float16 on the CPU, got float32 on meta"),
        (torch.zeros(1, 2, 3, 1, 24), "a head_dim of 16, 32, 64, got 24"),
    ],
    ids=["float64", "meta", "head-dim"],
)
def test_what_it_cannot_run_is_refused_by_name_and_left_to_sdpa(qkv: Tensor, message: str) -> None:
    with pytest.raises(RuntimeError, match=re.escape(message) + '.*; use backend="sdpa"'):
        attention(qkv, backend="numba")
    assert attention(qkv).shape == (1, 2, 1, qkv.shape[-1])


def test_float16_needs_a_cpu_that_converts_it(monkeypatch) -> None:
    monkeypatch.setattr(simd, "has_float16", lambda: False)
    monkeypatch.setattr(simd, "has_bfloat16_matrices", lambda: False)
    qkv = torch.zeros(1, 2, 3, 1, 16)
    with pytest.raises(RuntimeError, match=r"numba needs a CPU that converts float16 \(F16C"):
        attention(qkv.half(), backend="numba")
    assert attention(qkv.half()).dtype == torch.float16
    assert chosen_backend("attention", qkv.half()) == "sdpa"
    assert chosen_backend("attention", qkv.bfloat16()) == "numba"


def test_auto_leaves_bfloat16_to_matrix_units(monkeypatch, caplog) -> None:
    monkeypatch.setattr(simd, "has_bfloat16_matrices", lambda: True)
    _dispatch._log.cache_clear()
    qkv = packed((1, 33, 2, 16))
    with caplog.at_level(logging.INFO, logger="ast_fast_kernels"):
        assert chosen_backend("attention", qkv.bfloat16()) == "sdpa"
    assert "matrix units (AMX)" in caplog.text
    assert chosen_backend("attention", qkv.bfloat16(), backend="numba") == "numba"
    assert chosen_backend("attention", qkv) == chosen_backend("attention", qkv.half()) == "numba"


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's own, of vmap
def test_torch_s_transforms_are_left_to_sdpa_in_compiled_code() -> None:
    qkv = packed((3, 5, 1, 16))

    def gradients(qkv: Tensor) -> Tensor:
        def loss(one: Tensor) -> Tensor:
            return attention(one.unsqueeze(0)).square().sum()

        return torch.func.vmap(torch.func.grad(loss))(qkv)

    def derivative(qkv: Tensor) -> Tensor:
        out: Tensor = torch.func.jvp(attention, (qkv,), (qkv,))[1]
        return out

    torch.compiler.reset()
    (expected,) = torch.autograd.grad(attention(qkv.requires_grad_()).square().sum(), qkv)
    compiled = torch.compile(gradients, backend="eager")
    torch.testing.assert_close(compiled(qkv.detach()), expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(NotImplementedError, match="scaled_dot_product"):
        torch.compile(derivative, backend="eager")(qkv.detach())


def test_torch_s_transforms_are_left_to_sdpa() -> None:
    qkv = packed((2, 5, 1, 16))

    def apart(one: Tensor) -> Tensor:
        return attention(one.unsqueeze(0)).squeeze(0)

    out = torch.func.vmap(apart)(qkv)
    torch.testing.assert_close(out, attention(qkv, backend="reference"))
    with pytest.raises(RuntimeError, match=r"numba cannot run under a transform of torch\.func"):
        torch.func.vmap(lambda one: attention(one.unsqueeze(0), backend="numba"))(qkv)


def test_auto_takes_it_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    _dispatch._log.cache_clear()
    qkv = packed((2, 33, 2, 16))
    with caplog.at_level(logging.INFO, logger="ast_fast_kernels"):
        outs = [attention(qkv) for _ in range(3)]
    said = [record.message for record in caplog.records if "auto chose" in record.message]
    assert said == ["attention: auto chose backend 'numba'"]
    with use_backend(attention="numba"):
        assert torch.equal(outs[0], attention(qkv))


CALL = """
import sys, torch
from ast_fast_kernels import attention
from ast_fast_kernels.testing.budgets import relative_norm
direction, *head_dims = sys.argv[1:]
for head_dim in map(int, head_dims):
    qkv = torch.randn(1, 40, 3, 2, head_dim, generator=torch.Generator().manual_seed(0))
    qkv.requires_grad_(direction == "both")
    results = []
    for backend, given in (("numba", qkv), ("reference", qkv.detach().double())):
        if direction == "both":
            given.requires_grad_()
        out = attention(given, backend=backend)
        results.append(out.detach())
        if direction == "both":
            results.append(torch.autograd.grad(out.square().sum(), given)[0])
    half = len(results) // 2
    for ours, exact in zip(results[:half], results[half:]):
        assert relative_norm(ours, exact) < 3e-6, head_dim
"""


def compilations(cache: Path, *arguments: str) -> int:
    """Run attention against the reference in a process of its own; count what it compiled."""
    program = (
        "import logging, sys\n"
        'logging.basicConfig(stream=sys.stdout, format="%(message)s")\n'
        'logging.getLogger("ast_fast_kernels.compile").setLevel(logging.INFO)\n'
    )
    printed = run_program(program + CALL, *arguments, NUMBA_CACHE_DIR=str(cache))
    return printed.count("compiling the attention")


def test_kernels_of_different_processes_meet_in_a_third(tmp_path: Path) -> None:
    """Each is on the disk then, and none is taken for another."""
    assert compilations(tmp_path, "forward", "32") == 1
    assert compilations(tmp_path, "both", "32") == 1  # backward; 32 is there
    assert compilations(tmp_path, "both", "16") == 2
    assert compilations(tmp_path, "both", "16", "32") == 0
    assert compilations(tmp_path, "both", "32", "16") == 0
