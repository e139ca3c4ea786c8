"""Console output: one progress display for every long step, errors, a closed output."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any, TypeVar

import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from ast_fast_kernels.errors import InputError
from ast_fast_kernels.files.text import one_line

LINE_INTERVAL = 5.0
"""Seconds between two plain lines."""

Advance = Callable[[int], None]


@contextmanager
def show_compilations(console: Console) -> Iterator[None]:
    """Print a line before and after the compilation of each kernel."""
    logger = logging.getLogger("ast_fast_kernels.compile")
    handler, level = _Lines(console), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Lines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(record.getMessage(), highlight=False, markup=False)


@contextmanager
def show_progress(
    console: Console, label: str, total: int | None, *, in_bytes: bool = False, done: int = 0
) -> Iterator[Advance]:
    """Yield a function that advances the display by a number of items.

    Args:
        console: Where the display goes; only a terminal gets a bar.
        label: What is being done.
        total: Number of items; None if unknown.
        in_bytes: Whether items are bytes, which are shown with unit and speed.
        done: Items done earlier (of a resumed transfer).
    """
    if console.is_terminal:
        counts: list[ProgressColumn] = (
            [DownloadColumn(), TransferSpeedColumn()] if in_bytes else [MofNCompleteColumn()]
        )
        columns = [TextColumn("{task.description}"), BarColumn(), *counts, TimeRemainingColumn()]
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(label, total=total, completed=done)
            yield lambda amount: progress.advance(task, amount)
        return
    count = done
    next_line = time.monotonic() + LINE_INTERVAL

    def advance(amount: int) -> None:
        nonlocal count, next_line
        count += amount
        if time.monotonic() >= next_line and count != total:
            next_line = time.monotonic() + LINE_INTERVAL
            console.print(f"{label}: {_amount(count, total, in_bytes)}", highlight=False)

    yield advance


def _amount(count: int, total: int | None, in_bytes: bool) -> str:
    shown = [f"{n / 1e6:.1f} MB" if in_bytes else str(n) for n in (count, total) if n is not None]
    return " of ".join(shown)


def send_nowhere(stream: IO[str]) -> None:
    """Discard the rest of a stream without a reader, its buffer included, without an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class RunConsole(Console):
    """A console for plain text, whoever wrote it.

    Control characters are escaped, except line breaks. It falls silent once its reader has left
    (`| head`); the run continues.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "highlight": False, "emoji": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return text for the screen, as rich does, without control characters."""
        lines = [one_line(line) for line in text.split("\n")]
        return super().render_str("\n".join(lines), **options)

    def on_broken_pipe(self) -> None:
        """Discard further output, and say so on standard error."""
        self.quiet = True
        send_nowhere(self.file)
        with contextlib.suppress(OSError):
            print("standard output was closed; the run continues without it", file=sys.stderr)


def fail(*problems: str) -> int:
    """Print each problem as one line that begins with `error:`; return exit code 2."""
    for problem in problems:
        complain("error", problem)
    return 2


def complain(kind: str, text: str) -> None:
    """Print one line on standard error: the kind (`error`, `note`), then the text, escaped."""
    print(one_line(f"{kind}: {text}"), file=sys.stderr)


Options = TypeVar("Options")


def parse_options(kind: type[Options], program: str, arguments: Sequence[str]) -> Options:
    """Return a program's options from its arguments, as `tyro.cli` does.

    Arguments that a terminal would not print as they are (names that a shell's `*` found) are
    parsed once escaped, so that an error shows them so.
    """
    escaped = [one_line(argument) for argument in arguments]
    if escaped != list(arguments):
        tyro.cli(kind, prog=program, args=escaped)
    return tyro.cli(kind, prog=program, args=list(arguments))


def check_paths(arguments: Sequence[str], *flags: str) -> None:
    """Raise if an argument, or a flag's value, is an empty path: the current folder to Path.

    Raises:
        InputError: One is.
    """
    if not {"", *(f"{flag}=" for flag in flags)}.isdisjoint(arguments):
        raise InputError("a path must not be empty, got ''")
