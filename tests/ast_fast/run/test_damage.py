"""What is read back from a run is verified: damaged files, edited ones, kills between two writes.

Runs are tiny and everything happens in this process, so hundreds of damages take seconds.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from ast_fast import compare, predict
from ast_fast.cv import main
from ast_fast.report import page
from ast_fast.training import checkpoint
from ast_fast.training.manifest import describe, read_manifest, write_manifest
from ast_fast.training.results import RESULTS
from ast_fast_kernels import _dispatch
from ast_fast_kernels.fbank.reference import fbank_reference
from ast_fast_kernels.files.sealed import CHECKSUM, sealed

RATE = 8000
TINY = [
    *("--audio.clip-seconds", "0.25", "--fbank.sample-frequency", str(RATE)),
    *("--fbank.num-mel-bins", "16", "--features.target-frames", "24"),
    *("--model.embed-dim", "8", "--model.num-heads", "1", "--model.depth", "1"),
    *("--model.patch-size", "8", "8", "--model.patch-stride", "8", "8"),
    *("--training.epochs", "2", "--training.warmup-epochs", "1", "--training.batch-size", "8"),
    *("--threads", "1", "--augment.freq-mask", "2", "--augment.time-mask", "2"),
    *("--training.amp", "off", "--device", "cpu"),
]
REFERENCE = ["--backend", "reference"]


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    """Leave out what takes most of a tiny run's time and nothing here is about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(page, "page_environment", functools.cache(page.page_environment))
        yield


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """Flags of every run here: clips of two classes in two folds."""
    root = tmp_path_factory.mktemp("data")
    (root / "data" / "audio").mkdir(parents=True)
    (root / "data" / "meta").mkdir()
    rng = np.random.default_rng(0)
    lines = ["filename,fold,target,category"]
    for fold in (1, 2):
        for take in range(6):
            name = f"{fold}-{take}.wav"
            soundfile.write(root / "data" / "audio" / name, 0.1 * rng.normal(size=2000), RATE)
            lines.append(f"{name},{fold},{take % 2},class {take % 2}")
    (root / "data" / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    threads = torch.get_num_threads()
    places = ["--data", str(root / "data"), "--cache", str(root / "cache")]
    yield [*places, *TINY]
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def runs(flags: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs of one fold each: of fold 1, of fold 2, and of fold 1 with another seed."""
    root = tmp_path_factory.mktemp("runs")
    for name, given in {
        "one": ["--folds", "1"],
        "two": ["--folds", "2"],
        "seed": ["--folds", "1", "--seed", "1"],
    }.items():
        assert silently(main, [*flags, *REFERENCE, *given, "--out", str(root / name)]) == (0, "")
    return root


def silently(command: Callable[[list[str]], int], argv: list[str]) -> tuple[int, str]:
    """Return a command's exit code and its standard error."""
    errors = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        code = command(argv)
    return code, errors.getvalue()


def resume(runs: Path, at: Path) -> tuple[int, str]:
    return silently(main, ["--resume", "--out", str(at)])


def merge(runs: Path, at: Path) -> tuple[int, str]:
    out = at.parent / "merged"
    found = silently(main, ["--merge", str(at), str(runs / "two"), "--out", str(out)])
    assert found[0] == 0 or not out.exists()
    shutil.rmtree(out, ignore_errors=True)
    return found


def compared(runs: Path, at: Path) -> tuple[int, str]:
    return silently(compare.main, [str(at), str(runs / "one")])


def predicted(runs: Path, at: Path) -> tuple[int, str]:
    clip = next(runs.parent.glob("data*/data/audio/1-0.wav"))
    return silently(predict.main, [str(at / "fold-1" / "model.safetensors"), str(clip)])


FOLD = [f"fold-1/{name}" for name in ("manifest.json", *RESULTS)]
READ = {
    resume: [*FOLD, "fold-1/measured.json", "config.toml", "run.json"],
    merge: [*FOLD, "fold-1/measured.json", "config.toml", "run.json", "report.json"],
    compared: [*FOLD, "fold-1/measured.json", "config.toml", "run.json", "report.json"],
    predicted: ["fold-1/manifest.json", "fold-1/model.safetensors"],
}
"""Each command and the files of a run with one fold that it reads."""

TOLD_BY_VALUE = ("config.toml", "run.json", "report.json", "fold-1/manifest.json")
"""Files whose values are compared, not their bytes: a change of layout is none."""


def flip(place: float, bit: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        at = min(int(place * len(data)), len(data) - 1)
        return data[:at] + bytes([data[at] ^ (1 << bit)]) + data[at + 1 :]

    return change


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    **{f"bit {bit} at {place}": flip(place, bit)
       for place, bit in [(0, 0), (0.2, 1), (0.35, 0), (0.5, 2), (0.65, 4), (0.8, 0), (1, 6)]},
    "half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-2] + data[-1:],
    "empty": lambda data: b"",
    "gone": lambda data: None,
    "longer": lambda data: data + b"x",
    "twice": lambda data: data + data,
    "zeros": lambda data: bytes(len(data)),
    "a digit": lambda data: data.replace(b"1", b"7"),
    "CRLF": lambda data: data.replace(b"\n", b"\r\n") + b"\r\n",
    "lines reversed": lambda data: b"\n".join(reversed(data.split(b"\n"))),
}  # fmt: skip


def values(path: Path) -> Any:
    """What a JSON or TOML file holds; None if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    return None


@pytest.mark.parametrize("command", READ)
def test_every_damage_to_a_file_that_is_read_is_named(
    command: Callable[[Path, Path], tuple[int, str]], runs: Path, tmp_path: Path
) -> None:
    at, problems = tmp_path / "run", []
    shutil.copytree(runs / "one", at)
    for name in READ[command]:
        path = at / name
        whole, expected = path.read_bytes(), values(path)
        others = {f"of {run}": (runs / run / name.replace("1", str(fold))).read_bytes()
                  for run, fold in (("two", 2), ("seed", 1))
                  if (runs / run / name.replace("1", str(fold))).exists()}  # fmt: skip
        damaged = {what: damage(whole) for what, damage in DAMAGES.items()} | others
        for what, data in damaged.items():
            if data == whole or (command, name, what) in FINE_WITHOUT:
                continue
            path.unlink() if data is None else path.write_bytes(data)
            is_same = name in TOLD_BY_VALUE and data is not None and values(path) == expected
            code, errors = command(runs, at)
            lines = errors.splitlines()
            is_told = code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
            if not (is_told and Path(name).name in lines[0]) and not (is_same and code == 0):
                problems.append((name, what, code, errors))
            if not path.exists() or path.read_bytes() != whole:
                path.write_bytes(whole)
    assert command(runs, at)[0] == 0
    assert not problems, "\n".join(map(str, problems))


FINE_WITHOUT = {
    (resume, "fold-1/measured.json", "gone"),  # it is measured again
    (predicted, "fold-1/manifest.json", "gone"),  # the model has a checksum of its own
    (compared, "run.json", "gone"),  # report.json has what is compared
    (compared, "config.toml", "gone"),
}


def edited(path: Path, change: Callable[[list[list[str]]], None]) -> None:
    """Change a fold's predictions, and its manifest along."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file))
    change(rows)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    write_manifest(path.parent, describe(path.parent, (*RESULTS, "measured.json")))


def to_other_class(rows: list[list[str]]) -> None:
    """Give a clip the other class's probability, in each column that has it."""
    row = rows[1]
    row[3] = str(1 - int(row[3]))
    row[4:] = row[:3:-1]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda rows: rows[2].__setitem__(4, "nan"), "line 3 must have probabilities between 0"),
        (lambda rows: rows[2].__setitem__(4, "-inf"), "line 3 must have probabilities between 0"),
        (lambda rows: rows[3].__setitem__(5, "1.5"), "line 4 must have probabilities between 0"),
        (lambda rows: rows[1].__setitem__(4, "0.1"), "line 2 must have probabilities whose sum"),
        (lambda rows: rows[1].__setitem__(3, "7"), "line 2 must have fold, target and predicted"),
        (lambda rows: rows[1].__setitem__(1, "2"), "line 2 must have fold, target and predicted"),
        (lambda rows: rows[1].__setitem__(2, "1"), "line 2 must have fold, target and predicted"),
        (to_other_class, "must give the accuracy that model.safetensors records"),
        (lambda rows: rows.append(rows[-1]), "must hold one line for each of the 6 clips"),
        (lambda rows: rows.insert(1, rows.pop()), "must hold one line for each of the 6 clips"),
        (lambda rows: rows[1].pop(), "cannot be read"),
        (lambda rows: rows[1].append("0"), "cannot be read"),
        (lambda rows: rows[1].__setitem__(4, "x"), "cannot be read"),
        (lambda rows: rows.clear(), "must hold one line for each of the 6 clips"),
    ],
    ids=[
        *("nan", "infinite", "above-one", "sum", "predicted", "fold", "target", "accuracy"),
        *("twice", "order", "short", "long", "text", "nothing"),
    ],
)
def test_predictions_edited_with_their_manifest_give_no_report(
    change: Callable[[list[list[str]]], None], problem: str, runs: Path, tmp_path: Path
) -> None:
    at = tmp_path / "run"
    shutil.copytree(runs / "one", at)
    edited(at / "fold-1" / "predictions.csv", change)
    report = (at / "report.json").read_bytes()
    code, errors = resume(runs, at)
    assert code == 2
    (line,) = errors.splitlines()
    assert str(at / "fold-1" / "predictions.csv") in line
    assert problem in line
    assert line.endswith(f"remove {at / 'fold-1'} to train the fold again")
    assert (at / "report.json").read_bytes() == report


