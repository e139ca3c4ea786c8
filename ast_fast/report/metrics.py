"""Metrics of predictions, from labels and predicted classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sklearn_metrics

from ast_fast.training.calibration import cross_entropies

NUM_BINS = 15
"""Of confidence, as many as in Guo et al., ICML 2017, section 5."""


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


@dataclass(frozen=True)
class ReliabilityBin:
    """Clips whose most probable class has a probability in (`low`, `high`]."""

    low: float
    high: float
    count: int
    confidence: float | None
    """Mean of these probabilities; None without clips."""
    accuracy: float | None
    """Share of these clips that are right; None without clips."""


@dataclass(frozen=True)
class Calibration:
    """How well probabilities fit what came true."""

    loss: float
    """Mean cross-entropy of the clips."""
    expected_error: float
    """Mean over the clips of the distance between their bin's confidence and accuracy (ECE)."""
    bins: list[ReliabilityBin]
    """From 0 to 1, all of one width."""


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


def calibration(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], *, num_bins: int = NUM_BINS
) -> Calibration:
    """Return the loss, the expected calibration error and its bins.

    Only the most probable class of each clip counts for the bins; they are of equal width.

    Args:
        probabilities: Shape (num_clips, num_classes), at least one clip.
        labels: Shape (num_clips,).
        num_bins: Bins from 0 to 1.
    Source: Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", AAAI
        2015 (ECE).
    """
    right = probabilities.argmax(axis=1) == labels
    confidences = probabilities.max(axis=1).astype(np.float64)
    places = np.clip(np.ceil(confidences * num_bins) - 1, 0, num_bins - 1)
    bins, error = [], 0.0
    for index in range(num_bins):
        inside = places == index
        count = int(inside.sum())
        confidence = float(confidences[inside].mean()) if count else None
        accuracy = float(right[inside].mean()) if count else None
        if confidence is not None and accuracy is not None:
            error += count / len(labels) * abs(accuracy - confidence)
        low, high = index / num_bins, (index + 1) / num_bins
        bins.append(ReliabilityBin(low, high, count, confidence, accuracy))
    return Calibration(float(cross_entropies(probabilities, labels).mean()), error, bins)
