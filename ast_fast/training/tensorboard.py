"""A run's curves for TensorBoard: `tensorboard --logdir runs` shows every fold of every run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ast_fast.training.observers import Observer
from ast_fast.training.results import EpochRow, FoldResult
from ast_fast_kernels.errors import InputError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLog(Observer):
    """Writes history.csv's figures as scalars into each fold's folder, one point an epoch.

    A resumed fold continues in a new file, which hides the later epochs that a killed process had
    written.

    Args:
        out: The run's folder.
    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, out: Path) -> None:
        self._writer_type = load_writer()
        self._out = out
        self._fold = 0
        self._writer: SummaryWriter | None = None

    def on_fold_start(self, fold: int, num_train: int, num_test: int, epochs: int) -> None:
        """See a fold begin or resume."""
        self._fold = fold

    def on_epoch(self, row: EpochRow) -> None:
        """Write an epoch's figures."""
        if self._writer is None:
            folder = self._out / f"fold-{self._fold}"
            self._writer = self._writer_type(str(folder), purge_step=row.epoch)
        scalars = {
            "loss/train": row.train_loss,
            "loss/test": row.test_loss,
            "accuracy/train": row.train_accuracy,
            "accuracy/test": row.test_accuracy,
            "learning_rate": row.learning_rate,
            "clips_per_second": row.clips_per_second,
        }
        for name, value in scalars.items():
            if value is not None:
                self._writer.add_scalar(name, value, row.epoch)
        self._writer.flush()

    def on_fold_end(self, result: FoldResult) -> None:
        """Finish the curves of the fold."""
        self.close()

    def close(self) -> None:
        """Write the current fold's curves to disk."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def load_writer() -> Any:
    """Return torch's SummaryWriter.

    Raises:
        InputError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "--tensorboard needs TensorBoard, which is not installed; "
            "pip install 'ast-fast[tensorboard]'"
        ) from error
    return SummaryWriter
