"""Two epochs of a fold as `train_fold` runs them: features, model, optimiser, tests, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from ast_fast.data.dataset import Dataset
from ast_fast.data.metadata import Clip
from ast_fast.machine.timing import Stages
from ast_fast.settings.command_line import parse_config
from ast_fast.settings.config import Config
from ast_fast.training.fold import train_fold

NUM_CLASSES, NUM_FOLDS = 4, 4
USUAL = {"patch_drop": 0.5, "batch_size": 16}
RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.toml"))
SWEEPS = {"patch_drop": (0.0, 0.5, 0.75), "batch_size": (8, 48)}


@pytest.mark.benchmark(group="fold")
@pytest.mark.parametrize(
    ("varied", "value"), [(name, value) for name, values in SWEEPS.items() for value in values]
)
def test_fold(
    benchmark, clips: np.ndarray, tmp_path: Path, varied: str, value: float, threads: int
) -> None:
    sizes = {**USUAL, varied: value}
    config = Config()
    config = replace(
        config,
        augment=replace(config.augment, patch_drop=sizes["patch_drop"]),
        training=replace(config.training, batch_size=int(sizes["batch_size"])),
    )
    measure(benchmark, config, clips, tmp_path)
    benchmark.extra_info |= sizes


@pytest.mark.benchmark(group="fold-of-recipe")
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_fold_of_a_recipe(
    benchmark, clips: np.ndarray, tmp_path: Path, recipe: Path, threads: int, glance: bool
) -> None:
    # About 600 to train on: at least one full draw of random numbers, as in a fold of 1,600.
    many = clips if glance else np.tile(clips, (12, 1))
    measure(benchmark, config_of(recipe), many, tmp_path)


def config_of(recipe: Path) -> Config:
    """Return a recipe's settings for a data set given by --data."""
    return parse_config(["--data", "ESC-50", "--config", str(recipe)])


def measure(benchmark, config: Config, clips: np.ndarray, tmp_path: Path) -> None:
    """Train two epochs of a fold again and again; record their rate and the share of each stage."""
    config = replace(config, training=replace(config.training, epochs=2))
    dataset, stages, rates = data_of(clips), Stages(), []
    train_fold(config, dataset, 1, tmp_path)  # compiles

    def fold() -> None:
        result = train_fold(config, dataset, 1, tmp_path, stages=stages)
        rates.extend(row.clips_per_second for row in result.history)

    benchmark(fold)
    total = sum(stages.seconds.values())
    benchmark.extra_info |= {
        "training_clips_per_second": median(rates),
        "shares": {name: seconds / total for name, seconds in stages.seconds.items()},
    }


def data_of(clips: np.ndarray) -> Dataset:
    """Return clips as a data set; the labels are arbitrary and cost the same as real ones."""
    labels = np.arange(len(clips)) % NUM_CLASSES
    folds = np.arange(len(clips)) // NUM_CLASSES % NUM_FOLDS + 1
    names = tuple(f"class-{label}" for label in range(NUM_CLASSES))
    return Dataset(
        waveforms=clips,
        clips=tuple(
            Clip(f"{index}.wav", int(fold), int(label), names[label])
            for index, (fold, label) in enumerate(zip(folds, labels, strict=True))
        ),
        class_names=names,
        labels=labels,
        folds=folds,
        sample_rate=16000,
        bad_files=(),
        root=Path("nowhere"),
        key="benchmark",
        decode_seconds=0.0,
        synthesised=False,
    )
