"""Scores of a trial: the loss once a temperature is fitted."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ast_fast.training.calibration import at_temperature, cross_entropies, fit_temperature


class Calibrated(NamedTuple):
    """A loss that does not count how sure a model is on the whole."""

    loss: float
    """Mean cross-entropy of the clips, each at the temperature fitted to the other half."""
    temperature: float
    """Geometric mean of both halves' temperatures: below 1, the model was not sure enough."""


def calibrated(probabilities: NDArray[np.float32], labels: NDArray[np.int64]) -> Calibrated:
    """Return the cross-entropy of test clips at a fitted temperature.

    The clips are halved: of each class, every second clip. A temperature is fitted to each half and
    the other half's loss is taken at it. So no clip's loss has a temperature that was fitted to it.
    It is still one of the test fold's clips, as it is for every candidate: this loss ranks
    candidates, and is none that a model without labelled test clips could have.

    Args:
        probabilities: Of a softmax, shape (num_clips, num_classes).
        labels: Shape (num_clips,).
    Raises:
        ValueError: A half has no clip.
    """
    second = alternate(labels)
    total, temperatures = 0.0, []
    for fitted in (second, ~second):
        if not fitted.any() or fitted.all():
            raise ValueError(f"labels must name a class with two clips or more, got {labels}")
        temperature = fit_temperature(probabilities[fitted], labels[fitted])
        scaled = at_temperature(probabilities[~fitted], temperature)
        total += float(cross_entropies(scaled, labels[~fitted]).sum())
        temperatures.append(temperature)
    return Calibrated(total / len(labels), math.sqrt(temperatures[0] * temperatures[1]))


def alternate(labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which clips are every second of their class, in order, shape (num_clips,)."""
    second = np.zeros(len(labels), np.bool_)
    for label in np.unique(labels):
        second[np.flatnonzero(labels == label)[1::2]] = True
    return second
