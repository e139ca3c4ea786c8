"""A training step: all of it at the default settings, and models alone against transformers'."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ast_fast.augment import draw_feature_changes, draw_mixtures, kept_patches
from ast_fast.features import model_input
from ast_fast.machine.device import Placement, multiplies_bfloat16
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.settings.command_line import parse_config
from ast_fast.settings.config import Config
from ast_fast.training.optimiser import Optimiser
from ast_fast_kernels import mix, use_backend
from ast_fast_kernels.testing.timing import interleaved_medians
from bench.bench_fold import data_of

BATCH, NUM_CLASSES = 32, 50
HEADS = {128: 4, 192: 3}
"""Heads of the models against transformers', by width."""
CPU = torch.device("cpu")
NO_SCALING = torch.amp.GradScaler("cpu", enabled=False)

precisions = pytest.mark.parametrize(
    "amp",
    [
        pytest.param(None, id="float32"),
        pytest.param(
            torch.bfloat16,
            id="bfloat16-autocast",
            marks=pytest.mark.skipif(
                not multiplies_bfloat16(CPU), reason="this CPU only emulates bfloat16"
            ),
        ),
    ],
)


@pytest.mark.benchmark(group="step")
@precisions
@pytest.mark.parametrize("patch_drop", [0.0, 0.5], ids=["whole", "half-the-patches"])
def test_training_step(
    benchmark, clips: np.ndarray, patch_drop: float, amp: torch.dtype | None, threads: int
) -> None:
    """Draw random numbers for each step; training draws for many steps at once."""
    config = Config()
    augment = replace(config.augment, patch_drop=patch_drop)
    model = small_model(config)
    optimiser = Optimiser(model, config.training)
    indices = torch.arange(BATCH)
    levels = torch.from_numpy(data_of(clips[:BATCH]).sound_levels)
    targets = torch.nn.functional.one_hot(indices % NUM_CLASSES, NUM_CLASSES).float()
    num_frames = config.fbank.num_frames(clips.shape[1])
    generator = torch.Generator().manual_seed(0)

    def step() -> float:
        drawn = draw_mixtures(clips.shape[1], levels, targets, augment, generator)
        mixed = mix(clips, drawn.clips, drawn.starts, drawn.factors)
        changes = draw_feature_changes(BATCH, num_frames, augment, config.fbank, generator)
        features = model_input(mixed, config, None, changes=changes)
        keep = kept_patches(BATCH, model.num_patches, augment, generator)
        with Placement(CPU, amp).autocast():
            logits = model(features, keep=keep)
        loss = torch.nn.functional.cross_entropy(logits.float(), drawn.targets)
        optimiser.step(loss, 1e-3, NO_SCALING)
        return loss.item()

    assert np.isfinite(step())
    benchmark(step)
    if benchmark.stats:
        benchmark.extra_info["clips_per_second"] = BATCH / benchmark.stats.stats.median


