"""Training with attention by Numba's kernels follows the reference's curve, on real clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ast_fast.data.dataset import open_dataset
from ast_fast.settings.config import Config, ModelConfig, Paths, TrainingConfig
from ast_fast.training.fold import train_fold
from ast_fast.training.observers import Observer
from ast_fast_kernels import use_backend

STEPS = 50
TOLERANCE = 1e-5
"""Relative, of a step's loss. Rounding of 1e-7 grows as the weights part; measured: 4e-7."""


class Losses(Observer):
    """Keep each step's loss, and end the training after enough of them."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_step(
        self, fold: int, epoch: int, step: int, num_steps: int, loss: float, clips: int
    ) -> None:
        self.values.append(loss)
        if len(self.values) == STEPS:
            raise KeyboardInterrupt


@pytest.mark.data
def test_the_first_steps_are_those_of_the_reference(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In bfloat16, as Muon computes where the machine can, a rounding that tips over is 4e-3.
    monkeypatch.setattr("ast_fast.training.optimiser.multiplies_bfloat16", lambda _: False)
    config = Config(
        device="cpu",
        paths=Paths(data=data_root / "esc10", cache=tmp_path / "cache"),
        model=ModelConfig(embed_dim=64, num_heads=2, depth=2),
        training=TrainingConfig(epochs=10, batch_size=16, warmup_epochs=1.0, amp="off"),
    )
    (tmp_path / "cache").mkdir()
    dataset = open_dataset(config)
    curves = {}
    for backend in ("reference", "numba"):
        losses = Losses()
        with use_backend(attention=backend), pytest.raises(KeyboardInterrupt):
            train_fold(replace(config, seed=3), dataset, 1, tmp_path / backend, observers=[losses])
        curves[backend] = torch.tensor(losses.values)
    assert curves["numba"][-5:].mean() < curves["numba"][:5].mean(), "it must have learnt something"
    torch.testing.assert_close(curves["numba"], curves["reference"], rtol=TOLERANCE, atol=0)
    assert not torch.equal(curves["numba"], curves["reference"]), "both ran the same kernels"
