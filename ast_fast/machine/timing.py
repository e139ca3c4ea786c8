"""Where the time of a run goes, by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch


class Stages:
    """Sum up the wall time of named stages.

    Stages should follow one another: time in a nested stage counts for both. A GPU queues its work,
    whose time counts for the stage that waits for it. With `synchronise` every stage waits for its
    own work, which slows the run down.

    Args:
        synchronise: Wait for the GPU at the end of each stage.
        elapsed: Seconds to count as already passed.
    """

    def __init__(self, *, synchronise: bool = False, elapsed: float = 0.0) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronise = synchronise
        self._earlier = elapsed
        self._begin = perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since creation, plus those of `elapsed` and of earlier processes."""
        return self._earlier + perf_counter() - self._begin

    def state(self) -> dict[str, Any]:
        """Return the times so far, as JSON values, for another process's `take_up`."""
        return {"seconds": dict(self.seconds), "elapsed": self.elapsed}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Add the times of an earlier process, whose work this one continues."""
        self._earlier += state["elapsed"]
        for name, seconds in state["seconds"].items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def __call__(self, name: str, *, on_host: bool = False) -> Iterator[None]:
        """Add the block's wall time to stage `name`, also when it raises.

        Args:
            name: The stage.
            on_host: Whether the block's own work is the host's alone: then it never waits for the
                GPU, whatever `synchronise` is.
        """
        begin = perf_counter()
        waits = self._synchronise and not on_host
        try:
            yield
            if waits and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - begin