def test_settings_may_be_laid_out_anew_but_not_cut(runs: Path, tmp_path: Path) -> None:
    at = tmp_path / "run"
    shutil.copytree(runs / "one", at)
    path = at / "config.toml"
    text = path.read_text()
    head, training, rest = text.partition("[training]")
    path.write_text(f"# mine\n{head}\n\n{training} # as before{rest}")
    for command in (resume, merge, compared):
        assert command(runs, at) == (0, "")
    for cut in (head, text.replace("epochs = 2", "epochs = 3"), ""):
        path.write_text(cut)
        for command in (resume, merge, compared):
            code, errors = command(runs, at)
            assert (code, errors) == (
                2,
                f"error: {path} must hold the settings that the run began with, and was cut or "
                "changed (run.json has their SHA-256); restore it, or start a new run with "
                "another --out\n",
            )


def test_new_seeds_do_not_begin_with_settings_that_were_cut(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "one", tmp_path / "seed-0")
    path = tmp_path / "seed-0" / "config.toml"
    path.write_text(path.read_text().partition("[training]")[0])
    code, errors = silently(main, ["--seeds", "0", "1", "--resume", "--out", str(tmp_path)])
    assert code == 2
    assert errors.startswith(f"error: {path} must hold the settings that the run began with")
    assert not (tmp_path / "seed-1").exists()


