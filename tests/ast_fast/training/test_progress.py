import io

import numpy as np
import pytest
from rich.console import Console

from ast_fast.training.progress import TrainingProgress
from ast_fast.training.results import EpochRow, FoldResult


def watch(console: Console, *, epochs: int = 20) -> TrainingProgress:
    """Show two folds, the second of them finished by an earlier run."""
    with TrainingProgress(console, (1, 4)) as progress:
        progress.on_fold_start(1, num_train=40, num_test=10, epochs=epochs)
        for epoch in range(1, epochs + 1):
            progress.on_step(1, epoch, 2, 2, loss=1.5, clips=20)
            tested = 0.25 if epoch == 4 else None
            progress.on_epoch(EpochRow(epoch, 1e-3, 1.25, 0.5, None, tested, 4.0, 10.0))
        progress.on_fold_end(result(1, 0.8))
        progress.on_fold_start(4, num_train=40, num_test=10, epochs=epochs)
        progress.on_fold_end(result(4, 0.6))
    return progress


def result(fold: int, accuracy: float) -> FoldResult:
    return FoldResult(fold, accuracy, 0.5, [], np.arange(10), np.zeros((10, 2), np.float32))


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


def test_lines_come_now_and_then_where_there_is_no_terminal(shown: io.StringIO) -> None:
    watch(Console(file=shown, soft_wrap=True, highlight=False))
    lines = shown.getvalue().splitlines()
    # 18 epochs of this fold and 20 of the next are left after the second: 38 * 40 clips at 10/s.
    assert lines[0] == "fold 1, epoch 2/20: loss 1.250, 10 clips/s, 2:32 left"
    assert lines[1] == "fold 1, epoch 4/20: loss 1.250, test 25.0 %, 10 clips/s, 2:24 left"
    assert lines[9] == "fold 1, epoch 20/20: loss 1.250, test 25.0 %, 10 clips/s, 1:20 left"
    assert lines[10:] == [
        "fold 1: 80.0 % (8 of 10 clips)",
        "fold 4: 60.0 % (6 of 10 clips, finished earlier)",
    ]


def test_a_terminal_has_one_live_line(shown: io.StringIO) -> None:
    watch(Console(file=shown, force_terminal=True, width=100, soft_wrap=True, color_system=None))
    text = shown.getvalue()
    assert "fold 1, epoch" not in text
    assert "epoch 20/20, loss 1.500, test 25.0 %, 10 clips/s" in text
    assert "fold 4: 60.0 %" in text


def test_a_last_epoch_is_always_shown(shown: io.StringIO) -> None:
    watch(Console(file=shown, soft_wrap=True, highlight=False), epochs=25)
    assert "epoch 25/25" in shown.getvalue()


def test_epochs_of_the_fold_at_hand_are_counted(shown: io.StringIO) -> None:
    with TrainingProgress(Console(file=shown), (1,)) as progress:
        progress.on_fold_start(1, num_train=40, num_test=10, epochs=2)
        progress.on_epoch(EpochRow(2, 1e-3, 1.25, 0.5, None, None, 4.0, 10.0))
        assert progress.epochs_seen == 1
