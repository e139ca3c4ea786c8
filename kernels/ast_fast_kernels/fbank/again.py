"""Calls like a thread's last one: its checks have passed, and its task lies in memory.

Checks and layout take several times as long as the kernel for a frame, and depend only on what is
compared here. So a call like the last one writes two addresses, and runs the same task.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from ast_fast_kernels import _dispatch
from ast_fast_kernels.fbank.config import FbankConfig


class Task(Protocol):
    """A batch of contiguous clips, laid out for the kernel."""

    keys: npt.NDArray[np.int64] | None
    """Where each clip's key for dither is written beforehand, (batch, 2); None without dither."""
    normalises: bool  # after the kernel, which `fill` does not

    def run(self, samples_at: int) -> npt.NDArray[np.float32]:
        """Return the energies of samples at an address, (batch, num_frames, num_mel_bins)."""

    def fill(self, samples_at: int, out_at: int) -> None:
        """Write them to an address."""

    def overlaps(self, samples_at: int, out_at: int) -> bool:
        """Say whether samples and energies at two addresses share memory."""

    def still_fits(self) -> bool:
        """Say whether it would be laid out in the same way now."""


class Latest(NamedTuple):
    """What a thread's last run had: a batch of contiguous clips, too few for a whole team."""

    config: FbankConfig
    dtype: object  # numpy's or torch's
    shape: tuple[int, ...]  # (batch, num_samples)
    task: Task


@dataclass(slots=True)
class Passed:
    """A call without lengths that passed every check."""

    config: FbankConfig
    requested: str  # the backend that was asked for
    dtype: object
    shape: tuple[int, ...]
    result: tuple[int, ...]  # its shape
    task: Task


class _OfThread(threading.local):
    latest: Latest | None = None
    passed: Passed | None = None


of_thread = _OfThread()


def note(config: FbankConfig, requested: str, dtype: object, shape: tuple[int, ...]) -> None:
    """Take down a call, without lengths, that Numba has just run.

    Not if its run is not the thread's last one, as after a signal handler that calls meanwhile.
    """
    latest = of_thread.latest
    rows = shape if len(shape) == 2 else (1, *shape)
    if (
        latest is not None
        and latest.config is config
        and latest.dtype is dtype
        and latest.shape == rows
    ):
        result = (*shape[:-1], config.num_frames(shape[-1]), config.num_mel_bins)
        of_thread.passed = Passed(config, requested, dtype, shape, result, latest.task)


def take(config: FbankConfig, backend: str, dtype: object, shape: tuple[int, ...]) -> Passed | None:
    """Return the thread's last call if this one is like it.

    The thread gives it up until its caller has used it and puts it back, by `of_thread.passed`: so
    a signal handler that calls meanwhile lays out a task of its own.
    """
    last = of_thread.passed
    if (
        last is None
        or last.config is not config
        or last.dtype is not dtype
        or last.shape != shape
        or last.requested != _dispatch.requested_backend("fbank", backend)
        or not last.task.still_fits()
    ):
        return None
    of_thread.passed = None
    return last
