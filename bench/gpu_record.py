"""Record all that only a GPU can say in one command: errors, hazards, times, tests; one JSON.

`python -m bench.gpu_record` (or `make gpu-record`) needs a CUDA machine and no more than
`ast-fast-kernels[triton]`; a stage that needs more says so in the record and is left out. Stages
run one after another in processes of their own, with limits, the most wanted first; each figure is
in the record on disk as soon as it is known, so a machine that is taken away costs only later ones.

`--tiny` runs the same steps on toy sizes in Triton's interpreter, so that their logic can be tested
anywhere. Its times come from the clock, mean nothing and are marked so.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.gpu_file import RecordFile, Row, failures, table

if TYPE_CHECKING:
    from bench.gpu_timer import Recorder

ROOT = Path(__file__).parents[1]
HISTORY = ROOT / "bench" / "history"
LEAST_SECONDS = 10.0
"""A stage does not begin with less time left: importing and compiling would take it."""


@dataclass(frozen=True)
class Stage:
    """What a stage runs, and the most seconds that it may take."""

    function: str
    seconds: float


STAGES = {
    "facts": Stage("gpu_facts:measure_facts", 40),
    "errors": Stage("gpu_stages:check_errors", 110),
    "hazards": Stage("gpu_hazards:meet_hazards", 60),
    "attention": Stage("gpu_stages:measure_attention", 80),
    "block": Stage("gpu_stages:measure_block", 60),
    "fbank": Stage("gpu_stages:measure_fbank", 70),
    "training": Stage("gpu_training:measure_training", 100),
    "compiled": Stage("gpu_stages:measure_compiled", 80),
    "tests": Stage("gpu_tests:run_gpu_tests", 190),
    "sweep": Stage("gpu_sweep:sweep", 90),
}
"""Name → stage, in their order."""


def run_stages(
    file: RecordFile,
    stages: Sequence[str],
    seconds: float,
    command_of: Callable[[str], list[str]],
    limits: Mapping[str, float],
) -> None:
    """Run stages one after another, whatever becomes of each.

    Args:
        file: Keeps how each ended: its exit code, `"limit"`, `"no time left"`, or None while it
            runs and after a kill.
        stages: Their names.
        seconds: For all of them.
        command_of: Returns a stage's command line.
        limits: Most seconds of each that has a limit.
    """
    end = time.monotonic() + seconds
    for name in stages:
        begin = time.monotonic()
        if end - begin < LEAST_SECONDS:
            file.keep("stages", name, {"ended": "no time left", "seconds": 0.0})
            continue
        file.keep("stages", name, {"ended": None, "seconds": None})
        ended = run_stage(command_of(name), min(limits.get(name, seconds), end - begin))
        file.read()
        took = round(time.monotonic() - begin, 1)
        file.keep("stages", name, {"ended": ended, "seconds": took})


def run_stage(command: list[str], seconds: float) -> int | str:
    """Run a process in a group of its own; return its exit code, or `"limit"` if it took longer.

    It holds the reading end of a pipe from this process, by which it notices that this one is gone.
    """
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return "limit"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and what it started
        with suppress(subprocess.TimeoutExpired):  # the driver can hold on to it
            process.wait(10)


def function_of(name: str) -> Callable[[Recorder], None]:
    """Return what a stage runs."""
    module, _, function = STAGES[name].function.partition(":")
    run: Callable[[Recorder], None] = getattr(importlib.import_module(f"bench.{module}"), function)
    return run


def end_with_the_command() -> None:
    """End this stage's group when the process that started it is gone."""

    def wait() -> None:
        os.read(0, 1)  # nothing is written to it: it ends
        os.killpg(0, signal.SIGKILL)

    if os.getpgrp() == os.getpid():
        threading.Thread(target=wait, daemon=True).start()


def measure(name: str, path: Path, *, tiny: bool) -> None:
    """Run one stage in this process, on what the record at `path` holds already."""
    import torch

    from bench.gpu_timer import FULL, TINY, Recorder

    file = RecordFile(path)
    if tiny:
        from ast_fast_kernels.testing import interpreter

        interpreter.install()
    try:
        run = function_of(name)
    except ModuleNotFoundError as error:
        file.keep("skipped", name, f"{error.name} is not installed")
        return
    device = torch.device("cpu" if tiny else "cuda")
    run(Recorder(file, device, TINY if tiny else FULL))


