import numpy as np
import pytest

from ast_fast.report.metrics import (
    ConfusedPair,
    calibration,
    class_metrics,
    confusion_matrix,
    mean_and_std,
    most_confused,
)

NAMES = ("dog", "rain", "clock")
LABELS = [0, 0, 0, 0, 1, 1, 1]
PREDICTED = [0, 0, 1, 1, 1, 0, 1]


def test_mean_and_std_are_over_folds():
    mean, std = mean_and_std([0.7, 0.8, 0.9])
    assert mean == pytest.approx(0.8)
    assert std == pytest.approx(0.1)  # the sample's, not the population's


def test_one_fold_has_no_deviation():
    assert mean_and_std([0.75]) == (0.75, 0.0)


def test_no_fold_has_no_mean():
    with pytest.raises(ValueError, match="values must hold at least one number"):
        mean_and_std([])


def test_confusion_counts_labels_in_rows_also_of_absent_classes():
    matrix = confusion_matrix(LABELS, PREDICTED, 3)
    np.testing.assert_array_equal(matrix, [[2, 2, 0], [1, 2, 0], [0, 0, 0]])


def test_class_metrics_by_hand():
    dog, rain, clock = class_metrics(LABELS, PREDICTED, NAMES)
    assert (dog.name, dog.support) == ("dog", 4)
    assert dog.precision == pytest.approx(2 / 3)
    assert dog.recall == pytest.approx(2 / 4)
    assert dog.f1 == pytest.approx(4 / 7)
    assert rain.precision == pytest.approx(2 / 4)
    assert rain.recall == pytest.approx(2 / 3)
    assert (clock.precision, clock.recall, clock.f1, clock.support) == (0.0, 0.0, 0.0, 0)


def test_most_confused_pairs_come_first_and_never_the_diagonal():
    matrix = confusion_matrix(LABELS, PREDICTED, 3)
    assert most_confused(matrix, NAMES) == [
        ConfusedPair("dog", "rain", 2, 0.5),
        ConfusedPair("rain", "dog", 1, pytest.approx(1 / 3)),
    ]
    assert len(most_confused(matrix, NAMES, limit=1)) == 1


def test_a_bin_has_its_clips_confidence_and_accuracy():
    shares = [0.5, 0.9, 1.0, 0.95, 0.75]
    probabilities = np.array([[share, 1 - share] for share in shares], np.float32)
    found = calibration(probabilities, np.array([0, 1, 0, 0, 0]), num_bins=4)
    assert [(row.low, row.high) for row in found.bins] == [
        (0, 0.25),
        (0.25, 0.5),
        (0.5, 0.75),
        (0.75, 1),
    ]
    assert [row.count for row in found.bins] == [0, 1, 1, 3]  # the upper edge belongs to a bin
    assert found.bins[0].confidence is None
    assert found.bins[0].accuracy is None
    assert found.bins[3].confidence == pytest.approx(0.95)
    assert found.bins[3].accuracy == pytest.approx(2 / 3)
    error = (0.5 + 0.25 + 3 * (0.95 - 2 / 3)) / 5
    assert found.expected_error == pytest.approx(error)
    losses = -np.log([0.5, 0.1, 1.0, 0.95, 0.75])
    assert found.loss == pytest.approx(losses.mean())


def test_probabilities_that_come_true_have_no_calibration_error():
    rng = np.random.default_rng(0)
    shares = rng.uniform(0.5, 1, 200_000)
    probabilities = np.stack([shares, 1 - shares], axis=1)
    labels = (rng.random(len(shares)) > shares).astype(np.int64)
    found = calibration(probabilities, labels)
    assert found.expected_error < 0.01
    assert sum(row.count for row in found.bins) == len(shares)
    assert (
        calibration(
            probabilities**4 / (probabilities**4).sum(1, keepdims=True), labels
        ).expected_error
        > 0.1
    )
