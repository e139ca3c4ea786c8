"""One run for each of several seeds, in folders side by side, and what they come to together."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ast_fast.atomic import atomic_write
from ast_fast.cli import split_flags
from ast_fast.distributed import ALONE, Ranks
from ast_fast.errors import InputError
from ast_fast.metrics import mean_and_std

FLAG = "--seeds"
SUMMARY = "seeds.json"


def take_seeds(argv: Sequence[str]) -> tuple[list[int], list[str]]:
    """Return the seeds of `--seeds`, none without it, and all other arguments.

    Raises:
        InputError: A seed is no whole number of at least 0 or stands twice, or `--seed` is given
            too.
    """
    groups = split_flags(argv)
    values = [tokens for flag, tokens in groups if flag == FLAG]
    if not values:
        return [], list(argv)
    if len(values) > 1:
        raise InputError(f"{FLAG} is given twice")
    if any(flag == "--seed" for flag, _ in groups):
        raise InputError(f"{FLAG} must be given without --seed")
    if not values[0]:
        raise InputError(f"{FLAG} takes at least one value, got none")
    seeds = []
    for token in values[0]:
        if not token.isdecimal() or int(token) in seeds:
            raise InputError(f"{FLAG} must be different whole numbers from 0 on, got {token}")
        seeds.append(int(token))
    return seeds, _joined(groups, without={FLAG})


def of_each(argv: Sequence[str]) -> list[str]:
    """Return the arguments that every seed's run has, without those of the folder of them all."""
    return _joined(split_flags(argv), without={"--out", "--resume"})


def run_seeds(
    seeds: Sequence[int],
    argv: Sequence[str],
    run: Callable[[Sequence[str]], int],
    default_out: Callable[[], Path],
    ranks: Ranks = ALONE,
) -> int:
    """Make a run of every seed in `out/seed-N`, then write and print what they come to together.

    With `--resume`, runs that were begun go on, and the others are made.

    Args:
        seeds: Of the runs.
        argv: The arguments of them all.
        run: Makes one run of its arguments and returns its exit code; another than 0 ends all.
        default_out: Names the folder where `--out` does not.
        ranks: The processes that make each run together; the first writes and prints.
    Returns:
        The exit code.
    """
    groups = split_flags(argv)
    named = [tokens for flag, tokens in groups if flag == "--out"]
    out = Path(named[0][0]).expanduser() if named and named[0] else default_out()
    resumes = any(flag == "--resume" for flag, _ in groups)
    for seed in seeds:
        folder = out / f"seed-{seed}"
        if ranks.is_first and not resumes:
            print(f"\nseed {seed}", flush=True)
        goes_on = resumes and (folder / "config.toml").is_file()
        which = ["--resume"] if goes_on else ["--seed", str(seed)]
        code = run([*of_each(argv), *which, "--out", str(folder)])
        if code:
            return code
    if not ranks.is_first:
        return 0
    summary = summarise({seed: out / f"seed-{seed}" for seed in seeds})
    with atomic_write(out / SUMMARY) as path:
        path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    accuracy = summary["accuracy"]
    print(
        f"\naccuracy {accuracy['mean']:.1%} ± {accuracy['std_over_seeds']:.1%} over "
        f"{len(seeds)} seeds (± {accuracy['std_over_folds_and_seeds']:.1%} over folds and seeds)\n"
        f"summary  {out / SUMMARY}"
    )
    return 0


def summarise(folders: dict[int, Path]) -> dict[str, Any]:
    """Return the accuracies of finished runs, by seed, with their means and deviations.

    Deviations are the sample's (n - 1): of the seeds' means, and of every fold of every seed.

    Args:
        folders: Of the runs, by seed.
    """
    per_seed: dict[str, dict[str, float]] = {}
    for seed, folder in folders.items():
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        per_seed[str(seed)] = report["accuracy"]["per_fold"]
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


def _joined(groups: Sequence[tuple[str, Sequence[str]]], *, without: set[str]) -> list[str]:
    return [
        token
        for flag, tokens in groups
        if flag not in without
        for token in ((flag, *tokens) if flag else tokens)
    ]
