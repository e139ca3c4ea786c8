"""Calibrated losses, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ast_fast.selection.scores import alternate, calibrated


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def two_classes(margins: list[float]) -> np.ndarray:
    """Logits of clips of class 0 whose logit lies above the other's by these margins."""
    return np.array([[margin, 0.0] for margin in margins])


def test_every_second_clip_of_each_class_is_in_the_other_half() -> None:
    labels = np.array([2, 0, 2, 2, 0, 1])
    assert alternate(labels).tolist() == [False, False, True, False, True, False]


def three_of_four_right(scaled_margin: float) -> float:
    """The summed cross-entropy of four clips, three of them right, all by this margin."""
    return 3 * math.log1p(math.exp(-scaled_margin)) + math.log1p(math.exp(scaled_margin))


def test_each_half_has_the_temperature_that_fits_the_other() -> None:
    """Each half has 3 of 4 clips right, all by a margin m.

    With scaled margin x = m s, the slope in s of its losses and of the prior s − ln(s) is
    m (4 / (1 + e^−x) − 3) + 1 − m / x = 0. So m = 1 / (3 + 1 / x − 4 / (1 + e^−x)): x = ln 3 has
    m = ln 3, at temperature 1; x = ln 2 has m = ln 2 / (1 + ln 2 / 3), at temperature m / ln 2.
    """
    even, odd = math.log(3), math.log(2) / (1 + math.log(2) / 3)
    margins = [even, odd, even, odd, even, odd, -even, -odd]
    loss, temperature = calibrated(softmax(two_classes(margins)), np.zeros(8, np.int64))
    of_odd = round(odd / math.log(2), 4)
    expected = three_of_four_right(even / of_odd) + three_of_four_right(odd)
    assert loss == pytest.approx(expected / 8, rel=1e-6)
    assert temperature == pytest.approx(math.sqrt(of_odd), rel=1e-6)


def test_a_temperature_is_finite_where_none_is_best() -> None:
    """All right, or all wrong: the losses alone would have the scale infinite, or 0."""
    labels = np.zeros(4, np.int64)
    loss, temperature = calibrated(softmax(two_classes([1, 1, 1, 1])), labels)
    assert 0 < loss < math.log1p(math.exp(-1))
    assert 0 < temperature < 1
    loss, temperature = calibrated(softmax(two_classes([-1, -1, -1, -1])), labels)
    assert math.log(2) < loss < math.log1p(math.exp(1))
    assert 1 < temperature < math.inf


def test_a_scaled_model_has_the_same_calibrated_loss() -> None:
    """But for the prior, worth one of each half's 30,000 clips, and the four digits."""
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60_000, 5)), np.arange(60_000) % 5
    logits[np.arange(60_000), labels] += 1.0
    loss, temperature = calibrated(softmax(logits), labels)
    again, lower = calibrated(softmax(logits / 2), labels)
    assert again == pytest.approx(loss, rel=1e-5)
    assert lower == pytest.approx(temperature / 2, rel=2e-4)


def test_a_probability_that_is_zero_is_no_infinite_logit() -> None:
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4], [0.4, 0.6]], np.float32)
    assert math.isfinite(calibrated(probabilities, np.array([0, 0, 0, 0])).loss)


def test_halves_must_both_have_clips() -> None:
    with pytest.raises(ValueError, match="labels must name a class with two clips or more"):
        calibrated(np.full((2, 2), 0.5, np.float32), np.array([0, 1]))