def as_by_an_earlier_version(at: Path) -> None:
    """Take from a run what version 0.2.0 did not write."""
    for name in ("run.json", "report.json"):
        document = json.loads((at / name).read_text())
        del document[CHECKSUM]
        del (document if name == "run.json" else document["run"])["settings_sha256"]
        (at / name).write_text(json.dumps(document))
    for folder in at.glob("fold-*"):
        (folder / "manifest.json").unlink()
        tensors, facts = checkpoint.load(folder / "model.safetensors")
        del facts["beside"]
        checkpoint.save(folder / "model.safetensors", tensors, facts)


def test_a_run_of_an_earlier_version_is_read_as_before(runs: Path, tmp_path: Path) -> None:
    at, merged = tmp_path / "run", tmp_path / "all"
    shutil.copytree(runs / "one", at)
    as_by_an_earlier_version(at)
    for command in (resume, merge, compared, predicted):
        assert command(runs, at) == (0, "")
    assert not (at / "fold-1" / "manifest.json").exists()
    (at / "fold-1" / "measured.json").write_text("{")
    assert merge(runs, at)[0] == 2
    assert resume(runs, at) == (0, "")  # it is measured again
    given = ["--merge", str(at), str(runs / "two"), "--out", str(merged)]
    assert silently(main, given) == (0, "")
    assert (merged / "fold-1" / "manifest.json").exists()  # a merged run is of this version
    assert resume(runs, merged) == (0, "")
    (merged / "fold-1" / "manifest.json").unlink()
    assert compared(runs, merged)[0] == 2


