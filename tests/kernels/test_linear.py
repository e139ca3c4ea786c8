"""`linear` as callers see it, and oneDNN's products behind it and behind `linear_gelu`."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ast_fast_kernels import linear, linear_gelu
from ast_fast_kernels._torch import onednn
from ast_fast_kernels.linear.api import choose_backend
from ast_fast_kernels.testing.budgets import relative_norm

needs_onednn = pytest.mark.skipif(not onednn.IS_THERE, reason="this torch is built without oneDNN")
PLAIN: dict[Callable[..., Tensor], Callable[..., Tensor]] = {
    linear: functional.linear,
    linear_gelu: lambda *given: functional.gelu(functional.linear(*given)),
}
operations = pytest.mark.parametrize("operation", PLAIN, ids=lambda function: function.__name__)

BOUND = 1e-6
"""Largest norm of an error in float32 over that of the projection: docs/numerics.md has more."""


def arguments(rows: tuple[int, ...] = (3, 7), width: int = 24, out: int = 40) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((*rows, width), (out, width), (out,))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def assert_gradients_are_exact(
    operation: Callable[..., Tensor], given: list[Tensor], upstream: Tensor
) -> None:
    gradients = []
    for run, dtype in (
        (lambda *given: operation(*given, backend="onednn"), torch.float32),
        (PLAIN[operation], torch.float64),
    ):
        leaves = [x.to(dtype).requires_grad_() for x in given]
        gradients.append(torch.autograd.grad(run(*leaves), leaves, upstream.to(dtype)))
    for ours, exact in zip(*gradients, strict=True):
        assert relative_norm(ours, exact) < BOUND


@needs_onednn
@operations
@pytest.mark.parametrize("rows", [(3, 7), (1,), (), (2, 3, 5), (0, 4), (1000,)])
@pytest.mark.parametrize(("width", "out"), [(24, 40), (40, 24), (1, 1), (192, 768), (7, 0), (0, 7)])
def test_it_is_the_definition(operation, rows, width, out) -> None:
    given = arguments(rows, width, out)
    exact = PLAIN[operation](*(x.double() for x in given))
    allowed = BOUND * functional.linear(*(x.double() for x in given)).norm()
    for graph in (False, True):
        hidden = operation(*(x.requires_grad_(graph) for x in given), backend="onednn")
        assert hidden.shape == exact.shape
        assert hidden.dtype == torch.float32
        assert hidden.requires_grad == graph
        assert (hidden.detach() - exact).norm() <= allowed


@needs_onednn
@operations
@pytest.mark.parametrize(("width", "out"), [(24, 40), (40, 24)])
@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(lambda x: x, id="contiguous"),
        pytest.param(lambda x: x[:1, :1, :1].expand(x.shape), id="of-a-sum"),
        pytest.param(lambda x: x.transpose(0, 2).contiguous().transpose(0, 2), id="transposed"),
        pytest.param(lambda x: x.repeat_interleave(2, dim=2)[..., ::2], id="every-other"),
    ],
)
def test_gradients_are_those_of_the_definition(operation, layout, width, out) -> None:
    given = arguments((5, 9), width, out)
    upstream = layout(torch.randn(5, 9, out))
    assert upstream.shape == (5, 9, out)
    assert_gradients_are_exact(operation, given, upstream)


@needs_onednn
@pytest.mark.parametrize("which", range(3))
def test_what_a_gradient_does_not_need_is_neither_kept_nor_computed(which) -> None:
    given = arguments()
    given[which].requires_grad_()
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        projected = linear(*given, backend="onednn")
    assert [x.shape for x in kept] == [[given[1].shape], [given[0].shape], []][which]
    projected.sum().backward()
    assert [x.grad is not None for x in given] == [index == which for index in range(3)]


@needs_onednn
@operations
def test_it_can_be_differentiated_twice(operation) -> None:
    def penalty(run: Callable[..., Tensor], given: list[Tensor]) -> tuple[Tensor, ...]:
        leaves = [x.detach().requires_grad_() for x in given]
        first = torch.autograd.grad(run(*leaves).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(x.square().sum() for x in first), leaves)

    given = arguments()
    ours = penalty(lambda *leaves: operation(*leaves, backend="onednn"), given)
    exact = penalty(PLAIN[operation], [x.double() for x in given])
    for here, there in zip(ours, exact, strict=True):
        assert relative_norm(here, there) < 10 * BOUND


@needs_onednn
@operations
def test_strided_tensors_are_read_where_they_lie(operation) -> None:
    tokens, weight, bias = arguments((6, 8), 24, 40)
    strided = (
        tokens.transpose(0, 1).contiguous().transpose(0, 1),
        weight.T.contiguous().T,
        bias.repeat_interleave(2)[::2],
    )
    sparse = weight.repeat_interleave(2, dim=1)[:, ::2]
    assert not any(x.is_contiguous() for x in strided)
    expected = operation(tokens, weight, bias, backend="onednn")
    torch.testing.assert_close(operation(*strided, backend="onednn"), expected)
    torch.testing.assert_close(operation(tokens, sparse, bias, backend="onednn"), expected)
    repeated = operation(tokens, weight[:1].expand(40, 24), bias * 0, backend="onednn")
    plain = PLAIN[operation](tokens, weight[:1].expand(40, 24), bias * 0)
    torch.testing.assert_close(repeated, plain)
    broadcast = operation(tokens[:1].expand(6, 8, 24), weight, bias, backend="onednn")
    torch.testing.assert_close(broadcast, expected[:1].expand(6, 8, 40))


@needs_onednn
@operations
def test_what_is_not_a_number_stays_in_its_row(operation) -> None:
    given = arguments((4,))
    given[0][1] = torch.nan
    hidden = operation(*given, backend="onednn")
    assert hidden[1].isnan().all()
    assert hidden[[0, 2, 3]].isfinite().all()


@needs_onednn
@operations
def test_what_comes_in_is_left_as_it_was(operation) -> None:
    given = arguments()
    before = [x.clone() for x in given]
    operation(*given, backend="onednn")
    assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))


@needs_onednn
@operations
def test_compiled_and_exported_programs_give_the_same(operation) -> None:
    class Module(torch.nn.Module):
        def forward(self, *given: Tensor) -> Tensor:
            return operation(*given, backend="onednn")

    given = arguments()
    eager = operation(*given, backend="onednn")
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), eager)
    exported = torch.export.export(Module(), tuple(given)).module()
    torch.testing.assert_close(exported(*given), eager)
    leaves = [x.requires_grad_() for x in given]
    both = [
        torch.autograd.grad(run(*leaves).square().sum(), leaves)
        for run in (compiled, lambda *given: operation(*given, backend="onednn"))
    ]
    for ours, expected in zip(*both, strict=True):
        torch.testing.assert_close(ours, expected)


@needs_onednn
@operations
def test_the_compiler_of_kernels_takes_it(operation) -> None:
    """Without a graph too, where it knows an operator of oneDNN's of its own, and of any size."""
    given = arguments()
    compiled = torch.compile(lambda *given: operation(*given, backend="onednn"), fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*given), operation(*given, backend="onednn"))


