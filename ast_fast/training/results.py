"""The result of a trained fold, and the files that keep it."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ast_fast.data.dataset import Dataset
from ast_fast.machine.timing import Stages
from ast_fast.settings.agree import check_same_fold, fold_identity
from ast_fast.settings.config import Config
from ast_fast.training import checkpoint
from ast_fast.training.checkpoint import CHECKPOINT
from ast_fast.training.manifest import (
    MANIFEST,
    check_files,
    missing_manifest,
    read_manifest,
    remedy,
)
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write
from ast_fast_kernels.files.text import from_cell, one_name, read_document, to_cell

MODEL = "model.safetensors"
PREDICTIONS = "predictions.csv"
HISTORY = "history.csv"
RESULTS = (MODEL, PREDICTIONS, HISTORY)
"""Files that the manifest of a trained fold lists."""


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
    """Softmax of the logits as they are, shape (num_test, num_classes)."""
    temperature: float | None = None
    """Of the fold's model, by the tests of the run's other folds; None until `calibrate`, or if
    there is no other fold."""


def load_result(
    config: Config,
    dataset: Dataset,
    fold: int,
    folder: Path,
    test_indices: NDArray[np.int64],
    stages: Stages | None = None,
) -> FoldResult | None:
    """Return the result of a fold that an earlier run finished; None if none did.

    Its files are checked against its manifest. The model says whether there must be one; those of
    version 0.2.0 and before do not. If a process was killed before the manifest was written, the
    checkpoint is still there and the fold is not finished.

    Args:
        config: The run's settings.
        dataset: Its clips.
        fold: The fold.
        folder: The fold's folder.
        test_indices: The clips that it was tested on, shape (num_test,).
        stages: Receives the time that the fold took.
    Raises:
        InputError: A file is missing, damaged, was changed, or belongs to another run.
    """
    path = folder / MODEL
    files = read_manifest(folder)
    if files is not None:
        check_files(folder, files, RESULTS)
    elif not path.exists():
        return None
    _, facts = checkpoint.load(path)
    if files is None and MANIFEST in facts.get("beside", ()):
        if (folder / CHECKPOINT).exists():
            return None
        raise missing_manifest(folder)
    if "accuracy" not in facts:
        raise InputError(f"{path} must be a finished fold's model; {remedy(folder)}")
    try:
        check_same_fold(path, facts["run"], fold_identity(config, fold, dataset.key))
        history = [EpochRow(**row) for row in facts["history"]]
        loss, recorded = 0.0 + facts["loss"], 0.0 + facts["accuracy"]
        (stages or Stages()).take_up(facts["stages"])
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} must hold the whole result of its fold, and does not "
            f"({type(error).__name__}: {one_name(error)}); {remedy(folder)}"
        ) from error
    probabilities = _read_predictions(folder / PREDICTIONS, dataset, test_indices)
    accuracy = accuracy_of(probabilities, dataset.labels[test_indices])
    if accuracy != recorded:
        raise InputError(
            f"{folder / PREDICTIONS} must give the accuracy that {MODEL} records, "
            f"{recorded:.6g}, got {accuracy:.6g}; {remedy(folder)}"
        )
    return FoldResult(
        fold=fold,
        accuracy=accuracy,
        loss=loss,
        history=history,
        test_indices=test_indices,
        probabilities=probabilities,
    )


def accuracy_of(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the share of clips whose most probable class is their label's.

    Args:
        probabilities: Shape (num_clips, num_classes).
        labels: Shape (num_clips,).
    """
    return int((probabilities.argmax(axis=1) == labels).sum()) / len(labels)


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
    targets = _targets(dataset)
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
        rows = list(csv.reader(io.StringIO(read_document(path), newline="")))[1:]
        probabilities = np.array([[float(share) for share in row[4:]] for row in rows], np.float32)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{path} must hold the predictions of a finished fold, but cannot be read ({error}); "
            f"remove {path.parent} to train the fold again"
        ) from error
    shape = (len(expected), len(dataset.class_names))
    if probabilities.shape != shape or [from_cell(row[0]) for row in rows] != expected:
        raise InputError(
            f"{path} must hold one line for each of the {len(expected)} clips of its test fold; "
            f"it does not, so remove {path.parent} to train the fold again"
        )
    _check_predictions(path, rows, probabilities, dataset, test_indices)
    return probabilities


def _check_predictions(
    path: Path,
    rows: Sequence[Sequence[str]],
    probabilities: NDArray[np.float32],
    dataset: Dataset,
    test_indices: NDArray[np.int64],
) -> None:
    """Raise if a line is none that `write_predictions` can have written for its clip."""
    # Rounding of the sum that a softmax divides by, of each quotient, and of what is summed here.
    rounding = (len(dataset.class_names) + 2) * float(np.finfo(np.float32).eps)
    targets = _targets(dataset)
    for line, (row, shares, index) in enumerate(
        zip(rows, probabilities, test_indices, strict=True), start=2
    ):
        total = float(shares.sum(dtype=np.float64))
        clip = dataset.clips[index]
        expected = [str(clip.fold), str(clip.target), str(targets[int(shares.argmax())])]
        if not (np.isfinite(shares).all() and shares.min() >= 0 and shares.max() <= 1):
            problem = "must have probabilities between 0 and 1, and has others"
        elif abs(total - 1) > rounding:
            problem = f"must have probabilities whose sum is 1, got {total:.9g}"
        elif list(row[1:4]) != expected:
            problem = (
                f"must have fold, target and predicted {', '.join(expected)}, "
                f"got {', '.join(row[1:4])}"
            )
        else:
            continue
        raise InputError(f"{path}: line {line} {problem}; {remedy(path.parent)}")


def _targets(dataset: Dataset) -> dict[int, int]:
    """Return the target, as numbered in the data set's table, of each label."""
    return {int(dataset.labels[i]): clip.target for i, clip in enumerate(dataset.clips)}
