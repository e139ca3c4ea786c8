"""Metrics of predictions, from labels and predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sklearn_metrics


@dataclass(frozen=True)
class ClassMetrics:
    """One class against the rest."""

    name: str
    precision: float
    """Share of the clips predicted as this class that belong to it; 0 without such clips."""
    recall: float
    """Share of this class's clips that were predicted as it; 0 without clips."""
    f1: float
    """Harmonic mean of precision and recall; 0 if both are 0."""
    support: int
    """Clips of this class."""


@dataclass(frozen=True)
class ConfusedPair:
    """Clips of one class that were taken for another."""

    actual: str
    predicted: str
    count: int
    share: float
    """`count` over the clips of the actual class."""


def mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (n − 1; 0 for one value).

    Raises:
        ValueError: `values` is empty.
    """
    if not values:
        raise ValueError("values must hold at least one number, got none")
    mean = float(np.mean(values))
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def confusion_matrix(
    labels: ArrayLike, predicted: ArrayLike, num_classes: int
) -> NDArray[np.int64]:
    """Return how often class `row` was predicted as class `column`.

    Returns:
        Counts, shape (num_classes, num_classes); classes without clips have rows of zeros.
    """
    matrix = sklearn_metrics.confusion_matrix(labels, predicted, labels=np.arange(num_classes))
    return np.asarray(matrix, dtype=np.int64)


def class_metrics(
    labels: ArrayLike, predicted: ArrayLike, class_names: Sequence[str]
) -> list[ClassMetrics]:
    """Return precision, recall, F1 and support of every class, in the order of `class_names`."""
    columns = sklearn_metrics.precision_recall_fscore_support(
        labels, predicted, labels=np.arange(len(class_names)), zero_division=0.0
    )
    return [
        ClassMetrics(name, float(precision), float(recall), float(f1), int(support))
        for name, precision, recall, f1, support in zip(class_names, *columns, strict=True)
    ]


def most_confused(
    matrix: NDArray[np.int64], class_names: Sequence[str], *, limit: int = 10
) -> list[ConfusedPair]:
    """Return the most frequent mistakes, most frequent first; ties keep the order of the classes.

    Args:
        matrix: Counts from `confusion_matrix`.
        class_names: Names of its rows and columns.
        limit: Most mistakes to return.
    """
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
    pairs = []
    for row, column in zip(*np.unravel_index(order, mistakes.shape), strict=True):
        count = int(mistakes[row, column])
        if count == 0:
            break
        share = count / int(matrix[row].sum())
        pairs.append(ConfusedPair(class_names[row], class_names[column], count, share))
    return pairs
