"""Text from outside: shown on one line, kept in a csv cell, read within bounds."""

import csv
import errno
import io
import os
import random
import time
import unicodedata

import pytest

from ast_fast_kernels.files.text import (
    LONGEST_NAME,
    from_cell,
    is_visible,
    one_line,
    one_name,
    open_document,
    read_document,
    to_cell,
)

SHOWN = {
    "plain": ("a plain näme, 音 😀", "a plain näme, 音 😀"),
    "spaces": ("a\u00a0b\u202fc\u3000d", "a\u00a0b\u202fc\u3000d"),
    "line-breaks": ("a\nb\r\nc\x0bd\x0ce", r"a\nb\r\nc\x0bd\x0ce"),
    "other-line-breaks": ("a\x85b\u2028c\u2029d", r"a\u0085b\u2028c\u2029d"),
    "clears-the-screen": ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
    "c1": ("\x9b31m", r"\u009b31m"),
    "deletes": ("a\bb\x7f\tc\0", r"a\x08b\x7f\tc\x00"),
    "direction": ("\u202egnp.exe\u2066x\u2069\u200f", r"\u202egnp.exe\u2066x\u2069\u200f"),
    "no-width": ("a\u200bb\u200dc\ufeffd\u00ade", r"a\u200bb\u200dc\ufeffd\u00ade"),
    "blank-letters": ("a\u3164b\u115fc", r"a\u3164b\u115fc"),
    "tags": ("a\U000e0041b", r"a\U000e0041b"),
    "not-utf-8": (os.fsdecode(b"low-\xff\x80.wav"), r"low-\xff\x80.wav"),
    "half-a-surrogate": ("a\ud800b", r"a\ud800b"),
    "backslash": (r"C:\new", r"C:\new"),
}


@pytest.mark.parametrize("name", SHOWN)
def test_what_a_terminal_would_run_or_hide_is_spelled(name):
    text, shown = SHOWN[name]
    assert one_line(text) == shown
    assert one_line(shown) == shown


def test_long_text_loses_its_middle():
    assert one_name("a" * 99 + "b" * 10**6 + "c" * 99) == "a" * 99 + "…" + "c" * 99
    assert len(one_name("\x1b" * 10**6)) <= LONGEST_NAME
    assert one_name("x" * LONGEST_NAME) == "x" * LONGEST_NAME
    assert one_line("\n\n\n\n\n", 7) == r"\n…\n"


def random_text(chance, longest):
    odd = "\n\r\t\x1b\x07\x9b\u202e\u2067\u200b\ud800\udcff\u3164'=+-@ abÄ音😀\"',;"
    return "".join(
        chance.choice(odd) if chance.random() < 0.7 else chr(chance.randrange(0x110000))
        for _ in range(chance.randrange(longest))
    )


def test_random_text_is_one_line_that_prints_as_it_is():
    """2,000 texts of all of Unicode."""
    chance = random.Random(0)
    for _ in range(2000):
        text = random_text(chance, 60)
        longest = chance.choice((5, 20, 40, 4000))
        shown = one_line(text, longest)
        assert len(shown) <= longest
        assert len(shown.splitlines()) <= 1
        assert all(map(is_visible, shown))
        assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
        shown.encode()


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "  =1", "＝1", "'=1", "''", "'"],
)
def test_a_formula_is_quoted_in_a_cell_and_comes_back(text):
    assert to_cell(text) == f"'{text}"
    assert from_cell(to_cell(text)) == text


@pytest.mark.parametrize("text", ["dog.wav", "1-100032-A-0.wav", "a=b", "it's", "", " x"])
def test_a_plain_name_is_its_own_cell(text):
    assert to_cell(text) == text == from_cell(text)


def test_random_cells_come_back_through_a_csv_file():
    """1,000 cells."""
    chance = random.Random(1)
    texts = [random_text(chance, 8) for _ in range(1000)]
    file = io.StringIO(newline="")
    csv.writer(file).writerows([to_cell(text)] for text in texts)
    file.seek(0)
    cells = [row[0] if row else "" for row in csv.reader(file)]
    assert [from_cell(cell) for cell in cells] == texts
    assert not [cell for cell in cells if cell.lstrip()[:1] in tuple("=+-@")]


def test_a_document_is_a_regular_file_of_bounded_size(tmp_path):
    path = tmp_path / "document"
    path.write_bytes("näme\r\n".encode())
    assert read_document(path) == "näme\r\n"
    assert read_document(path, 7) == "näme\r\n"
    with pytest.raises(OSError, match="Larger than") as caught:
        read_document(path, 6)
    assert caught.value.errno == errno.EFBIG
    path.write_bytes(b"\xff")
    with pytest.raises(UnicodeDecodeError):
        read_document(path)
    os.truncate(path, 2**40)  # sparse: it takes no room
    with pytest.raises(OSError, match="Larger than 256 MiB"):
        read_document(path)


def test_pipes_devices_and_folders_are_never_waited_for(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    started = time.monotonic()
    for path, reason in (
        (fifo, "Not a regular file"),
        (tmp_path, "Is a directory"),
        ("/dev/zero", "Not a regular file"),
        ("/dev/null", "Not a regular file"),
        (tmp_path / "none", "No such file or directory"),
    ):
        with pytest.raises(OSError, match=reason):
            open_document(path)
    assert time.monotonic() - started < 1
