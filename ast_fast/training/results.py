"""The result of a trained fold, and the files that keep it."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ast_fast.data.dataset import Dataset
from ast_fast.errors import InputError
from ast_fast.machine.atomic import atomic_write
from ast_fast.machine.text import from_cell, to_cell
from ast_fast.machine.timing import Stages
from ast_fast.settings.agree import check_same_fold, fold_identity
from ast_fast.settings.config import Config
from ast_fast.training import checkpoint
from ast_fast.training.checkpoint import CHECKPOINT

MODEL = "model.safetensors"
PREDICTIONS = "predictions.csv"
HISTORY = "history.csv"


@dataclass(frozen=True)
class EpochRow:
    """One line of a fold's history."""

    epoch: int
    """From 1."""
    learning_rate: float
    """Of the epoch's last step."""
    train_loss: float
    """Mean over the epoch's clips as the model saw them: augmented, with smoothed labels."""
    train_accuracy: float
    """Share of those clips for which the class of the largest label share was predicted."""
    test_loss: float | None
    """Mean over the test fold, without label smoothing; None if the epoch did not test."""
    test_accuracy: float | None
    seconds: float
    """Time of the training steps."""
    clips_per_second: float


@dataclass(frozen=True)
class FoldResult:
    """The result of one fold after its last epoch."""

    fold: int
    accuracy: float
    loss: float
    history: list[EpochRow]
    test_indices: NDArray[np.int64]
    """Clips of the test fold, as indices into the data set, shape (num_test,)."""
    probabilities: NDArray[np.float32]
    """Shape (num_test, num_classes)."""


def load_result(
    config: Config,
    dataset: Dataset,
    fold: int,
    folder: Path,
    test_indices: NDArray[np.int64],
    stages: Stages | None = None,
) -> FoldResult | None:
    """Return the result of a fold that an earlier run finished; None if none did.

    Args:
        config: The run's settings.
        dataset: Its clips.
        fold: The fold.
        folder: The fold's folder.
        test_indices: The clips that it was tested on, shape (num_test,).
        stages: Receives the time that the fold took.
    Raises:
        InputError: A file is damaged or belongs to another run.
    """
    path = folder / MODEL
    if not path.exists():
        return None
    _, facts = checkpoint.load(path)
    check_same_fold(path, facts["run"], fold_identity(config, fold, dataset.key))
    if stages is not None:
        stages.take_up(facts["stages"])
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return FoldResult(
        fold=fold,
        accuracy=facts["accuracy"],
        loss=facts["loss"],
        history=[EpochRow(**row) for row in facts["history"]],
        test_indices=test_indices,
        probabilities=_read_predictions(folder / PREDICTIONS, dataset, test_indices),
    )


def write_history(folder: Path, history: Sequence[EpochRow]) -> None:
    """Write history.csv: a line for each epoch."""
    with (
        atomic_write(folder / HISTORY) as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(field.name for field in dataclasses.fields(EpochRow))
        writer.writerows(dataclasses.astuple(row) for row in history)


def write_predictions(
    folder: Path,
    dataset: Dataset,
    test_indices: NDArray[np.int64],
    probabilities: NDArray[np.float32],
) -> None:
    """Write predictions.csv: one line a clip, with probabilities that read back to the same bits.

    Names that a spreadsheet would run as a formula begin with an apostrophe.

    Args:
        folder: The fold's folder.
        dataset: The clips; targets are as numbered in its table.
        test_indices: The clips that were tested, shape (num_test,).
        probabilities: Shape (num_test, num_classes).
    """
    targets = {int(dataset.labels[i]): clip.target for i, clip in enumerate(dataset.clips)}
    with (
        atomic_write(folder / PREDICTIONS) as path,
        path.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        names = [to_cell(name) for name in dataset.class_names]
        writer.writerow(["filename", "fold", "target", "predicted", *names])
        for index, row in zip(test_indices, probabilities, strict=True):
            clip = dataset.clips[index]
            predicted = targets[int(row.argmax())]
            shares = [f"{share:.9g}" for share in row]  # nine digits identify a float32
            writer.writerow([to_cell(clip.filename), clip.fold, clip.target, predicted, *shares])


def _read_predictions(
    path: Path, dataset: Dataset, test_indices: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the probabilities that `write_predictions` wrote for these clips."""
    expected = [dataset.clips[index].filename for index in test_indices]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.reader(file))[1:]
        probabilities = np.array([[float(share) for share in row[4:]] for row in rows], np.float32)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} must hold the predictions of a finished fold, but cannot be read ({error}); "
            f"remove {path.parent} to train the fold again"
        ) from error
    shape = (len(expected), len(dataset.class_names))
    if [from_cell(row[0]) for row in rows] != expected or probabilities.shape != shape:
        raise InputError(
            f"{path} must hold one line for each of the {len(expected)} clips of its test fold; "
            f"it does not, so remove {path.parent} to train the fold again"
        )
    return probabilities
