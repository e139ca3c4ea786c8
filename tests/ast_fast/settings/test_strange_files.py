"""Settings files that are no files, endless, huge or hostile: each ends in a few lines, soon."""

from __future__ import annotations

import copy
import os
import random
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from ast_fast.settings.command_line import parse_config
from ast_fast.settings.config import Config
from ast_fast.settings.toml import config_to_toml
from ast_fast_kernels.console import fail
from ast_fast_kernels.errors import InputError

SECONDS = 3.0
"""Of this thread's own time. The usual is a tenth; what was not bounded took minutes."""


def problems(path: Path) -> tuple[str, ...]:
    """Return the problems of a settings file; none if it can be used."""
    started = time.thread_time()
    try:
        parse_config(["--config", str(path)])
    except InputError as error:
        return error.problems
    finally:
        assert time.thread_time() - started < SECONDS
    return ()


def test_what_is_no_regular_file_ends_in_one_line(tmp_path: Path) -> None:
    fifo, huge = tmp_path / "fifo", tmp_path / "huge"
    os.mkfifo(fifo)
    huge.touch()
    os.truncate(huge, 2**40)
    for path, reason in (
        (fifo, "Not a regular file"),
        (Path("/dev/zero"), "Not a regular file"),
        (tmp_path, "Is a directory"),
        (huge, "Larger than 0.25 MiB"),
    ):
        assert problems(path) == (f"--config must be a readable TOML file, got {path}: {reason}",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" * 2**18, "not valid TOML: Expected '=' after a key"),
        ("a." * 100_000 + "a = 1", "line 1 must have at most 32 dots, got 100000"),
        ("\n[" + "a." * 100_000 + "a]", "line 2 must have at most 32 dots, got 100000"),
        (("a" + ".a" * 32 + "\n") * 10, "not valid TOML: Expected '=' after a key"),
        ("a = " + "[" * 200_000, "not valid TOML: nested too deeply"),
        ("a = " + "{a = " * 50_000, "not valid TOML: nested too deeply"),
        ('data = "' + "x" * 250_000 + '"', ""),
        ('seed = "' + "x" * 250_000 + '"', "seed must be an integer, got 'xxxx"),
        ('backend = "' + "numba" * 50_000 + '"', "backend must be one of auto, reference, numba"),
        ("seed = [" + "1," * 100_000 + "]", "seed must be an integer, got 1 1 1 1 1"),
        ("folds = [" + '"a",' * 50_000 + "]", "folds must be an integer, got 'a'"),
        (f'"{"k" * 250_000}" = 1', "unknown key kkkkkk"),
        ('"a\\nerror: b\\u001b[2J" = 1', "unknown key "),
        ('seed = "a\\nerror: b\\u001b[2J"', "seed must be an integer, got 'a\\nerror: b\\x1b[2J'"),
        ("\0", "not valid TOML: Invalid statement"),
        ("[[training]]\nepochs = 1", "training must be a table, got a table of 1 keys"),
        (
            "[training]\nepochs = {a = {b = 1}}",
            "training.epochs must be an integer, got a table of 1 keys",
        ),
        ("seed = 1979-05-27T07:32:00Z", "seed must be an integer, got 1979-05-27 07:32:00+00:00"),
    ],
    ids=range(18),
)
def test_a_hostile_document_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "run.toml"
    path.write_text(text)
    found = problems(path)
    if not message:
        assert found == ()
        return
    assert fail(*found) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path}: {message}")
    assert line.isprintable()
    assert len(line) < 700


def test_of_twenty_thousand_unknown_keys_the_first_are_named(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text("[training]\n" + "".join(f"epoch{n}=1\n" for n in range(20_000)))
    found = problems(path)
    assert found[:2] == (
        f"{path}: unknown key training.epoch0; did you mean training.epochs?",
        f"{path}: unknown key training.epoch1; did you mean training.epochs?",
    )
    assert found[5:] == (f"{path}: and 19995 more unknown keys",)
    path.write_text("".join(f"[a{n}{'.a' * 32}]\n" for n in range(1500)))
    assert problems(path)[5:] == (f"{path}: and 1495 more unknown keys",)


def test_random_changes_of_a_document(tmp_path: Path) -> None:
    """300 documents: each is a configuration, or ends in problems that name the file or a flag."""
    whole = tomllib.loads(config_to_toml(Config()))
    odd: tuple[Any, ...] = (
        *(True, -1, 0, 2**31, 2**70, 0.0, float("nan"), float("inf"), 1e308, "", "x" * 999),
        *("\x1b[2J", "a\nb", "\u202e", "~nobody/x", [], {}, [1], [[]], [{}], {"a": 1}, ["a"] * 99),
    )
    chance = random.Random(0)
    path = tmp_path / "run.toml"
    worked = 0
    for _ in range(300):
        document = copy.deepcopy(whole)
        for _ in range(chance.choice((1, 1, 3))):
            table = chance.choice([t for t in (document, *document.values()) if type(t) is dict])
            name = chance.choice([*table, "preset", "x", "a.b", "\x1b"])
            table[name] = copy.deepcopy(chance.choice(odd))
        path.write_text(tomli_w.dumps(document), encoding="utf-8")
        found = problems(path)
        worked += not found
        for problem in found:
            assert str(path) in problem or problem.startswith(("fbank.", "--"))
    assert 0 < worked < 300
