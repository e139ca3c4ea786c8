"""Scores of a trial: accuracy, loss, and the loss once a scale of the logits is fitted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LOG2_SCALES = (-6.0, 6.0)
"""Range in which a scale is looked for, as powers of two."""
HALVINGS = 40
"""Of that range: what is left of it is below 1e-11."""


class Calibrated(NamedTuple):
    """A loss that does not count how sure a model is on the whole."""

    loss: float
    """Mean cross-entropy of the clips, each with the scale fitted to the other half."""
    scale: float
    """Geometric mean of both halves' scales: above 1, the model was not sure enough."""


def calibrated(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Calibrated:
    """Return the cross-entropy of test clips with a fitted scale of their logits.

    The clips are halved: of each class, every second clip. A scale is fitted to each half and the
    other half's loss is taken with it. So no clip's loss has a scale that was fitted to it. The
    scale is still one of the test fold's clips, as it is for every candidate: this loss ranks
    candidates, and is none that a model without labelled test clips could have.

    Args:
        probabilities: Shape (num_clips, num_classes); of a softmax, whose logits are their
            logarithms but for a constant.
        labels: Shape (num_clips,).
    """
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).smallest_subnormal, dtype=float))
    second = alternate(labels)
    total, scales = 0.0, []
    for fitted in (second, ~second):
        if not fitted.any() or fitted.all():
            raise ValueError(f"labels must name a class with two clips or more, got {labels}")
        scale = fitted_scale(logits[fitted], labels[fitted])
        total += float(losses(scale * logits[~fitted], labels[~fitted]).sum())
        scales.append(scale)
    return Calibrated(total / len(labels), float(np.sqrt(scales[0] * scales[1])))


def alternate(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which clips are every second of their class, in order, shape (num_clips,)."""
    second = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        second[np.flatnonzero(labels == label)[1::2]] = True
    return second


def fitted_scale(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Return the scale of logits with the least cross-entropy, within a factor of 64 of 1.

    The loss is convex in the scale, so halving by the sign of its derivative finds the least.

    Args:
        logits: Shape (num_clips, num_classes).
        labels: Shape (num_clips,).
    """
    right = logits[np.arange(len(labels)), labels]
    low, high = LOG2_SCALES
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        shares = np.exp(2**middle * (logits - logits.max(axis=1, keepdims=True)))
        shares /= shares.sum(axis=1, keepdims=True)
        slope = ((shares * logits).sum(axis=1) - right).mean()
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(2 ** ((low + high) / 2))


def losses(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each clip's cross-entropy, shape (num_clips,).

    Args:
        logits: Shape (num_clips, num_classes).
        labels: Shape (num_clips,).
    """
    highest = logits.max(axis=1)
    total = np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest
    found: NDArray[np.float64] = total - logits[np.arange(len(labels)), labels]
    return found
