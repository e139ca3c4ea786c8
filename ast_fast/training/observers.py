"""Who is told how training goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ast_fast.training.results import EpochRow, FoldResult


class Observer:
    """What is told how training goes, and does nothing: subclass it and override what matters."""

    def on_fold_start(self, fold: int, num_train: int, num_test: int, epochs: int) -> None:
        """See a fold begin, or be taken up again."""

    def on_step(
        self, fold: int, epoch: int, step: int, num_steps: int, loss: float, clips: int
    ) -> None:
        """See a training step of `clips` clips done: `step` of `num_steps`, both from 1."""

    def on_epoch(self, row: EpochRow) -> None:
        """See an epoch done and its checkpoint written."""

    def on_fold_end(self, result: FoldResult) -> None:
        """See a fold done, or found done by an earlier run."""


class Observers(Observer):
    """Tells each of several in turn."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_fold_start(self, *what: Any) -> None:
        """Tell them that a fold begins."""
        for observer in self._observers:
            observer.on_fold_start(*what)

    def on_step(self, *what: Any) -> None:
        """Tell them of a training step."""
        for observer in self._observers:
            observer.on_step(*what)

    def on_epoch(self, *what: Any) -> None:
        """Tell them of an epoch."""
        for observer in self._observers:
            observer.on_epoch(*what)

    def on_fold_end(self, *what: Any) -> None:
        """Tell them that a fold is done."""
        for observer in self._observers:
            observer.on_fold_end(*what)