def test_a_record_of_report_and_facts_alone_is_compared(runs: Path, tmp_path: Path) -> None:
    for name in ("report.json", "run.json"):
        shutil.copyfile(runs / "one" / name, tmp_path / name)
    assert compared(runs, tmp_path) == (0, "")


def test_a_report_may_not_contradict_its_predictions(runs: Path, tmp_path: Path) -> None:
    at = tmp_path / "run"
    shutil.copytree(runs / "one", at)
    report = json.loads((at / "report.json").read_text())
    report["accuracy"]["per_fold"]["1"] = 1.0
    (at / "report.json").write_text(json.dumps(sealed(report)))
    path = at / "fold-1" / "predictions.csv"
    for command in (merge, compared):
        code, errors = command(runs, at)
        assert code == 2
        assert errors.startswith(f"error: {path} must give the accuracy in report.json, 1, got ")
    assert resume(runs, at) == (0, "")
    assert compared(runs, at) == (0, "")


@pytest.mark.parametrize("value", ["NaN", "-1", "2", '"x"', "null"])
def test_a_report_with_an_impossible_accuracy_is_refused(
    value: str, runs: Path, tmp_path: Path
) -> None:
    """Of an earlier version, which had no checksum."""
    report = {
        "accuracy": {"per_fold": {"1": 0.5}},
        "data": {"key": "k"},
        "timing": {"total_seconds": 1.0},
        "config": {},
    }
    (tmp_path / "report.json").write_text(json.dumps(report).replace("0.5", value))
    code, errors = compared(runs, tmp_path)
    assert code == 2
    assert errors.startswith(f"error: {tmp_path / 'report.json'} must be a run's report")


ODD = [None, "x", [], [1], {"a": 1}, 10**400]


def put(path: Path, keys: str, value: Any) -> None:
    """Replace a value of a JSON document, and seal it again."""
    document = json.loads(path.read_text())
    *tables, last = keys.split(".")
    functools.reduce(lambda inner, key: inner[key], tables, document)[last] = value
    path.write_text(json.dumps(sealed(document)))


@pytest.mark.parametrize(
    "keys",
    [
        *("accuracy", "accuracy.per_fold", "accuracy.per_fold.1", "data", "config", "run"),
        *("timing", "timing.total_seconds"),
    ],
)
def test_a_report_of_other_types_is_refused(keys: str, runs: Path, tmp_path: Path) -> None:
    at = tmp_path / "run"
    shutil.copytree(runs / "one", at)
    whole = (at / "report.json").read_bytes()
    for value in ODD if "." in keys else ODD[:-2]:  # a table without what is looked for has its own
        put(at / "report.json", keys, value)
        for command in (merge, compared):
            code, errors = command(runs, at)
            assert code == 2, value
            (line,) = errors.splitlines()
            assert line.startswith(f"error: {at / 'report.json'} must be a run's report"), value
        (at / "report.json").write_bytes(whole)


