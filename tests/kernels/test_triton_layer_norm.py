"""Triton's residual addition and layer normalisation against float64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ast_fast_kernels import add_layer_norm
from ast_fast_kernels._torch import checks
from ast_fast_kernels.layer_norm.reference import add_layer_norm_reference
from ast_fast_kernels.testing.budgets import relative_norm

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
# One rounding of the sum and one of each result, 0.3 eps in the norm each; gradients of weight and
# bias are sums in float32 of values rounded once. float32: eps times what its sums add.
BOUND = {F32: 2e-6, BF16: 2.0**-8, F16: 2.0**-11}

pairs = pytest.mark.parametrize(
    ("tokens_dtype", "update_dtype"),
    [(F32, F32), (F32, BF16), (F32, None), (BF16, BF16), (F16, F16), (F16, None)],
    ids=lambda dtype: str(dtype).removeprefix("torch."),
)


def tensors(
    shape: tuple[int, ...],
    tokens_dtype: torch.dtype,
    update_dtype: torch.dtype | None,
    device: torch.device,
) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    made = [
        3.0 + torch.randn(shape, generator=generator),
        torch.randn(shape, generator=generator),
        torch.randn(shape[-1], generator=generator),
        torch.randn(shape[-1], generator=generator),
    ]
    dtypes = (tokens_dtype, update_dtype, F32, F32)
    return [
        None if dtype is None else tensor.to(device, dtype).requires_grad_()
        for tensor, dtype in zip(made, dtypes, strict=True)
    ]


def check(args: list[Tensor | None], *, uses_sum: bool = True, eps: float = 1e-5) -> None:
    exact = [None if x is None else x.detach().cpu().double().requires_grad_() for x in args]
    residual, normed = add_layer_norm(*args, eps=eps, backend="triton")
    expected = add_layer_norm_reference(*exact, eps)
    bound = BOUND[args[0].dtype]
    assert residual.dtype == normed.dtype == args[0].dtype
    assert relative_norm(residual.cpu(), expected[0]) <= bound
    assert relative_norm(normed.cpu(), expected[1]) <= 2 * bound
    generator = torch.Generator().manual_seed(1)
    grads = [torch.randn(normed.shape, generator=generator).to(normed.dtype) for _ in range(2)]
    results = (residual, normed) if uses_sum else (normed,)
    grads = grads if uses_sum else grads[1:]
    leaves = [x for x in args if x is not None]
    ours = torch.autograd.grad(results, leaves, [grad.to(normed.device) for grad in grads])
    theirs = torch.autograd.grad(
        expected if uses_sum else expected[1:],
        [x for x in exact if x is not None],
        [grad.double() for grad in grads],
    )
    for leaf, mine, true in zip(leaves, ours, theirs, strict=True):
        assert mine.dtype == leaf.dtype
        assert relative_norm(mine.cpu(), true) <= 4 * max(bound, BOUND[leaf.dtype])


@pairs
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (2, 65, 48), (130, 192), (7, 1000)], ids=str)
def test_any_shape(device: torch.device, shape, tokens_dtype, update_dtype) -> None:
    if shape[-1] == 1:
        args = tensors(shape, tokens_dtype, update_dtype, device)
        residual, normed = add_layer_norm(*args, backend="triton")
        assert torch.equal(normed, args[3].to(normed.dtype).expand_as(normed))  # nothing varies
        assert residual.shape == shape
    else:
        check(tensors(shape, tokens_dtype, update_dtype, device))


@pairs
def test_where_only_the_normalisation_is_used(device, tokens_dtype, update_dtype) -> None:
    check(tensors((5, 70), tokens_dtype, update_dtype, device), uses_sum=False)


def test_where_only_the_sum_is_used(device: torch.device) -> None:
    tokens, update, weight, bias = tensors((5, 70), F32, BF16, device)
    residual, _ = add_layer_norm(tokens, update, weight, bias, backend="triton")
    grad = torch.ones_like(residual)
    ours = torch.autograd.grad(residual, (tokens, update), grad)
    assert torch.equal(ours[0], grad)
    assert torch.equal(ours[1], grad.bfloat16())


def test_own_epsilon(device: torch.device) -> None:
    check(tensors((5, 70), F32, F32, device), eps=0.5)


def test_no_epsilon(device: torch.device) -> None:
    check(tensors((5, 70), F32, F32, device), eps=0.0)  # rows beyond the last have no deviation


def test_equal_values_give_the_bias(device: torch.device) -> None:
    tokens, _, weight, bias = tensors((3, 50), F32, None, device)
    tokens = torch.full_like(tokens, 7.0)
    normed = add_layer_norm(tokens, None, weight, bias, backend="triton")[1]
    assert torch.equal(normed, bias.expand_as(normed))


def test_without_update_the_tokens_are_the_sum(device: torch.device) -> None:
    tokens, _, weight, bias = tensors((3, 50), F32, None, device)
    assert add_layer_norm(tokens, None, weight, bias, backend="triton")[0] is tokens


def test_rows_are_read_where_they_lie(device: torch.device) -> None:
    tokens, update, weight, bias = tensors((4, 6, 48), F32, F32, device)
    for view in (lambda x: x[:, :1], lambda x: x.transpose(0, 1), lambda x: x[..., ::2]):
        width = view(tokens).shape[-1]
        some = (view(tokens), view(update), weight[:width], bias[:width])
        results = add_layer_norm(*some, backend="triton")
        dense = add_layer_norm(*(x.contiguous() for x in some), backend="triton")
        for mine, true in zip(results, dense, strict=True):
            assert torch.equal(mine, true)
        leaves = (tokens, update, weight, bias)
        ours = torch.autograd.grad([r.square().sum() for r in results], leaves)
        theirs = torch.autograd.grad([r.square().sum() for r in dense], leaves)
        for mine, true in zip(ours, theirs, strict=True):
            torch.testing.assert_close(mine, true)


def test_nan_stays_in_its_row(device: torch.device) -> None:
    tokens, _, weight, bias = tensors((4, 50), F32, None, device)
    tokens = tokens.detach().clone()
    tokens[1, 3] = torch.nan
    normed = add_layer_norm(tokens, None, weight, bias, backend="triton")[1]
    assert normed[1].isnan().all()
    assert normed[[0, 2, 3]].isfinite().all()


def test_autocast_normalises_into_its_own_dtype(device: torch.device) -> None:
    args = tensors((5, 70), F32, BF16, device)
    with torch.autocast(device.type, dtype=BF16):
        residual, normed = add_layer_norm(*args, backend="triton")
    assert (residual.dtype, normed.dtype) == (F32, BF16)
    plain = add_layer_norm(*args, backend="triton")
    assert torch.equal(normed, plain[1].bfloat16())
    leaves = [x for x in args if x is not None]
    grads = torch.autograd.grad((residual.sum(), normed.sum()), leaves)
    assert [grad.dtype for grad in grads] == [F32, BF16, F32, F32]


def test_empty_rows(device: torch.device) -> None:
    args = tensors((0, 50), F32, F32, device)
    residual, normed = add_layer_norm(*args, backend="triton")
    assert residual.shape == normed.shape == (0, 50)
    grads = torch.autograd.grad((residual.sum(), normed.sum()), args)
    assert all((grad == 0).all() for grad in grads)


def test_what_it_cannot_run_is_refused_by_name(device: torch.device) -> None:
    def run(tokens: Tensor, update: Tensor | None = None) -> None:
        weight = torch.ones(tokens.shape[-1], device=device)
        add_layer_norm(tokens, update, weight, weight, backend="triton")

    zeros = torch.zeros(2, 4, device=device)
    with pytest.raises(RuntimeError, match="triton needs tokens in float32, bfloat16 or float16"):
        run(zeros.double())
    with pytest.raises(
        RuntimeError, match="triton needs tokens \\+ update to have the tokens' dtype"
    ):
        run(zeros.bfloat16(), zeros)
    with pytest.raises(RuntimeError, match="triton needs a width of at most 8192, got 8193"):
        run(torch.zeros(1, 8193, device=device))


def test_operators_pass_opcheck(device: torch.device) -> None:
    tokens, update, weight, bias = tensors((2, 3, 20), F32, BF16, device)
    ops = torch.ops.ast_fast
    add_layer_norm(tokens, update, weight, bias, backend="triton")  # registers them
    for given in (None, update):
        args = (tokens, given, weight, bias, 1e-5, F32)
        torch.library.opcheck(ops.layer_norm_fwd.default, args)
        residual, normed = ops.layer_norm_fwd(
            *(x.detach() if isinstance(x, Tensor) else x for x in args)
        )
        stored = tokens.detach() if given is None else residual
        kind = None if given is None else BF16
        for dresidual in (None, normed):
            args = (dresidual, normed, stored, weight.detach(), 1e-5, kind)
            torch.library.opcheck(ops.layer_norm_bwd.default, args)


def test_compiled_code_gives_the_same_bits(device: torch.device) -> None:
    args = tensors((5, 70), F32, BF16, device)
    torch.compiler.reset()
    compiled = torch.compile(add_layer_norm, fullgraph=True, backend="aot_eager")
    results = [run(*args, backend="triton") for run in (add_layer_norm, compiled)]
    for mine, true in zip(*results, strict=True):
        assert torch.equal(mine, true)
    grads = [torch.autograd.grad([r.sum() for r in result], args) for result in results]
    for mine, true in zip(*grads, strict=True):
        assert torch.equal(mine, true)


@pytest.mark.parametrize("pre_dispatch", [False, True], ids=["dispatched", "before dispatch"])
def test_make_fx_records_the_operator(device: torch.device, pre_dispatch: bool) -> None:
    args = [x.detach() for x in tensors((3, 20), F32, F32, device)]
    run = partial(add_layer_norm, backend="triton")
    graph = make_fx(run, pre_dispatch=pre_dispatch)(*args)
    assert torch.ops.ast_fast.layer_norm_fwd.default in [node.target for node in graph.graph.nodes]
    for mine, true in zip(graph(*args), run(*args), strict=True):
        assert torch.equal(mine, true)


def test_a_second_gradient_is_refused(device: torch.device) -> None:
    args = tensors((3, 20), F32, F32, device)
    normed = add_layer_norm(*args, backend="triton")[1]
    gradients = torch.autograd.grad(normed.sum(), args, create_graph=True)
    with pytest.raises(RuntimeError, match="the operator ast_fast::layer_norm_bwd has no gradient"):
        gradients[0].sum().backward()


def test_gradients_may_come_in_a_batch(device: torch.device) -> None:
    args = tensors((3, 20), F32, F32, device)
    normed = add_layer_norm(*args, backend="triton")[1]
    grads = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(2)).to(device)
    batched = torch.autograd.grad(normed, args, grads, is_grads_batched=True, retain_graph=True)
    for place, grad in enumerate(grads):
        alone = torch.autograd.grad(normed, args, grad, retain_graph=True)
        for ours, theirs in zip(batched, alone, strict=True):
            assert torch.equal(ours[place], theirs)


def test_what_a_hook_saves_in_another_dtype_is_read_in_it(device: torch.device) -> None:
    args = tensors((3, 20), BF16, BF16, device)
    with torch.autograd.graph.saved_tensors_hooks(torch.Tensor.double, torch.Tensor.float):
        hooked = add_layer_norm(*args, backend="triton")[1]
    plain = add_layer_norm(*args, backend="triton")[1]
    ours, theirs = (torch.autograd.grad(normed.sum(), args) for normed in (hooked, plain))
    for mine, true in zip(ours, theirs, strict=True):
        assert mine.dtype == true.dtype
        torch.testing.assert_close(mine, true)


def test_tensors_of_no_device_go_by_the_operator(device: torch.device) -> None:
    """They say -1 for their device, as the CPU's do, which the interpreter reads."""
    args = [x.detach() for x in tensors((3, 20), F32, F32, device)]
    assert checks.are_light(*args)
    assert not checks.are_light(args[0], args[1].to("meta"))


def test_a_tensor_that_outlived_a_transform_is_read(device: torch.device) -> None:
    tokens, update, weight, bias = (x.detach() for x in tensors((3, 20), F32, F32, device))
    kept = []
    torch.func.grad(lambda x: kept.append(x) or x.sum())(tokens)
    for mine, true in zip(
        add_layer_norm(kept[0], update, weight, bias, backend="triton"),
        add_layer_norm(tokens, update, weight, bias, backend="triton"),
        strict=True,
    ):
        assert torch.equal(mine, true)
