"""What a step costs is counted as torch counts it, and its best rate is measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.config import Config, ModelConfig
from ast_fast_kernels import use_backend
from bench import model_cost


@pytest.mark.parametrize(
    "model",
    [
        ModelConfig(),
        ModelConfig(conditional_position=True),
        ModelConfig(stem_widths=(48,)),
        ModelConfig(stem_widths=(8, 32, 96), conditional_position=True),
        ModelConfig(conv_depth=1),
        ModelConfig(conv_depth=3, conv_mlp_ratio=3.0),
    ],
    ids=["linear", "conditional", "quarters", "three-stages", "convolution", "convolutions"],
)
def test_multiply_adds_are_those_that_torch_counts(model: ModelConfig) -> None:
    config = replace(Config(), model=model)
    transformer = AudioSpectrogramTransformer.of(config, 50)
    batch, tokens = 2, 96
    keep = torch.arange(tokens).expand(batch, tokens)
    with FlopCounterMode(display=False) as counter, use_backend("reference"):
        transformer(torch.randn(batch, 512, 128), keep=keep).sum().backward()
    products = sum(
        count
        for operator, count in counter.get_flop_counts()["Global"].items()
        if "convolution" not in str(operator)
    )
    counted = batch * model_cost.multiply_adds(model, tokens, transformer.num_patches, 50)
    assert 2 * counted == pytest.approx(products, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_best_rate_is_measured(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cost, "REPEATS", 2)
    monkeypatch.setattr(model_cost, "SIZES", ((256, 256, 256),))  # larger, bfloat16 takes minutes
    assert model_cost.multiply_adds_per_second.__wrapped__(dtype, 1) > 1e8
