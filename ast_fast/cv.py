"""The main job: from audio files to a cross-validated report. `python -m ast_fast.cv --help`.

Settings, then data, then every fold, then the report: `settle`, `prepare`, `train`, `report`.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from safetensors import SafetensorError

from ast_fast.data.dataset import Dataset, check_folds, open_dataset
from ast_fast.machine.device import Placement, resolve_amp, resolve_device
from ast_fast.machine.distributed import (
    Ranks,
    end_process,
    join_ranks,
    leave_ranks,
    processes_here,
)
from ast_fast.machine.timing import Stages
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.pretrained.digest import digest_of_model
from ast_fast.pretrained.finetune import finetuning_defaults
from ast_fast.pretrained.hub import fetched_model
from ast_fast.report.build import Measured, write_report
from ast_fast.run.checks import check_run
from ast_fast.run.endings import Interrupts, Terminated, why_it_ended
from ast_fast.run.facts import RunFacts, describe_run, peak_memory_gib
from ast_fast.run.folder import (
    RunFolder,
    choose_out,
    read_facts,
    read_measured,
    write_measured,
)
from ast_fast.run.kernels import (
    compare_kernels,
    kernels_in_use,
    use_backends_of,
    warm_up,
    wrong_kernel,
)
from ast_fast.run.merge import merge
from ast_fast.run.say import how_to_resume, say_results, say_what_runs
from ast_fast.run.seeds import run_seeds
from ast_fast.settings.agree import check_resumed_settings
from ast_fast.settings.command_line import Arguments, MergeJob, SeedsJob, parse_config, read_job
from ast_fast.settings.config import Config
from ast_fast.settings.rules import check_memory
from ast_fast.training.calibration import calibrate
from ast_fast.training.fold import train_fold
from ast_fast.training.observers import Observer
from ast_fast.training.progress import TrainingProgress
from ast_fast.training.results import FoldResult
from ast_fast.training.step import uses_graphs
from ast_fast.training.tensorboard import TensorBoardLog
from ast_fast_kernels.console import RunConsole, fail, send_nowhere
from ast_fast_kernels.cores import available_cores
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_line


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cross-validation that the arguments describe and return the exit code.

    0 when the report is written; 2, after one line for each problem on standard error, when the
    input cannot be used or a resource is exhausted; 130 when interrupted, 143 when terminated. If
    standard output is closed, the run continues.

    Args:
        argv: The arguments; None takes the command line's.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # an encoding may lack `±`
    arguments = Arguments(tuple(sys.argv[1:] if argv is None else argv))
    try:
        match read_job(arguments):
            case SeedsJob() as job:
                return run_seeds(job, main)
            case MergeJob() as job:
                return merge(job, arguments.tokens)
    except InputError as error:
        return fail(*error.problems)
    return cross_validate(arguments)


def cross_validate(arguments: Arguments) -> int:
    """Run one cross-validation, from its settings to its report, and return the exit code."""
    settled: Settled | None = None
    try:
        with Interrupts() as interrupts:
            settled = settle(arguments)
            run = prepare(settled)
            results, measured = train(run, interrupts)
            report(run, results, measured)
    except InputError as error:
        if settled is not None:
            settled.folder.remove_untrained()
        return fail(*error.problems)
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        what = "terminated" if terminated else "interrupted"
        resume = one_line(how_to_resume(settled.folder if settled else None))
        print(f"\n{what}; {resume}", file=sys.stderr)
        return 143 if terminated else 130
    except BrokenPipeError:
        if settled is not None and settled.folder.holds_run:
            raise
        send_nowhere(sys.stdout)  # the reader of --help has left
    except (MemoryError, OSError, RuntimeError, SafetensorError) as error:
        reason = why_it_ended(error)
        if reason is None:
            raise
        return fail(f"{reason}; {how_to_resume(settled.folder if settled else None)}")
    finally:
        if settled is not None:
            settled.folder.close()
    return 0


@dataclass(frozen=True)
class Settled:
    """The settings, and what follows from them before any data is read."""

    arguments: Arguments
    config: Config
    placement: Placement
    ranks: Ranks
    """The processes that make the run together."""
    console: Console
    folder: RunFolder


@dataclass(frozen=True)
class Prepared(Settled):
    """Everything that training and the report need."""

    dataset: Dataset
    folds: tuple[int, ...]
    """Folds to test on, in order."""
    facts: RunFacts
    warm_up_seconds: float


def settle(arguments: Arguments) -> Settled:
    """Read the settings, join the run's other processes, and check all that needs no data."""
    config = parse_config(arguments, finetuning_defaults, fetched_model)
    device = resolve_device(config.device)
    ranks = join_ranks(device)
    console = RunConsole(soft_wrap=True, quiet=not ranks.is_first)
    out = ranks.same(choose_out(config))
    if config.resume:
        check_resumed_settings(config, out)
    placement = Placement(device, resolve_amp(config.training.amp, device))
    check_run(config, out, placement)
    folder = RunFolder(
        out, is_named=config.paths.out is not None, is_resumed=config.resume, ranks=ranks
    )
    return Settled(arguments, config, placement, ranks, console, folder)


