"""The whole model on the Triton kernels: interpreted, on a GPU, and on a GPU that is not there."""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.config import ModelConfig
from ast_fast_kernels import use_backend
from ast_fast_kernels.testing.budgets import relative_norm

SMALL = ModelConfig(
    embed_dim=32,
    num_heads=2,
    depth=2,
    stem_widths=(8, 16),
    conditional_position=True,
    conv_depth=1,
)
KEEP = torch.tensor([[0, 3, 5], [7, 1, 2]])
TRITON = {"attention": "triton", "layer_norm": "triton", "gelu": "triton"}


def build(config: ModelConfig = SMALL) -> tuple[AudioSpectrogramTransformer, Tensor]:
    torch.manual_seed(0)
    model = AudioSpectrogramTransformer(config, num_mel_bins=32, num_frames=64, num_classes=5)
    return model, torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(1))


def loss_and_gradients(model, features: Tensor, keep: Tensor | None) -> list[Tensor]:
    logits = model(features, keep=keep)
    return [logits, *torch.autograd.grad(logits.square().sum(), list(model.parameters()))]


@pytest.mark.parametrize("keep", [None, KEEP], ids=["all-patches", "patch-drop"])
@pytest.mark.parametrize(
    "config",
    [
        ModelConfig(embed_dim=32, num_heads=2, depth=2),
        ModelConfig(embed_dim=32, num_heads=2, depth=2, pool="cls"),
        SMALL,
    ],
    ids=["mean", "cls", "stem"],
)
def test_triton_agrees_with_the_reference(device: torch.device, config: ModelConfig, keep) -> None:
    model, features = build(config)
    expected = loss_and_gradients(model.double(), features.double(), keep)
    model, features = model.float().to(device), features.to(device)
    keep = None if keep is None else keep.to(device)
    with use_backend(**TRITON):
        results = loss_and_gradients(model, features, keep)
    for mine, true in zip(results, expected, strict=True):
        assert relative_norm(mine.cpu(), true) < 2.0**-7  # TF32 in every product of two blocks


@pytest.mark.parametrize("keep", [None, KEEP], ids=["all-patches", "patch-drop"])
def test_compiled_model_gives_the_same(device: torch.device, keep: Tensor | None) -> None:
    model, features = build()
    model, features = model.to(device), features.to(device)
    keep = None if keep is None else keep.to(device)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with use_backend(**TRITON):
        expected = loss_and_gradients(model, features, keep)
        results = loss_and_gradients(compiled, features, keep)
    for mine, true in zip(results, expected, strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-6)


def test_mixed_precision_trains(device: torch.device) -> None:
    model, features = build()
    model, features = model.to(device), features.to(device)
    with use_backend(**TRITON), torch.autocast(device.type, dtype=torch.bfloat16):
        loss = model(features).float().square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def on_a_gpu_that_is_not_there(model: torch.nn.Module) -> None:
    """Replace weights by fake CUDA ones; autograd would want a real device for them."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            fake = torch.empty(parameter.shape, dtype=torch.bfloat16, device="cuda")
            setattr(module, name, torch.nn.Parameter(fake, requires_grad=False))


@pytest.mark.skipif(
    torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1",
    reason="is about machines without a GPU, uninterpreted",
)
@pytest.mark.parametrize("how", ["eager", "export", "compile"])
def test_auto_takes_triton_on_cuda(how: str) -> None:
    model, _ = build()
    with FakeTensorMode(), torch.no_grad():
        on_a_gpu_that_is_not_there(model)
        features = torch.empty(2, 64, 32, device="cuda", dtype=torch.bfloat16)
        found: list[str] = []
        if how == "eager":
            assert model(features).shape == (2, 5)
        elif how == "export":
            program = torch.export.export(model, (features,))
            found = [str(node.target) for node in program.graph.nodes]
        else:
            torch.compiler.reset()

            def backend(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
                found.extend(str(node.target) for node in graph.graph.nodes)
                return graph

            compiled = torch.compile(model, fullgraph=True, backend=backend)
            assert compiled(features).shape == (2, 5)
    if how != "eager":
        for op, times in (("attention_fwd", 2), ("layer_norm_fwd", 6), ("bias_gelu_fwd", 3)):
            assert sum(f"ast_fast.{op}" in target for target in found) == times


@pytest.mark.gpu
def test_a_training_step_can_be_captured_as_a_graph() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    model, features = build()
    model, features = model.cuda(), features.cuda()

    def step() -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = model(features)
        loss = logits.float().square().mean()
        model.zero_grad(set_to_none=False)
        loss.backward()
        return loss

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            eager = step().item()
            gradients = [parameter.grad.clone() for parameter in model.parameters()]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for parameter in model.parameters():
        parameter.grad.fill_(torch.nan)
    graph.replay()
    torch.cuda.synchronize()
    assert captured.item() == eager
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)
