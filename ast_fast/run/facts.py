"""What a run's numbers depend on besides its settings: command, commit, versions and machine."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import torch

from ast_fast.machine.device import Placement
from ast_fast.machine.distributed import Ranks, processes_here
from ast_fast.machine.records import known_fields
from ast_fast.settings.agree import PRETRAINED
from ast_fast.settings.command_line import PROGRAM
from ast_fast.settings.toml import DIGEST
from ast_fast_kernels.cores import available_cores

PACKAGES = (
    *("torch", "numpy", "numba", "triton", "soundfile", "soxr", "scikit-learn"),
    *("ast-fast", "ast-fast-kernels"),
)


@dataclass(frozen=True)
class RunFacts:
    """What run.json holds. Versions before 0.2.0 wrote fewer of these."""

    device: str
    kernels: dict[str, str]
    """Operation → backend."""
    threads: int
    amp: str
    """Dtype of mixed precision, or `off`."""
    processes: int
    data_key: str
    """`Dataset.key` of the clips."""
    cuda_graph: bool | None = None
    """Whether training steps were replayed as a CUDA graph; None in versions up to 0.5.0."""
    settings_sha256: str | None = None
    """Digest of the values in config.toml; None in versions up to 0.2.0. With it, every finished
    fold has a manifest."""
    pretrained_sha256: str | None = None
    """Digest of the model that was fine-tuned; None where none was."""
    command: str = ""
    commit: dict[str, Any] | None = None
    """Of a checkout: its `hash`, and whether it is `dirty` (tracked files differ from it)."""
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    resumed: list[dict[str, Any]] = field(default_factory=list)
    """Command, commit, versions and start of each process that resumed the run."""
    merged: list[dict[str, Any]] | None = None
    """`path`, `folds` and `run` (its run.json) of each run that it was merged from, if any."""
    ended: str | None = None
    peak_memory_gib: float | None = None
    """Sum over the processes of the run."""

    unknown: dict[str, Any] = field(default_factory=dict)
    """What another version wrote besides; it is kept."""

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """Return the facts in a run.json."""
        values = known_fields(cls, document)
        values["unknown"] = {name: document[name] for name in document.keys() - values.keys()}
        return cls(**values)

    def to_json(self) -> dict[str, Any]:
        """Return the contents of run.json; facts not yet known are left out."""
        document = dataclasses.asdict(self)
        document |= document.pop("unknown")
        optional = (DIGEST, PRETRAINED, "cuda_graph", "merged", "ended", "peak_memory_gib")
        absent = [name for name in optional if document[name] is None]
        return {name: value for name, value in document.items() if name not in absent}

    def resumed_by(self, other: RunFacts) -> RunFacts:
        """Return the facts of this run after a process with the other facts resumed it."""
        again = {
            name: getattr(other, name) for name in ("started", "command", "commit", "versions")
        }
        return dataclasses.replace(self, resumed=[*self.resumed, again])

    def finished(self, peak_memory_gib: float) -> RunFacts:
        """Return the facts of this run after its last fold."""
        peak = max(peak_memory_gib, self.peak_memory_gib or 0.0)
        return dataclasses.replace(self, ended=now(), peak_memory_gib=peak)


def describe_run(
    argv: Sequence[str],
    placement: Placement,
    ranks: Ranks,
    *,
    kernels: dict[str, str],
    cuda_graph: bool,
    data_key: str,
    pretrained_sha256: str | None,
) -> RunFacts:
    """Return the facts of the run that starts now.

    Args:
        argv: The run's arguments.
        placement: Where it trains.
        ranks: The processes that train it.
        kernels: The backend of each operation.
        cuda_graph: Whether training steps are replayed as a CUDA graph.
        data_key: `Dataset.key` of the clips.
        pretrained_sha256: Digest of the model that is fine-tuned, if any.
    """
    return RunFacts(
        command=shlex.join([*shlex.split(program(ranks)), *argv]),
        commit=commit(),
        versions=versions(),
        machine=machine(),
        threads=torch.get_num_threads(),
        started=now(),
        device=placement.device.type,
        kernels=kernels,
        amp=placement.precision,
        processes=ranks.count,
        cuda_graph=cuda_graph,
        data_key=data_key,
        pretrained_sha256=pretrained_sha256,
    )


def program(ranks: Ranks) -> str:
    """Return the command, without arguments, that starts a run with as many processes."""
    if ranks.count == 1:
        return PROGRAM
    return f"torchrun --nproc-per-node {processes_here()} {PROGRAM.partition(' ')[2]}"


def now() -> str:
    """Return the time in ISO 8601 with its zone, to the second."""
    return datetime.now().astimezone().isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that shape results."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return the processor, its cores, the memory and the GPU."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": available_cores(),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory_gib() -> float:
    """Return the largest amount of memory that this process has used, in GiB.

    On Linux `ru_maxrss` also counts what the program that started this one held by then.
    """
    status = Path("/proc/self/status")
    text = status.read_text() if status.exists() else ""
    if found := re.search(r"^VmHWM:\s+(\d+) kB$", text, re.MULTILINE):
        return round(int(found[1]) / 2**20, 3)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30, 3)


def commit() -> dict[str, Any] | None:
    """Return the commit and whether tracked files differ from it; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        dirty = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None
    return {"hash": head, "dirty": dirty}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
