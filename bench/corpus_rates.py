"""How long a file takes in a corpus: by processes of this machine, and by those of a Ray cluster.

python -m bench.corpus_rates FOLDER … > bench/history/NAME.json

Prints a record like those of pytest bench, with a case for each folder of audio files alone.
Both take turns over each folder of audio, with as many processes as cores. A file's time is that of
the second half of the shards, without the last, divided by their files: every process is at work
then, if the whole takes some seconds. The start, which Ray makes longer, is recorded beside it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from ast_fast_kernels.cores import available_cores
from ast_fast_kernels.corpus import cluster, jobs
from ast_fast_kernels.corpus.extractor import FbankExtractor
from ast_fast_kernels.corpus.plan import Plan
from ast_fast_kernels.corpus.records import ShardRecord
from ast_fast_kernels.corpus.run import Corpus, extract_corpus
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.fbank.config import FbankConfig
from bench import records
from bench.machine import describe

TURNS = 3
SHARDS = 24


class Clock:
    """Notes when each shard is finished."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make
        self.finished: list[tuple[float, int]] = []

    def __call__(self, plan: Plan, *rest: Any) -> Iterator[ShardRecord]:
        self._begun = time.perf_counter()
        for record in self._make(plan, *rest):
            self.finished.append((time.perf_counter(), record.rows))
            yield record

    @property
    def file_ms(self) -> float:
        """Milliseconds of a file while every process is at work."""
        before, *inner = self.finished[len(self.finished) // 2 : -1]
        return 1e3 * (inner[-1][0] - before[0]) / sum(rows for _, rows in inner)

    @property
    def first_shard(self) -> float:
        """Seconds until the first shard was there."""
        return self.finished[0][0] - self._begun


def extracted(folder: Path, kind: str, shard_size: int) -> Clock:
    """Return the times of one extraction of a folder, on this machine or by Ray."""
    clock = Clock(jobs.make_shards if kind == "processes" else cluster.make_shards)
    extractor = FbankExtractor(FbankConfig())
    with tempfile.TemporaryDirectory() as out:
        corpus = Corpus((folder,), Path(out) / "out", shard_size=shard_size)
        extract_corpus(corpus, extractor, clock)
    return clock


def files_in(folder: Path) -> list[Path]:
    """Return a folder's files.

    Raises:
        InputError: There are too few for every shard, or it is no folder.
    """
    files = [path for path in sorted(folder.iterdir()) if path.is_file()] if folder.is_dir() else []
    if len(files) < SHARDS:
        raise InputError(f"{folder} must be a folder of at least {SHARDS} files, got {len(files)}")
    return files


def of_folder(folder: Path) -> dict[str, Any]:
    """Return the times of a folder's turns, and the median of what a file costs more by Ray."""
    files = files_in(folder)
    shard_size = max(1, len(files) // SHARDS)
    clocks: dict[str, list[Clock]] = {"processes": [], "ray": []}
    for _ in range(TURNS):
        for kind, found in clocks.items():
            found.append(extracted(folder, kind, shard_size))
    rates: dict[str, Any] = {
        kind: {
            "file_ms": [round(clock.file_ms, 3) for clock in found],
            "first_shard_s": [round(clock.first_shard, 2) for clock in found],
        }
        for kind, found in clocks.items()
    }
    pairs = zip(clocks["processes"], clocks["ray"], strict=True)
    rates["overhead_ms"] = round(median(ray.file_ms - own.file_ms for own, ray in pairs), 3)
    size = sum(path.stat().st_size for path in files) / len(files)
    return {"files": len(files), "file_bytes": round(size), "shard_size": shard_size, **rates}


def main() -> None:
    folders = list(map(Path, sys.argv[1:]))
    if not folders:
        raise InputError("bench.corpus_rates must get a folder of audio, got none")
    for folder in folders:
        files_in(folder)
    cores = available_cores()
    stdout, sys.stdout = sys.stdout, sys.stderr
    with cluster.connected("local", cores):
        rates = {folder.name: of_folder(folder) for folder in folders}
    sys.stdout = stdout
    print(json.dumps(record_of(rates, cores), indent=1))


def record_of(rates: dict[str, dict[str, Any]], processes: int) -> dict[str, Any]:
    """Return the record of folders' rates, in the form of pytest bench."""
    from cpuinfo import get_cpu_info

    cpu = get_cpu_info()
    described = subprocess.run(
        ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    about = {"jobs": processes, "turns": TURNS}
    return {
        "machine_info": {"cpu": cpu, "cores": os.cpu_count(), **describe(cpu)},
        "commit": described.stdout.strip() or None,
        "command": "python -m bench.corpus_rates",
        "versions": {name: version(name) for name in ("ray", "numpy", "numba")},
        "benchmarks": [
            {
                "name": name,
                "group": "corpus",
                "params": {"folder": name},
                "extra_info": found | about,
            }
            for name, found in rates.items()
        ],
    }


if __name__ == "__main__":
    records.run(main)