def device_name(tiny: bool) -> str:
    if tiny:
        return "interpreter"
    import torch

    return torch.cuda.get_device_name()


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def describe(options: argparse.Namespace) -> Row:
    """Return what every figure depends on."""
    return {
        "command": " ".join(["python -m bench.gpu_record", *sys.argv[1:]]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": options.commit or _commit(),
        "platform": platform.platform(),
        "device": device_name(options.tiny),
        "times_mean_something": not options.tiny,
        "began": time.time(),
    }


def _commit() -> str | None:
    """Return git's name of the commit; None outside of a checkout or without git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return described.stdout.strip() or None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_record", description=__doc__)
    add = parser.add_argument
    add("--tiny", action="store_true", help="toy sizes in Triton's interpreter")
    add("--out", type=Path, help="the record; default bench/history/DATE-GPU.json")
    add("--commit", help="what is measured, where git cannot say it")
    add("--seconds", type=float, default=550.0, help="for all stages; default 550")
    add("--stages", default=",".join(STAGES), help="those to run; default %(default)s")
    add("--stage", choices=STAGES, help=argparse.SUPPRESS)  # what a stage's process is given
    return parser


def _unused(path: Path) -> Path:
    """Return a name that no record has."""
    names = (path.with_stem(f"{path.stem}{suffix}") for suffix in _suffixes())
    return next(name for name in names if not name.exists())


def _suffixes() -> Iterator[str]:
    yield ""
    number = 2
    while True:
        yield f"-{number}"
        number += 1


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    """Return the stages to run; end with one line if the options do not fit this machine."""
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if options.tiny and not interpreted:
        parser.error("--tiny needs TRITON_INTERPRET=1")
    if not options.tiny and interpreted:
        parser.error("TRITON_INTERPRET=1 is for --tiny: a GPU would not be used")
    stages = options.stages.split(",")
    if unknown := [name for name in stages if name not in STAGES]:
        parser.error(f"--stages must be of {', '.join(STAGES)}, got {unknown[0]!r}")
    if not options.seconds > LEAST_SECONDS:
        parser.error(f"--seconds must be above {LEAST_SECONDS:g}, got {options.seconds:g}")
    if options.tiny and options.out is None:
        parser.error("--tiny needs --out: its record is not one of a GPU")
    return stages


def _path(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Path:
    """Return where the record goes, which is checked before anything is measured."""
    path = options.out
    if path is None:
        name = re.sub(r"\W+", "-", device_name(options.tiny).lower()).strip("-")
        today = datetime.datetime.now(datetime.UTC).date()
        path = _unused(HISTORY / f"{today}-{name}.json")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        parser.error(f"--out must be a file in a folder that can be written to, got {path}")
    if path.exists():
        parser.error(f"--out must be a new file, so that no record is lost; {path} exists")
    return path.resolve()


def main(arguments: list[str] | None = None) -> int:
    """Run every stage and print the table; return 1 if anything failed, which its end lists."""
    parser = _parser()
    options = parser.parse_args(arguments)
    stages = _check(parser, options)
    if options.stage is not None:
        end_with_the_command()
        measure(options.stage, options.out, tiny=options.tiny)
        return 0
    if not options.tiny and not _has_gpu():
        parser.error("this needs a CUDA GPU; --tiny tries the steps without one")
    file = RecordFile(_path(parser, options))
    file.record = describe(options)
    command = [sys.executable, "-m", "bench.gpu_record", "--out", str(file.path)]
    command += ["--tiny"] if options.tiny else []
    limits = {} if options.tiny else {name: stage.seconds for name, stage in STAGES.items()}
    run_stages(file, stages, options.seconds, lambda name: [*command, "--stage", name], limits)
    print(table(file.record))
    print(f"{file.path}: {file.record['seconds']:.0f} s", file=sys.stderr)
    return 1 if failures(file.record) else 0


if __name__ == "__main__":
    sys.exit(main())
