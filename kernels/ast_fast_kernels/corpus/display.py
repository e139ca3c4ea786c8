"""How a run comes on, on a terminal or as plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from ast_fast_kernels.console import LINE_INTERVAL
from ast_fast_kernels.corpus.records import ShardRecord
from ast_fast_kernels.corpus.work import Progress


class Display:
    """Counts files and hours of audio, of finished shards and of those at hand, and shows them.

    Args:
        console: Where the display goes; only a terminal gets a bar, others a line now and then.
        num_files: Of the input.
    """

    def __init__(self, console: Console, num_files: int) -> None:
        self.num_files = num_files
        self.files = self.bad = 0
        self.seconds = 0.0
        self._console = console
        self._bars: Bars | None = None
        self._at_hand: dict[int, Progress] = {}
        self._begun = time.monotonic()
        self._next_line = self._begun + LINE_INTERVAL
        self._files_before, self._seconds_before = 0, 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the counts while the block runs; those before it do not count for rates."""
        self._begun = time.monotonic()
        self._next_line = self._begun + LINE_INTERVAL
        self._files_before, self._seconds_before = self.files, self.seconds
        if not self._console.is_terminal:
            yield
            return
        columns = (BarColumn(), TextColumn("{task.description}"))
        with Bars(*columns, console=self._console, transient=True) as self._bars:
            self._bars.add_task(self.text, total=self.num_files, completed=self.files)
            yield
        self._bars = None

    def note(self, progress: Progress) -> None:
        """Take the progress of a shard at hand."""
        self._at_hand[progress.shard] = progress
        self._show()

    def finish(self, record: ShardRecord) -> None:
        """Take a finished shard."""
        self._at_hand.pop(record.shard, None)
        self.files += record.rows + record.bad
        self.bad += record.bad
        self.seconds += record.seconds
        self._show()

    @property
    def speed(self) -> float:
        """Seconds of audio in a second."""
        return (self._seconds_now - self._seconds_before) / self.elapsed

    @property
    def files_per_second(self) -> float:
        """Files in a second."""
        return (self._files_now - self._files_before) / self.elapsed

    @property
    def elapsed(self) -> float:
        """Seconds since it is shown."""
        return max(time.monotonic() - self._begun, 1e-9)

    @property
    def text(self) -> str:
        """Everything on one line."""
        parts = [
            f"{self._files_now:,} of {self.num_files:,} files",
            f"{self._seconds_now / 3600:,.1f} h of audio",
            f"{self.speed:,.0f} × real time",
        ]
        if self.files_per_second > 0:
            left = (self.num_files - self._files_now) / self.files_per_second
            parts.append(f"{clock(left)} left")
        bad = self.bad + sum(shard.bad for shard in self._at_hand.values())
        return ", ".join([*parts, f"{bad:,} bad"])

    @property
    def _files_now(self) -> int:
        return self.files + sum(shard.files for shard in self._at_hand.values())

    @property
    def _seconds_now(self) -> float:
        return self.seconds + sum(shard.seconds for shard in self._at_hand.values())

    def _show(self) -> None:
        if self._bars is not None:
            task = self._bars.task_ids[0]
            self._bars.update(task, completed=self._files_now, description=self.text)
        elif not self._console.is_terminal and time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + LINE_INTERVAL
            self._console.print(self.text, soft_wrap=True)


def clock(seconds: float) -> str:
    """Return a time as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
