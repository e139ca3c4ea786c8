"""One run for each of several seeds, each in its own folder, and their summary: `--seeds`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from ast_fast.data.dataset import Dataset, open_dataset
from ast_fast.machine.device import resolve_device
from ast_fast.machine.distributed import join_ranks
from ast_fast.report.build import calibrated_loss, read_report
from ast_fast.report.metrics import mean_and_std
from ast_fast.report.page import drawn_clips, render_seeds
from ast_fast.report.wrong import MOST_SHOWN, wrong_clips
from ast_fast.run.folder import LOCK, choose_out
from ast_fast.run.verified import finished_fold, read_finished
from ast_fast.settings.agree import MAY_DIFFER_BY_SEED, first_difference
from ast_fast.settings.command_line import SEEDS, Arguments, SeedsJob, parse_config
from ast_fast.settings.config import Config
from ast_fast.settings.toml import CONFIG, config_values, recorded_config, recorded_values
from ast_fast.training.results import FoldResult
from ast_fast_kernels.console import RunConsole
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write, remove_leftovers
from ast_fast_kernels.files.text import one_line

SUMMARY = "seeds.json"
PAGE = "seeds.html"


def run_seeds(job: SeedsJob, run: Callable[[Sequence[str]], int]) -> int:
    """Run every seed in `out/seed-N`, then write and print their summary.

    With `--resume`, existing runs are resumed, and missing ones start with the same settings.

    Args:
        job: The seeds, and the arguments of every run.
        run: Makes one run from its arguments and returns its exit code; other than 0, all end.
    Returns:
        The exit code.
    Raises:
        InputError: The folder holds a run itself, or two seeds' runs differ in more than the seed.
    """
    new = arguments_of_new_runs(job.arguments)
    config = parse_config(new)
    ranks = join_ranks(resolve_device(config.device))
    out = _named_out(job.arguments) or ranks.same(choose_out(Config()))
    if (out / CONFIG).is_file():
        raise InputError(f"--out must be a folder for the runs of {SEEDS}, got {out}, itself a run")
    planned = config_values(config)
    for folder in _finished(out).values():
        _check_alike(folder, read_finished(folder)["config"], planned)
    resumes = bool(job.arguments.of("--resume"))
    for seed in job.seeds:
        folder = out / f"seed-{seed}"
        if ranks.is_first and not resumes:
            print(f"\nseed {seed}", flush=True)
        if resumes and (folder / CONFIG).is_file():
            given = [*job.arguments.without("--out", "--resume").tokens, "--resume"]
        else:
            given = [*new.tokens, "--seed", str(seed)]
        code = run([*given, "--out", str(folder)])
        if code:
            return code
    if ranks.is_first:
        _write_summary(out, config)
    return 0


def arguments_of_new_runs(arguments: Arguments) -> Arguments:
    """Return the arguments of a new seed's run, without its seed and folder.

    With `--resume`, the settings are those of the first existing run, changed by the flags given.

    Raises:
        InputError: There is no run to resume.
    """
    given = arguments.without("--out", "--resume")
    if not arguments.of("--resume"):
        return given
    out = _named_out(arguments)
    if out is None:
        raise InputError("--resume needs --out, the folder of the runs to resume")
    existing = sorted(out.glob(f"seed-*/{CONFIG}"))
    if not existing:
        raise InputError(f"--out must hold runs to resume, got {out}, which has no seed-N")
    if given.of("--config"):
        return given
    recorded_values(existing[0].parent)  # raises if they were cut or changed
    return Arguments(("--config", str(existing[0]), *given.tokens))


def _write_summary(out: Path, config: Config) -> None:
    """Summarise the finished runs of all seeds, in seeds.json, seeds.html and on the console."""
    folders = _finished(out)
    summary = summarise(folders)
    with FileLock(out / LOCK):
        remove_leftovers(out)
        with atomic_write(out / SUMMARY) as path:
            path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    page = _page(folders, summary, config)  # reads the clips, and may take long or fail
    with FileLock(out / LOCK), atomic_write(out / PAGE) as path:
        path.write_text(page, encoding="utf-8")
    accuracy = summary["accuracy"]
    spread = f" ± {accuracy['std_over_seeds']:.1%}" if len(folders) > 1 else ""
    print(
        f"\naccuracy {accuracy['mean']:.1%}{spread} over seed{'s' * (len(folders) > 1)} "
        f"{' '.join(map(str, folders))} "
        f"(± {accuracy['std_over_folds_and_seeds']:.1%} over folds and seeds)\n"
        f"summary  {one_line(str(out / SUMMARY))}\n"
        f"page     {one_line(str(out / PAGE))}"
    )


def _page(folders: Mapping[int, Path], summary: Mapping[str, Any], config: Config) -> str:
    """Return seeds.html; without the runs' folds or their data it says that they are missing."""
    try:
        dataset, runs = _tests(folders, config)
    except InputError as error:
        return render_seeds(summary, [], num_wrong=0, num_always=0, not_drawn=str(error))
    wrong = wrong_clips(dataset, runs)
    return render_seeds(
        summary,
        drawn_clips(config, dataset, wrong[:MOST_SHOWN]),
        num_wrong=len(wrong),
        num_always=sum(clip.times == len(runs) for clip in wrong),
    )


