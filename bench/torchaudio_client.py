"""torchaudio as a benchmark's candidate, in the interpreter that an environment variable names.

It runs in its own process. That process times itself, and waits in a blocking read during another
candidate's turn.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.turns import Way, settle

ROOT = Path(__file__).parents[1]
VARIABLE = "AST_FAST_TORCHAUDIO_PYTHON"


class Client:
    """The other interpreter, and the work that it has loaded."""

    def __init__(self, python: str) -> None:
        self.process = subprocess.Popen(
            [python, "-m", "bench.torchaudio_server"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT,
        )  # fmt: skip
        self.loaded: dict[str, Any] = {}
        self.versions: dict[str, str] = self.ask("versions")

    def ask(self, order: str, **arguments: Any) -> Any:
        """Give an order and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps({"order": order, **arguments}), file=self.process.stdin)
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the interpreter that {VARIABLE} names ended; its stderr says why")
        return json.loads(answer)

    def load(self, work: dict[str, Any]) -> None:
        """Load `work` for the server's next turns."""
        if self.loaded != work:
            self.ask("load", **work)
            self.loaded = work

    def close(self) -> None:
        """End the other interpreter."""
        self.process.communicate()


@cache
def client() -> Client | None:
    """Return the server, started once a session; None if no interpreter is named."""
    python = os.environ.get(VARIABLE)
    if not python:
        return None
    started = Client(python)
    atexit.register(started.close)
    return started


def ways(
    name: str, inputs: list[np.ndarray], threads: int, folder: Path, **options: Any
) -> dict[str, Way]:
    """Return the ways to run what `find_run` names on float32 inputs.

    Inputs and features are passed as files in `folder`. The options are those of `find_run` in
    torchaudio_server.py.
    """
    server = client()
    if server is None:
        pytest.skip(f"{VARIABLE} is not set: it names a python with torchaudio 2.9.1")
    np.save(folder / "inputs.npy", np.stack(inputs))

    def way(how: str, inner_threads: int, python_threads: int) -> Way:
        work = {
            "name": name,
            "how": how,
            "threads": inner_threads,
            "python_threads": python_threads,
            "inputs": str(folder / "inputs.npy"),
            "options": options,
        }

        def turn() -> float:
            server.load(work)
            seconds: float = server.ask("turn")
            return seconds

        def features() -> np.ndarray:
            server.load(work)
            server.ask("features", path=str(folder / "features.npy"))
            return np.load(folder / "features.npy")

        def settle_both() -> None:
            settle()
            server.ask("settle")

        return Way(turn, features, inner_threads, settle_both)

    found = {"clip by clip": way("clip by clip", threads, 1)}
    if not name.startswith("kaldi."):  # those take one clip
        found["whole batch"] = way("whole", threads, 1)
    shares_state = name.startswith("speechbrain.")  # a module that threads cannot share
    if threads > 1 and len(inputs[0]) > 1 and not shares_state:
        found[f"clip by clip in {threads} Python threads"] = way("clip by clip", 1, threads)
    return found
