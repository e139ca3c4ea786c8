"""Calibrated losses, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ast_fast.selection.scores import alternate, calibrated, fitted_scale


def softmax(logits: np.ndarray) -> np.ndarray:
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)


def two_classes(margins: list[float]) -> np.ndarray:
    """Logits of clips of class 0 whose logit lies above the other's by these margins."""
    return np.array([[margin, 0.0] for margin in margins])


def test_every_second_clip_of_each_class_is_in_the_other_half() -> None:
    labels = np.array([2, 0, 2, 2, 0, 1])
    assert alternate(labels).tolist() == [False, False, True, False, True, False]


def test_a_fitted_scale_gives_the_share_of_right_clips() -> None:
    """Three of four clips right, all by the margin 1: the best scale s has 1 / (1 + e^−s) = 3/4."""
    labels = np.zeros(4, np.int64)
    assert fitted_scale(two_classes([1, 1, 1, -1]), labels) == pytest.approx(math.log(3))


def test_a_scale_stays_in_its_range_where_no_scale_is_best() -> None:
    labels = np.zeros(2, np.int64)
    assert 30 < fitted_scale(two_classes([1, 1]), labels) <= 64  # float64 sees no slope beyond 37
    assert fitted_scale(two_classes([-1, -1]), labels) == pytest.approx(1 / 64)


def test_each_half_has_the_scale_that_fits_the_other() -> None:
    """Both halves have 3 of 4 clips right, the even ones by the margin 1, the odd ones by 2."""
    margins = [1.0, 2.0, 1.0, 2.0, 1.0, 2.0, -1.0, -2.0]
    loss, scale = calibrated(softmax(two_classes(margins)), np.zeros(8, np.int64))
    root = math.sqrt(3)  # e to the half of log 3, which is the odd half's scale
    even = 3 * math.log(1 + 1 / root) + math.log(1 + root)
    odd = 3 * math.log(1 + 1 / 9) + math.log(1 + 9)
    assert loss == pytest.approx((even + odd) / 8, rel=1e-6)
    assert scale == pytest.approx(math.log(3) / math.sqrt(2), rel=1e-6)


def test_a_scaled_model_has_the_same_calibrated_loss() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(60, 5)), np.arange(60) % 5
    logits[np.arange(60), labels] += 1.0
    loss, scale = calibrated(softmax(logits), labels)
    again, larger = calibrated(softmax(logits / 2), labels)
    assert again == pytest.approx(loss, rel=1e-5)
    assert larger == pytest.approx(2 * scale, rel=1e-4)


def test_a_probability_that_is_zero_is_no_infinite_logit() -> None:
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4], [0.4, 0.6]], np.float32)
    assert math.isfinite(calibrated(probabilities, np.array([0, 0, 0, 0])).loss)


def test_halves_must_both_have_clips() -> None:
    with pytest.raises(ValueError, match="labels must name a class with two clips or more"):
        calibrated(np.full((2, 2), 0.5, np.float32), np.array([0, 1]))
