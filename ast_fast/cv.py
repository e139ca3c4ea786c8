"""The main job: from audio files to a cross-validated report. `python -m ast_fast.cv --help`."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import torch
from filelock import FileLock, Timeout
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError

from ast_fast import checkpoint, run_info
from ast_fast.atomic import atomic_write, filled_folder
from ast_fast.cli import (
    PROGRAM,
    config_to_toml,
    config_values,
    first_difference,
    is_utf8,
    parse_config,
    recorded_config,
    split_flags,
)
from ast_fast.config import CHANGES_NO_RESULT, OF_A_JOB, Config
from ast_fast.data import (
    available_cores,
    check_fold_names,
    check_folds,
    decode_settings,
    open_dataset,
    read_metadata,
)
from ast_fast.device import autocast, resolve_amp, resolve_device
from ast_fast.distributed import (
    ALONE,
    end_process,
    is_lost_peer,
    join_ranks,
    leave_ranks,
    processes_here,
)
from ast_fast.errors import InputError
from ast_fast.features import Statistics, load_batch, log_mel, model_input
from ast_fast.kernel_check import check_kernels
from ast_fast.layout import METADATA
from ast_fast.model import AudioSpectrogramTransformer
from ast_fast.progress import send_nowhere, show_compilations
from ast_fast.report import Measured, read_report, write_report
from ast_fast.seeds import of_new_runs, run_seeds, take_seeds
from ast_fast.tensorboard import TensorBoardLog, load_writer
from ast_fast.timing import Stages
from ast_fast.train import (
    MODEL,
    FoldResult,
    Observer,
    check_config,
    check_memory,
    load_result,
    split_fold,
    train_fold,
)
from ast_fast.training_progress import TrainingProgress
from ast_fast_kernels import mix, use_backend
from ast_fast_kernels._dispatch import requested_backend
from ast_fast_kernels._torch.checks import dtype_name
from ast_fast_kernels.attention.api import choose_backend as choose_attention
from ast_fast_kernels.fbank.eager import choose_backend as choose_fbank
from ast_fast_kernels.gelu.api import choose_backend as choose_gelu
from ast_fast_kernels.layer_norm.api import choose_backend as choose_layer_norm
from ast_fast_kernels.linear.api import choose_backend as choose_linear
from ast_fast_kernels.mix.api import choose_backend as choose_mix
from ast_fast_kernels.normalise.api import choose_backend as choose_normalise
from ast_fast_kernels.stem.api import choose_backend as choose_stem

CONFIG = "config.toml"
RUN = "run.json"
MEASURED = "measured.json"
LOCK = ".lock"

OWN_FILES = re.compile(r"\.lock|run\.json|\.(run|config)\.[0-9a-f]{8}\.partial\.(json|toml)")
"""What a process killed between making its folder and writing config.toml leaves there."""

MOST_THREADS = 1024

MERGE = "--merge"

MUST_AGREE = ("data_key", "device", "kernels", "threads", "amp", "processes")
"""Facts of run.json that a resumed run must find unchanged: results depend on them."""

KERNEL_CHECK_CLIPS = 32
"""Most clips of a test fold that kernels are compared on."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came, by which schedulers and `timeout` end a run: Ctrl-C by another name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cross-validation that the arguments describe and return the exit code.

    0 when the report is written; 2, after one line for each problem on standard error, when
    something given cannot be used or a resource is exhausted; 130 when interrupted, 143 when
    terminated. A reader of standard output that leaves does not end the run.

    Args:
        argv: The arguments; None takes the command line's.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # of what an encoding lacks, `±` for one
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--help" not in arguments and "-h" not in arguments:
        try:
            seeds, rest = take_seeds(arguments)
            if seeds:
                ranks = join_ranks(resolve_device(parse_config(of_new_runs(rest)).device))
                return run_seeds(seeds, rest, main, lambda: ranks.same(choose_out(Config())), ranks)
        except InputError as error:
            return _fail(str(error))
        if any(flag == MERGE for flag, _ in split_flags(arguments)):
            return _merge(arguments)
    run = Run(arguments)
    try:
        with run.interrupts:
            run.prepare()
            run.train()
            run.report()
    except InputError as error:
        run.remove_untrained()
        return _fail(str(error))
    except KeyboardInterrupt as error:
        terminated = isinstance(error, Terminated)
        what = "terminated" if terminated else "interrupted"
        print(f"\n{what}; {run.how_to_go_on()}", file=sys.stderr)
        return 143 if terminated else 130
    except BrokenPipeError:
        if run.begun:
            raise
        send_nowhere(sys.stdout)  # --help was read as far as it was wanted
    except (MemoryError, OSError, RuntimeError, SafetensorError) as error:
        reason = exhausted_resource(error)
        if reason is None and is_lost_peer(error):
            reason = "another process of this run has ended"
        if reason is None:
            raise
        return _fail(f"{reason}; {run.how_to_go_on()}")
    finally:
        run.close()
    return 0


