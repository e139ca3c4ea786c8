"""One run by several processes, started by `torchrun`: this process's rank, and what they share.

Every process draws the same random numbers for whole batches and works on its part of the rows, so
several processes train as one would. Only dropout and dither differ: each process draws them for
its own rows. Only the first process prints and writes.
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

from ast_fast_kernels.errors import InputError


@dataclass(frozen=True)
class Ranks:
    """A process's rank among those of its run; by default it is the only one."""

    rank: int = 0
    """From 0."""
    count: int = 1
    """Processes of the run."""

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def part(self, size: int) -> slice:
        """Return this process's share of `size` rows: contiguous, and as even as possible."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def sum(self, *values: float) -> list[float]:
        """Return the sums of all processes' values; every process must call it."""
        if self.count == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=_device())
        torch.distributed.all_reduce(total)
        return total.tolist()

    def gather(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return all processes' rows, in rank order; every process must call it."""
        if self.count == 1:
            return rows
        parts: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(parts, rows)
        return np.concatenate(parts)

    def same(self, value: Any) -> Any:
        """Return the first process's value; every process must call it."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values, src=0)
        return values[0]


ALONE = Ranks()


def join_ranks(device: torch.device) -> Ranks:
    """Join the other processes that `torchrun` started, if any; return this process's rank.

    On CUDA, each process takes the GPU of its local rank, and they communicate by NCCL; on the CPU
    by Gloo.

    Args:
        device: Device that the run trains on.
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
    """Leave the other processes, so that the interpreter can exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_process(code: int) -> NoReturn:
    """Flush what was printed and end this process with an exit code.

    One of several processes skips the interpreter's shutdown. If a thread of torch needs Python
    during it, C++ code aborts the process ("terminate called without an active exception") although
    all its work is done.
    """
    if not torch.distributed.is_initialized():
        sys.exit(code)
    leave_ranks()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # the reader has left
            stream.flush()
    os._exit(code)


def processes_here() -> int:
    """Return the number of the run's processes that share this machine's cores."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def is_lost_peer(error: BaseException) -> bool:
    """Return whether an error means that another process of the run has ended."""
    text = str(error)
    signs = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
    return isinstance(error, RuntimeError) and any(sign in text for sign in signs)


def _device() -> torch.device:
    return torch.device("cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
