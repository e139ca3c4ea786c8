"""One run by several processes, as `torchrun` starts them: which of them this is, what they share.

Every process draws the same numbers for whole batches and works on its part of the rows, so that
a run of several processes trains as one process would; only dropout and dither, which each draws
for its own rows, are others. The first process alone prints and writes.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray

from ast_fast.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """A process among those of its run; one alone by default."""

    rank: int = 0
    """From 0."""
    count: int = 1
    """Processes of the run."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def part(self, size: int) -> slice:
        """Return this process's share of `size` rows: in one piece, as even as can be."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def sum(self, *values: float) -> list[float]:
        """Return the sums of all processes' values; every process calls it, or none."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=_device())
        torch.distributed.all_reduce(total)
        return total.tolist()

    def gather(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return all processes' rows, in their order; every process calls it, or none."""
        if self.count == 1:
            return rows
        parts: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(parts, rows)
        return np.concatenate(parts)

    def same(self, value: Any) -> Any:
        """Return the first process's value; every process calls it, or none."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


ALONE = Ranks()


def join_ranks(device: torch.device) -> Ranks:
    """Return this process's place in the run, and meet the others if `torchrun` started any.

    On CUDA each takes the GPU of its local rank, and they talk by NCCL; else by Gloo.

    Args:
        device: What the run trains on.
    Raises:
        InputError: There are more processes on this machine than GPUs to train on.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return Ranks()
    if not torch.distributed.is_initialized():
        local = int(os.environ["LOCAL_RANK"])
        on_cuda = device.type == "cuda"
        if on_cuda:
            if local >= torch.cuda.device_count():
                raise InputError(
                    f"torchrun --nproc-per-node must be at most the {torch.cuda.device_count()} "
                    f"GPUs of this machine, got {os.environ['LOCAL_WORLD_SIZE']}"
                )
            torch.cuda.set_device(local)
        torch.distributed.init_process_group("nccl" if on_cuda else "gloo")
    return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())


def leave_ranks() -> None:
    """Let go of the other processes, so that the interpreter can end."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """End this process with an exit code, once it has written all that it printed.

    One of several ends at once, without what an interpreter does at its end: a thread of torch's
    that asks for Python meanwhile is thrown out of C++ code, which aborts the process
    ("terminate called without an active exception") after all its work is done.
    """
    if not torch.distributed.is_initialized():
        sys.exit(code)
    leave_ranks()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # a reader that has left
            stream.flush()
    os._exit(code)


def processes_here() -> int:
    """Return how many of the run's processes share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_lost_peer(error: BaseException) -> bool:
    """Say whether an error means that another process of the run has ended."""
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def _device() -> torch.device:
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