@pytest.mark.parametrize(
    "keys",
    [
        *("seconds", "stages", "stages.forward", "kernels", "kernels.fbank"),
        *("kernels.fbank.backend", "kernels.fbank.shape", "kernels.attention.forward_backward"),
        *("kernels.fbank.judged", "kernels.fbank.speed_ratio", "kernels.fbank.max_abs_error"),
    ],
)
def test_measurements_of_other_types_are_refused(keys: str, runs: Path, tmp_path: Path) -> None:
    at = tmp_path / "run"
    shutil.copytree(runs / "one", at)
    path = at / "fold-1" / "measured.json"
    whole = path.read_bytes()
    may_be = {"kernels.fbank.shape": list, "kernels.fbank.backend": str}
    numbers = {"kernels.fbank.speed_ratio", "kernels.fbank.max_abs_error"}
    nothing = {*numbers, "kernels.fbank.judged", "kernels.attention.forward_backward"}
    for value in [*ODD, [{"measure": "error", "value": "x", "bound": 1}]]:
        if isinstance(value, may_be.get(keys, ())) and value != {"a": 1}:
            continue
        if (keys in nothing and value is None) or (keys in numbers and isinstance(value, int)):
            continue
        if (keys, value) in (("kernels.fbank.judged", []), ("stages", {"a": 1})):
            continue
        path.write_bytes(whole)
        put(path, keys, value)
        write_manifest(path.parent, describe(path.parent, (*RESULTS, path.name)))
        for command in (resume, merge):
            code, errors = command(runs, at)
            assert code == 2, value
            (line,) = errors.splitlines()
            assert line.startswith(f"error: {path} must hold a fold's times and kernels"), value


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("run", [None, [], "x"]),
        ("history", [None, [{}], [1], {"a": 1}]),
        ("stages", [None, [], {"elapsed": 0.0}, {"elapsed": "x", "seconds": {}}]),
        ("loss", [None, "x"]),
        ("accuracy", [None, "x"]),
    ],
)
def test_a_result_without_its_facts_is_refused(
    key: str, values: list[Any], runs: Path, tmp_path: Path
) -> None:
    at = tmp_path / "run"
    shutil.copytree(runs / "one", at)
    path = at / "fold-1" / "model.safetensors"
    tensors, facts = checkpoint.load(path)
    for value in values:
        checkpoint.save(path, tensors, facts | {key: value})
        write_manifest(path.parent, describe(path.parent, (*RESULTS, "measured.json")))
        for command in (resume, merge):
            code, errors = command(runs, at)
            assert (code, len(errors.splitlines())) == (2, 1)
            assert errors.startswith(f"error: {path} must hold the whole result of its fold")


def test_a_listed_file_that_is_a_pipe_is_not_waited_for(runs: Path, tmp_path: Path) -> None:
    at = tmp_path / "run"
    shutil.copytree(runs / "one", at)
    files = read_manifest(at / "fold-1")
    assert files is not None
    write_manifest(at / "fold-1", files | {"history.csv": files["history.csv"] | {"bytes": 0}})
    path = at / "fold-1" / "history.csv"
    path.unlink()
    os.mkfifo(path)
    for command in (resume, merge, compared):
        code, errors = command(runs, at)
        assert (code, len(errors.splitlines())) == (2, 1)
        assert errors.startswith(f"error: {path} cannot be read: Not a regular file")


class Killed(BaseException):
    """Stands in for SIGKILL: nothing is cleaned up after it."""


