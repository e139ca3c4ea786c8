"""Where the time of a run goes, by stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import torch


class Stages:
    """Sum up the wall time of named stages.

    Stages are meant to follow one another: time in a stage inside another counts for both. On a
    GPU work is queued and the time lands in the stage that waits for it, unless `synchronise` is
    set, which waits at the end of every stage and slows the run down.

    Args:
        synchronise: Wait for the GPU at the end of each stage.
        elapsed: Seconds that have passed already.
    """

    def __init__(self, *, synchronise: bool = False, elapsed: float = 0.0) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronise = synchronise
        self._earlier = elapsed
        self._begin = perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since it was made, those before it, and those of what was taken up."""
        return self._earlier + perf_counter() - self._begin

    def state(self) -> dict[str, Any]:
        """Return what another process can take up, as JSON can hold it."""
        return {"seconds": dict(self.seconds), "elapsed": self.elapsed}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Add the seconds of an earlier process, whose work this one goes on with."""
        self._earlier += state["elapsed"]
        for name, seconds in state["seconds"].items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add the block's wall time to stage `name`, also when it raises."""
        begin = perf_counter()
        try:
            yield
            if self._synchronise and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
                torch.cuda.synchronize()
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - begin
