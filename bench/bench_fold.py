"""Two epochs of a fold as `train_fold` runs them: features, model, optimiser, tests, files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import pytest

from ast_fast.config import Config
from ast_fast.data import Clip, Dataset
from ast_fast.timing import Stages
from ast_fast.train import train_fold

NUM_CLASSES, NUM_FOLDS = 4, 4
USUAL = {"patch_drop": 0.5, "batch_size": 16}
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
        training=replace(config.training, epochs=2, batch_size=int(sizes["batch_size"])),
    )
    dataset, stages, rates = data_of(clips), Stages(), []

    def fold() -> None:
        result = train_fold(config, dataset, 1, tmp_path, stages=stages)
        rates.extend(row.clips_per_second for row in result.history)

    benchmark(fold)
    total = sum(stages.seconds.values())
    benchmark.extra_info |= {
        **sizes,
        "training_clips_per_second": median(rates),
        "shares": {name: seconds / total for name, seconds in stages.seconds.items()},
    }


def data_of(clips: np.ndarray) -> Dataset:
    """Return clips as a data set; their labels mean nothing, and cost what others would."""
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