@pytest.mark.benchmark(group="step-model")
@precisions
@pytest.mark.parametrize("threads", [2], indirect=True, ids=["2-threads"])
@pytest.mark.parametrize("width", HEADS, ids="{}-wide".format)
def test_step_against_transformers(
    benchmark, width: int, amp: torch.dtype | None, threads: int, rounds: int
) -> None:
    """Time forward, backward and AdamW of both models in turns, at equal sizes.

    Ours runs attention by `auto` and by SDPA, and with half of the patches.
    """
    config = of_width(width)
    ours = small_model(config)
    keep = torch.stack([torch.randperm(ours.num_patches)[: ours.num_patches // 2]] * BATCH)
    steps: dict[str, Callable[[], object]] = {
        "ours": step_of(ours, amp),
        "transformers": step_of(peer_model(config), amp),
        "sdpa": by_sdpa(step_of(small_model(config), amp)),
        "half": step_of(small_model(config), amp, keep=keep),
    }
    take_turns(benchmark, steps, rounds)


@pytest.mark.benchmark(group="step-recipe")
@precisions
@pytest.mark.parametrize("recipe", ["esc10", "esc50"])
def test_step_of_a_recipe_against_transformers(
    benchmark, recipe: str, amp: torch.dtype | None, threads: int, rounds: int
) -> None:
    """Time a recipe's model, optimiser and kept patches against transformers' plain model."""
    path = Path(__file__).parents[1] / "recipes" / f"{recipe}.toml"
    config = parse_config(["--data", "ESC-50", "--config", str(path)])
    ours = small_model(config)
    generator = torch.Generator().manual_seed(0)
    keep = kept_patches(BATCH, ours.num_patches, config.augment, generator)
    steps = {
        "ours": step_of(ours, amp, by_optimiser(ours, config), keep=keep),
        "transformers": step_of(peer_model(config), amp),
    }
    take_turns(benchmark, steps, rounds)


@pytest.mark.benchmark(group="inference")
@precisions
@pytest.mark.parametrize("threads", [2], indirect=True, ids=["2-threads"])
@pytest.mark.parametrize("width", HEADS, ids="{}-wide".format)
def test_inference_against_transformers(
    benchmark, width: int, amp: torch.dtype | None, threads: int, rounds: int
) -> None:
    """Time the logits of both models in turns, at equal sizes."""
    config = of_width(width)
    models = {"ours": small_model(config), "transformers": peer_model(config)}
    runs: dict[str, Callable[[], object]] = {
        name: inference_of(model, amp) for name, model in models.items()
    }
    take_turns(benchmark, {**runs, "sdpa": by_sdpa(runs["ours"])}, rounds)


def by_sdpa(run: Callable[[], object]) -> Callable[[], object]:
    """Return a run with attention by SDPA, as where no kernel takes the precision."""

    def running() -> object:
        with use_backend(attention="sdpa"):
            return run()

    return running


def take_turns(benchmark, runs: dict[str, Callable[[], object]], rounds: int) -> None:
    """Time the runs in turns; record each one's speed-up over transformers'."""
    medians = interleaved_medians(runs, rounds=rounds)
    for name in runs.keys() - {"transformers"}:
        key = f"{name}_faster_than_transformers_by"
        benchmark.extra_info[key] = medians["transformers"] / medians[name]
    benchmark(runs["ours"])


def of_width(width: int) -> Config:
    """Return the defaults with a model of another width."""
    config = Config()
    model = replace(config.model, embed_dim=width, num_heads=HEADS[width])
    return replace(config, model=model)


def small_model(config: Config) -> AudioSpectrogramTransformer:
    torch.manual_seed(0)
    return AudioSpectrogramTransformer.of(config, NUM_CLASSES)


def peer_model(config: Config) -> torch.nn.Module:
    """Return transformers' AST of the same sizes, with the two extra tokens of its design."""
    from transformers import ASTConfig, ASTForAudioClassification

    model = config.model
    return ASTForAudioClassification(
        ASTConfig(
            hidden_size=model.embed_dim,
            num_hidden_layers=model.depth,
            num_attention_heads=model.num_heads,
            intermediate_size=int(model.embed_dim * model.mlp_ratio),
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            patch_size=16,
            frequency_stride=16,
            time_stride=16,
            max_length=config.features.target_frames,
            num_mel_bins=config.fbank.num_mel_bins,
            num_labels=NUM_CLASSES,
        )
    )


def step_of(
    model: torch.nn.Module,
    amp: torch.dtype | None,
    update: Callable[[torch.Tensor], None] | None = None,
    **given: torch.Tensor,
) -> Callable[[], float]:
    """Return a step of forward, backward and the optimiser on the same features each time.

    `update` runs backward and the optimiser; None takes AdamW.
    """
    update = update or by_adamw(model)
    features, labels = random_features(), torch.arange(BATCH) % NUM_CLASSES

    def step() -> float:
        with Placement(CPU, amp).autocast():
            logits = logits_of(model(features, **given))
        loss = torch.nn.functional.cross_entropy(logits.float(), labels)
        update(loss)
        return loss.item()

    return step


def by_adamw(model: torch.nn.Module) -> Callable[[torch.Tensor], None]:
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)

    def update(loss: torch.Tensor) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return update


def by_optimiser(
    model: AudioSpectrogramTransformer, config: Config
) -> Callable[[torch.Tensor], None]:
    optimiser = Optimiser(model, config.training)
    return lambda loss: optimiser.step(loss, 1e-3, NO_SCALING)


def inference_of(model: torch.nn.Module, amp: torch.dtype | None) -> Callable[[], torch.Tensor]:
    """Return a forward pass on the same features each time, without a graph."""
    features = random_features()
    model.eval()

    @torch.inference_mode()
    def infer() -> torch.Tensor:
        with Placement(CPU, amp).autocast():
            return logits_of(model(features))

    return infer


def random_features() -> torch.Tensor:
    return torch.randn(BATCH, 512, 128, generator=torch.Generator().manual_seed(0))


def logits_of(out: Any) -> torch.Tensor:
    """Return the logits: our model returns them, transformers' in a structure."""
    logits: torch.Tensor = out if isinstance(out, torch.Tensor) else out.logits
    return logits
