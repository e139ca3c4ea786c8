"""One trial, in a process of its own: its training, and the file that keeps its scores."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

import ast_fast
import ast_fast_kernels
from ast_fast.data.dataset import open_dataset, without_fold
from ast_fast.machine.device import resolve_placement
from ast_fast.run.endings import why_it_ended
from ast_fast.run.facts import commit, machine, versions
from ast_fast.run.kernels import use_backends_of
from ast_fast.selection.plan import Trial
from ast_fast.selection.scores import calibrated
from ast_fast.settings.agree import differing_setting, fold_identity
from ast_fast.settings.config import Config
from ast_fast.training.fold import train_fold
from ast_fast.training.manifest import check_files, missing_manifest, read_manifest
from ast_fast.training.observers import Observer
from ast_fast.training.results import RESULTS, EpochRow
from ast_fast_kernels.console import RunConsole, fail
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write
from ast_fast_kernels.files.sealed import digest_of, digest_of_file, read_sealed, sealed

TRIAL = "trial.json"

TRIAL_ROOMS = (
    *("machine", "settings", "data", "augment", "features", "model", "pretrained", "training"),
    "selection/scores",
)
"""Parts of ast_fast that a trial's training and scoring use."""


@dataclass(frozen=True)
class Scores:
    """What a finished trial came to."""

    accuracy: float
    loss: float
    calibrated_loss: float
    temperature: float
    """Fitted to the test clips."""
    train_accuracy: float
    """Of the last epoch, on clips as the model saw them."""
    seconds: float
    """Wall time, of all processes that took part."""

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Return the scores in a trial's file."""
        scores = document["scores"]
        return cls(**{item.name: 0.0 + scores[item.name] for item in dataclasses.fields(cls)})


def code_identity() -> str:
    """Return a digest of the code that trains and scores, and of the versions of what it uses.

    Two trials of one configuration and one identity give the same bits on one machine.
    """
    program, kernels = (Path(package.__path__[0]) for package in (ast_fast, ast_fast_kernels))
    files = [path for room in TRIAL_ROOMS for path in program.glob(f"{room}/**/*.py")]
    files += [path for room in TRIAL_ROOMS for path in program.glob(f"{room}.py")]
    found = {f"ast_fast/{path.relative_to(program)}": digest_of_file(path) for path in files}
    found |= {
        str(path.relative_to(kernels)): digest_of_file(path) for path in kernels.glob("**/*.py")
    }
    return digest_of({"files": found, "versions": versions()})


def train_trial(config: Config, trial: Trial, left_out: int, folder: Path, code: str) -> None:
    """Train one trial, or continue it, and write its scores; call this in a new process.

    The process ends at once if the one that started it does. Its exit code is 0, or 2 after a line
    on standard error.

    Args:
        config: The candidate's settings.
        trial: Seed and fold.
        left_out: Fold that is not used at all.
        folder: The candidate's folder for this seed.
        code: `code_identity` of this code.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C: the parent ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _train(config, trial, left_out, folder, code)
    except InputError as error:
        os._exit(fail(*(f"{trial}: {problem}" for problem in error.problems)))
    except (MemoryError, OSError, RuntimeError) as error:
        if (reason := why_it_ended(error)) is None:
            raise
        os._exit(fail(f"{trial}: {reason}"))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _train(config: Config, trial: Trial, left_out: int, folder: Path, code: str) -> None:
    torch.set_num_threads(config.threads)
    config = dataclasses.replace(config, seed=trial.seed, resume=True)
    dataset = without_fold(open_dataset(config), left_out)
    placement = resolve_placement(config.device, config.training.amp)
    folder.mkdir(parents=True, exist_ok=True)
    facts = {
        "run": fold_identity(config, trial.fold, dataset.key),
        "code": code,
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
    }
    _write(folder, trial, facts)
    with use_backends_of(config, placement.device):
        result = train_fold(
            config, dataset, trial.fold, folder, observers=[_Lines(trial)], placement=placement
        )
    last = result.history[-1]
    loss, temperature = calibrated(result.probabilities, dataset.labels[result.test_indices])
    scores = Scores(
        accuracy=result.accuracy,
        loss=result.loss,
        calibrated_loss=loss,
        temperature=temperature,
        train_accuracy=last.train_accuracy,
        seconds=sum(row.seconds for row in result.history),
    )
    _write(folder, trial, facts | {"scores": dataclasses.asdict(scores)})


class _Lines(Observer):
    """Prints a line whenever a trial was tested."""

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._console = RunConsole(soft_wrap=True)

    def on_epoch(self, row: EpochRow) -> None:
        if row.test_accuracy is not None:
            self._console.print(
                f"{self._trial}: epoch {row.epoch}, test accuracy {row.test_accuracy:.1%}, "
                f"loss {row.test_loss:.3f}, {row.clips_per_second:.0f} clips/s"
            )


def file_of(folder: Path, trial: Trial) -> Path:
    """Return the file of a trial in the folder of its candidate and seed."""
    return folder / f"{Path(TRIAL).stem}-fold-{trial.fold}.json"


def _write(folder: Path, trial: Trial, document: Mapping[str, Any]) -> None:
    with atomic_write(file_of(folder, trial)) as path:
        path.write_text(json.dumps(sealed(document), indent=2) + "\n", encoding="utf-8")


def read_trial(folder: Path, trial: Trial) -> dict[str, Any] | None:
    """Return the file of a trial; None if it has not begun.

    Raises:
        InputError: It is damaged.
    """
    return read_sealed(file_of(folder, trial), "cannot be read", _remedy(folder, trial))


def scores_of(
    folder: Path,
    trial: Trial,
    expected: Mapping[str, Any],
    code: str,
    *,
    mixed_code: bool,
) -> Scores | None:
    """Return the scores of a finished trial; None if it has not begun or was interrupted.

    Args:
        folder: The folder of its candidate and seed.
        trial: The trial.
        expected: `fold_identity` of the training that it must be.
        code: `code_identity` that it must have.
        mixed_code: Whether a finished one may be of other code.
    Raises:
        InputError: It is damaged, or of other settings, clips or code.
    """
    document = read_trial(folder, trial)
    if document is None:
        return None
    if (differing := differing_setting(document["run"], expected)) is not None:
        name, there, here = differing
        raise InputError(
            f"{file_of(folder, trial)} is of other settings: {name} is {there} there and {here} "
            "here; give the candidate another name, or name another --out"
        )
    if document["code"] != code and not (mixed_code and "scores" in document):
        hint = "" if "scores" not in document else "; --mixed-code keeps finished trials"
        raise InputError(
            f"{file_of(folder, trial)} is of other code or versions; {_remedy(folder, trial)}{hint}"
        )
    if "scores" not in document:
        return None
    fold = folder / f"fold-{trial.fold}"
    files = read_manifest(fold)
    if files is None:
        raise missing_manifest(fold)
    check_files(fold, files, RESULTS)
    return Scores.of(document)


def _remedy(folder: Path, trial: Trial) -> str:
    return f"remove it and {folder / f'fold-{trial.fold}'} to train the trial again"
