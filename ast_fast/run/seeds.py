"""One run for each of several seeds, each in its own folder, and their summary: `--seeds`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock

from ast_fast.machine.device import resolve_device
from ast_fast.machine.distributed import join_ranks
from ast_fast.report.metrics import mean_and_std
from ast_fast.run.folder import LOCK, choose_out
from ast_fast.run.verified import read_finished
from ast_fast.settings.agree import MAY_DIFFER_BY_SEED, first_difference
from ast_fast.settings.command_line import SEEDS, Arguments, SeedsJob, parse_config
from ast_fast.settings.config import Config
from ast_fast.settings.toml import CONFIG, config_values, recorded_values
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write, remove_leftovers
from ast_fast_kernels.files.text import one_line

SUMMARY = "seeds.json"


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
        _write_summary(out)
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


def _write_summary(out: Path) -> None:
    """Summarise the finished runs of all seeds, in seeds.json and on the console."""
    folders = _finished(out)
    summary = summarise(folders)
    with FileLock(out / LOCK):
        remove_leftovers(out)
        with atomic_write(out / SUMMARY) as path:
            path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    accuracy = summary["accuracy"]
    spread = f" ± {accuracy['std_over_seeds']:.1%}" if len(folders) > 1 else ""
    print(
        f"\naccuracy {accuracy['mean']:.1%}{spread} over seed{'s' * (len(folders) > 1)} "
        f"{' '.join(map(str, folders))} "
        f"(± {accuracy['std_over_folds_and_seeds']:.1%} over folds and seeds)\n"
        f"summary  {one_line(str(out / SUMMARY))}"
    )


def summarise(folders: dict[int, Path]) -> dict[str, Any]:
    """Return the accuracies of finished runs, by seed, with their means and deviations.

    Standard deviations are the sample's (n - 1): over the seeds' means, and over all folds of all
    seeds.

    Args:
        folders: Folders of the runs, by seed.
    Raises:
        InputError: Two differ in their clips, their folds or a setting.
    """
    per_seed: dict[str, dict[str, float]] = {}
    first: dict[str, Any] = {}
    for seed, folder in folders.items():
        report = read_finished(folder)
        per_seed[str(seed)] = report["accuracy"]["per_fold"]
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
        }
    }


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
