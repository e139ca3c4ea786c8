"""A training step of the model alone, one size varied at a time, against its arithmetic floor."""

from __future__ import annotations

import math

import pytest
import torch

from ast_fast.machine.device import Placement
from ast_fast.settings.config import Config, ModelConfig
from ast_fast.training.optimiser import Optimiser
from bench.bench_step import CPU, NO_SCALING, NUM_CLASSES, precisions, small_model
from bench.model_cost import multiply_adds, multiply_adds_per_second

SWEEPS = {
    "tokens": (32, 64, 128, 256),
    "embed_dim": (64, 128, 192, 256, 384),
    "depth": (1, 2, 4, 8),
    "batch": (1, 8, 32, 64),
}
USUAL = {"tokens": 128, "embed_dim": 192, "depth": 4, "batch": 32}
"""The sizes that are not varied: those of the defaults, which drop half of 256 patches."""
HEAD_DIM = 64


@pytest.mark.benchmark(group="model")
@pytest.mark.parametrize("threads", [2], indirect=True, ids=["2-threads"])
@precisions
@pytest.mark.parametrize(
    ("varied", "value"), [(name, value) for name, values in SWEEPS.items() for value in values]
)
def test_model_step(
    benchmark, varied: str, value: int, amp: torch.dtype | None, threads: int
) -> None:
    sizes = {**USUAL, varied: value}
    config = Config(
        model=ModelConfig(
            embed_dim=sizes["embed_dim"],
            num_heads=sizes["embed_dim"] // HEAD_DIM,
            depth=sizes["depth"],
        )
    )
    model = small_model(config)
    optimiser = Optimiser(model, config.training)
    batch, tokens = sizes["batch"], sizes["tokens"]
    features = torch.randn(batch, 512, 128)
    labels = torch.arange(batch) % NUM_CLASSES
    keep = None
    if tokens < model.num_patches:
        keep = torch.rand(batch, model.num_patches).argsort(dim=1)[:, :tokens]

    def step() -> float:
        with Placement(CPU, amp).autocast():
            logits = model(features, keep=keep)
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        optimiser.step(loss, 1e-4, NO_SCALING)
        return loss.item()

    assert math.isfinite(step())
    benchmark(step)
    if benchmark.stats:
        seconds = benchmark.stats.stats.median
        work = batch * multiply_adds(config.model, tokens, model.num_patches, NUM_CLASSES)
        least = work / multiply_adds_per_second(amp or torch.float32, threads)
        benchmark.extra_info |= {
            **sizes,
            "milliseconds_per_clip": 1e3 * seconds / batch,
            "floor_milliseconds_per_clip": 1e3 * least / batch,
            "share_of_floor": least / seconds,
            "gflops": 2e-9 * work / seconds,
        }
