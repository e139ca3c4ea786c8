"""Progress of a run in training: one live line in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ast_fast.training.observers import Observer
from ast_fast.training.results import EpochRow, FoldResult

LINES_PER_FOLD = 10
"""About how many lines a fold gets without a terminal."""


class TrainingProgress(Observer):
    """Shows fold, epoch, loss, accuracy, clips a second and the time left.

    Args:
        console: Where to print; only a terminal gets a live line.
        folds: The folds of the run, in order.
    """

    def __init__(self, console: Console, folds: tuple[int, ...]) -> None:
        self._console = console
        self._folds = folds
        self._fold, self._epochs, self._num_train = 0, 1, 1
        self.epochs_seen = 0
        """Epochs of the current fold that this process trained."""
        self._last_test = ""
        self._speed = _Speed()
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[state]}", style="default"),
                console=self._console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("", total=None, state="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def on_fold_start(self, fold: int, num_train: int, num_test: int, epochs: int) -> None:
        """See a fold begin or resume."""
        self._fold, self._epochs, self._num_train = fold, epochs, num_train
        self.epochs_seen, self._last_test = 0, ""
        self._speed.restart()
        if self._progress is not None:
            self._progress.update(
                self._task, description=f"fold {fold}", total=epochs, completed=0, state=""
            )

    def on_step(
        self, fold: int, epoch: int, step: int, num_steps: int, loss: float, clips: int
    ) -> None:
        """Show a training step."""
        self._speed.add(clips)
        if self._progress is not None:
            done = epoch - 1 + step / num_steps
            left = self._left(done)
            state = (
                f"epoch {epoch}/{self._epochs}, loss {loss:.3f}{self._last_test}, "
                f"{self._speed.rate:.0f} clips/s, {left} left"
            )
            last = step == num_steps
            self._progress.update(self._task, completed=done, state=state, refresh=last)

    def on_epoch(self, row: EpochRow) -> None:
        """Count an epoch; without a terminal, print a line for some of them."""
        self.epochs_seen += 1
        if row.test_accuracy is not None:
            self._last_test = f", test {100 * row.test_accuracy:.1f} %"
        self._speed.restart(keep=row.clips_per_second)
        every = max(1, self._epochs // LINES_PER_FOLD)
        if self._progress is None and (row.epoch % every == 0 or row.epoch == self._epochs):
            self._console.print(
                f"fold {self._fold}, epoch {row.epoch}/{self._epochs}: "
                f"loss {row.train_loss:.3f}{self._last_test}, "
                f"{row.clips_per_second:.0f} clips/s, {self._left(row.epoch)} left"
            )

    def on_fold_end(self, result: FoldResult) -> None:
        """Print the accuracy of a fold, trained now or by an earlier run."""
        earlier = "" if self.epochs_seen else ", finished earlier"
        correct = round(result.accuracy * len(result.test_indices))
        self._console.print(
            f"fold {result.fold}: {100 * result.accuracy:.1f} % "
            f"({correct} of {len(result.test_indices)} clips{earlier})"
        )

    def _left(self, epochs_done: float) -> str:
        folds_left = len(self._folds) - 1 - self._folds.index(self._fold)
        epochs_left = folds_left * self._epochs + self._epochs - epochs_done
        return _clock(epochs_left * self._num_train / self._speed.rate)


class _Speed:
    """Clips a second in the last epoch; in a process's first epoch, so far."""

    def __init__(self) -> None:
        self._before = 0.0
        self.restart()

    def restart(self, *, keep: float = 0.0) -> None:
        self._before = keep or self._before
        self._begin, self._clips = time.perf_counter(), 0

    def add(self, clips: int) -> None:
        self._clips += clips

    @property
    def rate(self) -> float:
        if self._before:
            return self._before
        return max(self._clips, 1) / max(time.perf_counter() - self._begin, 1e-6)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
