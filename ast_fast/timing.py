"""Where the time of a run goes, by stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

import torch


class Stages:
    """Sum up the wall time of named stages.

    Stages are meant to follow one another: time in a stage inside another counts for both. On a
    GPU work is queued and the time lands in the stage that waits for it, unless `synchronise` is
    set, which waits at the end of every stage and slows the run down.

    Args:
        synchronise: Wait for the GPU at the end of each stage.
    """

    def __init__(self, *, synchronise: bool = False) -> None:
        self.seconds: dict[str, float] = {}
        self._synchronise = synchronise

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
