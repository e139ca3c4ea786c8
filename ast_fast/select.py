"""Choose settings on inner splits: `python -m ast_fast.select CANDIDATES --data … --out …`."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Annotated, Any

import tyro
from filelock import FileLock, Timeout

from ast_fast.data.cache import decode_settings
from ast_fast.data.dataset import Dataset, check_folds, open_dataset, without_fold
from ast_fast.machine.device import resolve_placement
from ast_fast.run.endings import Interrupts, Terminated, why_it_ended
from ast_fast.selection.plan import Plan, StoppingRule, Trial, read_candidates
from ast_fast.selection.table import markdown, rows_of
from ast_fast.selection.trial import Scores, code_identity, read_trial, scores_of, train_trial
from ast_fast.settings.agree import fold_identity
from ast_fast.settings.rules import check_config, check_memory, check_threads
from ast_fast_kernels.console import RunConsole, check_paths, fail, parse_options
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.atomic import atomic_write, remove_leftovers
from ast_fast_kernels.files.sealed import read_sealed, sealed

PROGRAM = "python -m ast_fast.select"
TABLE, PLAN, LOCK = "table.md", "selection.json", "selection.lock"


@dataclass(frozen=True)
class Options:
    """Choose settings on inner splits: train candidates and compare them by seed and fold.

    Every candidate is trained with every seed for every test fold, on the other folds without the
    one left out: what is chosen here has not seen that fold. Trials run side by side, by seed, then
    by fold, each in a process of its own; after each, OUT/table.md is written anew. A selection
    that was killed continues where it was when the same command is run again; candidates may be
    added to the file between.

    CANDIDATES is a TOML file: `config`, a file of settings, relative to it; `settings`, flags of
    python -m ast_fast.cv for all; and the table `candidates`, whose keys are names and whose values
    are flags of each, which replace those of `settings`. The first candidate is the one that the
    others are compared with.
    """

    candidates: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CANDIDATES")]
    """TOML file of candidates."""
    data: Path
    """Data set, as python -m ast_fast.cv takes it."""
    out: Path
    """Folder for the trials and the table."""
    cache: Path | None = None
    """Folder for decoded data; none: the user's cache folder."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of each candidate."""
    test_folds: tuple[int, ...] = (4, 5)
    """Folds to test on."""
    leave_out: int = 1
    """Fold that no trial sees."""
    jobs: int = 1
    """Trials at a time."""
    threads: int = 1
    """CPU threads of each."""
    stop_margin: float | None = None
    """A candidate whose calibrated loss with the first seed exceeds the first candidate's by more
    than this on every test fold gets no further seed; none: all are trained. It is part of the
    table and cannot be changed later."""
    mixed_code: bool = False
    """Keep finished trials of other code or versions; the table then says so."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run or continue the selection that the arguments describe; return the exit code.

    0 when all trials are finished or stopped by the rule; 2 if the input cannot be used or a trial
    fails; 130 when interrupted, 143 when terminated.

    Args:
        argv: The arguments; None takes the command line's.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parse_options(Options, PROGRAM, arguments)
    try:
        check_paths(arguments, "--data", "--out", "--cache")
        with Interrupts(), Selection(options) as selection:
            selection.run()
    except InputError as error:
        return fail(*error.problems)
    except KeyboardInterrupt as error:
        print("\nended; run the same command again to continue", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130
    except (MemoryError, OSError, RuntimeError) as error:
        if (reason := why_it_ended(error)) is None:
            raise
        return fail(f"{reason}; run the same command again to continue")
    return 0


def plan_of(options: Options) -> Plan:
    """Return what the options ask for.

    Raises:
        InputError: An option or the file of candidates cannot be used.
    """
    for name, value in (("--jobs", options.jobs), ("--threads", options.threads)):
        if value < 1:
            raise InputError(f"{name} must be at least 1, got {value}")
    candidates = read_candidates(
        options.candidates, data=options.data, cache=options.cache, threads=options.threads
    )
    rule = None
    if options.stop_margin is not None and options.seeds:
        rule = StoppingRule(options.stop_margin, options.seeds[0])
    return Plan(candidates, options.seeds, options.test_folds, options.leave_out, rule)


class Selection:
    """The trials of a plan in a folder: those finished, those running, those to come."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.plan = plan_of(options)
        self.console = RunConsole(soft_wrap=True)
        self.code = code_identity()
        self.configs = {candidate.name: candidate.config for candidate in self.plan.candidates}
        self.keys: dict[str, str] = {}
        self._open_data()
        self.scores: dict[Trial, Scores] = {}
        self.running: dict[Trial, SpawnProcess] = {}
        self.lock = FileLock(options.out / LOCK)

    def __enter__(self) -> Selection:
        """Claim the folder and read what is finished."""
        out = self.options.out
        try:
            out.mkdir(parents=True, exist_ok=True)
            self.lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"--out {out} is in use by another selection") from None
        except OSError as error:
            raise InputError(f"--out {out} cannot be used: {error.strerror}") from error
        try:
            remove_leftovers(out)
            self._agree_with_folder()
            for trial in self.plan.trials:
                if self._folder(trial).exists():
                    remove_leftovers(self._folder(trial))
                scores = self._scores_of(trial, mixed_code=self.options.mixed_code)
                if scores is not None:
                    self.scores[trial] = scores
        except BaseException:
            self.lock.release()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """End what runs; it continues from its checkpoint."""
        for process in self.running.values():
            process.kill()
        for process in self.running.values():
            process.join()
        self.lock.release()

    def run(self) -> None:
        """Run what is left, some trials at a time, and write the table after each.

        Raises:
            InputError: A trial failed.
        """
        self._write_table()
        while self._start() or self.running:
            wait([process.sentinel for process in self.running.values()])
            self._collect()
            self._write_table()

    def next_trial(self) -> Trial | None:
        """Return the next trial that can begin now; None if none can."""
        for trial in self.plan.trials:
            if trial in self.scores or trial in self.running:
                continue
            if self.stopped(trial.candidate) is False or not self._is_ruled(trial):
                return trial
        return None

    def stopped(self, candidate: str) -> bool | None:
        """Return whether the rule has stopped a candidate; None if that is not known yet."""
        rule, plan = self.plan.rule, self.plan
        if rule is None or candidate == plan.first:
            return False
        worse = []
        for fold in plan.folds:
            mine = self.scores.get(Trial(candidate, rule.seed, fold))
            first = self.scores.get(Trial(plan.first, rule.seed, fold))
            if mine is None or first is None:
                return None
            worse.append(mine.calibrated_loss > first.calibrated_loss + rule.margin)
        return all(worse)

    def _is_ruled(self, trial: Trial) -> bool:
        """Return whether the rule decides about a trial: those of the first seed always run."""
        return self.plan.rule is not None and trial.seed != self.plan.rule.seed

    def _start(self) -> bool:
        """Start as many trials as may run; return whether one was started."""
        started = False
        while len(self.running) < self.options.jobs and (trial := self.next_trial()) is not None:
            context = multiprocessing.get_context("spawn")
            config = self.configs[trial.candidate]
            process = context.Process(
                target=train_trial,
                args=(config, trial, self.plan.left_out, self._folder(trial), self.code),
            )
            process.start()
            self.running[trial] = process
            started = True
        return started

    def _collect(self) -> None:
        """Take up the scores of the trials whose processes have ended."""
        for trial, process in list(self.running.items()):
            if process.is_alive():
                continue
            process.join()
            del self.running[trial]
            scores = None if process.exitcode else self._scores_of(trial, mixed_code=False)
            if scores is None:
                raise InputError(
                    f"{trial}: its process ended with exit code {process.exitcode}; run the same "
                    "command again to continue"
                )
            self.scores[trial] = scores
            self.console.print(
                f"{trial}: accuracy {scores.accuracy:.1%}, calibrated loss "
                f"{scores.calibrated_loss:.3f}, {scores.seconds / 60:.0f} minutes; "
                f"{len(self.scores)} of {len(self.plan.trials)} trials"
            )

    def _scores_of(self, trial: Trial, *, mixed_code: bool) -> Scores | None:
        config = dataclasses.replace(self.configs[trial.candidate], seed=trial.seed, resume=True)
        expected = fold_identity(config, trial.fold, self.keys[trial.candidate])
        return scores_of(self._folder(trial), trial, expected, self.code, mixed_code=mixed_code)

    def _folder(self, trial: Trial) -> Path:
        return self.options.out / trial.candidate / f"seed-{trial.seed}"

    def _open_data(self) -> None:
        """Keep `Dataset.key` of each candidate's clips; decode them where that is still to do.

        Raises:
            InputError: A candidate cannot be trained on them.
        """
        datasets: dict[object, Dataset] = {}
        for candidate in self.plan.candidates:
            config = candidate.config
            check_threads(config)
            shaped_by = decode_settings(config), config.subset, config.skip_bad_files
            if shaped_by not in datasets:
                datasets[shaped_by] = without_fold(open_dataset(config), self.plan.left_out)
                check_folds(datasets[shaped_by], self.plan.folds)
            dataset = datasets[shaped_by]
            placement = resolve_placement(config.device, config.training.amp)
            check_config(config, dataset.num_samples, placement)
            check_memory(
                config,
                num_samples=dataset.num_samples,
                num_clips=len(dataset.clips),
                num_classes=len(dataset.class_names),
                device=placement.device,
            )
            self.keys[candidate.name] = dataset.key

    def _agree_with_folder(self) -> None:
        """Write the plan's fixed part into the folder, or compare with what it has.

        Raises:
            InputError: The folder's selection is another.
        """
        path, mine = self.options.out / PLAN, self.plan.document()
        recorded = read_sealed(path, "cannot be read", "name another --out")
        if recorded is None:
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(sealed(mine), indent=2) + "\n", encoding="utf-8")
            return
        for name, value in mine.items():
            if recorded.get(name) != value:
                raise InputError(
                    f"{name} must stay as the selection in {self.options.out} began, "
                    f"{recorded.get(name)}, got {value}; or name another --out"
                )

    def _write_table(self) -> None:
        stopped = [name for name in self.plan.names if self.stopped(name)]
        rows = rows_of(self.plan, self.scores, stopped)
        text = markdown(self.plan, rows, self._notes())
        with atomic_write(self.options.out / TABLE) as path:
            path.write_text(text, encoding="utf-8")

    def _notes(self) -> list[str]:
        """Return what the finished trials were made by, one line for each code and machine."""
        made_by: dict[str, set[str]] = {}
        for trial in self.scores:
            document = read_trial(self._folder(trial), trial)
            assert document is not None
            made_by.setdefault(_maker(document), set()).add(trial.candidate)
        several = len(made_by) > 1
        return [
            f"By {maker}" + (f": {', '.join(sorted(names))}." if several else ".")
            for maker, names in sorted(made_by.items())
        ]


def _maker(document: Mapping[str, Any]) -> str:
    """Return the code and machine of a trial, as the table names them."""
    commit, machine = document["commit"], document["machine"]
    at = ""
    if commit is not None:
        at = f", commit {commit['hash'][:7]}" + " with changes" * commit["dirty"]
    return f"code {document['code'][:8]}{at}, on {machine['cpu']}"


if __name__ == "__main__":
    sys.exit(main())
