import numpy as np
import pytest

from ast_fast.report.metrics import (
    ConfusedPair,
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
