"""The stage of a GPU's record that runs the tests marked gpu, by several processes.

Compiling takes most of their time. Outcomes are kept as they come, whatever becomes of pytest.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from threading import Lock

from bench.gpu_timer import Recorder

ROOT = Path(__file__).parents[1]
MARKED = ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--tb=short"]
OUTCOME = re.compile(r"(\S+::.+?) (PASSED|FAILED|SKIPPED|ERROR|XFAIL|XPASS)\b")
SECONDS_BETWEEN = 1.0
"""Between two writings of the record."""


def run_gpu_tests(recorder: Recorder) -> None:
    """Run them, and keep their outcomes as `tests`, `gpu`."""
    Outcomes(recorder).run(recorder.sizes.tests)


class Outcomes:
    """What tests came to so far."""

    def __init__(self, recorder: Recorder) -> None:
        self._file, self._lock, self._kept_at = recorder.file, Lock(), 0.0
        self._processes = min(recorder.sizes.processes, os.cpu_count() or 1)
        self._pieces = recorder.sizes.pieces
        self._counts: Counter[str] = Counter()
        # One test needs differences finer than a GPU's products; another needs real clips.
        self._row = {
            "command": " ".join(["python", *MARKED]),
            "collected": 0, "counts": {}, "failed": [], "skipped": [], "said": [], "codes": [],
            "may_skip": 1 + ("AST_FAST_DATA" not in os.environ),
        }  # fmt: skip

    def run(self, paths: tuple[str, ...]) -> None:
        more = ["--collect-only", "-q", "--continue-on-collection-errors", *paths]
        with _pytest(more) as process:
            lines = [line.rstrip() for line in process.stdout or ()]
        names = [line for line in lines if "::" in line and not line.startswith("ERROR")]
        self._row["collected"] = len(names)
        if process.returncode != 0:  # a module that is missing here, or no test
            self._row["codes"].append(process.returncode)
            self._row["said"] += lines[-40:]
        with ThreadPoolExecutor(self._processes) as pool:
            list(pool.map(self._run, pieces(names, self._processes * self._pieces)))
        self._keep(silent=False)

    def _run(self, names: list[str]) -> None:
        said = []
        with _pytest(["-v", *names]) as process:
            for line in process.stdout or ():
                said.append(line.rstrip())
                if outcome := OUTCOME.match(line):
                    self._add(*outcome.groups())
        with self._lock:
            if process.returncode != 0:
                self._row["codes"].append(process.returncode)
                self._row["said"] += [line for line in said if not OUTCOME.match(line)][-200:]
            self._row["skipped"] += [line for line in said if line.startswith("SKIPPED [")]
            self._keep(silent=True)

    def _add(self, name: str, outcome: str) -> None:
        with self._lock:
            self._counts[outcome.lower()] += 1
            if outcome in ("FAILED", "ERROR"):
                self._row["failed"].append(f"{outcome} {name}")
            is_due = time.monotonic() - self._kept_at >= SECONDS_BETWEEN
            if is_due or outcome in ("FAILED", "ERROR"):
                self._keep(silent=True)

    def _keep(self, *, silent: bool) -> None:
        self._kept_at = time.monotonic()
        self._row["counts"] = dict(self._counts)
        self._file.keep("tests", "gpu", self._row, silent=silent)


def pieces(names: list[str], number: int) -> list[list[str]]:
    """Cut tests into about so many pieces, each of neighbours in one file.

    Those share compiled kernels, and processes take pieces as they come free, so that a limit cuts
    little.
    """
    size = -(-len(names) // number)
    files = [list(tests) for _, tests in groupby(names, lambda name: name.partition("::")[0])]
    return [tests[at : at + size] for tests in files for at in range(0, len(tests), size)]


def _pytest(arguments: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *MARKED, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},  # of many processes
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
