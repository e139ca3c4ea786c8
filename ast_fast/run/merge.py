"""Merge finished runs of different folds into one run with one report: `--merge`."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from ast_fast.data.dataset import Dataset, open_dataset
from ast_fast.machine.distributed import ALONE
from ast_fast.report.build import Measured, write_report
from ast_fast.run.endings import exhausted_resource
from ast_fast.run.facts import RunFacts, now
from ast_fast.run.folder import (
    MEASURED,
    RunFolder,
    check_out,
    read_facts,
    read_measured,
    recorded,
    run_json,
)
from ast_fast.run.kernels import wrong_kernel
from ast_fast.run.verified import finished_fold, read_finished
from ast_fast.settings.agree import (
    MAY_DIFFER_MERGED,
    MERGED_FACTS,
    differing_facts,
    first_difference,
)
from ast_fast.settings.command_line import MERGE, PROGRAM, MergeJob
from ast_fast.settings.config import Config
from ast_fast.settings.toml import (
    CONFIG,
    RUN,
    config_to_toml,
    config_values,
    recorded_config,
    settings_digest,
)
from ast_fast.training.calibration import calibrate
from ast_fast.training.manifest import describe, read_manifest, write_manifest
from ast_fast.training.results import RESULTS, FoldResult
from ast_fast_kernels.console import RunConsole
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import PARTIAL
from ast_fast_kernels.files.text import one_line


@dataclass(frozen=True)
class _Part:
    """A finished run to merge."""

    path: Path
    config: Config
    facts: RunFacts
    data_key: str
    folds: list[int]

    @classmethod
    def read(cls, path: Path) -> Self:
        report = read_finished(path)
        folds = sorted(int(fold) for fold in report["accuracy"]["per_fold"])
        return cls(path, recorded_config(path), read_facts(path), report["data"]["key"], folds)


def merge(job: MergeJob, argv: Sequence[str]) -> int:
    """Merge the runs that `--merge` names, print the result, and return the exit code.

    Args:
        job: The runs, and the folder of the new one.
        argv: The arguments, for its run.json.
    Raises:
        InputError: As in `merge_runs`, or the folder cannot be created.
    """
    check_out(job.out)
    report = merge_runs(job.runs, job.out, argv)
    accuracy = report["accuracy"]
    folds = " ".join(accuracy["per_fold"])
    print(f"accuracy {100 * accuracy['mean']:.1f} % ± {100 * accuracy['std']:.1f} (folds {folds})")
    print(f"report   {one_line(str(job.out / 'report.html'))}")
    first, *others = (part["run"] for part in report["run"]["merged"])
    differing = {name for run in others for name in differing_facts(first, run, MERGED_FACTS)}
    if differing:
        named = ", ".join(name for name in MERGED_FACTS if name in differing)
        print(f"note: the runs differ in {named}; run.json has the values of each run")
    return 0


def merge_runs(paths: Sequence[Path], out: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Copy the folds of finished runs into one new run, and write its report.

    Args:
        paths: Folders of runs with the same data and settings, and no fold in common.
        out: The new run's folder.
        argv: The arguments, for its run.json.
    Returns:
        The contents of its report.json.
    Raises:
        InputError: A run is not finished, or two runs cannot be merged.
    """
    if len(paths) < 2:
        raise InputError(f"{MERGE} must name at least 2 runs, got {len(paths)}")
    parts = [_Part.read(path) for path in paths]
    first, *others = parts
    for other in others:
        _check_alike(first, other)
    homes = _home_of_each_fold(parts)
    config = replace(first.config, folds=tuple(sorted(homes)), resume=False)
    dataset = open_dataset(config, console=RunConsole(stderr=True))
    if dataset.key != first.data_key:
        raise InputError(
            f"{dataset.root} no longer holds the clips that {first.path} was trained on"
        )
    settings = config_to_toml(recorded(config))
    facts = replace(
        first.facts,
        settings_sha256=settings_digest(settings),
        command=shlex.join([*shlex.split(PROGRAM), *argv]),
        merged=[
            {"path": str(part.path), "folds": part.folds, "run": part.facts.to_json()}
            for part in parts
        ],
        started=min(part.facts.started for part in parts),
        ended=now(),
        peak_memory_gib=max(part.facts.peak_memory_gib or 0.0 for part in parts),
    )
    try:
        folder = RunFolder(out, is_named=True, is_resumed=False, ranks=ALONE)
        with folder.filled() as whole:
            results, measured = [], {}
            for fold, home in sorted(homes.items()):
                result, times = _copy_fold(config, dataset, fold, home, whole)
                results.append(result)
                measured[fold] = times
            (whole / RUN).write_text(run_json(facts), encoding="utf-8")
            (whole / CONFIG).write_text(settings, encoding="utf-8")
            return write_report(
                whole,
                config,
                dataset,
                calibrate(whole, dataset, results),
                measured=measured,
                run=facts.to_json(),
            )
    except (OSError, shutil.Error) as error:
        reason = exhausted_resource(error) or f"--out {out} cannot be made from these runs: {error}"
        raise InputError(reason) from error


def _check_alike(first: _Part, other: _Part) -> None:
    """Raise if two runs differ too much to be merged."""
    here, there = config_values(first.config), config_values(other.config)
    key = first_difference(there, here, apart_from=MAY_DIFFER_MERGED)
    if key is not None:
        raise InputError(
            f"{other.path} must have the settings of {first.path} ({key} {here[key]}), got "
            f"{key} {there[key]}"
        )
    if other.facts.amp != first.facts.amp:
        raise InputError(
            f"{other.path} must have the precision of {first.path} ({first.facts.amp}), got "
            f"{other.facts.amp}"
        )
    if other.facts.pretrained_sha256 != first.facts.pretrained_sha256:
        raise InputError(
            f"{first.path} and {other.path} must have fine-tuned the same model; they have not"
        )
    if other.data_key != first.data_key:
        raise InputError(f"{first.path} and {other.path} must hold the same clips; they do not")


def _home_of_each_fold(parts: Sequence[_Part]) -> dict[int, Path]:
    """Return the run that each fold is in."""
    homes: dict[int, Path] = {}
    for part in parts:
        for fold in part.folds:
            if fold in homes:
                raise InputError(
                    f"fold {fold} must be in only one run; it is in {homes[fold]} and {part.path}"
                )
            homes[fold] = part.path
    return homes


def _copy_fold(
    config: Config, dataset: Dataset, fold: int, home: Path, whole: Path
) -> tuple[FoldResult, Measured]:
    """Check a finished fold and copy it into the new run; return its result and its cost.

    A fold of version 0.2.0, which has no manifest, gets one.
    """
    folder, copied = home / f"fold-{fold}", whole / f"fold-{fold}"
    result = finished_fold(config, dataset, fold, home)
    measured = read_measured(folder)
    if measured is None:
        raise InputError(
            f"{folder / MEASURED} is missing or incomplete; resume the run in {home} to write it"
        )
    if problem := wrong_kernel(fold, measured.kernels, folder):
        raise InputError(problem)
    shutil.copytree(folder, copied, copy_function=shutil.copyfile, ignore=_leftovers)
    if read_manifest(copied) is None:
        write_manifest(copied, describe(copied, (*RESULTS, MEASURED)))
    return result, measured


def _leftovers(_: str, names: list[str]) -> set[str]:
    """Return the names that killed processes left in a folder."""
    return set(filter(PARTIAL.fullmatch, names))
