"""A process of a cluster that makes shards: what it must see and hold before it is given one."""

from __future__ import annotations

import hashlib
import importlib
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ast_fast_kernels.corpus.flush import Flusher
from ast_fast_kernels.corpus.jobs import make_shards
from ast_fast_kernels.corpus.plan import Plan
from ast_fast_kernels.corpus.records import ShardRecord
from ast_fast_kernels.corpus.versions import LIBRARIES, LIBSNDFILE, version_of
from ast_fast_kernels.corpus.work import make_shard
from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_name

KERNELS, MODELS = "ast_fast_kernels", "ast_fast"
"""Our own packages; the second has the extractors that run a model."""
TOKEN = "cluster"
"""File in the run's folder that every machine must see as the driver wrote it."""
TOKEN_SECONDS = 10.0
"""After which a file that is not seen is absent; network file systems remember what was not there.
"""
LOOKED_AT = 8
"""Files of the input that every machine must see, if the driver does."""
NOISE_SECONDS = 1.0


@dataclass(frozen=True)
class Expected:
    """What every process must find as the driver does."""

    token: str
    versions: Mapping[str, str]
    visible: Sequence[tuple[str, bool]]
    """Some files of the input, and whether the driver sees them."""

    @classmethod
    def of(cls, plan: Plan, first: int) -> Expected:
        """Return what the driver finds, and write the token.

        Args:
            plan: The run's plan.
            first: A shard to take files of the input from.
        """
        token = os.urandom(16).hex()
        (plan.run / TOKEN).write_text(token)
        named = [plan.resolve(item.file or item.path) for item in plan.items(first)[:LOOKED_AT]]
        return cls(token, versions(plan), [(path, os.path.exists(path)) for path in named])


@dataclass(frozen=True)
class Greeting:
    """What a process says of itself before it gets its first shard."""

    node: str
    """Its machine: name and address."""
    problem: str | None
    """Why it can make none."""
    rounding: str = ""
    """Digest of the row of some noise: how its processor rounds."""


class Maker:
    """Makes one shard at a time, with the plan that it was given."""

    def __init__(self, plan: Plan, expected: Expected) -> None:
        os.environ["OMP_NUM_THREADS"] = "1"  # of our kernels; each process has one core
        self._plan, self._expected = plan, expected
        self._flusher = Flusher()

    def greet(self) -> Greeting:
        """Return what would keep this process from making the driver's shards, if anything."""
        ray: Any = importlib.import_module("ray")
        node = f"{socket.gethostname()} ({ray.util.get_node_ip_address()})"
        try:
            check(self._plan, self._expected)
            return Greeting(node, None, rounding_of(self._plan))
        except InputError as error:
            return Greeting(node, str(error))

    def make(self, k: int, apart: bool) -> ShardRecord:
        """Make a shard.

        Args:
            k: Its number.
            apart: Whether to make it in a process of its own, which finds the file that ends it.
        """
        if not apart:
            return make_shard(self._plan, k, self._flusher)
        (record,) = make_shards(self._plan, [k], jobs=2)
        return record


def check(plan: Plan, expected: Expected) -> None:
    """Check that this process finds what the driver finds.

    Raises:
        InputError: It does not.
    """
    if not _has_token(plan.run / TOKEN, expected.token):
        raise InputError(f"--out {plan.out} must be on a file system that all machines share")
    for path, seen in expected.visible:
        if seen and not os.path.exists(path):
            raise InputError(
                "the input must be on a file system that all machines share, and there is no "
                f"{path}"
            )
    for name, found in versions(plan).items():
        if found != expected.versions.get(name):
            raise InputError(
                f"{name} must be the {one_name(expected.versions.get(name))} of the machine that "
                f"runs the command, got {one_name(found)}"
            )


def versions(plan: Plan) -> dict[str, str]:
    """Return the versions of what a shard's bytes depend on; of our own, a digest of the source."""
    found = {KERNELS: source_of(KERNELS)}
    if (package := type(plan.extractor).__module__.partition(".")[0]) == MODELS:
        found |= {package: source_of(package), "torch": version_of("torch")}
    return found | {name: version_of(name) for name in (*LIBRARIES, LIBSNDFILE)}


def source_of(package: str) -> str:
    """Return the version of one of our packages: that of its distribution and of its source."""
    face = importlib.import_module(package)
    (root,) = face.__path__
    digest = hashlib.sha256()
    for path in sorted(Path(root).rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)}\0{len(content)}\0".encode() + content)
    return f"{version_of(package.replace('_', '-'))} (source {digest.hexdigest()[:12]})"


def rounding_of(plan: Plan) -> str:
    """Return a digest of the row of some noise; it also compiles kernels and loads a model.

    Processors with vectors of other lengths add up in another order, so last bits differ.
    """
    extractor = plan.extractor
    noise = np.random.default_rng(0).standard_normal(round(NOISE_SECONDS * extractor.sample_rate))
    if extractor.is_random:
        np.random.seed(0)  # noqa: NPY002 - dither draws from numpy's global generator
    (row,) = extractor([(0.1 * noise).astype(np.float32)])
    return hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()


def _has_token(path: Path, token: str) -> bool:
    deadline = time.monotonic() + TOKEN_SECONDS
    while True:
        try:
            if path.read_text() == token:
                return True
        except OSError:
            pass
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
