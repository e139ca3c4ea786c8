"""The table of a selection: scores of each candidate, paired with the first one's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ast_fast.report.metrics import mean_and_std
from ast_fast.selection.plan import Plan, Trial
from ast_fast.selection.trial import Scores

DASH = "–"


class Estimate(NamedTuple):
    """A mean over trials, and its standard error."""

    mean: float
    error: float
    """Sample deviation (n − 1) over the root of n; NaN for one value."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate | None:
        """Return the estimate from the values of several trials; None from none."""
        if not values:
            return None
        mean, std = mean_and_std(values)
        return cls(mean, std / math.sqrt(len(values)) if len(values) > 1 else math.nan)

    def shown(self, form: str, factor: float = 1.0) -> str:
        """Return `mean ± error`, each times a factor."""
        error = "?" if math.isnan(self.error) else format(factor * self.error, form.lstrip("+"))
        return f"{format(factor * self.mean, form)} ± {error}"


@dataclass(frozen=True)
class Row:
    """A candidate's scores so far."""

    name: str
    trials: int
    """Finished ones."""
    calibrated_loss: Estimate | None
    loss_difference: Estimate | None
    """From the first candidate, over the seeds and folds that both have finished."""
    accuracy: Estimate | None
    accuracy_difference: Estimate | None
    train_accuracy: Estimate | None
    temperature: Estimate | None
    minutes: Estimate | None
    stopped: bool


def rows_of(plan: Plan, scores: Mapping[Trial, Scores], stopped: Sequence[str]) -> list[Row]:
    """Return a row for each candidate, by the paired difference of the calibrated loss.

    The first candidate has the difference 0, with no error. A standard error takes trials for
    independent, which those of one fold or one seed are only in part.

    Args:
        plan: The candidates.
        scores: Those of finished trials.
        stopped: Names of the candidates that the rule has stopped.
    """
    rows = [_row(plan, name, scores, name in stopped) for name in plan.names]
    return sorted(rows, key=lambda row: _rank(row, plan.first))


def _row(plan: Plan, name: str, scores: Mapping[Trial, Scores], stopped: bool) -> Row:
    mine = {trial: score for trial, score in scores.items() if trial.candidate == name}
    pairs = [
        (score, scores[first])
        for trial, score in mine.items()
        if name != plan.first and (first := trial.by(plan.first)) in scores
    ]

    def mean(field: str, factor: float = 1.0) -> Estimate | None:
        return Estimate.of([factor * getattr(score, field) for score in mine.values()])

    def difference(field: str) -> Estimate | None:
        return Estimate.of([getattr(mine, field) - getattr(first, field) for mine, first in pairs])

    return Row(
        name=name,
        trials=len(mine),
        calibrated_loss=mean("calibrated_loss"),
        loss_difference=difference("calibrated_loss"),
        accuracy=mean("accuracy"),
        accuracy_difference=difference("accuracy"),
        train_accuracy=mean("train_accuracy"),
        temperature=mean("temperature"),
        minutes=mean("seconds", 1 / 60),
        stopped=stopped,
    )


def _rank(row: Row, first: str) -> tuple[bool, float]:
    if row.name == first:
        return False, 0.0
    difference = row.loss_difference
    return difference is None, 0.0 if difference is None else difference.mean


COLUMNS = (
    *("candidate", "trials", "calibrated loss", "difference", "accuracy, %", "difference, points"),
    *("train accuracy, %", "temperature", "minutes"),
)


def markdown(plan: Plan, rows: Sequence[Row], notes: Sequence[str]) -> str:
    """Return the table as Markdown, with what it was made by.

    Args:
        plan: The candidates and splits.
        rows: As `rows_of` gives them.
        notes: Further sentences, one a line.
    """
    total = len(plan.seeds) * len(plan.folds)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        is_first = row.name == plan.first
        cells = [
            f"**{row.name}**" if is_first else row.name,
            f"{row.trials} of {total}" + (", stopped" if row.stopped else ""),
            _cell(row.calibrated_loss, ".3f"),
            _cell(row.loss_difference, "+.3f"),
            _cell(row.accuracy, ".1f", 100),
            _cell(row.accuracy_difference, "+.1f", 100),
            _cell(row.train_accuracy, ".1f", 100),
            DASH if row.temperature is None else f"{row.temperature.mean:.2f}",
            DASH if row.minutes is None else f"{row.minutes.mean:.0f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    folds = ", ".join(map(str, plan.folds))
    lines += [
        "",
        f"Seeds {', '.join(map(str, plan.seeds))}; tested on folds {folds}, each after training on "
        f"the others but fold {plan.left_out}. Last epoch, one pass over the clip.",
        f"Means ± standard errors over trials; differences from {plan.first} are paired by seed "
        "and fold. The calibrated loss is the test cross-entropy at a temperature that is "
        "fitted to the other half of the fold's clips. Minutes are of one trial.",
        f"Stopping rule: {plan.rule or 'none'}.",
        *notes,
    ]
    return "\n".join(lines) + "\n"


def _cell(estimate: Estimate | None, form: str, factor: float = 1.0) -> str:
    return DASH if estimate is None else estimate.shown(form, factor)