@needs_onednn
@operations
def test_a_number_of_rows_that_values_decide_is_no_obstacle(operation) -> None:
    @torch.compile(fullgraph=True, backend="aot_eager")
    def of_some(tokens: Tensor, chosen: Tensor, *rest: Tensor) -> Tensor:
        return operation(tokens[chosen], *rest, backend="onednn")

    tokens, *rest = arguments((6,))
    chosen = torch.tensor([True, False, True, True, False, False])
    with torch.no_grad(), torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        some = of_some(tokens, chosen, *rest)
    torch.testing.assert_close(some, operation(tokens[chosen], *rest, backend="onednn"))


@needs_onednn
def test_sums_of_many_rows_are_as_exact() -> None:
    given = arguments((8192,), 192, 768)
    assert_gradients_are_exact(linear, given, torch.randn(8192, 768))


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
def test_the_operator_is_a_proper_one(bias) -> None:
    tokens, weight, shift = (x.requires_grad_() for x in arguments())
    torch.library.opcheck(
        torch.ops.ast_fast.linear_onednn.default, (tokens, weight, shift if bias else None)
    )


@pytest.mark.parametrize(
    ("capabilities", "faster"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_f": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R) Processor", "avx512_f": True}, False),
        ({}, False),  # of another architecture, or an older torch
    ],
)
def test_auto_takes_onednn_where_torchs_own_product_leaves_half_of_the_cpu(
    capabilities, faster, monkeypatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert onednn.is_faster_here() == faster
    monkeypatch.setattr(onednn, "IS_FASTER", faster)
    assert choose_backend("auto", *arguments()) == ("onednn" if faster else "reference")


@operations
def test_auto_leaves_to_torch_what_onednn_does_not_take(operation, monkeypatch) -> None:
    monkeypatch.setattr(onednn, "IS_FASTER", True)
    given = arguments()
    expected = PLAIN[operation](*given)
    torch.testing.assert_close(operation(*given), expected)
    for dtype in (torch.float64, torch.bfloat16):
        kind = [x.to(dtype) for x in given]
        assert torch.equal(operation(*kind), PLAIN[operation](*kind))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(operation(*given), PLAIN[operation](*given))
    by_clip = torch.func.vmap(operation, (0, None, None))(*given)
    torch.testing.assert_close(by_clip, expected)
    nested = torch.nested.nested_tensor(list(given[0].unbind()), layout=torch.jagged)
    pieces = operation(nested, *given[1:]).unbind()
    torch.testing.assert_close(torch.stack(pieces), expected)
    elsewhere = operation(given[0].to_mkldnn(), given[1].to_mkldnn(), given[2].to_mkldnn())
    torch.testing.assert_close(elsewhere.to_dense(), expected)
    with torch.backends.mkldnn.flags(enabled=False):
        assert choose_backend("auto", *given) == "reference"
    slopes = torch.func.jvp(operation, tuple(given), tuple(given))
    torch.testing.assert_close(slopes, torch.func.jvp(PLAIN[operation], tuple(given), tuple(given)))


ZEROS = torch.zeros(2, 4)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokens": None}, TypeError, "tokens must be a tensor, got NoneType"),
        ({"weight": torch.zeros(5, 3)}, ValueError, "weight must be (out, 4), got (5, 3)"),
        ({"bias": torch.zeros(4)}, ValueError, "bias must have shape (5,), got (4,)"),
        (
            {"backend": "triton"},
            ValueError,
            "backend must be one of auto, reference, onednn for li",
        ),
        (
            {"backend": "onednn", "tokens": ZEROS.double()},
            RuntimeError,
            "onednn needs tokens in float32 on the CPU, got float64 on cpu; use backend=",
        ),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message) -> None:
    good = {"tokens": ZEROS, "weight": torch.zeros(5, 4), "bias": torch.zeros(5)}
    with pytest.raises(error, match=re.escape(message)):
        linear(**{**good, **changes})


@needs_onednn
@pytest.mark.parametrize(
    ("situation", "message"),
    [
        (torch.autocast("cpu", torch.bfloat16), "onednn needs float32, which autocast would lower"),
        (
            torch.autograd.forward_ad.dual_level(),
            "onednn cannot run under a transform of torch.func",
        ),
    ],
)
def test_where_it_cannot_run_it_says_so(situation, message) -> None:
    with situation, pytest.raises(RuntimeError, match=message):
        linear(*arguments(), backend="onednn")


def test_a_torch_without_it_says_so(monkeypatch) -> None:
    monkeypatch.setattr(onednn, "IS_THERE", False)
    with pytest.raises(RuntimeError, match="onednn is not in this build of torch; use backend="):
        linear(*arguments(), backend="onednn")


@needs_onednn
def test_another_layout_is_refused_by_name() -> None:
    tokens, weight, bias = arguments((3,))
    with pytest.raises(RuntimeError, match="onednn needs weight to be dense and strided; use back"):
        linear(tokens, weight.to_sparse_csr(), bias, backend="onednn")