def _merge(argv: Sequence[str]) -> int:
    """Make one run of those that `--merge` names, and report on it; return the exit code."""
    try:
        given = split_flags(argv)
        groups = dict(given)
        if len(groups) < len(given):
            raise InputError(f"{MERGE} and --out must each be given once")
        if unknown := groups.keys() - {MERGE, "--out"}:
            raise InputError(f"{MERGE} takes --out alone beside it, got {min(unknown)}")
        if len(groups.get("--out", [])) != 1:
            raise InputError(f"{MERGE} needs --out, the folder of the run that it makes")
        out = Path(groups["--out"][0]).expanduser()
        check_out(out)
        paths = [Path(token).expanduser() for token in groups[MERGE]]
        report = merge_runs(paths, out, argv)
    except InputError as error:
        return _fail(str(error))
    accuracy = report["accuracy"]
    folds = " ".join(accuracy["per_fold"])
    print(f"accuracy {100 * accuracy['mean']:.1f} % ± {100 * accuracy['std']:.1f} (folds {folds})")
    print(f"report   {out / 'report.html'}")
    if others := _apart(report["run"]["merged"]):
        print(f"note: of the runs, {', '.join(others)} differ; run.json has each one's")
    return 0


def _apart(merged: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return which facts of merged runs differ that results may depend on, be it by rounding."""
    runs = [part["run"] for part in merged]
    names = ("commit", "versions", "device", "kernels", "threads", "processes")
    return [name for name in names if any(_differ(runs[0], run, name) for run in runs)]


def _differ(facts: Mapping[str, Any], others: Mapping[str, Any], name: str) -> bool:
    """Say whether a fact of two runs differs; of kernels, those count that both versions name."""
    fact, other = facts.get(name), others.get(name)
    if name == "kernels" and isinstance(fact, dict) and isinstance(other, dict):
        return any(fact[operation] != other[operation] for operation in fact.keys() & other.keys())
    return bool(fact != other)


def merge_runs(paths: Sequence[Path], out: Path, argv: Sequence[str]) -> dict[str, Any]:
    """Copy the folds of finished runs into one new run, and write its report.

    Args:
        paths: Folders of runs of the same data and settings, no fold in two of them.
        out: The new run's folder.
        argv: The arguments, for its run.json.
    Returns:
        What its report.json holds.
    Raises:
        InputError: A run is not finished, or two do not go together.
    """
    if len(paths) < 2:
        raise InputError(f"{MERGE} must name at least 2 runs, got {len(paths)}")
    parts = {path: _part(read_report(path)) for path in paths}
    configs = {path: recorded_config(path) for path in paths}
    infos = {path: _read_run(path) for path in paths}
    first, *others = paths
    for path in others:
        here, there = config_values(configs[first]), config_values(configs[path])
        key = first_difference(there, here, apart_from=CHANGES_NO_RESULT | OF_A_JOB)
        if key is not None:
            raise InputError(
                f"{path} must have the settings of {first}: {key} is {there[key]} there and "
                f"{here[key]} here"
            )
        precision, other = infos[first].get("amp"), infos[path].get("amp")
        if other != precision:
            raise InputError(
                f"{path} must have the precision of {first}: training.amp came to {other} there "
                f"and to {precision} here"
            )
        if parts[path]["data_key"] != parts[first]["data_key"]:
            raise InputError(f"{path} must be of the same clips as {first}, and is of others")
    homes: dict[int, Path] = {}
    for path in paths:
        for fold in parts[path]["folds"]:
            if fold in homes:
                raise InputError(
                    f"fold {fold} must be in one run, it is in {homes[fold]} and {path}"
                )
            homes[fold] = path
    config = dataclasses.replace(configs[first], folds=tuple(sorted(homes)), resume=False)
    dataset = open_dataset(config, console=_Console(stderr=True))
    if dataset.key != parts[first]["data_key"]:
        raise InputError(f"{dataset.root} must hold the clips of {first}, and holds others now")
    info = infos[first] | {
        "command": shlex.join([*shlex.split(PROGRAM), *argv]),
        "merged": [
            {"path": str(path), "folds": parts[path]["folds"], "run": infos[path]} for path in paths
        ],
        "started": min(info["started"] for info in infos.values()),
        "ended": run_info.now(),
        "peak_memory_gib": max(info.get("peak_memory_gib", 0.0) for info in infos.values()),
    }
    try:
        with filled_folder(out) as whole:
            results, measured = [], {}
            for fold, home in sorted(homes.items()):
                name = f"fold-{fold}"
                if (home / name).is_dir():
                    shutil.copytree(home / name, whole / name, copy_function=shutil.copyfile)
                indices = split_fold(dataset, fold)[1]
                result = load_result(config, dataset, fold, whole / name, indices)
                times = _read_measured(whole / name / MEASURED)
                if result is None or times is None:
                    raise InputError(f"{home / name} must be a finished fold, and is not whole")
                results.append(result)
                measured[fold] = times
            (whole / RUN).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
            (whole / CONFIG).write_text(config_to_toml(recorded(config)), encoding="utf-8")
            return write_report(whole, config, dataset, results, measured=measured, run=info)
    except (OSError, shutil.Error) as error:
        reason = exhausted_resource(error) or f"--out {out} cannot be made of these runs: {error}"
        raise InputError(reason) from error


def _part(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data key and the folds that a run's report is about."""
    folds = sorted(int(fold) for fold in report["accuracy"]["per_fold"])
    return {"data_key": report["data"]["key"], "folds": folds}


class Interrupts(Observer):
    """Has Ctrl-C, and SIGTERM as `Terminated`, end a run, at the latest after the step at hand.

    What a signal's handler raises can be lost: in a finalizer, or in a callback from C, Python says
    that it was ignored. So it is raised again after the next step. In other threads than the main
    one nothing is changed.
    """

    def __init__(self) -> None:
        self._came: KeyboardInterrupt | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def on_step(self, *_: object) -> None:
        """Raise what a signal raised before, and was lost."""
        if self._came is not None:
            raise self._came

    def _stop(self, number: int, _: object) -> None:
        self._came = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
        raise self._came


class _Console(Console):
    """Says nothing more once its reader has left (`| head`), and lets the run go on."""

    def on_broken_pipe(self) -> None:
        """Send what follows to nowhere, and say so where somebody may still read."""
        self.quiet = True
        send_nowhere(self.file)
        with contextlib.suppress(OSError):
            print("standard output was closed; the run goes on without it", file=sys.stderr)


def _fail(message: str) -> int:
    for line in message.splitlines():
        print(line if line.startswith(" ") else f"error: {line}", file=sys.stderr)
    return 2


class Run:
    """One cross-validation: prepared, trained fold by fold, reported.

    Args:
        argv: The arguments.
    """

    def __init__(self, argv: Sequence[str]) -> None:
        self.argv = argv
        self.ranks = ALONE
        self.console = _Console(soft_wrap=True, highlight=False, markup=False)
        self.out: Path
        self.begun = False
        self.interrupts = Interrupts()
        self.results: list[FoldResult] = []
        self.measured: dict[int, Measured] = {}
        self.compile_seconds = 0.0
        self._lock: FileLock | None = None
        self._made: list[Path] = []

    def prepare(self) -> None:
        """Check everything, open the data set, and make the run's folder or take it up again."""
        self.config = parse_config(self.argv)
        self.device = resolve_device(self.config.device)
        self.ranks = join_ranks(self.device)
        self.console.quiet = not self.ranks.is_first
        self.out = self.ranks.same(choose_out(self.config))
        if self.config.resume:
            check_resumed_settings(self.config, self.out)
        check_run(self.config, self.out)
        threads = self.config.threads or max(1, available_cores() // processes_here())
        if self.config.resume:
            self.begun = True
            threads = self.config.threads or _read_run(self.out)["threads"]
        torch.set_num_threads(threads)
        self.dataset = open_dataset(self.config, console=_Console(stderr=True))
        self.folds = check_folds(self.dataset, self.config.folds)
        check_memory(
            self.config,
            num_samples=self.dataset.waveforms.shape[1],
            num_clips=len(self.dataset.clips),
            num_classes=len(self.dataset.class_names),
            device=self.device,
        )
        model = self._new_model()
        self.info = run_info.describe_run(self.argv, self._program())
        with chosen_backends(self.config, self.device):
            kernels = kernels_in_use(self.config, self.device)
        amp = resolve_amp(self.config.training.amp, self.device)
        self.info |= {
            "device": self.device.type,
            "kernels": kernels,
            "amp": "off" if amp is None else dtype_name(amp),
            "processes": self.ranks.count,
            "data_key": self.dataset.key,
            "resumed": [],
        }
        self._compile_kernels(model)
        self.ranks.same(None)  # all have looked at the folder
        try:
            if self.config.resume:
                self._take_up()
            elif self.ranks.is_first:
                self._make_folder()
        except OSError as error:
            if exhausted_resource(error) is None:
                message = f"--out {self.out} cannot be written: {error.strerror}"
                raise InputError(message) from error
            raise
        self.out, self.begun = self.ranks.same((self.out, True))
        self._say_what_runs(model)

    def train(self) -> None:
        """Train and test every fold, and check the kernels on a batch of each."""
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(TrainingProgress(self.console, self.folds))
            observers: list[Observer] = [progress, self.interrupts]
            if self.config.tensorboard and self.ranks.is_first:
                log = TensorBoardLog(self.out)
                stack.callback(log.close)
                observers.append(log)
            for fold in self.folds:
                stages = Stages(synchronise=True, elapsed=self.compile_seconds)
                self.compile_seconds = 0.0
                folder = self.out / f"fold-{fold}"
                with chosen_backends(self.config, self.device):
                    result = train_fold(
                        self.config,
                        self.dataset,
                        fold,
                        self.out,
                        observers=observers,
                        stages=stages,
                        ranks=self.ranks,
                    )
                    self.results.append(result)
                    if not self.ranks.is_first:
                        continue
                    earlier = _read_measured(folder / MEASURED)
                    if earlier is not None and not progress.epochs_seen:
                        self.measured[fold] = earlier
                        continue
                    kernels = self._check_kernels(result, folder / MODEL)
                self.measured[fold] = Measured(stages.elapsed, stages.seconds, kernels)
                with atomic_write(folder / MEASURED) as path:
                    path.write_text(json.dumps(dataclasses.asdict(self.measured[fold]), indent=2))

    def report(self) -> None:
        """Write the report and print what it comes to; the first process does it for all."""
        (peak,) = self.ranks.sum(run_info.peak_memory_gib())
        if not self.ranks.is_first:
            return
        peak = max(peak, self.info.get("peak_memory_gib", 0.0))
        self.info |= {"ended": run_info.now(), "peak_memory_gib": peak}
        self._write_info()
        report = write_report(
            self.out,
            self.config,
            self.dataset,
            self.results,
            measured=self.measured,
            run=self.info,
        )
        self._say_results(report)

    def remove_untrained(self) -> None:
        """Remove what this process made of the run's folder, if it finished no epoch there."""
        if not (self.begun and self.ranks.is_first) or self.config.resume:
            return
        if any(self.out.glob("fold-*/*.safetensors")):
            return
        for folder in self.out.glob("fold-*"):
            with contextlib.suppress(OSError):
                folder.rmdir()
        self._remove_files(CONFIG, RUN, LOCK)
        self.begun = False

    def close(self) -> None:
        """Let others use the run's folder."""
        if self._lock is not None:
            self._lock.release()

    def how_to_go_on(self) -> str:
        """Return what is kept and the command that goes on from there."""
        if not self.begun:
            return "no run was begun, and nothing is left behind"
        command = shlex.join([*shlex.split(self._program()), "--resume", "--out", str(self.out)])
        return f"finished epochs are kept; go on with: {command}"

    def _program(self) -> str:
        if self.ranks.count == 1:
            return PROGRAM
        return f"torchrun --nproc-per-node {processes_here()} {PROGRAM.partition(' ')[2]}"

    def _make_folder(self) -> None:
        try:
            self._claim_out()
            self._acquire()
            check_out(self.out)  # again: another process may have been faster
            for name in os.listdir(self.out):
                if name != LOCK:
                    (self.out / name).unlink()  # OWN_FILES of a killed process
            self._write_info()
            with atomic_write(self.out / CONFIG) as path:
                path.write_text(config_to_toml(recorded(self.config)), encoding="utf-8")
        except BaseException:
            unfinished = self._lock is not None and not (self.out / CONFIG).exists()
            self._remove_files(*((RUN, LOCK) if unfinished else ()))
            raise
        self.begun = True

    def _claim_out(self) -> None:
        """Make the run's folder; one that nobody named is this process's alone."""
        self._made = [folder for folder in self.out.parents if not folder.exists()]
        if self.config.paths.out is not None:
            if not self.out.exists():
                self._made.insert(0, self.out)
            self.out.mkdir(parents=True, exist_ok=True)
            return
        self.out.parent.mkdir(parents=True, exist_ok=True)
        for path in default_outs():
            with contextlib.suppress(FileExistsError):
                path.mkdir()
                self.out = path
                self._made.insert(0, path)
                return

    def _remove_files(self, *names: str) -> None:
        """Remove these files from the run's folder, then the folders made for it if empty."""
        for name in names:
            with contextlib.suppress(OSError):
                (self.out / name).unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _take_up(self) -> None:
        if self.ranks.is_first:
            self._acquire()
        there = _read_run(self.out)
        for name in MUST_AGREE:
            if _differ(there, self.info, name):
                raise InputError(
                    f"--resume must go on with what the run in {self.out} began with: {name} is "
                    f"{there[name]} there and {self.info[name]} here"
                )
        again = {key: self.info[key] for key in ("started", "command", "commit", "versions")}
        self.info = {**there, "resumed": [*there["resumed"], again]}
        self.ranks.same(None)  # all have read it
        if self.ranks.is_first:
            self._write_info()

    def _acquire(self) -> None:
        lock = FileLock(self.out / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"--out {self.out} is in use by another process") from None
        self._lock = lock

    def _write_info(self) -> None:
        with atomic_write(self.out / RUN) as path:
            path.write_text(json.dumps(self.info, indent=2) + "\n", encoding="utf-8")

    def _compile_kernels(self, model: AudioSpectrogramTransformer) -> None:
        """Run everything that is compiled on first use, so that no clock of training sees it."""
        begin = time.perf_counter()
        config, device = self.config, self.device
        waveforms = torch.zeros(1, self.dataset.waveforms.shape[1], device=device)
        amp = resolve_amp(config.training.amp, device)
        model.to(device)
        if device.type == "cuda":
            self.console.print("compiling kernels for the GPU, where its cache lacks them …")
        with show_compilations(self.console), chosen_backends(config, device):
            if device.type == "cpu":
                nothing = torch.zeros(1, 1, dtype=torch.int64)
                mix(self.dataset.waveforms, nothing, nothing, nothing.float())
            log_mel(waveforms, config, dither=True)
            log_mel(waveforms.to(torch.int16), config)  # as tests and statistics have them
            features = model_input(waveforms, config, Statistics(0.0, 1.0))
            with autocast(device, amp):
                logits = model(features)
                with torch.inference_mode():
                    model(features)
            logits.sum().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        self.compile_seconds = time.perf_counter() - begin
        if self.compile_seconds > 1:
            self.console.print(f"warmed up kernels and model in {self.compile_seconds:.1f} s")

    def _check_kernels(self, result: FoldResult, path: Path) -> dict[str, Any]:
        """Compare the kernels in use with the reference on test clips and the tested weights."""
        config = self.config
        tensors, facts = checkpoint.load(path)
        model = self._new_model()
        model.load_state_dict(tensors)
        model.to(self.device).eval()
        statistics = facts["statistics"] and Statistics(**facts["statistics"])
        indices = result.test_indices[: min(KERNEL_CHECK_CLIPS, config.training.batch_size)]
        waveforms = load_batch(self.dataset.waveforms, indices, self.device)
        features = model_input(waveforms, config, statistics)
        amp = resolve_amp(config.training.amp, self.device)
        with autocast(self.device, amp):
            return check_kernels(config, waveforms, model, features, amp or torch.float32)

    def _new_model(self) -> AudioSpectrogramTransformer:
        return AudioSpectrogramTransformer.of(self.config, len(self.dataset.class_names))

    def _say_what_runs(self, model: AudioSpectrogramTransformer) -> None:
        dataset, config = self.dataset, self.config
        say = self.console.print
        if dataset.synthesised:
            where = "synthesised (no --data was given): simple artificial sounds, not real audio"
        else:
            where = str(dataset.root)
        parameters = sum(parameter.numel() for parameter in model.parameters())
        say(f"data     {where}")
        say(
            f"         {len(dataset.clips)} clips, {len(dataset.class_names)} classes, testing on "
            f"fold{'s' if len(self.folds) > 1 else ''} {' '.join(map(str, self.folds))}"
        )
        if dataset.bad_files:
            say(f"         {len(dataset.bad_files)} files that cannot be read are skipped")
        say(f"model    {parameters:,} parameters, {model.num_patches} patches")
        kernels = self.info["kernels"]
        say(
            f"kernels  FBANK by {kernels['fbank']}, attention by {kernels['attention']}; "
            f"{self.device.type}, {self.info['threads']} threads"
        )
        say(f"out      {self.out}{' (resumed)' if config.resume else ''}")

    def _say_results(self, report: Mapping[str, Any]) -> None:
        accuracy, timing = report["accuracy"], report["timing"]
        titles = ("FBANK" if op == "fbank" else op for op in report["kernels"])
        columns = ["fold", "accuracy", *(cell for op in titles for cell in (op, "error"))]
        folds = Table(*columns, box=None, padding=(0, 3, 0, 0))
        for fold, value in accuracy["per_fold"].items():
            cells = [fold, f"{100 * value:.1f} %"]
            for op in report["kernels"].values():
                check = op["per_fold"][fold]
                if check["speed_ratio"] is None:
                    cells += [check["backend"], "not compared"]
                else:
                    cells += [f"{check['speed_ratio']:.1f} x", f"{check['max_abs_error']:.1e}"]
            folds.add_row(*cells)
        self.console.print()
        self.console.print(folds)
        spread = (
            f" ± {100 * accuracy['std']:.1f} over folds" if len(accuracy["per_fold"]) > 1 else ""
        )
        of = ", on synthesised data" if self.dataset.synthesised else ""
        self.console.print(f"\naccuracy {100 * accuracy['mean']:.1f} %{spread}{of}")
        stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in timing["stages"].items())
        self.console.print(f"time     {timing['total_seconds']:.1f} s: {stages}")
        self.console.print(f"report   {self.out / 'report.html'}")


def choose_out(config: Config) -> Path:
    """Return the folder of `--out`, or the first of `default_outs` that does not exist."""
    if config.paths.out is not None:
        return config.paths.out
    return next(path for path in default_outs() if not os.path.lexists(path))


def default_outs() -> Iterator[Path]:
    """Yield the folders that a run begun now may take when none is named, first choice first."""
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    yield Path("runs", name)
    for number in itertools.count(2):
        yield Path("runs", f"{name}-{number}")


def recorded(config: Config) -> Config:
    """Return the settings as config.toml keeps them: usable from anywhere, for another run too."""
    data = config.paths.data and config.paths.data.absolute()
    cache = config.paths.cache and config.paths.cache.absolute()
    return replace(
        config, resume=False, paths=replace(config.paths, data=data, cache=cache, out=None)
    )


def check_run(config: Config, out: Path) -> None:
    """Check what can be checked before any work: settings, folder, device, backend, folds.

    Raises:
        InputError: The message names what cannot be used.
    """
    for name, value in (("threads", config.threads), ("audio.workers", config.audio.workers)):
        if not 0 <= value <= MOST_THREADS:
            raise InputError(f"{name} must be from 0 to {MOST_THREADS}, got {value}")
    if config.tensorboard:
        load_writer()
    check_paths(config, out)
    check_config(config, decode_settings(config).num_samples)
    if not config.resume:
        check_out(out)
    device = resolve_device(config.device)
    try:
        with chosen_backends(config, device):
            kernels_in_use(config, device)
    except InputError:
        raise
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--backend {config.backend}: {error}") from error
    if config.folds and config.paths.data is not None and not config.download:
        clips = read_metadata(config.paths.data, subset=config.subset)
        known = sorted({clip.fold for clip in clips})
        check_fold_names(config.folds, known, config.paths.data / METADATA)


def check_paths(config: Config, out: Path) -> None:
    """Check that every path can be written down, in config.toml and the report.

    Raises:
        InputError: The current folder is gone, or a path is not UTF-8.
    """
    try:
        here = Path.cwd()
    except OSError as error:
        raise InputError(f"the current folder cannot be used: {error.strerror}") from error
    for flag, path in (("out", out), ("data", config.paths.data), ("cache", config.paths.cache)):
        if path is not None and not is_utf8(str(here / path)):
            raise InputError(f"--{flag} must be a path in UTF-8, got {str(here / path)!r}")


def check_out(out: Path) -> None:
    """Check that the run's folder is new or empty, and that it can be made and written.

    Raises:
        InputError: It cannot; the message says why.
    """
    try:
        _check_out(out)
    except OSError as error:  # no permission, or a name longer than the system takes
        raise InputError(f"--out {out} cannot be used: {error.strerror}") from error


def _check_out(out: Path) -> None:
    if (out / CONFIG).is_file():
        raise InputError(
            f"--out {out} holds another run; name a new folder, or go on with it by --resume"
        )
    for folder in (out, *out.parents):
        if folder.is_symlink() and not folder.exists():
            target = os.readlink(folder)
            raise InputError(
                f"--out {out} cannot be made: {folder} is a link to {target}, which does not exist"
            )
    if out.exists() and not out.is_dir():
        raise InputError(f"--out must be a folder, got {out}, which is a file")
    if out.is_dir() and not all(OWN_FILES.fullmatch(name) for name in os.listdir(out)):
        raise InputError(f"--out must be a new or empty folder, got {out}, which holds other files")
    ancestor = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not ancestor.is_dir():
        raise InputError(f"--out {out} cannot be made: {ancestor} is a file")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise InputError(f"--out {out} cannot be written: no permission to write in {ancestor}")


def check_resumed_settings(config: Config, out: Path) -> None:
    """Check that a resumed run has the settings that it began with.

    Raises:
        InputError: One differs that could change a result; the message names the first.
    """
    there, here = config_values(recorded_config(out)), config_values(config)
    key = first_difference(there, here, apart_from=CHANGES_NO_RESULT)
    if key is not None:
        raise InputError(
            f"--resume must have the settings of the run in {out}: {key} is {there[key]} there and "
            f"{here[key]} here; leave it out, or name another --out without --resume"
        )


def chosen_backends(config: Config, device: torch.device) -> AbstractContextManager[None]:
    """Return the context in which kernels are those of `--backend`.

    Where numba has no attention, for a head dimension or mixed precision, auto takes torch's.

    Raises:
        InputError: The backend needs a device or a kernel that is not there.
    """
    match config.backend:
        case "auto":
            return contextlib.nullcontext()
        case "reference":
            return use_backend("reference")
        case "numba":
            return use_backend(fbank="numba", mix="numba", normalise="numba", attention="auto")
        case "triton":
            if device.type != "cuda":
                raise InputError(
                    "--backend triton needs a CUDA device, got cpu; use --backend numba on the CPU"
                )
            return use_backend("triton")


def kernels_in_use(config: Config, device: torch.device) -> dict[str, str]:
    """Return the backend of each operation on this device, under the backends chosen."""
    model = config.model
    samples = torch.zeros(1, config.fbank.window_size, device=device)
    amp = resolve_amp(config.training.amp, device)
    qkv = torch.zeros(
        (1, 1, 3, model.num_heads, model.embed_dim // model.num_heads),
        dtype=amp or torch.float32,
        device=device,
    )
    tokens = torch.zeros(1, 1, model.embed_dim, device=device)
    weight = torch.zeros(1, 1, device=device)
    choices: dict[str, tuple[Callable[..., str], tuple[Any, ...]]] = {
        "mix": (choose_mix, (samples,)),
        "fbank": (choose_fbank, (samples, config.fbank)),
        "normalise": (choose_normalise, (samples,)),
        "layer_norm": (choose_layer_norm, (tokens,)),
        "attention": (choose_attention, (qkv,)),
        "linear": (choose_linear, (weight, weight, weight[0])),
        "gelu": (choose_gelu, (weight, weight, weight[0])),
    }
    with autocast(device, amp):
        in_use = {
            name: choose(requested_backend(name, "auto"), *given)
            for name, (choose, given) in choices.items()
        }
        stages = {
            choose_stem(requested_backend("stem", "auto"), qkv.new_empty(1, 2, 2, width), weight)
            for width in model.stem_widths
        }
    return in_use | ({"stem": " and ".join(sorted(stages))} if stages else {})


def exhausted_resource(error: BaseException) -> str | None:
    """Return what ran out (disk or memory) if that is what the error says, else None."""
    text = str(error)
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or (isinstance(error, SafetensorError) and "No space left" in text):
        return "the disk is full: free some space"
    signs = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or any(s in text for s in signs):
        return "out of memory: lower training.batch_size or the model's size"
    return None


def _read_run(out: Path) -> dict[str, Any]:
    path = out / RUN
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for name in (*MUST_AGREE, "resumed"):
        if not isinstance(run, dict) or name not in run:
            raise InputError(f"{path} must say {name}, which it does not")
    there: dict[str, Any] = run
    return there


def _read_measured(path: Path) -> Measured | None:
    """Return what an earlier process measured of a fold that it finished; None if nothing whole."""
    try:
        measured = Measured(**json.loads(path.read_text(encoding="utf-8")))
        whole = {"fbank", "attention"} <= measured.kernels.keys()
        whole = whole and math.isfinite(measured.seconds + sum(measured.stages.values()))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return measured if whole else None


if __name__ == "__main__":
    try:
        code = main()
    except BaseException:
        leave_ranks()
        raise
    end_process(code)