@contextlib.contextmanager
def killed_at(write: int) -> Iterator[list[Path]]:
    """Kill the block before the write of that number gets its name; yield the names so far.

    So the write before it was the last that was whole.
    """
    written: list[Path] = []

    def killing(rename: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        def run(source: Any, target: Any) -> Any:
            written.append(Path(target))
            if len(written) == write:
                raise Killed
            return rename(source, target)

        return run

    def stays(*given: Any, **named: Any) -> None:
        if len(written) < write:
            unlink(*given, **named)

    unlink = Path.unlink
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", killing(os.replace))
        patch.setattr(Path, "rename", killing(Path.rename))
        patch.setattr(Path, "unlink", stays)
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        with contextlib.suppress(Killed):
            yield written


def litter(at: Path) -> list[Path]:
    return [path for path in at.rglob("*") if ".partial" in path.name]


def test_a_run_killed_at_any_write_is_resumed_to_the_same_bits(
    flags: list[str], runs: Path, tmp_path: Path
) -> None:
    expected = load_file(runs / "one" / "fold-1" / "model.safetensors")
    predictions = (runs / "one" / "fold-1" / "predictions.csv").read_bytes()
    new = [*flags, *REFERENCE, "--folds", "1"]
    written: list[Path] = []
    write = had_litter = 0
    while len(written) >= write:  # to the one that nothing killed
        write += 1
        at = tmp_path / str(write)
        with killed_at(write) as written:
            silently(main, [*new, "--out", str(at)])
        had_litter += bool(litter(at))
        begun = (at / "config.toml").exists()
        again = ["--resume", "--out", str(at)] if begun else [*new, "--out", str(at)]
        assert silently(main, again) == (0, ""), written
        assert not litter(at)
        assert (at / "fold-1" / "predictions.csv").read_bytes() == predictions
        weights = load_file(at / "fold-1" / "model.safetensors")
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        assert not (at / "fold-1" / "checkpoint.safetensors").exists()
        assert compared(runs, at) == (0, "")
    last = [path.name for path in written]
    assert last[-6:] == [
        *("manifest.json", "measured.json", "manifest.json"),
        *("run.json", "report.json", "report.html"),
    ]
    assert had_litter == len(last) == write - 1


def test_a_merge_killed_at_any_write_can_be_made_again(runs: Path, tmp_path: Path) -> None:
    written: list[Path] = []
    write = 0
    while len(written) >= write:
        write += 1
        at = tmp_path / str(write)
        command = ["--merge", str(runs / "one"), str(runs / "two"), "--out", str(at)]
        with killed_at(write) as written:
            silently(main, command)
        if len(written) >= write:
            assert litter(at)
            assert silently(main, command) == (0, ""), written
            assert not litter(at)
    assert written[-1].name == "config.toml"
    assert litter(at)  # the folder that is empty now
    assert resume(runs, at) == (0, "")
    assert not litter(at)


def test_a_folder_of_someone_else_is_not_cleared(runs: Path, tmp_path: Path) -> None:
    """Only beside what a killed merge left may folds and reports go."""
    (tmp_path / "fold-1").mkdir()
    command = ["--merge", str(runs / "one"), str(runs / "two"), "--out", str(tmp_path)]
    message = f"error: --out must be a new or empty folder, got {tmp_path}, which holds other files"
    assert silently(main, command) == (2, f"{message}\n")
    (tmp_path / ".0123abcd.partial").mkdir()
    (tmp_path / "notes.txt").touch()
    assert silently(main, command) == (2, f"{message}\n")
    assert (tmp_path / "fold-1").is_dir()


def test_what_killed_processes_left_goes_with_the_next_run(
    flags: list[str], runs: Path, tmp_path: Path
) -> None:
    seeds, maps = tmp_path / "seeds", tmp_path / "maps"
    shutil.copytree(runs / "one", seeds / "seed-0")
    maps.mkdir()
    left = [
        *(seeds / ".seeds.0123abcd.partial.json", seeds / "seed-0" / ".run.0123abcd.partial.json"),
        seeds / "seed-0" / "fold-1" / ".model.0123abcd.partial.safetensors",
        maps / ".1-0.0123abcd.partial.png",
    ]
    mine = [seeds / ".notes.partial.json", maps / "partial.png"]
    for path in [*left, *mine]:
        path.touch()
    assert silently(main, ["--seeds", "0", "--resume", "--out", str(seeds)]) == (0, "")
    clip = next(runs.parent.glob("data*/data/audio/1-0.wav"))
    model = seeds / "seed-0" / "fold-1" / "model.safetensors"
    given = [str(model), str(clip), "--explain", str(maps)]
    assert silently(predict.main, given) == (0, "")
    assert not [path for path in left if path.exists()]
    assert all(path.exists() for path in mine)
    assert sorted(path.name for path in maps.iterdir()) == ["1-0.png", "partial.png"]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Plants a filterbank for the one by numba; whatever else is by numba runs its reference."""
    load = _dispatch.load_backend

    def plant(function: object) -> None:
        def load_or_replace(operation: str, backend: str) -> object:
            if (operation, backend) == ("fbank", "numba"):
                return function
            return load(operation, "reference" if backend == "numba" else backend)

        monkeypatch.setattr(_dispatch, "load_backend", load_or_replace)

    return plant


def test_a_wrong_kernel_ends_the_run_after_its_fold(
    planted: Callable[..., None], flags: list[str], runs: Path, tmp_path: Path
) -> None:
    def wrong(*given: Any) -> torch.Tensor:
        return fbank_reference(*given) + 0.5

    planted(wrong)
    at = tmp_path / "run"
    given = ["--backend", "auto", "--out", str(at)]
    code, errors = silently(main, [*flags, *given])
    assert code == 2
    assert errors == (
        "error: fold 1: fbank by numba is further from the reference than rounding explains: "
        f"largest log-mel error 0.5, bound 0.0003; remove {at / 'fold-1'} to train the fold "
        "again, or start a new run with --backend reference\n"
    )
    assert not (at / "fold-2").exists()
    assert not (at / "report.json").exists()
    files = sorted(path.name for path in (at / "fold-1").iterdir())
    assert files == [
        *("history.csv", "manifest.json", "measured.json"),
        *("model.safetensors", "predictions.csv"),
    ]
    planted(fbank_reference)
    assert resume(runs, at) == (2, errors)  # it was trained with the wrong one
    shutil.rmtree(at / "fold-1")
    assert resume(runs, at) == (0, "")


def test_a_kernel_that_gives_nan_in_the_comparison_alone_ends_the_run(
    planted: Callable[..., None],
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check(config: Any, *given: Any) -> Any:
        planted(lambda *given: fbank_reference(*given) * torch.nan)
        return check_fbank(config, *given)

    from ast_fast.report import kernel_check

    check_fbank = kernel_check.check_fbank
    monkeypatch.setattr(kernel_check, "check_fbank", check)
    planted(fbank_reference)
    at = tmp_path / "run"
    given = ["--backend", "auto", "--folds", "2", "--out", str(at)]
    code, errors = silently(main, [*flags, *given])
    assert code == 2
    assert "fold 2: fbank by numba is further" in errors
    assert "largest log-mel error nan, bound 0.0003; " in errors
    assert len(errors.splitlines()) == 1


def test_a_checkpoint_damaged_in_mid_fold_is_named(flags: list[str], tmp_path: Path) -> None:
    at = tmp_path / "run"
    with killed_at(6):  # after the second epoch's checkpoint
        silently(main, [*flags, *REFERENCE, "--folds", "1", "--out", str(at)])
    path = at / "fold-1" / "checkpoint.safetensors"
    whole = path.read_bytes()
    other = tmp_path / "other"
    with killed_at(6):
        silently(main, [*flags, *REFERENCE, "--folds", "2", "--out", str(other)])
    damaged = {what: damage(whole) for what, damage in DAMAGES.items() if what != "gone"}
    damaged |= {f"bit at {at}": flip(at, 3)(whole) for at in np.linspace(0.1, 0.9, 9)}
    damaged["of fold 2"] = (other / "fold-2" / "checkpoint.safetensors").read_bytes()
    problems = []
    for what, data in damaged.items():
        if data == whole or data is None:
            continue
        path.write_bytes(data)
        code, errors = silently(main, ["--resume", "--out", str(at)])
        (line,) = errors.splitlines()
        if code != 2 or not line.startswith(f"error: {path} "):
            problems.append((what, code, line))
    assert not problems
    path.write_bytes(whole)
    assert silently(main, ["--resume", "--out", str(at)]) == (0, "")
