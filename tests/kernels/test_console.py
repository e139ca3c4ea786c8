import io
import logging
from dataclasses import dataclass

import pytest
from rich.console import Console
from rich.table import Table

from ast_fast_kernels import console as progress
from ast_fast_kernels.console import (
    RunConsole,
    complain,
    fail,
    parse_options,
    show_compilations,
    show_progress,
)
from ast_fast_kernels.errors import InputError


def test_a_file_gets_plain_lines_and_no_control_characters(monkeypatch):
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.0)
    output = io.StringIO()
    with show_progress(Console(file=output), "Decoding audio", 3) as advance:
        for _ in range(3):
            advance(1)
    assert output.getvalue() == "Decoding audio: 1 of 3\nDecoding audio: 2 of 3\n"


def test_lines_come_no_oftener_than_their_interval():
    output = io.StringIO()
    with show_progress(Console(file=output), "Decoding audio", 1000) as advance:
        for _ in range(1000):
            advance(1)
    assert output.getvalue() == ""


@pytest.mark.parametrize(("total", "line"), [(4_000_000, "3.0 MB of 4.0 MB"), (None, "3.0 MB")])
def test_bytes_are_shown_in_megabytes_from_where_a_transfer_goes_on(monkeypatch, total, line):
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.0)
    output = io.StringIO()
    console = Console(file=output)
    with show_progress(console, "Downloading", total, in_bytes=True, done=2_000_000) as advance:
        advance(1_000_000)
    assert output.getvalue() == f"Downloading: {line}\n"


@pytest.mark.parametrize("in_bytes", [False, True], ids=["items", "bytes"])
def test_a_terminal_gets_a_bar_that_is_cleared_away(in_bytes):
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80)
    with show_progress(console, "Decoding audio", 10, in_bytes=in_bytes) as advance:
        advance(10)
    assert "Decoding audio" in output.getvalue()
    assert "\x1b[2K" in output.getvalue()


def test_each_compilation_gets_a_line_before_it():
    output = io.StringIO()
    logger = logging.getLogger("ast_fast_kernels.compile")
    with show_compilations(Console(file=output)):
        logger.info("compiling %s", "the fbank kernel for n_fft 512")
    logger.info("compiling what nobody watches")
    assert output.getvalue() == "compiling the fbank kernel for n_fft 512\n"


def test_each_problem_is_one_line_whatever_it_quotes(capsys):
    error = InputError("a must be b", "x\nerror: forged\x1b[2J", "y" * 10_000)
    assert str(error).startswith("a must be b\nx\n")
    assert fail(*error.problems) == 2
    complain("note", "z\r\u202e")
    first, second, third, fourth = capsys.readouterr().err.splitlines()
    assert first == "error: a must be b"
    assert second == r"error: x\nerror: forged\x1b[2J"
    assert len(third) <= 4000
    assert fourth == r"note: z\r\u202e"


def test_a_run_s_console_escapes_what_it_prints():
    output = io.StringIO()
    console = RunConsole(file=output, soft_wrap=True, force_terminal=True, color_system=None)
    console.print("two\nlines, \x1b[31m[red]\u202e:smile:")
    table = Table("run\x1b[2J")
    table.add_row("[bold]a\x07\x9b")
    console.print(table)
    shown = output.getvalue()
    assert shown.startswith("two\nlines, \\x1b[31m[red]\\u202e:smile:\n")
    assert "run\\x1b[2J" in shown
    assert "[bold]a\\x07\\u009b" in shown
    assert not set(shown) & set("\x1b\x07\x9b\u202e")


@dataclass(frozen=True)
class Options:
    """Options."""

    number: int = 1
    name: str = ""


def test_options_are_parsed_as_they_are_and_shown_escaped(capsys):
    name = "a\x1b[2J\n"
    assert parse_options(Options, "program", ["--name", name]) == Options(name=name)
    for wrong in (["--na\x1b[2J\nerror: forged"], ["--number", "1\x1b]0;\x07"]):
        with pytest.raises(SystemExit) as caught:
            parse_options(Options, "program", wrong)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert not set(error) & set("\x1b\x07")
        assert not [line for line in error.splitlines() if line.startswith("error:")]
