"""What a step costs is counted as torch counts it, and its best rate is measured."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ast_fast.config import Config
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast_kernels import use_backend
from bench import model_cost


def test_multiply_adds_are_those_that_torch_counts() -> None:
    config = Config()
    model = AudioSpectrogramTransformer.of(config, 50)
    batch, tokens = 2, 96
    keep = torch.arange(tokens).expand(batch, tokens)
    with FlopCounterMode(display=False) as counter, use_backend("reference"):
        model(torch.randn(batch, 512, 128), keep=keep).sum().backward()
    counted = batch * model_cost.multiply_adds(config.model, tokens, 16 * 16, 50)
    assert 2 * counted == pytest.approx(counter.get_total_flops(), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_best_rate_is_measured(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cost, "REPEATS", 2)
    assert model_cost.multiply_adds_per_second.__wrapped__(dtype, 1) > 1e8