def _tests(folders: Mapping[int, Path], config: Config) -> tuple[Dataset, list[list[FoldResult]]]:
    """Return the clips, and the results of every seed with their temperatures.

    Args:
        folders: Folders of the finished runs, by seed.
        config: Settings that name their data.
    Raises:
        InputError: A fold or the data is not there, or the data is another.
    """
    reports = {folder: read_report(folder) for folder in folders.values()}
    for folder, report in reports.items():
        for fold in report["accuracy"]["per_fold"]:
            if not (folder / f"fold-{fold}").is_dir():
                raise InputError(f"{folder} has no fold-{fold}")
    dataset = open_dataset(config, console=RunConsole(stderr=True))
    runs = []
    for folder, report in reports.items():
        if report["data"]["key"] != dataset.key:
            raise InputError(f"{dataset.root} no longer holds the clips of {folder}")
        rows = report.get("folds", {})
        runs.append(
            [
                _test(folder, dataset, int(fold), rows.get(fold, {}).get("temperature"))
                for fold in report["accuracy"]["per_fold"]
            ]
        )
    return dataset, runs


def _test(folder: Path, dataset: Dataset, fold: int, temperature: float | None) -> FoldResult:
    """Return the result of a finished fold, with its temperature."""
    result = finished_fold(recorded_config(folder), dataset, fold, folder)
    return replace(result, temperature=temperature)


def summarise(folders: dict[int, Path]) -> dict[str, Any]:
    """Return accuracies and calibrated losses of finished runs, by seed, with means and deviations.

    Standard deviations are the sample's (n - 1): over the seeds' means, and over all folds of all
    seeds.

    Args:
        folders: Folders of the runs, by seed.
    Raises:
        InputError: Two differ in their clips, their folds or a setting.
    """
    per_seed: dict[str, dict[str, float]] = {}
    losses: dict[str, float | None] = {}
    first: dict[str, Any] = {}
    for seed, folder in folders.items():
        report = read_finished(folder)
        per_seed[str(seed)] = report["accuracy"]["per_fold"]
        losses[str(seed)] = calibrated_loss(report)
        facts = {"the clips": report["data"]["key"], "the folds": sorted(per_seed[str(seed)])}
        first = first or facts | report["config"]
        _check_alike(folder, facts | report["config"], first)
    mean, over_seeds = mean_and_std([mean_and_std([*a.values()])[0] for a in per_seed.values()])
    every = [accuracy for folds in per_seed.values() for accuracy in folds.values()]
    return {
        "accuracy": {
            "mean": mean,
            "std_over_seeds": over_seeds,
            "std_over_folds_and_seeds": mean_and_std(every)[1],
            "per_seed": per_seed,
        },
        "calibrated_loss": _summarised(losses),
    }


def _summarised(losses: Mapping[str, float | None]) -> dict[str, Any] | None:
    """Return the losses by seed, with their mean and deviation; None if a seed has none."""
    known = [loss for loss in losses.values() if loss is not None]
    if len(known) < len(losses):
        return None
    mean, std = mean_and_std(known)
    return {"mean": mean, "std_over_seeds": std, "per_seed": dict(losses)}


def _check_alike(folder: Path, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Raise if a run differs from others in a setting, known to both, besides the seed."""
    key = first_difference(there, here, apart_from=MAY_DIFFER_BY_SEED)
    if key is not None:
        raise InputError(
            f"{folder} must differ from the other runs only in its seed: {key} is {there[key]} "
            f"there and {here[key]} in the others; name another --out"
        )


def _finished(out: Path) -> dict[int, Path]:
    """Return the folders of the runs that have a report, by seed."""
    folders = [path.parent for path in out.glob("seed-*/report.json")]
    numbered = [(folder.name.removeprefix("seed-"), folder) for folder in folders]
    return dict(sorted((int(name), folder) for name, folder in numbered if name.isdecimal()))


def _named_out(arguments: Arguments) -> Path | None:
    named = arguments.of("--out")
    return Path(named[0][0]).expanduser() if named and named[0] else None
