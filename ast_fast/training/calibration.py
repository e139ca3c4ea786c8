"""One temperature for each fold's model, fitted on clips that no model had seen.

A model's own training clips cannot say how sure it may be of new ones: it has learnt them. Its test
clips must not. But each of its training folds was tested by another model of the run, which had not
seen it. Fold k's temperature is fitted on those predictions, of all folds but k. Fold k's labels
reach it only through the weights of the other models, and only as one number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_softmax

from ast_fast.data.dataset import Dataset
from ast_fast.training import checkpoint
from ast_fast.training.manifest import replace_listed, settle
from ast_fast.training.results import MODEL, FoldResult

TEMPERATURE = "temperature"
"""Fact of a model file: what its logits are divided by before the softmax."""

DIGITS = 4
"""Of a temperature, so that machines which round an exponential differently give the same one."""


def calibrate(out_dir: Path, dataset: Dataset, results: Sequence[FoldResult]) -> list[FoldResult]:
    """Fit every fold's temperature and write it into the fold's model; return the results with it.

    A file that holds its temperature already stays as it is. One fold alone has none.

    Args:
        out_dir: The folder of a run whose folds are all finished.
        dataset: Its clips.
        results: One for each of its folds.
    """
    calibrated = [
        replace(result, temperature=_temperature_of(result.fold, dataset, results))
        for result in results
    ]
    for result in calibrated:
        _write_temperature(out_dir / f"fold-{result.fold}", result.temperature)
    return calibrated


def fit_temperature(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> float:
    """Return the temperature at which predictions of unseen clips have the least loss.

    What is minimised over the scale s = 1 / temperature is the sum of cross-entropies plus
    s - ln(s), which is least at 1: a Gamma(2, 1) prior, worth about one clip. It is convex, and has
    a minimum also where every clip is right and the loss alone would ask for certainty.

    Args:
        probabilities: Softmax of the logits, shape (num_clips, num_classes).
        labels: Shape (num_clips,).
    Returns:
        The temperature, above 0, to four digits.
    Raises:
        ValueError: There is no clip.
    Source: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, section 4.2.
    """
    num_clips, num_classes = probabilities.shape
    if not num_clips:
        raise ValueError("probabilities must have at least one clip, got none")
    logits = log_probabilities(probabilities)
    logits = logits - logits.max(axis=1, keepdims=True)
    of_labels = logits[np.arange(num_clips), labels].sum()

    def slope(log_scale: float) -> float:
        scale = math.exp(log_scale)
        expected = (np.exp(log_softmax(scale * logits, axis=1)) * logits).sum()
        return float(expected - of_labels) + 1 - 1 / scale

    # At the lower end, the prior's slope is steeper than any that the clips can have; at the upper,
    # the expected logit is within log(num_classes) / scale of the largest.
    lower, upper = -math.log(2 - of_labels), math.log(2 + num_clips * math.log(num_classes))
    return float(f"{math.exp(-brentq(slope, lower, upper)):.{DIGITS}g}")


def at_temperature(
    probabilities: NDArray[np.floating], temperature: float | None
) -> NDArray[np.floating]:
    """Return what probabilities become where logits are divided by a temperature; None is 1.

    Args:
        probabilities: Softmax of the logits, shape (num_clips, num_classes).
        temperature: Above 0.
    """
    if temperature is None:
        return probabilities
    scaled: NDArray[np.float64] = np.exp(
        log_softmax(log_probabilities(probabilities) / temperature, axis=1)
    )
    return scaled


def cross_entropies(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return each clip's cross-entropy, shape (num_clips,).

    Args:
        probabilities: Shape (num_clips, num_classes).
        labels: Shape (num_clips,).
    """
    return -log_probabilities(probabilities[np.arange(len(labels)), labels])


def log_probabilities(probabilities: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return logarithms in float64: logits, but for a constant of each clip.

    What float32 has rounded to 0 counts as its least normal number.
    """
    floor = float(np.finfo(np.float32).tiny)
    return np.log(np.maximum(np.asarray(probabilities, np.float64), floor))


def _temperature_of(fold: int, dataset: Dataset, results: Sequence[FoldResult]) -> float | None:
    """Return the temperature of a fold by the results of all others; None if there are none."""
    others = [result for result in results if result.fold != fold]
    if not others:
        return None
    return fit_temperature(
        np.concatenate([result.probabilities for result in others]),
        np.concatenate([dataset.labels[result.test_indices] for result in others]),
    )


def _write_temperature(folder: Path, temperature: float | None) -> None:
    """Write a temperature into a finished fold's model, unless it is there."""
    path = folder / MODEL
    if checkpoint.read_header(path).facts.get(TEMPERATURE) == temperature:
        settle(folder)
        return
    tensors, facts = checkpoint.load(path)
    facts.pop(TEMPERATURE, None)
    if temperature is not None:
        facts[TEMPERATURE] = temperature
    replace_listed(folder, MODEL, checkpoint.serialised(tensors, facts))
