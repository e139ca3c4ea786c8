"""Observers of training: what they can see, and several as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ast_fast.training.results import EpochRow, FoldResult


class Observer:
    """Sees training happen and does nothing; subclass it and override the methods you need."""

    def on_fold_start(self, fold: int, num_train: int, num_test: int, epochs: int) -> None:
        """See a fold begin or resume."""

    def on_step(
        self, fold: int, epoch: int, step: int, num_steps: int, loss: float, clips: int
    ) -> None:
        """See the end of a training step of `clips` clips: `step` of `num_steps`, from 1."""

    def on_epoch(self, row: EpochRow) -> None:
        """See the end of an epoch, after its checkpoint is written."""

    def on_fold_end(self, result: FoldResult) -> None:
        """See the end of a fold, trained now or by an earlier run."""


class Observers(Observer):
    """Calls several observers in turn."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def on_fold_start(self, *what: Any) -> None:
        """Tell each that a fold begins."""
        for observer in self._observers:
            observer.on_fold_start(*what)

    def on_step(self, *what: Any) -> None:
        """Tell each of a training step."""
        for observer in self._observers:
            observer.on_step(*what)

    def on_epoch(self, *what: Any) -> None:
        """Tell each of an epoch."""
        for observer in self._observers:
            observer.on_epoch(*what)

    def on_fold_end(self, *what: Any) -> None:
        """Tell each that a fold has ended."""
        for observer in self._observers:
            observer.on_fold_end(*what)
