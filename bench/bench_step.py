"""One training step of the default model, stage by stage, in clips a second."""

import numpy as np
import pytest
import torch

from ast_fast.augment import augment_waveforms
from ast_fast.config import Config
from ast_fast.features import log_mel, normalise, pad_frames
from ast_fast.model import AudioSpectrogramTransformer

BATCH = 32


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("patch_drop", [0.0, 0.5], ids=["whole", "half-the-patches"])
def test_training_step(benchmark, clips: np.ndarray, patch_drop: float, threads: int) -> None:
    config = Config()
    torch.manual_seed(0)
    model = AudioSpectrogramTransformer(
        config.model, num_mel_bins=128, num_frames=config.features.target_frames, num_classes=50
    )
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    waveforms = torch.from_numpy(clips[:BATCH].astype(np.float32) / 32768)
    targets = torch.nn.functional.one_hot(torch.arange(BATCH) % 50, 50).float()
    generator = torch.Generator().manual_seed(0)
    num_kept = round(model.num_patches * (1 - patch_drop))

    def step() -> float:
        mixed, labels = augment_waveforms(waveforms, targets, config.augment, generator)
        features, silence = normalise(log_mel(mixed, config), config, None)
        features = pad_frames(features, config.features.target_frames, silence)
        keep = None
        if patch_drop:
            keep = torch.rand((BATCH, model.num_patches), generator=generator).argsort(dim=1)
            keep = keep[:, :num_kept]
        loss = torch.nn.functional.cross_entropy(model(features, keep=keep), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    assert np.isfinite(step())
    benchmark(step)
    if benchmark.stats:
        benchmark.extra_info["clips_per_second"] = BATCH / benchmark.stats.stats.median
