import sys
from contextlib import closing

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ast_fast.cv import main
from ast_fast.training.results import EpochRow, FoldResult
from ast_fast.training.tensorboard import TensorBoardLog
from ast_fast_kernels.errors import InputError


def epoch(number: int, *, train_loss: float, test_accuracy: float | None = None) -> EpochRow:
    return EpochRow(number, 1e-3, train_loss, 0.5, None, test_accuracy, 4.0, 10.0)


def scalars(folder, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_every_epoch_is_a_point_of_its_fold(tmp_path):
    with closing(TensorBoardLog(tmp_path)) as log:
        for fold in (1, 4):
            log.on_fold_start(fold, num_train=8, num_test=2, epochs=2)
            log.on_epoch(epoch(1, train_loss=fold))
            log.on_epoch(epoch(2, train_loss=fold / 2, test_accuracy=0.75))
            log.on_fold_end(FoldResult(fold, 0.75, 0.5, [], np.arange(2), np.zeros((2, 2))))
    assert scalars(tmp_path / "fold-1", "loss/train") == [(1, 1.0), (2, 0.5)]
    assert scalars(tmp_path / "fold-4", "loss/train") == [(1, 4.0), (2, 2.0)]
    assert scalars(tmp_path / "fold-4", "accuracy/test") == [(2, 0.75)]
    assert scalars(tmp_path / "fold-4", "learning_rate") == [
        (1, pytest.approx(1e-3)),
        (2, pytest.approx(1e-3)),
    ]


def test_a_resumed_fold_hides_what_the_killed_one_wrote_of_the_same_epochs(tmp_path):
    for first, loss in ((1, 8.0), (3, 4.0)):
        with closing(TensorBoardLog(tmp_path)) as log:
            log.on_fold_start(1, num_train=8, num_test=2, epochs=4)
            for number in range(first, 5):
                log.on_epoch(epoch(number, train_loss=loss))
    assert scalars(tmp_path / "fold-1", "loss/train") == [(1, 8.0), (2, 8.0), (3, 4.0), (4, 4.0)]


def test_a_finished_fold_gets_no_file(tmp_path):
    with closing(TensorBoardLog(tmp_path)) as log:
        log.on_fold_start(1, num_train=8, num_test=2, epochs=4)
        log.on_fold_end(FoldResult(1, 0.75, 0.5, [], np.arange(2), np.zeros((2, 2))))
    assert not list(tmp_path.rglob("*tfevents*"))


def test_without_tensorboard_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(InputError, match=r"pip install 'ast-fast\[tensorboard\]'"):
        TensorBoardLog(tmp_path)


def test_a_run_that_lacks_tensorboard_ends_before_it_begins(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert main(["--tensorboard", "--out", str(tmp_path / "run")]) == 2
    assert "--tensorboard needs TensorBoard" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
