"""Clips that a run, or the runs of several seeds, took for another class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from ast_fast.data.dataset import Dataset
from ast_fast.training.calibration import at_temperature
from ast_fast.training.results import FoldResult

MOST_SHOWN = 24
"""Wrong clips that a page draws and a report names; predictions.csv has all."""


@dataclass(frozen=True)
class WrongClip:
    """A clip that at least one run took for another class."""

    index: int
    """Into the data set."""
    filename: str
    fold: int
    label: str
    """Its class."""
    taken_for: dict[str, int]
    """Class → runs that took it for that one, most first."""
    probability: float
    """Of the wrong class, at the model's temperature; the mean over the runs that were wrong."""

    @property
    def times(self) -> int:
        """Runs that were wrong."""
        return sum(self.taken_for.values())


def wrong_clips(dataset: Dataset, runs: Sequence[Sequence[FoldResult]]) -> list[WrongClip]:
    """Return the clips that were wrong, first those wrong in most runs, then the surest mistakes.

    Args:
        dataset: The clips.
        runs: The results of every run, one for each of its folds.
    """
    mistakes: dict[int, list[tuple[int, float]]] = {}
    for results in runs:
        for result in results:
            probabilities = at_temperature(result.probabilities, result.temperature)
            guesses = result.probabilities.argmax(axis=1)
            for index, guess, shares in zip(
                result.test_indices.tolist(), guesses.tolist(), probabilities, strict=True
            ):
                if guess != dataset.labels[index]:
                    mistakes.setdefault(index, []).append((guess, float(shares[guess])))
    clips = [_described(dataset, index, made) for index, made in mistakes.items()]
    return sorted(clips, key=lambda clip: (-clip.times, -clip.probability, clip.index))


def _described(dataset: Dataset, index: int, made: Sequence[tuple[int, float]]) -> WrongClip:
    clip = dataset.clips[index]
    return WrongClip(
        index=index,
        filename=clip.filename,
        fold=clip.fold,
        label=dataset.class_names[dataset.labels[index]],
        taken_for=dict(Counter(dataset.class_names[guess] for guess, _ in made).most_common()),
        probability=sum(probability for _, probability in made) / len(made),
    )
