import io
import logging

import pytest
from rich.console import Console

from ast_fast.machine import console as progress
from ast_fast.machine.console import show_compilations, show_progress


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