def prepare(settled: Settled) -> Prepared:
    """Open the data set, warm up model and kernels, and create the run's folder or resume it."""
    config, placement, ranks = settled.config, settled.placement, settled.ranks
    torch.set_num_threads(choose_threads(settled))
    dataset = open_dataset(config, console=RunConsole(stderr=True))
    folds = check_folds(dataset, config.folds)
    num_classes = len(dataset.class_names)
    check_memory(
        config,
        num_samples=dataset.num_samples,
        num_clips=len(dataset.clips),
        num_classes=num_classes,
        device=placement.device,
    )
    model = AudioSpectrogramTransformer.of(config, num_classes)
    kernels = kernels_in_use(config, placement)
    facts = describe_run(
        settled.arguments.tokens,
        placement,
        ranks,
        kernels=kernels,
        cuda_graph=uses_graphs(config, placement, ranks),
        data_key=dataset.key,
        pretrained_sha256=digest_of_pretrained(config, ranks),
    )
    warm_up_seconds = warm_up(config, dataset, placement, model, settled.console)
    ranks.same(None)  # all have checked the folder
    folder = settled.folder
    facts = folder.resume(facts) if config.resume else folder.begin(config, facts)
    say_what_runs(settled.console, dataset, folds, model, facts, settled.folder)
    return Prepared(
        arguments=settled.arguments,
        config=config,
        placement=placement,
        ranks=ranks,
        console=settled.console,
        folder=settled.folder,
        dataset=dataset,
        folds=folds,
        facts=facts,
        warm_up_seconds=warm_up_seconds,
    )


def digest_of_pretrained(config: Config, ranks: Ranks) -> str | None:
    """Return the digest of the model that a run begins with, if any; every process must call it.

    Raises:
        InputError: The model cannot be read, or differs from the first process's.
    """
    path = config.model.pretrained
    digest = None if path is None else digest_of_model(path)
    if digest != (first := ranks.same(digest)):
        raise InputError(
            f"model.pretrained {path} must be the same in every process, got the SHA-256 {digest} "
            f"in one and {first} in the first"
        )
    return digest


def check_pretrained_unchanged(run: Prepared) -> None:
    """Check, before a fold reads it, that the model is the one that the run began with.

    Raises:
        InputError: It cannot be read, or differs.
    """
    if digest_of_pretrained(run.config, run.ranks) != run.facts.pretrained_sha256:
        raise said_once(
            run.ranks,
            f"model.pretrained {run.config.model.pretrained} must stay as it was when the run "
            "began, and differs",
        )


def said_once(ranks: Ranks, problem: str) -> InputError:
    """Return the error of a problem that every process has found: the first says it."""
    return InputError(*([problem] if ranks.is_first else []))


def choose_threads(settled: Settled) -> int:
    """Return this process's CPU threads: the setting, else a resumed run's, else all its cores."""
    if settled.config.threads:
        return settled.config.threads
    if settled.config.resume:
        return read_facts(settled.folder.path).threads
    return max(1, available_cores() // processes_here())


def train(run: Prepared, interrupts: Interrupts) -> tuple[list[FoldResult], dict[int, Measured]]:
    """Train and test every fold, and compare the kernels on a batch of each.

    A fold whose kernels are wrong is the last: what they would train is worth no hours. Its files
    are written, so a resumed run ends with the same error; there is no report.

    Returns:
        The result of each fold; and the cost of each, by fold, in the first process only.
    Raises:
        InputError: A fold cannot be trained or resumed, or its kernels are wrong.
    """
    results: list[FoldResult] = []
    measured: dict[int, Measured] = {}
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(TrainingProgress(run.console, run.folds))
        observers: list[Observer] = [progress, interrupts]
        if run.config.tensorboard and run.ranks.is_first:
            log = TensorBoardLog(run.folder.path)
            stack.callback(log.close)
            observers.append(log)
        elapsed = run.warm_up_seconds
        for fold in run.folds:
            stages = Stages(synchronise=True, elapsed=elapsed)
            elapsed = 0.0
            check_pretrained_unchanged(run)
            with use_backends_of(run.config, run.placement.device):
                result = train_fold(
                    run.config,
                    run.dataset,
                    fold,
                    run.folder.path,
                    observers=observers,
                    stages=stages,
                    ranks=run.ranks,
                    placement=run.placement,
                )
                results.append(result)
                problem = None
                if run.ranks.is_first:
                    measured[fold] = measure(run, result, stages)
                    folder = run.folder.of_fold(fold)
                    problem = wrong_kernel(fold, measured[fold].kernels, folder)
                if problem := run.ranks.same(problem):
                    raise said_once(run.ranks, problem)
    return results, measured


def measure(run: Prepared, result: FoldResult, stages: Stages) -> Measured:
    """Return the cost of a fold and write it; read it if an earlier process wrote it.

    Args:
        run: The fold's run.
        result: The fold's result.
        stages: Its time by stage.
    """
    folder = run.folder.of_fold(result.fold)
    earlier = read_measured(folder)
    if earlier is not None:
        return earlier
    kernels = compare_kernels(run.config, run.dataset, run.placement, result, folder)
    measured = Measured(stages.elapsed, stages.seconds, kernels)
    write_measured(folder, measured)
    return measured


def report(run: Prepared, results: Sequence[FoldResult], measured: Mapping[int, Measured]) -> None:
    """Calibrate the models, write the report and print its figures, in the first process only."""
    (peak,) = run.ranks.sum(peak_memory_gib())
    if not run.ranks.is_first:
        return
    facts = run.facts.finished(peak)
    run.folder.write_facts(facts)
    written = write_report(
        run.folder.path,
        run.config,
        run.dataset,
        calibrate(run.folder.path, run.dataset, results),
        measured=measured,
        run=facts.to_json(),
    )
    say_results(run.console, written, run.folder.path, synthesised=run.dataset.synthesised)


if __name__ == "__main__":
    try:
        code = main()
    except BaseException:
        leave_ranks()
        raise
    end_process(code)
